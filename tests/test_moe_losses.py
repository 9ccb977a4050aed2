"""Router losses: what they measure, on which tokens, in which units, and what a training says when routing breaks."""

from __future__ import annotations

import itertools
import logging
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tenet.errors import SettingsError, TrainingError
from trainers.moe import losses
from trainers.moe._coach import Coach, split
from trainers.moe.losses import BiasBalancing, Settings
from trainers.moe.schedule import Schedule, Warmup

E, K = 8, 2


def mixture(family: str = "qwen3_moe", seed: int = 0, layers: int = 2) -> Any:
    """A tiny random MoE language model in float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape: dict[str, Any] = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16,
        "num_hidden_layers": layers, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
        "num_experts": E, "num_local_experts": E, "n_routed_experts": E, "num_experts_per_tok": K, "pad_token_id": 0,
        "n_shared_experts": 1, "norm_topk_prob": True, "decoder_sparse_step": 1, "max_position_embeddings": 64,
    }  # fmt: skip
    if family == "mixtral":
        shape.pop("num_experts")
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **shape)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("gate.weight", "router.weight")):
                weight.normal_(0, 0.5)
    return model.train()


def batch(rows: int = 3, length: int = 12, seed: int = 1) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 64, (rows, length), generator=rng)
    mask = torch.ones_like(ids)
    mask[0, 5:], mask[1, :3] = 0, 0  # padding on the right and on the left
    return {"input_ids": ids, "attention_mask": mask}


def even(tokens: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Zero logits, and tokens sent round in turn."""
    chosen = torch.arange(tokens * K).reshape(tokens, K) % E
    return torch.zeros(tokens, E), chosen


def test_balance_is_1_when_even_and_e_over_k_when_all_goes_to_k_experts() -> None:
    logits, chosen = even()
    assert losses.balance(logits, chosen).item() == pytest.approx(1.0)
    sure = torch.full((64, E), -50.0)
    sure[:, [2, 5]] = 50.0
    assert losses.balance(sure, torch.tensor([[2, 5]] * 64)).item() == pytest.approx(E / K)


def test_z_is_the_square_of_ln_e_at_zero_logits() -> None:
    assert losses.z(torch.zeros(4, E)).item() == pytest.approx(math.log(E) ** 2)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "olmoe", "qwen2_moe"])
def test_one_layers_balance_equals_transformers_in_its_units(family: str) -> None:
    from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

    model, given = mixture(family), batch()
    coach = Coach(model, Settings())
    with coach.recording():
        model(**given)
    seen = coach.tap.passes[0]
    for i, layer in enumerate(coach.layers):
        theirs = load_balancing_loss_func((seen.logits[i].detach(),), E, K, given["attention_mask"])
        ours = losses.balance(seen.logits[i], seen.chosen[i], seen.real, layer.sigmoid)
        assert losses.convert(ours.item(), "one", "top_k", K) == pytest.approx(float(theirs), rel=1e-5)


def test_units_of_losses_and_weights_convert_both_ways() -> None:
    assert losses.convert(1.0, "one", "top_k", 4) == 4.0
    assert losses.convert(losses.convert(1.7, "one", "top_k", 4), "top_k", "one", 4) == pytest.approx(1.7)
    totals: list[float] = []
    for settings in (Settings(balance=0.02, z=0.0), Settings(balance=0.02 / K, z=0.0, units="top_k")):
        model = mixture()
        coach = Coach(model, settings)
        with coach.recording():
            model(**batch())
        totals.append(coach.loss().item())
    assert totals[0] == pytest.approx(totals[1])


def test_padding_does_not_count() -> None:
    given = batch()
    other = {**given, "input_ids": torch.where(given["attention_mask"].bool(), given["input_ids"], 9)}
    found: list[float] = []
    for each in (given, other):
        model = mixture()
        coach = Coach(model, Settings())
        with coach.recording():
            model(**each)
        found.append(coach.loss().item())
        assert float(coach._tally.tokens) == int(given["attention_mask"].sum())  # type: ignore[union-attr]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_layers_that_collapse_on_different_experts_are_seen_although_the_pool_looks_even() -> None:
    model = mixture(layers=4)
    coach = Coach(model, Settings())
    seen = losses.Forward()
    for i in range(4):
        sure = torch.full((64, E), -50.0)
        sure[:, [2 * i, 2 * i + 1]] = 50.0
        seen.logits.append(sure)
        seen.chosen.append(torch.tensor([[2 * i, 2 * i + 1]] * 64))
    tally = losses.Tally.empty(coach.layers, torch.device("cpu"))
    balance, _ = losses.of_pass(seen, coach.layers, tally, "micro")
    assert balance.item() == pytest.approx(E / K)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "olmoe", "dots1"])
def test_the_loss_moves_the_routers_and_no_tokens_gradient_is_lost_under_checkpointing(family: str) -> None:
    grads: list[list[torch.Tensor]] = []
    for checkpointing in (False, True):
        model = mixture(family)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        coach = Coach(model, Settings(balance=1.0, z=0.1))
        with coach.recording():
            loss = model(**batch(), use_cache=False).logits.square().mean()
        (loss + coach.loss()).backward()
        assert len(coach.tap.passes) == 0
        routers = coach.router_parameters()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in routers)
        grads.append([p.grad.clone() for p in routers])  # type: ignore[union-attr]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_scope_accumulated_lets_micro_batches_differ_where_micro_does_not() -> None:
    def total(scope: losses.Scope) -> float:
        model = mixture(layers=1)
        coach = Coach(model, Settings(scope=scope))
        tally = losses.Tally.empty(coach.layers, torch.device("cpu"))
        last = 0.0
        for half in (range(0, E // 2), range(E // 2, E)):  # each micro-batch keeps to its own half of the experts
            logits = torch.full((64, E), -9.0)
            logits[:, list(half)] = 0.0
            chosen = torch.tensor([[half[i % 4], half[(i + 1) % 4]] for i in range(64)])
            last = losses.of_pass(losses.Forward([logits], [chosen]), coach.layers, tally, scope)[0].item()
        return last

    assert total("micro") == pytest.approx(2.0, abs=0.01)
    assert total("accumulated") == pytest.approx(1.0, abs=0.01)


_WORKER = """
import sys, torch
from trainers.moe import losses
from trainers.moe._hooks import Layer
rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
layer = Layer("one", torch.nn.Identity(), torch.nn.Identity(), 8, 2, False)
half = [rank * 4 + i for i in range(4)]
logits = torch.full((64, 8), -9.0)
logits[:, half] = 0.0
chosen = torch.tensor([[half[i % 4], half[(i + 1) % 4]] for i in range(64)])
tally = losses.Tally.empty([layer], torch.device("cpu"))
for scope in ("accumulated", "global"):
    tally = losses.Tally.empty([layer], torch.device("cpu"))
    print(round(losses.of_pass(losses.Forward([logits], [chosen]), [layer], tally, scope)[0].item(), 2))
torch.distributed.destroy_process_group()
"""


def test_scope_global_counts_the_tokens_of_all_workers(tmp_path: Any) -> None:
    command = [sys.executable, "-c", _WORKER]
    two = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meet")], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    assert [p.communicate(timeout=120)[0].split() for p in two] == [["2.0", "1.0"]] * 2


@contextmanager
def collapsed(model: Any) -> Iterator[None]:
    """Every router sends all tokens to expert 3, and to a second one as before."""
    handles, zero = [], torch.tensor(0)
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith("mlp"):
                handles.append(module.register_forward_pre_hook(lambda _, args: (args[0].index_fill(-1, zero, 1.0),)))
                module.gate.weight[:, 0], module.gate.weight[3] = 0.0, 0.0
                module.gate.weight[3, 0] = 50.0
    yield
    for handle in handles:
        handle.remove()


def test_a_router_that_sends_everything_to_one_expert_is_named_within_the_step(caplog: Any) -> None:
    model = mixture()
    coach = Coach(model, Settings())
    with collapsed(model), caplog.at_level(logging.WARNING, "tenet.moe"):
        for _ in range(2):
            with coach.recording():
                model(**batch(4, 16))
            coach.loss()
            logged = coach.after_step()
    assert logged["moe/collapsed"] == 2
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 2, "once for each layer, not at every step"
    assert "step 0" in said[0]
    assert "model.layers.0.mlp: expert 3 gets 100.0% of the tokens" in said[0]


def test_router_logits_that_are_not_finite_stop_with_the_layer_named() -> None:
    model = mixture()
    with torch.no_grad():
        model.model.layers[1].mlp.gate.weight[0, 0] = float("nan")
    coach = Coach(model, Settings())
    with coach.recording():
        model(**batch())
    with pytest.raises(TrainingError, match=r"model\.layers\.1\.mlp: the router's logits are not finite"):
        coach.loss()


def test_a_dense_model_is_refused_with_the_reason() -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    dense = Qwen3ForCausalLM(
        Qwen3Config(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1)
    )
    with pytest.raises(SettingsError, match="qwen3 is dense: it has no router"):
        Coach(dense, Settings())


def test_bias_balancing_lifts_starved_experts_and_only_where_the_model_keeps_the_bias() -> None:
    with pytest.raises(SettingsError, match="the routers keep no bias"):
        Coach(mixture("qwen3_moe"), Settings(bias_balancing=BiasBalancing()))
    model = mixture("dots1", layers=1)
    coach = Coach(model, Settings(balance=0.0, z=0.0, bias_balancing=BiasBalancing(rate=0.02)))
    loads: list[float] = []
    for _ in range(60):
        with coach.recording(), torch.enable_grad():
            model(**batch(8, 32))
        assert coach.loss().item() == 0.0
        loads.append(coach.after_step()["moe/max_load"])
    assert loads[0] > 1.5
    assert sum(loads[-5:]) / 5 < 1.2
    bias = coach.layers[0].bias
    assert bias is not None
    assert bias.abs().max() > 0.02


def test_a_reference_models_pass_and_generation_are_left_out() -> None:
    model = mixture()
    coach = Coach(model, Settings())
    with coach.recording():
        model(**batch())
        with torch.no_grad():
            model(**batch())
    assert len(coach.tap.passes) == 1


def test_the_schedule_falls_from_start_to_end_and_the_warm_up_comes_first() -> None:
    for shape in ("linear", "cosine", "exponential"):
        schedule = Schedule(shape=shape, start=0.1, end=0.01, steps=10)  # type: ignore[arg-type]
        values = [schedule.at(i) for i in range(13)]
        assert values[0] == pytest.approx(0.1)
        assert values[10:] == [0.01] * 3
        assert all(a > b for a, b in itertools.pairwise(values[:11]))
    assert Schedule(shape="linear", start=0.1, end=0.0, steps=4).at(2) == pytest.approx(0.05)
    assert Schedule(shape="exponential", start=0.1, end=0.001, steps=2).at(1) == pytest.approx(0.01)
    assert Schedule(shape="constant", start=0.1, end=0.01, steps=4).at(3) == 0.1
    with pytest.raises(ValueError, match="above 0"):
        Schedule(shape="exponential", start=0.1, end=0.0, steps=4)

    settings = Settings(
        warmup=Warmup(steps=2, aux_start=0.2, aux_end=0.1, shape="linear"),
        schedule=Schedule(shape="linear", start=0.1, end=0.0, steps=2),
    )
    coach = Coach(mixture(), settings)
    weights: list[float] = []
    for _ in range(5):
        weights.append(coach.weight)
        coach.step += 1
    assert weights == pytest.approx([0.2, 0.15, 0.1, 0.05, 0.0])


def test_the_warm_up_holds_the_experts_still_and_gives_the_routers_their_rate() -> None:
    model = mixture()
    coach = Coach(model, Settings(warmup=Warmup(steps=2, router_lr=0.5)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    split(optimizer, coach.router_parameters())
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))
    moved: list[bool] = []
    for _ in range(3):
        before = [p.detach().clone() for layer in coach.layers for p in layer.experts.parameters()]
        router = coach.layers[0].router.weight.detach().clone()  # type: ignore[union-attr, operator]
        for group in optimizer.param_groups:
            group["lr"] = 1e-3  # as a learning-rate schedule sets it anew
        with coach.recording():
            loss = model(**batch()).logits.square().mean()
        (loss + coach.loss()).backward()
        coach.before_step(optimizer)
        optimizer.step()
        optimizer.zero_grad()
        coach.after_step()
        after = [p for layer in coach.layers for p in layer.experts.parameters()]
        moved.append(any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)))
        step = float((coach.layers[0].router.weight - router).detach().abs().max())  # type: ignore[operator]
        assert step > (0.1 if coach.step <= 2 else 1e-4)
        assert step < (1.0 if coach.step <= 2 else 0.01)
    assert moved == [False, False, True]
