"""Adapters while training: starving experts stay put, options for them, audit, report, and two processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tenet.errors import SettingsError
from tests.test_adapters import shake, tiny, tokens
from trainers.adapters import attach, measure


def same(a: list[Any], b: list[Any]) -> bool:
    import torch

    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def rows_of(handle: Any) -> dict[tuple[str, int], Any]:
    """(matrix, expert) -> the expert's rows."""
    found: dict[tuple[str, int], Any] = {}
    for name, p in handle.named_parameters():
        path, _, own = name.rpartition(".")
        owner = handle.pieces[path].owners(own)
        if owner is not None:
            for i, e in enumerate(owner.tolist()):
                found.setdefault((name, e), []).append(p.detach()[i].clone())
    return found


@pytest.mark.parametrize("kind", ["AdamW", "SGD", "Adagrad"])
@pytest.mark.parametrize(
    "settings", [{"mode": "per_expert", "r": 2}, {"mode": "experts", "ids": {0: [0, 1, 2], 1: [3, 4]}}]
)
def test_experts_without_tokens_are_not_moved(kind: str, settings: dict[str, Any]) -> None:
    import torch

    model = tiny()
    handle = attach(model, settings)
    if settings["mode"] == "per_expert":
        shake(handle)
    more = {"momentum": 0.9} if kind == "SGD" else {}
    own = [p for p in model.parameters() if p.requires_grad]
    optimizer = getattr(torch.optim, kind)(own, lr=1e-2, weight_decay=0.1, **more)
    handle.guard(optimizer)
    for step in range(8):
        ids = tokens(2, 12, seed=step)
        if step >= 4:
            ids = ids[:1, :1].expand(1, 3).contiguous()  # one token, so few experts
        before = rows_of(handle)
        model(ids, labels=ids).loss.backward()
        reached = {path: with_gradient(handle, path) for path in handle.pieces}
        touched = {(name, e) for name, e in before if e in reached[name.rpartition(".")[0]]}
        optimizer.step()
        optimizer.zero_grad()
        after = rows_of(handle)
        moved = {key for key in after if not same(after[key], before[key])}
        # weight decay and momentum would move every row at every step
        assert moved <= touched
        assert touched <= moved or kind != "AdamW"
        assert step < 4 or len(moved) < len(after)


def with_gradient(handle: Any, path: str) -> set[int]:
    piece, found = handle.pieces[path], set[int]()
    for name, p in piece.named_parameters():
        owner = piece.owners(name)
        assert owner is not None
        assert p.grad is not None
        found |= {int(owner[i]) for i in range(p.shape[0]) if bool((p.grad[i] != 0).any())}
    return found


def test_an_experts_moments_wait_with_it() -> None:
    """Steps without its tokens leave an expert where they found it: the result is that of never having made them."""
    import torch

    results: list[Any] = []
    for gap in (0, 5):
        model = tiny(num_hidden_layers=1)
        handle = attach(model, {"mode": "per_expert", "targets": ["down"]})
        shake(handle)
        piece = next(iter(handle.pieces.values()))
        layer = model.model.layers[0].mlp.experts
        optimizer = torch.optim.SGD(piece.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
        handle.guard(optimizer)
        x = torch.linspace(-1, 1, 4 * 32).view(4, 32)

        for expert in (1, *[6] * gap, 1):
            optimizer.zero_grad()
            picks = torch.full((4, 1), expert)
            layer(x, picks, torch.ones(4, 1)).square().mean().backward()
            optimizer.step()
        results.append(piece.down_b.detach().view(8, 8, -1)[1].clone())
    assert torch.equal(results[0], results[1])


def test_without_the_guard_a_starved_expert_drifts() -> None:
    """The danger is real: plain AdamW moves experts whose gradient is zeros."""
    import torch

    model = tiny()
    handle = attach(model, {"mode": "per_expert"})
    shake(handle)
    optimizer = torch.optim.AdamW([p for _, p in handle.named_parameters()], lr=1e-2)
    ids = tokens()
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    before = rows_of(handle)
    for p in model.parameters():
        if p.grad is not None:
            p.grad.zero_()
    optimizer.step()
    after = rows_of(handle)
    assert not any(same(after[k], before[k]) for k in after)


def test_learning_rates_may_follow_the_load() -> None:
    import torch

    steps: dict[float, Any] = {}
    for power in (0.0, 0.5):
        model, ids = tiny(num_hidden_layers=1), tokens()
        handle = attach(model, {"mode": "per_expert", "lr_by_load": power})
        shake(handle)
        optimizer = torch.optim.SGD([p for _, p in handle.named_parameters()], lr=1e-3)
        handle.guard(optimizer)
        before = {n: p.detach().clone() for n, p in handle.named_parameters()}
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        steps[power] = {n: p.detach() - before[n] for n, p in handle.named_parameters()}
        load = next(iter(handle.pieces.values())).tokens.double()
    factor = ((load.mean() / load.clamp(min=1)) ** 0.5).clamp(0.1, 10).float()
    for name, plain in steps[0.0].items():
        by_expert = plain.view(8, 8, -1) * factor[:, None, None]
        torch.testing.assert_close(steps[0.5][name].view(8, 8, -1), by_expert, rtol=1e-2, atol=1e-7)


def test_ranks_may_follow_the_load() -> None:
    import torch

    model, ids = tiny(), tokens(8)
    load = measure(model, [{"input_ids": ids}])
    handle = attach(model, {"mode": "per_expert", "r": 4, "rank_by_load": 1.0}, load=load)
    for layer, piece in enumerate(handle.pieces.values()):
        assert sum(piece.ranks) == 4 * 8
        assert min(piece.ranks) >= 1
        order = load.tokens[layer].argsort().tolist()
        assert piece.ranks[order[0]] < piece.ranks[order[-1]]
    shake(handle)
    model(ids, labels=ids).loss.backward()
    on = model(ids).logits
    plain = handle.merge()
    torch.testing.assert_close(plain(ids).logits, on, rtol=1e-4, atol=2e-5)


def test_jitter_moves_routing_in_training_only() -> None:
    import torch

    model, ids = tiny(), tokens()
    base = model(ids).logits
    handle = attach(model, {"mode": "per_expert", "jitter": 0.5})
    torch.testing.assert_close(model(ids).logits, base, rtol=1e-4, atol=2e-5)
    model.train()
    assert not torch.allclose(model(ids).logits, model(ids).logits)
    with handle.disabled():
        torch.testing.assert_close(model(ids).logits, base, rtol=1e-4, atol=2e-5)


def test_draws_reach_rare_experts_as_far_as_the_data_allow() -> None:
    import torch

    from trainers.adapters._load import draw_weights

    rows = torch.zeros(100, 1, 4, dtype=torch.long)
    rows[:98, 0, :2] = 10
    rows[98:, 0, 2] = 20  # two examples reach expert 2, none reaches expert 3
    weights = draw_weights(rows, floor=0.5)
    share = (weights[:, None] * rows[:, 0].double()).sum(0) / (weights[:, None] * rows[:, 0]).sum()
    assert share[2] > 0.12 * 0.98
    assert share[3] == 0
    assert abs(float(weights.mean()) - 1) < 1e-9
    assert torch.equal(draw_weights(rows, floor=0.0), torch.ones(100, dtype=torch.float64))


def test_the_report_names_experts_that_learnt_nothing() -> None:
    import torch

    model = tiny(num_hidden_layers=1)
    handle = attach(model, {"mode": "per_expert"})
    optimizer = torch.optim.AdamW([p for _, p in handle.named_parameters()], lr=1e-2)
    handle.guard(optimizer)
    ids = torch.full((1, 4), 7)  # one token over and over: few experts
    for _ in range(2):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    report = handle.report()
    idle = {e for _, e in report.idle}
    assert 0 < len(idle) < 8
    for expert in report.experts:
        assert (expert.tokens == 0) == (expert.expert in idle)
        assert (expert.grad_norm == 0) == (expert.expert in idle)
    assert f"experts that learnt nothing ({len(idle)} of 8): 0:" in report.text()


def test_the_first_step_is_checked() -> None:
    model, ids = tiny(), tokens()
    handle = attach(model, {"mode": "per_expert"})
    with pytest.raises(SettingsError, match="no weight of mode 'per_expert' has a gradient"):
        handle.check_gradients()
    model(ids, labels=ids).loss.backward()
    states = {m.name.rpartition("_")[2]: m.gradient for m in handle.check_gradients().matrices}
    # second factors start at zero, so first factors get their gradient from the second step on
    assert states == {"a": "zero", "b": "yes"}


def test_router_training_says_how_far_it_moved_routing_and_output() -> None:
    model, ids = tiny(), tokens()
    handle = attach(model, {"mode": "router"})
    still = handle.moved([{"input_ids": ids}])
    assert still["picks_changed"] == [0.0, 0.0]
    assert abs(still["kl"]) < 1e-6
    shake(handle, 0.3)
    far = handle.moved([{"input_ids": ids}])
    assert min(far["picks_changed"]) > 0.05
    assert far["kl"] > 1e-3
    assert far["tokens"] == ids.numel()


TWO = """
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
from tests.test_adapters import shake, tiny, tokens
from trainers.adapters import attach
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(sys.argv[2]), world_size=2)
torch.set_num_threads(1)
model = tiny()
handle = attach(model, {"mode": "hybrid"})
shake(handle)
optimizer = torch.optim.AdamW([p for _, p in handle.named_parameters()], lr=1e-2)
handle.guard(optimizer)
ids = tokens(4)[dist.get_rank() * 2 :][:2]
both = DDP(model)  # held: its reducer must outlive the forward call
both(input_ids=ids, labels=ids).loss.backward()
optimizer.step()
torch.save(handle.state(), sys.argv[3] + sys.argv[2])
"""


def test_two_processes_take_the_step_of_one(tmp_path: Path) -> None:
    import torch

    here = Path(__file__).parent.parent
    script = tmp_path / "two.py"
    script.write_text(TWO)
    args = [sys.executable, str(script), str(tmp_path / "meet")]
    env = {"PYTHONPATH": str(here), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}
    both = [subprocess.Popen([*args, str(i), str(tmp_path / "out")], cwd=here, env=env) for i in range(2)]
    model, ids = tiny(), tokens(4)
    handle = attach(model, {"mode": "hybrid"})
    shake(handle)
    optimizer = torch.optim.AdamW([p for _, p in handle.named_parameters()], lr=1e-2)
    handle.guard(optimizer)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    assert [p.wait(timeout=200) for p in both] == [0, 0]
    first, second = (torch.load(tmp_path / f"out{i}", weights_only=True) for i in range(2))
    for name, p in handle.named_parameters():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], p.detach(), rtol=1e-3, atol=1e-4)
