"""The weights probe finds exactly the change that was planted, in checkpoints, shards, experts and adapters."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tenet.errors import DataError, SettingsError
from tenet.pages import document, page
from trainers.probes import _weights_page
from trainers.probes._checkpoint import Stage, open_stage
from trainers.probes._names import class_of, layer_of
from trainers.probes.weights import Settings, compare

ROOT = Path(__file__).parent.parent
Q = "layers.0.self_attn.q_proj.weight"


def save(folder: Path, weights: dict[str, torch.Tensor], **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    about = {"model_type": "toy", "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 50, **config}
    (folder / "config.json").write_text(json.dumps(about))
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "model.safetensors")
    return folder


def toy(seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    made = {"model.embed_tokens.weight": torch.randn(50, 32, generator=draw), "model.norm.weight": torch.ones(32)}
    for i in range(2):
        made[f"model.layers.{i}.self_attn.q_proj.weight"] = torch.randn(48, 32, generator=draw)
        made[f"model.layers.{i}.mlp.down_proj.weight"] = torch.randn(32, 64, generator=draw)
        made[f"model.layers.{i}.input_layernorm.weight"] = torch.ones(32)
    return made


def step(folder: Path, change: Callable[[dict[str, torch.Tensor]], None], settings: Settings | None = None) -> Any:
    """The one step's figures between a toy and a changed copy of it."""
    before, after = toy(), toy()
    change(after)
    stages = [open_stage(str(save(folder / n, w))) for n, w in (("a", before), ("b", after))]
    return compare(stages, settings or Settings())["steps"][0]


def test_a_planted_rank_one_change_is_all_that_is_found(tmp_path: Path) -> None:
    u, v = torch.randn(48), torch.randn(32)

    def plant(w: dict[str, torch.Tensor]) -> None:
        w["model." + Q] += 2 * torch.outer(u, v)

    found = step(tmp_path, plant)
    changed = [n for n, m in found["matrices"].items() if m["moved"]]
    assert changed == [Q]
    m = found["matrices"][Q]
    before = toy()["model." + Q]
    assert m["relative"] == pytest.approx(float(2 * torch.outer(u, v).norm() / before.norm()), rel=1e-5)
    assert m["spectra"]["effective_rank"] == pytest.approx(1, abs=0.01)
    assert m["spectra"]["stable_rank"] == pytest.approx(1, abs=1e-6)
    assert m["spectra"]["intruders"] == 1, "its direction is none of the old ones"
    assert (m["class"], m["layer"]) == ("attention", 0)
    assert found["classes"]["mlp"]["relative"] == 0
    assert found["layers"]["1"]["moved"] == 0
    other = found["matrices"]["layers.1.self_attn.q_proj.weight"]
    assert (other["spectra"], other["why"]) == (None, "nothing changed")


def test_a_scaled_matrix_moves_without_turning(tmp_path: Path) -> None:
    def scale(w: dict[str, torch.Tensor]) -> None:
        w["model." + Q] *= 1.1

    s = step(tmp_path, scale)["matrices"][Q]["spectra"]
    assert s["rotation"] == pytest.approx(1, abs=1e-4)
    assert s["in_top"] == pytest.approx(1, abs=1e-4), "the change lies in the old top directions"
    assert s["drift"] == pytest.approx(0.1, abs=1e-4)
    assert s["intruders"] == 0
    assert s["lowest_cosine"] > 0.99


def test_spectra_are_those_of_a_full_decomposition(tmp_path: Path) -> None:
    noise = torch.randn(48, 32, generator=torch.Generator().manual_seed(3))

    def plant(w: dict[str, torch.Tensor]) -> None:
        w["model." + Q] += noise

    s = step(tmp_path, plant)["matrices"][Q]["spectra"]
    before = toy()["model." + Q].double()
    after = (toy()["model." + Q] + noise).double()
    values = torch.linalg.svdvals(after - before)
    p = values / values.sum()
    assert s["effective_rank"] == pytest.approx(float(torch.exp(-(p * p.log()).sum())), rel=1e-6)
    old, new = torch.linalg.svd(before)[2], torch.linalg.svd(after)[2]
    cosines = (old @ new[:10].T).abs().amax(dim=0)
    assert s["lowest_cosine"] == pytest.approx(float(cosines.min()), rel=1e-6)
    assert s["intruders"] == int((cosines < 0.5).sum())


def test_a_change_below_bf16_rounding_shows_in_float32_only(tmp_path: Path) -> None:
    def nudge(w: dict[str, torch.Tensor]) -> None:
        w["model." + Q] = w["model." + Q].bfloat16().float() * (1 + 1e-4)

    before, after = toy(), toy()
    before["model." + Q] = before["model." + Q].bfloat16().float()
    nudge(after)
    stages = [open_stage(str(save(tmp_path / n, w))) for n, w in (("a", before), ("b", after))]
    m = compare(stages, Settings())["steps"][0]["matrices"][Q]
    assert m["moved"] == 1
    assert m["relative"] == pytest.approx(1e-4, rel=1e-2)
    assert m["moved_bf16"] == 0
    assert m["relative_bf16"] == 0


def test_angles_between_steps(tmp_path: Path) -> None:
    a, b, c, d = toy(), toy(), toy(), toy()
    b["model." + Q][0] += 1
    c["model." + Q][0] += 1
    c["model." + Q][1] += 1
    d["model." + Q][0] += 3
    stages = [open_stage(str(save(tmp_path / n, w))) for n, w in zip("abcd", (a, b, c, d), strict=True)]
    chain = compare(stages[:3], Settings())["between"][0]
    assert chain["total"]["degrees"] == pytest.approx(90, abs=1e-3), "the second step moved another row"
    assert chain["total"]["support"]["of_first"] == 0
    assert chain["layers"]["1"]["degrees"] is None
    assert "changed nothing" in chain["layers"]["1"]["why"]
    branches = compare([stages[0], stages[1], stages[3]], Settings(branches=True))["between"][0]
    assert branches["total"]["cosine"] == pytest.approx(1, abs=1e-6), "one way, another length"
    assert branches["total"]["support"]["of_first"] == 1


def test_shards_read_like_one_file(tmp_path: Path) -> None:
    whole, parts = save(tmp_path / "whole", toy()), save(tmp_path / "parts", toy())
    weights = load_file(parts / "model.safetensors")
    (parts / "model.safetensors").unlink()
    files: dict[str, str] = {}
    for i, name in enumerate(weights):
        file = f"model-{i % 2 + 1:05}-of-00002.safetensors"
        files[name] = file
    for file in set(files.values()):
        save_file({n: t for n, t in weights.items() if files[n] == file}, parts / file)
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    assert compare([open_stage(str(whole)), open_stage(str(parts))], Settings())["steps"][0]["total"]["moved"] == 0
    next(parts.glob("model-00002*")).unlink()
    with pytest.raises(DataError, match="shards are missing: model-00002"):
        open_stage(str(parts))


def test_fused_experts_are_matched_with_single_ones(tmp_path: Path) -> None:
    fused, single = toy(), toy()
    draw = torch.Generator().manual_seed(1)
    gate_up = torch.randn(3, 32, 32, generator=draw)[:, :24]
    down = torch.randn(3, 32, 12, generator=draw)
    stem = "model.layers.0.mlp.experts"
    fused |= {f"{stem}.gate_up_proj": gate_up, f"{stem}.down_proj": down}
    for e in range(3):
        single |= {f"model.layers.0.block_sparse_moe.experts.{e}.w1.weight": gate_up[e, :12],
                   f"{stem}.{e}.up_proj.weight": gate_up[e, 12:], f"{stem}.{e}.down_proj.weight": down[e]}  # fmt: skip
    single[f"{stem}.2.up_proj.weight"] = single[f"{stem}.2.up_proj.weight"] + 1
    stages = [open_stage(str(save(tmp_path / n, w))) for n, w in (("fused", fused), ("single", single))]
    found = compare(stages, Settings())["steps"][0]
    assert [n for n, m in found["matrices"].items() if m["moved"]] == ["layers.0.mlp.experts.2.up_proj.weight"]
    assert found["classes"]["expert"]["moved"] == pytest.approx(1 / 9)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny MoE, a LoRA over attention and fused experts, and the two merged."""
    import peft
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    folder = tmp_path_factory.mktemp("adapted")
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    model: Any = Qwen3MoeForCausalLM(config)
    model.save_pretrained(folder / "base")
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    lora = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], target_parameters=targets)
    wrapped: Any = peft.get_peft_model(model, lora)
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    wrapped.save_pretrained(folder / "lora")
    wrapped.merge_and_unload().save_pretrained(folder / "merged")
    return folder


def test_an_adapter_changes_what_its_merged_model_changes(adapted: Path) -> None:
    lora = open_stage(f"{adapted / 'lora'}@{adapted / 'base'}")
    assert lora.base is not None
    found = compare([lora.base, lora, open_stage(str(adapted / "merged"))], Settings(branches=True))
    direct, merged = found["steps"]
    assert direct["total"]["relative"] == pytest.approx(merged["total"]["relative"], rel=1e-6)
    assert found["between"][0]["total"]["degrees"] < 0.01
    rank = direct["matrices"]["layers.0.mlp.experts.1.up_proj.weight"]["spectra"]["effective_rank"]
    assert rank <= 4.0001, "read as B A, so nothing but the rank itself is there"
    assert found["stages"][1]["adapter_over"] == str(adapted / "base")


def test_an_adapter_for_experts_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "adapter.json").write_text("{}")
    with pytest.raises(SettingsError, match="tenet merge"):
        open_stage(f"{tmp_path}@nano:assistant-moe")


def test_an_adapter_finds_its_base_among_the_stages(adapted: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"names no base model \(write ADAPTER@BASE\)"):
        open_stage(str(adapted / "lora"))
    about = json.loads((adapted / "lora" / "adapter_config.json").read_text())
    copy = tmp_path / "lora"
    copy.mkdir()
    (copy / "adapter_model.safetensors").symlink_to(adapted / "lora" / "adapter_model.safetensors")
    about["base_model_name_or_path"] = str(adapted / "base")
    (copy / "adapter_config.json").write_text(json.dumps(about))
    base = open_stage(str(adapted / "base"))
    assert open_stage(str(copy), (base,)).base is base
    (copy / "adapter_config.json").write_text(json.dumps({**about, "use_dora": True}))
    with pytest.raises(DataError, match="use_dora is set, which is not plain LoRA"):
        open_stage(str(copy))
    with pytest.raises(DataError, match=r"does not fit its base|fits no expert"):
        open_stage(f"{adapted / 'lora'}@{save(tmp_path / 'other', toy())}")


def test_other_architectures_are_refused_with_the_reason(tmp_path: Path) -> None:
    base = open_stage(str(save(tmp_path / "a", toy())))
    wider = toy() | {"model.layers.0.mlp.down_proj.weight": torch.zeros(32, 65)}
    more = toy() | {"model.layers.0.mlp.extra.weight": torch.zeros(2, 2)}
    for name, weights, config, why in (
        ("b", toy(), {"hidden_size": 64}, "hidden_size is 32 in the first and 64 in the second"),
        ("c", wider, {}, r"down_proj.weight is \(32, 64\) in the first and \(32, 65\) in the second"),
        ("d", more, {}, "only the second has layers.0.mlp.extra.weight"),
    ):
        with pytest.raises(DataError, match=f"not of one architecture: .*{why}"):
            compare([base, open_stage(str(save(tmp_path / name, weights, **config)))], Settings())
    rewarding = toy() | {"score.weight": torch.zeros(1, 32)}
    found = compare([base, open_stage(str(save(tmp_path / "e", rewarding)))], Settings())
    assert found["left_out"] == ["score.weight"], "another head on the same trunk can be compared"
    with pytest.raises(SettingsError, match="one stage is no comparison"):
        compare([base], Settings())


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(DataError, match="pickled weights are never loaded"):
        open_stage(str(tmp_path / "pickled"))
    quantised = save(tmp_path / "int8", {"model.norm.weight": torch.zeros(4, dtype=torch.int8)})
    with pytest.raises(DataError, match="stored as I8: quantised weights cannot be compared"):
        open_stage(str(quantised))
    cut = save(tmp_path / "cut", toy())
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:100])
    with pytest.raises(DataError, match="is no whole safetensors file"):
        open_stage(str(cut))
    with pytest.raises(SettingsError, match="no model folder"):
        open_stage(str(tmp_path / "absent"))


_PEAK = """
import resource, sys, torch
from trainers.probes._checkpoint import open_stage
from trainers.probes.weights import Settings, compare
stages = [open_stage(p) for p in sys.argv[1:]]
torch.linalg.eigh(torch.eye(4, dtype=torch.float64))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
compare(stages, Settings())
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    big = {f"model.layers.{i}.mlp.down_proj.weight": torch.randn(32, 160_000) for i in range(8)}
    for name in "ab":
        save(tmp_path / name, big)
    said = subprocess.run(
        [sys.executable, "-c", _PEAK, str(tmp_path / "a"), str(tmp_path / "b")],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    largest = 32 * 160_000 * 4 / 2**20
    assert float(said.stdout) < 10 * largest, "MiB beyond the start; the two models are 312 MiB"


def test_names() -> None:
    named = {
        "layers.3.self_attn.q_norm.weight": ("norm", 3), "layers.3.mlp.gate.weight": ("router", 3),
        "layers.3.mlp.gate_proj.weight": ("mlp", 3), "layers.12.mlp.experts.4.up_proj.weight": ("expert", 12),
        "layers.0.mlp.shared_expert.up_proj.weight": ("mlp", 0), "embed_tokens.weight": ("embedding", None),
        "lm_head.weight": ("head", None), "norm.weight": ("norm", None), "score.weight": ("head", None),
    }  # fmt: skip
    assert {n: (class_of(n), layer_of(n)) for n in named} == named


def test_a_legend_tells_pairs_of_steps_apart() -> None:
    base, ends = "nano:assistant", ("runs/sft", "runs/dpo", "runs/ppo")
    sft, dpo, ppo = (f"{base} to {end}" for end in ends)
    assert _weights_page.pair_label([sft, dpo]) == "runs/sft / runs/dpo"
    assert len({_weights_page.pair_label(p) for p in ([sft, dpo], [sft, ppo], [dpo, ppo])}) == 3
    assert _weights_page.pair_label([f"a to {base}", sft]) == f"a to {base} / {sft}"


def test_the_page_shows_names_as_text(tmp_path: Path) -> None:
    stages: list[Stage] = []
    for name in ("a", "<script>alert(1)<"):
        stages.append(open_stage(str(save(tmp_path / name, toy(len(stages))))))
    found = json.loads(json.dumps(compare(stages, Settings())))
    found["outputs"] = {"steps": [], "why": "there is no held-out text"}
    sections, lead = _weights_page.sections(found), _weights_page.lead(found)
    html, markdown = page("t", lead, sections), document("t", lead, sections)
    assert "<script" not in html
    assert "\\<script\\>" in markdown
    assert "No output figures: there is no held-out text" in html
    assert [s.title for s in sections] == ["Steps", "Parts", "Depth", "Directions", "Matrices", "Rules"]
