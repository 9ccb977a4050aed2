"""Which option helps experts that the data seldom reach: students of a changed mixture whose router is skewed.

    python -m benchmarks.starvation [--steps 400] [--seeds 3] [--out docs/benchmarks/starvation.json]

Teacher: one MoE layer plus a change of rank 2 per projection, the same for all experts (common), another for each
(specific), or both (mixed). Documents have topics; a few topics make most of the training mix, and each topic leads to
its own experts. A student is the unchanged layer with an adapter, trained on the squared error to the teacher. Figures
are that error over the unchanged layer's, on fresh documents of the training mix, of an even mix of topics (which
uses the tail), and the error of outputs that the least used quarter of the experts had a hand in.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from trainers.adapters import attach
from trainers.adapters._load import Load, draw_weights

H, INNER, E, K, TOPICS, LENGTH = 48, 32, 32, 4, 16, 16
STUDENTS: dict[str, dict[str, Any]] = {
    "shared r8": {"mode": "shared", "r": 8},
    "per_expert r8": {"mode": "per_expert", "r": 8},
    "hybrid 4 + 4": {"mode": "hybrid", "r": 4, "residual_r": 4},
    "hybrid 8 + 4": {"mode": "hybrid", "r": 8, "residual_r": 4},
    "per_expert r8, lr_by_load 0.5": {"mode": "per_expert", "r": 8, "lr_by_load": 0.5},
    "per_expert r8, rank_by_load 0.5": {"mode": "per_expert", "r": 8, "rank_by_load": 0.5},
    "per_expert r8, jitter 0.1": {"mode": "per_expert", "r": 8, "jitter": 0.1},
    "per_expert r8, minimum_load 0.5": {"mode": "per_expert", "r": 8, "minimum_load": 0.5},
    "hybrid 4 + 4, minimum_load 0.5": {"mode": "hybrid", "r": 4, "residual_r": 4, "minimum_load": 0.5},
    "experts, 8 by token": {"mode": "experts", "by": "token", "n": 8},
}


def base(seed: int) -> Any:
    torch.manual_seed(seed)
    config = Qwen3MoeConfig(
        vocab_size=8, hidden_size=H, intermediate_size=8, moe_intermediate_size=INNER, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8, num_experts=E, num_experts_per_tok=K,
        norm_topk_prob=True,
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config)
    with torch.no_grad():
        for p in model.model.layers[0].mlp.parameters():
            p.normal_(0, p.shape[-1] ** -0.5)
        model.model.layers[0].mlp.gate.weight.mul_(2.0)
    return model


def block(model: Any) -> Any:
    return model.model.layers[0].mlp


def teacher(student: Any, change: str) -> Any:
    made = copy.deepcopy(student)
    experts = block(made).experts
    with torch.no_grad():
        for weight in (experts.gate_up_proj, experts.down_proj):
            _, out, width = weight.shape
            parts = {"common": 1, "specific": E}
            for kind, n in parts.items():
                if change in (kind, "mixed"):
                    a, b = torch.randn(n, 2, width) * width**-0.5, torch.randn(n, out, 2)
                    weight += 0.5 * b @ a
    return made


class Mix:
    """Documents [N, LENGTH, H] whose topics are drawn by weight."""

    def __init__(self, seed: int) -> None:
        self.draw = torch.Generator().manual_seed(seed)
        self.means = torch.randn(TOPICS, H, generator=self.draw)
        self.skewed = torch.arange(1, TOPICS + 1).double() ** -2.0

    def documents(self, n: int, weights: torch.Tensor) -> torch.Tensor:
        topics = torch.multinomial(weights, n, replacement=True, generator=self.draw)
        return self.means[topics][:, None] + torch.randn(n, LENGTH, H, generator=self.draw) * 0.7


def usage(model: Any, documents: torch.Tensor) -> Load:
    with torch.no_grad():
        _, weights, picks = block(model).gate(documents.reshape(-1, H))
    rows = torch.nn.functional.one_hot(picks, E).sum(1).view(len(documents), LENGTH, E).sum(1)[:, None]
    gate = torch.zeros(1, E, dtype=torch.float64)
    gate[0].index_add_(0, picks.reshape(-1), weights.reshape(-1).double())
    return Load(rows.sum(0), gate, rows)


def learn(student: Any, target: Any, settings: dict[str, Any], pool: torch.Tensor, steps: int, seed: int) -> Any:
    load = usage(student, pool)
    handle = attach(student, settings | {"seed": seed}, load=load)
    floor = float(settings.get("minimum_load", 0.0))
    weights = draw_weights(load.rows, floor) if floor else torch.ones(len(pool), dtype=torch.float64)
    own = [p for _, p in handle.named_parameters()]
    optimizer = torch.optim.AdamW(own, lr=1e-3 if settings["mode"] == "experts" else 5e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    handle.guard(optimizer)
    draw = torch.Generator().manual_seed(seed)
    student.train()
    for _ in range(steps):
        x = pool[torch.multinomial(weights, 32, replacement=True, generator=draw)]
        with torch.no_grad():
            wanted = block(target)(x)
        (block(student)(x) - wanted).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    student.eval()
    return handle


def errors(student: Any, plain: Any, target: Any, x: torch.Tensor, rare: torch.Tensor) -> tuple[float, float]:
    """Relative error over all tokens, and over tokens that a rare expert served."""
    with torch.no_grad():
        wanted, got, before = (block(m)(x).reshape(-1, H) for m in (target, student, plain))
        picks = block(plain).gate(x.reshape(-1, H))[2]
    served = torch.isin(picks, rare).any(1)
    left, whole = (got - wanted).square().sum(1), (before - wanted).square().sum(1)
    return float(left.sum() / whole.sum()), float(left[served].sum() / whole[served].sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    begun, found = time.process_time(), dict[str, Any]()
    for change in ("common", "specific", "mixed"):
        print(change, "change: error on the training mix / even mix / least used quarter (range over seeds)")
        for name, settings in STUDENTS.items():
            rows: list[tuple[float, float, float]] = []
            trained = 0
            for seed in range(args.seeds):
                plain, mix = base(seed), Mix(seed + 100)
                target, student = teacher(plain, change), copy.deepcopy(plain)
                pool = mix.documents(1024, mix.skewed)
                load = usage(plain, pool)
                handle = learn(student, target, settings, pool, args.steps, seed)
                trained = handle.audit().trainable
                rare = load.tokens[0].argsort()[: E // 4]
                even = mix.documents(512, torch.ones(TOPICS, dtype=torch.float64))
                here, _ = errors(student, plain, target, mix.documents(512, mix.skewed), rare)
                rows.append((here, *errors(student, plain, target, even, rare)))
            means = [round(statistics.mean(r[i] for r in rows), 4) for i in range(3)]
            ranges = [[round(min(r[i] for r in rows), 4), round(max(r[i] for r in rows), 4)] for i in range(3)]
            keys = ("training_mix", "even_mix", "rare_quarter")
            found.setdefault(change, {})[name] = {
                "trainable": trained,
                **{k: {"mean": m, "range": r} for k, m, r in zip(keys, means, ranges, strict=True)},
            }
            told = "   ".join(f"{m:.3f} ({lo:.3f}-{hi:.3f})" for m, (lo, hi) in zip(means, ranges, strict=True))
            print(f"  {name:34} {trained:>7,}  {told}", flush=True)
    said = {"steps": args.steps, "seeds": args.seeds, "H": H, "I": INNER, "E": E, "k": K, "changes": found}
    said["cpu_seconds"] = round(time.process_time() - begun, 1)
    if args.out:
        args.out.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
