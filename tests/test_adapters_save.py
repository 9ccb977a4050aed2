"""Adapters on disk and elsewhere: save, load, switch, merge, PEFT's format, vLLM's, and a real vLLM engine."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tenet.errors import DataError, SettingsError
from tests.test_adapters import FAMILIES, shake, tiny, tokens
from trainers.adapters import attach, load

SETTINGS: tuple[dict[str, Any], ...] = (
    {"mode": "shared"},
    {"mode": "per_expert", "targets": ["down"]},
    {"mode": "hybrid", "attention": {"r": 2}},
    {"mode": "router"},
    {"mode": "router", "r": 3},
    {"mode": "experts", "ids": {0: [0, 5], 1: [3]}},
    {"mode": "attention"},
    {"mode": "full"},
)


def name(settings: dict[str, Any]) -> str:
    return "-".join(map(str, [settings["mode"], *(k for k in settings if k != "mode")]))


@pytest.mark.parametrize("settings", SETTINGS, ids=name)
def test_a_saved_adapter_comes_back_on_a_fresh_base(settings: dict[str, Any], tmp_path: Path) -> None:
    import torch

    ids, model = tokens(), tiny()
    handle = attach(model, settings)
    shake(handle)
    on = model(ids).logits
    handle.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter.json", "adapter.safetensors"]
    fresh = tiny()
    again = load(fresh, tmp_path)
    assert torch.equal(fresh(ids).logits, on)
    assert again.settings == handle.settings
    again.load(tmp_path)
    assert torch.equal(fresh(ids).logits, on)


def test_an_adapter_with_ranks_by_load_comes_back(tmp_path: Path) -> None:
    import torch

    model, ids = tiny(), tokens()
    settings = {"mode": "hybrid", "rank_by_load": 1.0}
    handle = attach(model, settings, batches=[{"input_ids": ids}])
    shake(handle)
    handle.save(tmp_path)
    fresh = tiny()
    load(fresh, tmp_path)
    assert torch.equal(fresh(ids).logits, model(ids).logits)


def test_selected_experts_come_back_without_the_data(tmp_path: Path) -> None:
    import torch

    model, ids = tiny(), tokens()
    handle = attach(model, {"mode": "experts", "n": 2}, batches=[{"input_ids": ids}])
    shake(handle)
    handle.save(tmp_path)
    fresh = tiny()
    load(fresh, tmp_path)
    assert torch.equal(fresh(ids).logits, model(ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", [SETTINGS[2], SETTINGS[3], SETTINGS[5]], ids=name)
def test_a_merge_keeps_the_logits_and_leaves_a_plain_model(
    family: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model, ids = tiny(family), tokens()
    if family == "deepseek_v3" and settings["mode"] == "experts":
        settings = {"mode": "experts", "ids": {0: [0, 5]}}  # its first layer is dense
    names = [n for n, _ in model.named_parameters()]
    handle = attach(model, settings)
    shake(handle)
    on = model(ids).logits
    plain = handle.merge()
    torch.testing.assert_close(plain(ids).logits, on, rtol=1e-4, atol=5e-5)
    assert [n for n, _ in plain.named_parameters()] == names
    plain.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
    torch.testing.assert_close(again(ids).logits, on, rtol=1e-4, atol=5e-5)
    with pytest.raises(SettingsError, match="was merged or removed"):
        handle.merge()


def test_training_goes_on_from_a_saved_adapter(tmp_path: Path) -> None:
    import torch

    def trained(handle: Any, steps: range, optimizer: Any = None) -> Any:
        own = [p for _, p in handle.named_parameters()]
        optimizer = optimizer or torch.optim.SGD(own, lr=0.05)
        handle.guard(optimizer)
        for step in steps:
            ids = tokens(2, 9, seed=step)
            handle.model(ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return handle

    whole = trained(attach(tiny(), {"mode": "hybrid"}), range(4))
    half = trained(attach(tiny(), {"mode": "hybrid"}), range(2))
    half.save(tmp_path)
    rest = trained(load(tiny(), tmp_path), range(2, 4))
    for n, value in rest.state().items():
        assert torch.equal(value, whole.state()[n])


def test_adapters_switch(tmp_path: Path) -> None:
    import torch

    model, ids = tiny(), tokens()
    base = model(ids).logits
    one, seen = attach(model, {"mode": "shared"}, name="one"), dict[str, Any]()
    shake(one)
    seen["one"] = model(ids).logits
    two = attach(model, {"mode": "router"}, name="two")
    shake(two, 0.3)
    seen["two"] = model(ids).logits
    assert not torch.allclose(seen["one"], seen["two"])
    one.activate()
    torch.testing.assert_close(model(ids).logits, seen["one"])
    assert all(not p.requires_grad for _, p in two.named_parameters())
    two.activate()
    torch.testing.assert_close(model(ids).logits, seen["two"])
    with pytest.raises(SettingsError, match="has an adapter 'two' already"):
        attach(model, {"mode": "router"}, name="two")
    two.remove()
    one.activate()
    torch.testing.assert_close(model(ids).logits, seen["one"])
    assert torch.equal(one.remove()(ids).logits, base)


def test_full_training_has_no_base_to_switch_back_to() -> None:
    handle = attach(tiny(), {"mode": "full"})
    with pytest.raises(SettingsError, match="no adapter to switch off"), handle.disabled():
        pass


# -- other bases, damaged files --------------------------------------------------------------------


def test_an_adapter_for_another_base_is_refused(tmp_path: Path) -> None:
    import torch

    model = tiny()
    attach(model, {"mode": "shared"}).save(tmp_path)
    for other in (tiny(seed=1), tiny("mixtral"), tiny(num_experts=4)):
        with pytest.raises(SettingsError, match="made for another base"):
            load(other, tmp_path)
    load(tiny().to(torch.bfloat16), tmp_path)  # the same weights, rounded


def test_a_reward_models_adapter_knows_the_causal_models_base(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    causal = tiny()
    attach(causal, {"mode": "shared"}).save(tmp_path / "a")
    config = causal.config
    config.num_labels = 1
    scored = AutoModelForSequenceClassification.from_config(config)
    scored.base_model.load_state_dict(tiny().base_model.state_dict())
    load(scored, tmp_path / "a")


def test_folders_that_hold_no_adapter_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no adapter\.json"):
        load(tiny(), tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(DataError, match="it is a PEFT adapter"):
        load(tiny(), tmp_path)
    attach(tiny(), {"mode": "shared"}).save(tmp_path / "a")
    (tmp_path / "a" / "adapter.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read"):
        load(tiny(), tmp_path / "a")


def test_weights_of_other_settings_are_refused(tmp_path: Path) -> None:
    attach(tiny(), {"mode": "shared", "r": 4}).save(tmp_path)
    with pytest.raises(SettingsError, match="has shape"):
        attach(tiny(), {"mode": "shared", "r": 8}).load(tmp_path)
    with pytest.raises(SettingsError, match="missing"):
        attach(tiny(), {"mode": "router"}).load(tmp_path)


def test_a_merge_into_quantised_weights_is_refused_with_the_way_out() -> None:
    import torch

    model = tiny()
    handle = attach(model, {"mode": "shared"})
    experts = model.model.layers[1].mlp.experts
    experts.down_proj = torch.nn.Parameter(experts.down_proj.data.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(SettingsError, match=r"quantised.*load the base in bfloat16 or float32"):
        handle.merge()


# -- other formats ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "olmoe", "gpt_oss"])
@pytest.mark.parametrize("settings", [*SETTINGS[:3], SETTINGS[4], SETTINGS[6]], ids=name)
def test_peft_reads_what_it_can_express(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    import torch
    from peft import PeftModel

    model, ids = tiny(family), tokens()
    handle = attach(model, settings)
    shake(handle)
    handle.export_peft(tmp_path)
    theirs = PeftModel.from_pretrained(tiny(family), tmp_path)
    torch.testing.assert_close(theirs(ids).logits, model(ids).logits, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("settings", [SETTINGS[3], SETTINGS[5], SETTINGS[7]], ids=name)
def test_what_peft_and_vllm_cannot_express_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    handle = attach(tiny(), settings)
    for export in (handle.export_peft, handle.export_vllm):
        with pytest.raises(SettingsError, match=r"has no way to say mode.*merge the adapter"):
            export(tmp_path)


# what importing vLLM says of torch and of its own dependencies
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_vllms_loader_takes_the_layout(family: str, tmp_path: Path) -> None:
    """vLLM's own parser and packer read the names and shapes; what they hold is the delta of the merge."""
    import torch
    from safetensors.torch import load_file
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.lora_weights import PackedLoRALayerWeights
    from vllm.lora.peft_helper import PEFTHelper

    model = tiny(family)
    handle = attach(model, {"mode": "hybrid", "attention": {"r": 2, "targets": ["q_proj"]}})
    shake(handle)
    handle.export_vllm(tmp_path)
    helper = PEFTHelper.from_dict(json.loads((tmp_path / "adapter_config.json").read_text()))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    read = LoRAModel.from_lora_tensors(1, tensors, helper, device="cpu")
    gate, down, up = ("w1", "w2", "w3") if family == "mixtral" else ("gate_proj", "down_proj", "up_proj")
    block = "block_sparse_moe" if family == "mixtral" else "mlp"
    names = [f"model.layers.1.{block}.experts.{e}.{m}" for e in range(8) for m in (gate, down, up)]
    packed = PackedLoRALayerWeights.pack_moe([read.get_lora(n) for n in names], "experts")
    assert read.get_lora("model.layers.1.self_attn.q_proj") is not None
    a, b = packed.lora_a, packed.lora_b
    assert [tuple(t.shape) for t in a] == [(8, helper.r, 32), (8, helper.r, 24), (8, helper.r, 32)]
    piece = handle.pieces["model.layers.1.mlp.experts"]
    for e in range(8):
        both = torch.cat([b[0][e] @ a[0][e], b[2][e] @ a[2][e]])
        torch.testing.assert_close(both, piece.delta("gate_up", e).T, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(b[1][e] @ a[1][e], piece.delta("down", e).T, rtol=1e-4, atol=1e-6)


def test_real_vllm_serves_the_merged_model_with_the_same_greedy_text(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tenet.engines import Request, Sampling
    from tenet.engines.vllm import Settings, build
    from tenet.records import Message

    base = Path("nano/models/assistant-moe")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    tok = AutoTokenizer.from_pretrained(base, local_files_only=True)
    asked = ["Can you help me sew a button at the lake?", "How do I boil an egg?", "Tell me how to mend a tent."]
    handle = attach(model, {"mode": "hybrid", "attention": {"r": 2}})

    def greedy() -> list[str]:
        said: list[str] = []
        for text in asked:
            ids = tok.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=True
            )["input_ids"]
            out = model.generate(ids, max_new_tokens=40, do_sample=False, attention_mask=torch.ones_like(ids))
            said.append(tok.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
        return said

    plain = greedy()
    shake(handle, 0.06)
    expected = greedy()
    assert expected != plain  # the adapter changes what is said
    handle.save(tmp_path / "adapter")
    out = tmp_path / "merged"
    command = ["-m", "service", "merge", str(tmp_path / "adapter"), "--base", "nano:assistant-moe", "--out", str(out)]
    said = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    assert "differ from adapter + base by at most" in said.stdout
    merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, local_files_only=True)
    ids = torch.arange(5, 25)[None]
    torch.testing.assert_close(merged(ids).logits, model(ids).logits, rtol=0.05, atol=0.1)  # rounded to bfloat16
    handle.merge().save_pretrained(tmp_path / "exact")
    tok.save_pretrained(tmp_path / "exact")
    engine = build(Settings(model=str(tmp_path / "exact"), dtype="float32", max_model_len=256, kv_cache_gib=0.25))
    sampling = Sampling(temperature=0.0, max_tokens=40)

    async def ask() -> list[str]:
        made = [Request(messages=(Message(role="user", content=t),), sampling=sampling) for t in asked]
        try:
            return [reply.text for reply in await engine.generate(made)]
        finally:
            await engine.close()

    assert [t.strip() for t in asyncio.run(ask())] == [t.strip() for t in expected]
