"""Every adapter mode through every trainer that takes one, on the bundled mixture, and back after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tenet import kinds
from tenet.errors import SettingsError
from tenet.settings import assemble

MODES: dict[str, dict[str, Any]] = {
    "shared": {"mode": "shared", "r": 4},
    "per_expert": {"mode": "per_expert", "r": 4, "lr_by_load": 0.5},
    "hybrid": {"mode": "hybrid", "attention": {"r": 2}},
    "router": {"mode": "router"},
    "experts": {"mode": "experts", "n": 2},
    "attention": {"mode": "attention"},
    "full": {"mode": "full"},
}


def rows(folder: Path, kind: str) -> Path:
    """Eight rows of nano's language."""
    path = folder / "rows.jsonl"
    with path.open("w") as file:
        for i in range(8):
            prompt = [{"role": "user", "content": f"Can you help me sew a button {i}?"}]
            good = [{"role": "assistant", "content": f"Choose a hole that fits the button {i}."}]
            bad = [{"role": "assistant", "content": f"You should be ashamed of your habits {i}."}]
            pair = {"prompt": prompt, "chosen": good, "rejected": bad, "p_chosen": 0.6 + 0.04 * i}
            row = {"prompt": prompt, "completion": good} if kind == "sft" else pair
            if kind == "pretrain":
                row = {"text": " ".join(f"{m[0]['content']}" for m in (prompt, good)) * 8}
            file.write(json.dumps(row) + "\n")
    return path


def train(folder: Path, kind: str, adapter: dict[str, Any], **more: Any) -> Path:
    said = {
        "model": "nano:assistant-moe", "data": str(rows(folder, kind)), "out": str(folder / "out"), "batch": 4,
        "lr": 1e-3, "steps": 2, "context": 64, "save_as": "float32", "adapter": adapter, **more,
    }  # fmt: skip
    module = kinds.load("trainers", kind)
    own: dict[str, Any] = {}
    if kind == "ppo":
        once = {"minibatches": 1, "epochs": 1}
        said |= {"reward": {"judge": "longest"}, "rollout": {"max_tokens": 8}, "update": once}
        own = {"reward": lambda completions, **_: [float(len(c[0]["content"])) for c in completions]}
    trainer = module.build(assemble(module.Settings, said), **own)
    trainer.train(trainer.rows())
    return folder / "out"


def weights(folder: Path) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    named = json.loads((folder / "config.json").read_text())["architectures"][0]
    kind = AutoModelForCausalLM if named.endswith("CausalLM") else AutoModelForSequenceClassification
    return dict(kind.from_pretrained(folder, local_files_only=True).named_parameters())


@pytest.mark.parametrize(
    ("kind", "mode"), [(k, m) for m in MODES for k in ("sft", "reward", "dpo", "ppo")] + [("pretrain", "hybrid")]
)
def test_every_mode_trains_what_it_says_and_leaves_a_plain_model(
    kind: str, mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    out = train(tmp_path, kind, MODES[mode])
    said = capsys.readouterr().out
    assert f"adapter {mode}:" in said
    assert f"adapter {mode}: what was learnt" in said
    assert (out / "adapter" / "adapter.json").is_file()
    before, after = weights(Path("nano/models/assistant-moe")), weights(out)
    assert not [n for n in after if "tenet" in n]
    changed = {
        n.split(".")[3] + "." + n.split(".")[4] for n in before if "layers" in n and not same(before[n], after[n])
    }
    outer = [n for n in before if "layers" not in n and n in after and not same(before[n], after[n])]
    experts, router = "mlp.experts", "mlp.gate"
    attention = {f"self_attn.{p}_proj" for p in "qkvo"}
    wanted = {
        "shared": {experts}, "per_expert": {experts}, "hybrid": {experts} | attention, "router": {router},
        "experts": {experts}, "attention": attention,
    }  # fmt: skip
    if mode == "full":
        assert {experts, router} | attention <= changed
    else:
        assert (changed, outer) == (wanted[mode], [])
    if kind == "reward":
        assert bool(torch.isfinite(after["score.weight"]).all())


def same(a: Any, b: Any) -> bool:
    import torch

    # the bundled weights are bfloat16; a merge is done in float32, and the sum may round in the last place
    return torch.allclose(a.float(), b.float(), rtol=1e-6, atol=1e-7)


def test_a_training_goes_on_with_its_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from trainers import _loop

    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    more = {"steps": 4, "save_every": 2, "schedule": "constant"}
    whole = train(tmp_path / "whole", "sft", MODES["hybrid"], **more)

    class Cut(BaseException):
        pass

    plain = _loop.Guarded.training_step

    def stop(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 3:
            raise Cut
        return plain(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(_loop.Guarded, "training_step", stop)
        with pytest.raises(Cut):
            train(tmp_path / "cut", "sft", MODES["hybrid"], **more)
    out = train(tmp_path / "cut", "sft", MODES["hybrid"], **more)
    first, second = weights(whole), weights(out)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-5, atol=1e-6)
    assert json.loads((out / "manifest.json").read_text())["resumed_from_step"] == 2


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"adapter": {"mode": "hybrid", "r": 0}}, "r"),
        ({"adapter": {"mode": "lora"}}, "unknown kind 'lora'"),
        ({"adapter": {"mode": "shared"}, "lora": {}}, "exclude each other"),
        ({"adapter": {"mode": "shared", "minimum_load": 0.5}, "packing": True}, "minimum_load draws rows"),
    ],
)
def test_a_bad_adapter_is_refused_before_anything_is_loaded(said: dict[str, Any], words: str) -> None:
    module = kinds.load("trainers", "sft")
    with pytest.raises(SettingsError, match=words):
        assemble(module.Settings, {"model": "m", "data": "d", "out": "o", "lr": 1e-3, **said})


def test_ppo_refuses_to_draw_rows_by_load() -> None:
    module = kinds.load("trainers", "ppo")
    with pytest.raises(SettingsError, match="minimum_load draws rows"):
        module.build(module.Settings.model_construct(workers=1, adapter={"mode": "shared", "minimum_load": 0.5}))


def test_a_minimum_load_draws_the_rows_that_reach_rare_experts(tmp_path: Path) -> None:
    """nano's rows all reach the common experts; a floor makes the rows with rare ones come more often."""
    import torch

    from trainers._loop import Weighted

    drawn: list[int] = []
    plain = Weighted.__iter__

    def watch(self: Weighted) -> Any:
        for i in plain(self):
            drawn.append(i)
            yield i

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Weighted, "__iter__", watch)
        out = train(tmp_path, "dpo", {"mode": "hybrid", "minimum_load": 0.9}, steps=4)
    assert json.loads((out / "manifest.json").read_text())["steps"] == 4
    assert len(drawn) >= 16
    assert set(drawn) <= set(range(8))
    first = list(Weighted(torch.tensor([1.0, 0.0, 3.0]), 5))
    again = Weighted(torch.tensor([1.0, 0.0, 3.0]), 5)
    assert list(again) == first
    assert 1 not in first
    again.set_epoch(1)
    many = Weighted(torch.cat([torch.ones(300), 3 * torch.ones(300)]), 5)
    assert 0.68 < sum(i >= 300 for i in many) / 600 < 0.82


def test_in_ppo_the_reference_is_the_base_and_a_checkpoint_brings_the_policy_back(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from trainers._ppo_adapters import Mixture
    from trainers._ppo_batch import Sample, collate
    from trainers._ppo_networks import Networks

    def networks() -> Networks:
        model = AutoModelForCausalLM.from_pretrained("nano/models/assistant-moe", dtype=torch.float32)
        return Networks(model, adapter=Mixture(model, {"mode": "hybrid", "r": 4}, None))

    first, batch = networks(), collate([Sample((5, 6, 7), (8, 9, 10), True), Sample((11, 12), (13, 1), True)])
    with torch.no_grad():
        base = first.score(batch).logp
        with first.valuing():
            values = first.values(batch)
        for p in first.policy_weights:
            p.add_(0.02)
        moved = first.score(batch).logp
        assert float((moved - base).abs().max()) > 0.01
        torch.testing.assert_close(first.reference_logp(batch), base)
        with first.valuing():
            torch.testing.assert_close(first.values(batch), values)
        assert first.adapter is not None
        first.adapter.save(tmp_path)
        second = networks()
        assert second.adapter is not None
        second.adapter.load(tmp_path)
        torch.testing.assert_close(second.score(batch).logp, moved)
