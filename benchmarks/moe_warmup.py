"""Does a router warm-up keep upcycled experts from staying copies? nano's base upcycled, beside dense training.

    python benchmarks/moe_warmup.py --out docs/benchmarks/moe_warmup.json

Every arm sees the same examples in the same order. Finished runs are kept in the file `--runs`, so the same command
goes on where it was stopped. Also draws docs/moe/warmup-*.svg and prints the table of docs/moe.md.
"""

# pyright: basic

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nano import build, tasks
from tenet import drawings
from trainers import _core as pretrain
from trainers.moe import losses, routing, upcycle
from trainers.moe._coach import Coach
from trainers.moe.schedule import Schedule, Warmup

BASE = Path(build.__file__).parent / "models" / "base"
SHAPE = {"experts": 8, "top_k": 2}
START, END = 0.1, 0.01


def arms(steps: int) -> dict[str, tuple[float, losses.Settings] | None]:
    """Name -> (share of inner units drawn anew, router losses); None is dense training."""
    short = steps // 4
    decay = Schedule(shape="cosine", start=START, end=END, steps=steps)
    held = Warmup(steps=short, aux_start=START, aux_end=END, shape="constant", router_lr=1e-2)
    fading = Warmup(steps=short, aux_start=START, aux_end=END, shape="cosine", router_lr=1e-2)
    plain = losses.Settings(balance=END)
    return {
        "dense, equal tokens": None,
        "dense, equal compute": None,
        "copies": (0.0, plain),
        "copies, warm-up with decay": (0.0, losses.Settings(warmup=fading)),
        "reinit": (0.25, plain),
        "reinit, decay": (0.25, losses.Settings(schedule=decay)),
        "reinit, warm-up": (0.25, losses.Settings(warmup=held)),
        "reinit, warm-up with decay": (0.25, losses.Settings(warmup=fading)),
    }


def compute(model: Any, top_k: int = 1, experts: int = 1) -> float:
    """Weights that work on a token: all of them, less the experts that it does not go to."""
    total = sum(p.numel() for p in model.parameters())
    stacked = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    return total - stacked * (1 - top_k / experts)


def held_out(model: Any, examples: list[pretrain.Example]) -> float:
    """Cross-entropy of the learnt tokens of fresh exercises, in nats."""
    model.eval()
    with torch.no_grad():
        found = [float(pretrain.loss_of(model, examples[i : i + 16])) for i in range(0, len(examples), 16)]
    model.train()
    return statistics.mean(found)


def drawn(coder: build.Coder, seed: str, tokens: int) -> list[pretrain.Example]:
    """Examples that add up to a little more than so many tokens."""
    rng, made, total = random.Random(seed), list[pretrain.Example](), 0
    while total < tokens * 1.1:
        made += coder.dialogues([tasks.exercise(rng) for _ in range(32)])
        total = sum(len(e.ids) for e in made)
    return made


def one(name: str, arm: tuple[float, losses.Settings] | None, seed: int, tokens: int, batch: int) -> dict[str, Any]:
    """One training from `base`: its end, and what was seen on the way."""
    tok = AutoTokenizer.from_pretrained(BASE)
    coder = build.Coder(tok)
    model: Any = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    fresh = sorted(drawn(coder, f"held out {seed}", 10_000), key=lambda e: len(e.ids))
    dense_cost = compute(model)
    coach = None
    if arm is not None:
        model = upcycle.upcycle(model, upcycle.Settings(**SHAPE, reinit=arm[0], seed=seed))
        coach = Coach(model, arm[1])
    elif name == "dense, equal compute":
        both = upcycle.upcycle(model, upcycle.Settings(**SHAPE))
        tokens = round(tokens * compute(both, SHAPE["top_k"], SHAPE["experts"]) / dense_cost)
    cost = compute(model, SHAPE["top_k"], SHAPE["experts"]) if arm is not None else dense_cost
    seen: list[dict[str, Any]] = []
    began = time.monotonic()

    def look(at: pretrain.Step) -> None:
        n = len(seen)
        row: dict[str, Any] = {"step": n, "tokens": at.tokens, "loss": at.loss, **at.router}
        if coach is not None and n % 10 == 0:
            row["similarity"] = statistics.mean(routing.similarity(layer) for layer in coach.layers)
        seen.append(row)

    start = held_out(model, fresh)
    settings = pretrain.Settings(tokens=tokens, batch_tokens=batch, lr=2e-3, matrix_lr=0.01, compile=False, seed=seed)
    pretrain.train(model, drawn(coder, f"warm-up {seed}", tokens), settings, look, coach)
    result: dict[str, Any] = {
        "arm": name, "seed": seed, "tokens": seen[-1]["tokens"], "steps": len(seen), "start": start,
        "end": held_out(model, fresh), "active_weights": round(cost), "seconds": time.monotonic() - began, "seen": seen,
    }  # fmt: skip
    if coach is not None:
        result["similarity"] = [routing.similarity(layer) for layer in coach.layers]
        result["outputs"] = functional(model, coach, fresh)
        coach.close()
    return result


def functional(model: Any, coach: Coach, examples: list[pretrain.Example]) -> float:
    """Mean pairwise cosine of what the experts of a layer answer to the same tokens."""
    inputs: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: Any, args: Any, kwargs: Any) -> None:
            inputs[name] = args[0] if args else kwargs["hidden_states"]

        return hook

    hooks = [y.experts.register_forward_pre_hook(keep(y.name), with_kwargs=True) for y in coach.layers]
    with torch.no_grad():
        pretrain.loss_of(model, examples[:8])
    for hook in hooks:
        hook.remove()
    return statistics.mean(routing.answers(layer, inputs[layer.name][:512].float()) for layer in coach.layers)


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and range over seeds of every arm's last figures."""

    def spread(values: list[float]) -> dict[str, float]:
        return {"mean": statistics.mean(values), "low": min(values), "high": max(values)}

    found: dict[str, Any] = {}
    for name in dict.fromkeys(r["arm"] for r in runs):
        own = [r for r in runs if r["arm"] == name]
        tail = {r["seed"]: r["seen"][-10:] for r in own}
        row: dict[str, Any] = {"seeds": len(own), **{k: own[0][k] for k in ("tokens", "active_weights")}}
        row["held-out loss"] = spread([r["end"] for r in own])
        if "similarity" in own[0]:
            row["similarity of weights at the start"] = spread([r["seen"][0]["similarity"] for r in own])
            row["similarity of weights"] = spread([statistics.mean(r["similarity"]) for r in own])
            row["similarity of outputs"] = spread([r["outputs"] for r in own])
            for key in ("moe/entropy", "moe/load_entropy", "moe/max_load", "moe/balance_worst", "moe/dead"):
                row[key] = spread([statistics.mean(s[key] for s in tail[r["seed"]]) for r in own])
        found[name] = row
    return found


def average(runs: list[dict[str, Any]], name: str, key: str, smooth: int = 5) -> tuple[list[int], list[float]]:
    """(tokens, value) of a figure along an arm, averaged over seeds and over some neighbouring steps."""
    own = [[s for s in r["seen"] if key in s] for r in runs if r["arm"] == name]
    length = min(map(len, own), default=0)
    mean = [statistics.mean(seen[i][key] for seen in own) for i in range(length)]
    lows = [mean[max(0, i - smooth + 1) : i + 1] for i in range(length)]
    return [own[0][i]["tokens"] for i in range(length)], [statistics.mean(x) for x in lows]


def draw(runs: list[dict[str, Any]], folder: Path) -> None:
    """The plots of docs/moe.md."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(r["arm"] for r in runs))
    mixtures = [n for n in names if not n.startswith("dense")]
    lines = dict(zip(mixtures, ("--", "--", "-", "-", "-", "-"), strict=False))
    colour = {n: drawings.COLOURS[i % len(drawings.COLOURS)] for i, n in enumerate(mixtures)}

    def panels(axes: Any) -> None:
        for axis, (key, label, smooth) in zip(
            axes,
            (
                ("moe/load_entropy", "entropy of the load (1: even)", 5),
                ("moe/max_load_worst", "max / mean load, worst layer", 5),
                ("similarity", "experts' pairwise cosine", 1),
            ),
            strict=True,
        ):
            for n in mixtures:
                axis.plot(*average(runs, n, key, smooth), lines[n], color=colour[n], label=n, linewidth=1.4)
            axis.set(xlabel="tokens", ylabel=label)
        axes[1].legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))

    (folder / "warmup-routing.svg").write_text(drawings.drawn(panels, 12.5, 3.6, 3), encoding="utf-8")

    def ends(axis: Any) -> None:
        for y, n in enumerate(names):
            found = [r["end"] for r in runs if r["arm"] == n]
            axis.plot(found, [y] * len(found), "o", color=colour.get(n, drawings.INK), alpha=0.6)
            axis.plot(statistics.mean(found), y, "|", color=colour.get(n, drawings.INK), markersize=16)
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.set_xlabel("held-out loss at the end, nats (dots: seeds, bar: mean)")

    (folder / "warmup-loss.svg").write_text(drawings.drawn(ends, 8.0, 3.2), encoding="utf-8")


def table(found: dict[str, Any]) -> str:
    """The summary as Markdown."""
    keys = ("held-out loss", "moe/load_entropy", "moe/max_load", "similarity of weights at the start",
            "similarity of weights", "similarity of outputs")  # fmt: skip
    heads = ("held-out loss", "load entropy", "max / mean load", "cosine, start", "cosine, end", "outputs' cosine")
    lines = ["| arm | tokens | " + " | ".join(heads) + " |", "|---|--:|" + "--:|" * len(heads)]
    for name, row in found.items():
        cells = [
            f"{row[k]['mean']:.3f} ({row[k]['low']:.3f}–{row[k]['high']:.3f})" if k in row else "" for k in keys
        ]
        lines.append(f"| {name} | {row['tokens']:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/moe_warmup.json"))
    parser.add_argument("--runs", type=Path, default=Path("runs/moe_warmup.jsonl"), help="One line a finished run.")
    parser.add_argument("--plots", type=Path, default=Path("docs/moe"))
    parser.add_argument("--tokens", type=int, default=40_000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    log = args.runs
    log.parent.mkdir(parents=True, exist_ok=True)
    runs = [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log.exists() else []
    done = {(r["arm"], r["seed"]) for r in runs}
    for seed in range(args.seeds):
        for name, arm in arms(args.tokens // args.batch).items():
            if (name, seed) in done:
                continue
            runs.append(one(name, arm, seed, args.tokens, args.batch))
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(runs[-1]) + "\n")
            print(f"seed {seed}  {name:28} held-out {runs[-1]['end']:.4f}  {runs[-1]['seconds']:.0f} s", flush=True)
    asked = {"tokens": args.tokens, "batch": args.batch, "shape": SHAPE, "torch": torch.__version__}
    found = summary(runs)
    args.out.write_text(json.dumps({"asked": asked, "arms": found}, indent=1) + "\n", encoding="utf-8")
    draw(runs, args.plots)
    print(table(found))


if __name__ == "__main__":
    main()
