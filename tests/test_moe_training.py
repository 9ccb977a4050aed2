"""Router losses inside the trainers: added once, averaged over accumulated passes, logged, and stopped by NaN."""

from __future__ import annotations

import json
import logging
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from tenet.errors import SettingsError, TrainingError
from tenet.settings import assemble
from trainers.moe import losses, upcycle
from trainers.moe._coach import Coach
from trainers.moe._hooks import layers

KINDS = ("sft", "reward", "dpo", "pretrain")
# The packages that train warn about themselves.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def mixture(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with 4 experts, top-2, that differ."""
    out = tmp_path_factory.mktemp("moe") / "tiny-moe"
    upcycle.main(tiny_model, upcycle.Settings(experts=4, top_k=2, reinit=0.5, router_std=0.3), out)
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Eight rows for every kind."""
    folder = tmp_path_factory.mktemp("rows")
    made: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for i in range(8):
        prompt = [{"role": "user", "content": f"ba de {i} fi go?"}]
        good, bad = ([{"role": "assistant", "content": t + " pa" * i}] for t in ("ki lo mu", "na re si ta"))
        made["sft"].append({"prompt": prompt, "completion": good})
        for kind in ("reward", "dpo"):
            made[kind].append({"prompt": prompt, "chosen": good, "rejected": bad, "p_chosen": 0.8})
        made["pretrain"].append({"text": " ".join(f"ba de fi {j}" for j in range(12))})
    paths = {kind: folder / f"{kind}.jsonl" for kind in KINDS}
    for kind, rows in made.items():
        paths[kind].write_text("".join(json.dumps(r) + "\n" for r in rows))
    return paths


def train(kind: str, model: Path, data: Path, out: Path, **own: Any) -> list[dict[str, Any]]:
    """A training by the kind's own settings; the lines of its metrics."""
    module: Any = import_module(f"trainers.{kind}")
    said = {"model": str(model), "data": str(data), "out": str(out), "batch": 4, "steps": 2, "log_every": 1, "lr": 1e-3}
    if kind == "pretrain":
        own.setdefault("context", 16)
    trainer = module.build(assemble(module.Settings, {**said, "device": "cpu", **own}))
    trainer.train(trainer.rows())
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_logs_its_routers_and_adds_the_losses_to_its_own(
    kind: str, mixture: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    heavy = {"balance": 1.0, "z": 0.5, "scope": "micro"}
    own = {"accumulation": 2, "schedule": "constant"}
    without = train(kind, mixture, data[kind], tmp_path / "off", moe="off", **own)[0]
    with_ = train(kind, mixture, data[kind], tmp_path / "on", moe=heavy, **own)[0]
    assert "moe/balance" not in without
    assert with_["moe/balance_weight"] == 1.0
    assert 1.0 <= with_["moe/balance"] <= 2.0
    assert {"moe/entropy", "moe/load_entropy", "moe/max_load", "moe/dead", "moe/logits", "moe/z"} <= set(with_)
    plain = without["loss"] - without.get("aux_loss", 0.0) * 0.001
    # Balance of the two passes, averaged by tokens as logged and by passes in the loss: hence the tolerance.
    assert with_["loss"] - plain == pytest.approx(with_["moe/balance"] + 0.5 * with_["moe/z"], rel=0.03)


def test_trls_own_balance_loss_is_taken_over_and_not_counted_twice(mixture: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    from trainers.moe._plug import RouterLosses

    class Mixed(RouterLosses, SFTTrainer):
        pass

    given = {"input_ids": torch.randint(5, 90, (2, 12)), "attention_mask": torch.ones(2, 12, dtype=torch.long)}
    given["labels"] = given["input_ids"].clone()
    found: dict[str, float] = {}
    for name, kind, coefficient in (("bare", SFTTrainer, 0.0), ("trl", SFTTrainer, 1.0), ("both", Mixed, 1.0)):
        model = AutoModelForCausalLM.from_pretrained(mixture, dtype=torch.float32).train()
        args = SFTConfig(
            output_dir="unused", router_aux_loss_coef=coefficient, use_cpu=True, bf16=False, report_to=[],
            gradient_checkpointing=False,
        )  # fmt: skip
        rows = Dataset.from_list([{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}])
        trainer: Any = kind(model=model, args=args, train_dataset=rows)
        trainer.current_gradient_accumulation_steps = 1
        if isinstance(trainer, Mixed):
            trainer.mix(losses.Settings(balance=1.0, z=0.0, units="top_k"))
        found[name] = trainer.compute_loss(trainer.model, dict(given)).item()
        if isinstance(trainer, Mixed):
            assert trainer.coach is not None
            found["ours"] = trainer.coach.after_step()["moe/balance"] * 2
    assert found["trl"] > found["bare"] + 1.9, "TRL's own loss works, 2 at balance"
    assert found["both"] - found["bare"] == pytest.approx(found["ours"], rel=1e-4)


def test_a_mixture_gets_the_default_losses_unasked_and_a_dense_model_refuses_them(
    mixture: Path, tiny_model: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    assert train("sft", mixture, data["sft"], tmp_path / "moe", steps=1)[0]["moe/balance_weight"] == 0.01
    with pytest.raises(SettingsError, match="qwen3 is dense: it has no router"):
        train("sft", tiny_model, data["sft"], tmp_path / "dense", moe={"balance": 0.01})


def test_warm_up_settings_reach_a_real_training(mixture: Path, data: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    before = layers(AutoModelForCausalLM.from_pretrained(mixture, dtype=torch.float32))[0]
    moe = {"warmup": {"steps": 2, "aux_start": 0.4, "aux_end": 0.2, "shape": "linear", "router_lr": 0.05}}
    lines = train("sft", mixture, data["sft"], tmp_path / "warm", moe=moe, save_as="float32")
    assert [round(y["moe/balance_weight"], 6) for y in lines if "moe/balance" in y] == [0.4, 0.3]
    after = layers(AutoModelForCausalLM.from_pretrained(tmp_path / "warm", dtype=torch.float32))[0]
    for one, other in zip(before.experts.parameters(), after.experts.parameters(), strict=True):
        assert torch.equal(one, other), "the experts stand still while the warm-up lasts"
    router: Any = before.router
    moved: Any = after.router
    assert (moved.weight - router.weight).abs().max() > 0.02


def broken(mixture: Path, out: Path, change: Any) -> Path:
    """A copy of the mixture with its second layer's router changed."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(mixture, dtype=torch.float32)
    router: Any = layers(model)[1].router
    with torch.no_grad():
        change(router.weight)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(mixture).save_pretrained(out)
    return out


def test_nan_in_a_router_stops_the_training_with_the_layer_named(
    mixture: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    model = broken(mixture, tmp_path / "nan", lambda w: w[0].fill_(float("nan")))
    with pytest.raises(TrainingError, match=r"model\.layers\.1\.mlp: the router's logits are not finite"):
        train("sft", model, data["sft"], tmp_path / "out")


def test_a_collapsed_router_is_told_of_at_the_first_step(
    mixture: Path, data: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def one_way(weight: torch.Tensor) -> None:
        weight[1].mul_(0.0)
        weight[2:].mul_(0.0)
        weight[0].mul_(0.0)

    model = broken(mixture, tmp_path / "collapsed", one_way)
    with caplog.at_level(logging.WARNING, "tenet.moe"):
        lines = train("sft", model, data["sft"], tmp_path / "out", steps=1)
    assert lines[0]["moe/collapsed"] >= 1
    assert any("step 0, model.layers.1.mlp: expert" in r.getMessage() for r in caplog.records)


def test_a_coach_of_a_wrapped_model_sees_the_passes(mixture: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(mixture, dtype=torch.float32)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).train()
    coach = Coach(wrapped, losses.Settings())
    with coach.recording():
        wrapped(input_ids=torch.randint(5, 90, (2, 8)))
        with wrapped.disable_adapter(), torch.no_grad():
            wrapped(input_ids=torch.randint(5, 90, (2, 8)))
    assert coach.loss().item() > 0
    assert coach.after_step()["moe/dead"] >= 0


def short_ones(prompts: Any, completions: Any, **_: Any) -> list[float | None]:
    """Scores short replies higher."""
    return [-len(c[0]["content"]) / 50 for c in completions]


def test_ppo_adds_the_losses_to_its_policys_own(mixture: Path, tmp_path: Path) -> None:
    from trainers import _rows, ppo

    said = {
        "model": str(mixture), "data": "rows", "out": str(tmp_path / "ppo"), "steps": 1, "batch": 4, "lr": 1e-3,
        "rollout": {"max_tokens": 6}, "update": {"epochs": 2, "minibatches": 2}, "device": "cpu", "log_every": 1,
        "reward": {"judge": "a function, above"}, "save_as": "float32",
        "moe": {"warmup": {"steps": 4, "aux_start": 0.4, "aux_end": 0.4, "router_lr": 0.05}},
    }  # fmt: skip
    rows = [{"prompt": f"bo da {i}"} for i in range(4)]
    ppo.build(assemble(ppo.Settings, said), short_ones).train(_rows.given(rows, "prompts"))
    line = json.loads((tmp_path / "ppo/metrics.jsonl").read_text().splitlines()[0])
    assert line["moe/balance_weight"] == 0.4
    assert 1.0 <= line["moe/balance"] <= 2.0
    from transformers import AutoModelForCausalLM

    before, after = (
        layers(AutoModelForCausalLM.from_pretrained(m, dtype=torch.float32))[0] for m in (mixture, tmp_path / "ppo")
    )
    for one, other in zip(before.experts.parameters(), after.experts.parameters(), strict=True):
        assert torch.equal(one, other), "the experts stand still while the warm-up lasts"
    one_router, other_router = before.router.weight, after.router.weight
    assert (other_router - one_router).abs().max() > 0.05  # type: ignore[operator, union-attr]
