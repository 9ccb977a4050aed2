"""The loop closed on nano: a constitution becomes data, data becomes models, and the oracle counts what they still do.

Two constitutions, `nano` and `nano` less one rule, each through `tenet generate` and then, for every seed, SFT on the
last revisions, a reward model, DPO with soft and with hard labels, and PPO with that reward model, each stage from
nano:assistant. Replies to held-out questions are then drawn by vLLM and read by the oracle, which no stage has seen.
Every step is the `tenet` command in a process of its own, so a stopped benchmark goes on where it was. Prints JSON.

    python -P benchmarks/loop.py --folder runs/loop [--seeds 3] [--prompts 400] [--held 1000] [--jobs 2]
    python -P benchmarks/loop.py --folder runs/caveat --left-out caveat --stages dpo --seeds 1
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

from nano import world
from nano.check import interval
from nano.lexicon import UNNAMED
from tenet.engines import Request, Sampling
from tenet.records import Message

BASE = "nano:assistant"
NAMED = frozenset(world.AVOID) - UNNAMED
CONTROL = frozenset(world.AVOID) & UNNAMED
RULES = NAMED | frozenset(world.MUST)
STAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {"batch": 16, "lr": 5e-4, "epochs": 2}),
    "reward": ("reward", {"batch": 16, "lr": 3e-4, "epochs": 2}),
    "dpo": ("dpo", {"batch": 16, "lr": 4e-4, "beta": 0.05, "epochs": 2}),
    "dpo-hard": ("dpo", {"batch": 16, "lr": 4e-4, "beta": 0.05, "epochs": 2, "labels": "hard"}),
    "ppo": ("ppo", {
        "batch": 48, "steps": 40, "lr": 3e-4, "save_every": 20, "rollout": {"max_tokens": 96}, "kl": {"weight": 0.1},
        "value": {"lr": 3e-4}, "update": {"epochs": 2, "minibatches": 3},
    }),
}  # fmt: skip

ARMS = {"named": tuple(STAGES), "less": tuple(s for s in STAGES if s != "dpo-hard")}
"""What is trained under the whole constitution, and under the one that lacks a rule."""


def questions(n: int, held: int) -> tuple[list[str], list[str]]:
    """Questions to train on and others to measure on, each once."""
    rng, seen = random.Random("loop"), dict[str, None]()
    while len(seen) < n + held:
        seen.setdefault(world.question(rng)[1])
    return list(seen)[:n], list(seen)[n:]


def write(path: Path, rows: Sequence[Any] | dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(r) + "\n" for r in rows)
    path.write_text(yaml.safe_dump(rows) if isinstance(rows, dict) else lines, encoding="utf-8")


def tenet(folder: Path, *words: str) -> None:
    """A `tenet` command in the folder, on one thread; its seconds go to seconds.jsonl."""
    clock = time.monotonic()
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "service", *words]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"tenet {' '.join(words)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    took = round(time.monotonic() - clock, 1)
    print(f"{took:6.1f} s  tenet {' '.join(words)}", file=sys.stderr, flush=True)
    with (folder / "seconds.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps([Path(words[-1]).stem, took]) + "\n")


def spent(folder: Path) -> dict[str, float]:
    """Seconds of every step; where a benchmark was started again, those of the start that did the work."""
    found: dict[str, float] = {}
    for line in (folder / "seconds.jsonl").read_text(encoding="utf-8").splitlines():
        name, seconds = json.loads(line)
        found[name] = max(seconds, found.get(name, 0.0))
    return found


def recipe(prompts: str, constitution: str, out: str) -> dict[str, Any]:
    return {
        "prompts": {"path": prompts}, "constitution": constitution, "out": out,
        "models": {"nano": {"kind": "vllm", "model": BASE, "threads": 1}},
        "respond": {"samples": 2, "sampling": {"max_tokens": 160}},
        "revise": {"rounds": 4, "principles": 5, "sampling": {"max_tokens": 200, "temperature": 0.3}},
        "pairs": [{"kind": "initial_vs_revision", "per_prompt": 2}, {"kind": "samples"}],
        "judge": {"kind": "pairwise", "order": "both", "principles": 8}, "keep": {"margin": 0.02},
    }  # fmt: skip


def generate(folder: Path, given: argparse.Namespace) -> None:
    """Both data sets, and judged pairs of held-out questions for the reward models."""
    train, held = questions(given.prompts, given.held)
    write(folder / "prompts.jsonl", [{"prompt": q} for q in train])
    write(folder / "held.jsonl", [{"prompt": q} for q in held[: given.pairs]])
    write(folder / "less.yaml", {"name": "less", "extends": "nano", "remove": [given.left_out]})
    runs = {"named": ("prompts", "nano"), "less": ("prompts", "./less.yaml"), "held": ("held", "nano")}
    for name, (prompts, rules) in runs.items():
        write(folder / f"generate-{name}.yaml", recipe(f"{prompts}.jsonl", rules, f"runs/{name}"))
        tenet(folder, "generate", f"generate-{name}.yaml")


def train(folder: Path, arm: str, seed: int, stages: Sequence[str]) -> None:
    """One seed's stages under one constitution."""
    for name in stages:
        kind, own = STAGES[name]
        said: dict[str, Any] = {"model": BASE, "data": f"runs/{arm}", "out": f"{arm}/{name}-{seed}", "seed": seed}
        if kind == "sft":
            said["data"] = [{"path": f"runs/{arm}", "rounds": "last"}]
        if kind == "ppo":
            said |= {"data": "prompts.jsonl", "reward": {"model": f"{arm}/reward-{seed}", "unended_penalty": 1.0}}
        config = f"configs/{arm}-{name}-{seed}.yaml"
        before = (folder / config).read_text(encoding="utf-8") if (folder / config).exists() else ""
        write(folder / config, {**said, **own})
        done = (folder / arm / f"{name}-{seed}" / "manifest.json").exists()
        if not done or (folder / config).read_text(encoding="utf-8") != before:  # else it only loads, to do nothing
            tenet(folder, "train", kind, config)


def untied(model: str, to: Path) -> Path:
    """A copy with an output layer of its own, the same function: what a running vLLM on CPU can take over."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trainers._common import locate, quiet

    with quiet():
        folder = locate(model)
        net: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        state = {k: v.clone() for k, v in net.state_dict().items()}
        net.config = copy.deepcopy(net.config)
        net.config.tie_word_embeddings = False
        net.save_pretrained(to, state_dict=state)
        AutoTokenizer.from_pretrained(folder).save_pretrained(to)
    return to


async def replies(folder: Path, models: dict[str, tuple[str, int]], asked: list[str]) -> dict[str, list[Any]]:
    """Each model's replies to the questions at temperature 1, from one vLLM engine that takes over their weights."""
    from tenet.engines.vllm import Settings, build

    first = untied(BASE, folder / "served" / "base")
    engine = build(Settings(model=str(first), max_model_len=512, kv_cache_gib=0.5, threads=1))
    found: dict[str, list[Any]] = {}
    try:
        await engine.start()
        for name, (model, seed) in models.items():
            await engine.reload(untied(model, folder / "served" / name.replace(" ", "-")))
            found[name] = await engine.generate([
                Request(messages=(Message(role="user", content=q),),
                        sampling=Sampling(temperature=1.0, max_tokens=160, seed=1_000_000 * seed + i))
                for i, q in enumerate(asked)
            ])  # fmt: skip
            print(f"{name}: {len(asked)} replies", file=sys.stderr, flush=True)
    finally:
        await engine.close()
    return found


def oracle(asked: list[str], said: list[Any], left_out: str) -> dict[str, Any]:
    """What the oracle reads in replies: shares with Wilson intervals, and means a reply."""
    texts = [r.text for r in said]
    topics = [world.topic_of(q) for q in asked]
    sentences = [[s.text for s in world.read(t).sentences if s.concept is None] for t in texts]
    good = [sum(world.is_useful(s, t) for s in ss) for ss, t in zip(sentences, topics, strict=True) if t is not None]
    n = len(texts)
    return {
        "named faults": interval(sum(bool(world.faults(t, NAMED)) for t in texts), n),
        left_out: interval(sum(bool(world.faults(t, {left_out})) for t in texts), n),
        "other named faults": interval(sum(bool(world.faults(t, NAMED - {left_out})) for t in texts), n),
        "control faults": interval(sum(bool(world.faults(t, CONTROL)) for t in texts), n),
        "useful": interval(sum(g >= 2 for g in good), n),
        "useful of plain sentences": interval(sum(good), sum(map(len, sentences))),
        "useful sentences": fmean(good),
        "rules broken": fmean(len(world.faults(t, RULES)) for t in texts),
        "words": fmean(len(t.split()) for t in texts),
        "ended": interval(sum(r.finish == "stop" for r in said), n),
    }


def divergence(model: str, asked: list[str], said: list[Any], n: int = 300) -> dict[str, float]:
    """KL(model || nano:assistant) in nats a reply, on the model's own replies, with a 95% interval over them."""
    from trainers._common import locate, quiet
    from trainers.probes._checkpoint import open_stage
    from trainers.probes._models import Coded, Loaded
    from trainers.probes._outputs import divergence as kl
    from trainers.probes._texts import Sample

    with quiet():
        after, before = Loaded(open_stage(str(locate(model)))), Loaded(open_stage(str(locate(BASE))))
    coded: list[Coded] = []
    for q, r in zip(asked[:n], said[:n], strict=True):
        one = after.code(Sample(messages=(Message(role="user", content=q),), reply=r.text))
        if one is not None:  # the end token is drawn too, where a reply has one
            end = [after.tokenizer.eos_token_id] if r.finish == "stop" else []
            coded.append(Coded([*one.ids, *end], one.start))
    sums = [float(kl(p, q).sum()) for p, q in zip(after.distributions(coded), before.distributions(coded), strict=True)]
    half = 1.96 * stdev(sums) / math.sqrt(len(sums))
    return {"value": fmean(sums), "low": fmean(sums) - half, "high": fmean(sums) + half, "n": len(sums)}


async def rewarded(model: Path, run: Path) -> dict[str, Any]:
    """How often a reward model prefers the better of two held-out replies: by the judge, and by the oracle."""
    from datasets import load_dataset

    from tenet.engines import classifier

    rows: Any = load_dataset("parquet", data_files=str(run / "data" / "reward.parquet"), split="train")
    engine = classifier.build(classifier.Settings(model=str(model)))
    asked = [
        Request(messages=tuple(Message.model_validate(m) for m in [*row["prompt"], *row[side]]), sampling=Sampling())
        for row in rows for side in ("chosen", "rejected")
    ]  # fmt: skip
    scores = [float(r.text) for r in await engine.generate(asked)]
    await engine.close()
    ahead = [a > b for a, b in zip(scores[::2], scores[1::2], strict=True)]
    edges = [
        len(world.faults(row["rejected"][0]["content"], RULES)) - len(world.faults(row["chosen"][0]["content"], RULES))
        for row in rows
    ]
    told = [a == (e > 0) for a, e in zip(ahead, edges, strict=True) if e]
    sure = [a for a, p in zip(ahead, rows["p_chosen"], strict=True) if p >= 0.6]
    return {
        "judge": interval(sum(ahead), len(ahead)),
        "oracle": interval(sum(told), len(told)),
        "judge, p_chosen at least 0.6": interval(sum(sure), len(sure)),
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean over seeds with a 95% t interval; without two seeds no interval."""
    from scipy.stats import t

    if len(values) < 2:
        return {"value": fmean(values), "low": None, "high": None, "seeds": len(values), "why": "one seed"}
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return {"value": fmean(values), "low": fmean(values) - half, "high": fmean(values) + half, "seeds": len(values)}


def together(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several seeds' figures: over the seeds, and with all replies in one pot."""
    made: dict[str, Any] = {"by_seed": list(parts)}
    for key, first in parts[0].items():
        values = [p[key]["value"] if isinstance(first, dict) else p[key] for p in parts]
        made[key] = spread(values)
        if isinstance(first, dict) and isinstance(first["n"], int) and key != "kl":
            n = sum(p[key]["n"] for p in parts)
            made[key]["pooled"] = interval(round(sum(p[key]["value"] * p[key]["n"] for p in parts)), n)
    return made


def measure(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """The oracle's word on the base and on every stage, and the reward models' accuracy."""
    asked = questions(given.prompts, given.held)[1]
    seeds = range(given.seeds)
    models = {f"base {s}": (BASE, s) for s in seeds} | {
        f"{arm} {name} {s}": (str((folder / arm / f"{name}-{s}").resolve()), s)
        for arm, stages in ARMS.items() for name in stages if name in given.stages and name != "reward" for s in seeds
    }  # fmt: skip
    said = asyncio.run(replies(folder, models, asked))
    found: dict[str, list[dict[str, Any]]] = {}
    for name, (model, _) in models.items():
        read = oracle(asked, said[name], given.left_out)
        if model != BASE:
            read["kl"] = divergence(model, asked, said[name])
        found.setdefault(name.rpartition(" ")[0], []).append(read)
        rows = [{"question": q, "reply": r.text} for q, r in zip(asked, said[name], strict=True)]
        write(folder / "replies" / f"{name.replace(' ', '-')}.jsonl", rows)
    report: dict[str, Any] = {"stages": {name: together(parts) for name, parts in found.items()}}
    if "reward" in given.stages:
        rm = [asyncio.run(rewarded(folder / "named" / f"reward-{s}", folder / "runs" / "held")) for s in seeds]
        report["reward model on held-out pairs"] = together(rm)
    if {"dpo", "dpo-hard"} <= set(given.stages):
        key = "named faults"
        soft, hard = ([p[key]["value"] for p in found[f"named {name}"]] for name in ("dpo", "dpo-hard"))
        report["soft less hard labels, named faults"] = spread([a - b for a, b in zip(soft, hard, strict=True)])
    return report


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--held", type=int, default=1000, help="Held-out questions.")
    parser.add_argument("--pairs", type=int, default=120, help="Of those, how many give held-out pairs.")
    parser.add_argument("--left-out", default="flattery", help="The rule that the second constitution lacks.")
    parser.add_argument("--jobs", type=int, default=2, help="Trainings at a time, on one thread each.")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES), help="ppo needs reward.")
    given = parser.parse_args()
    folder = given.folder
    generate(folder, given)
    with ThreadPoolExecutor(given.jobs) as pool:
        chains = [
            (arm, s, [n for n in names if n in given.stages]) for s in range(given.seeds) for arm, names in ARMS.items()
        ]
        for job in [pool.submit(train, folder, *chain) for chain in chains]:
            job.result()
    read = time.monotonic()
    found = measure(folder, given)
    seconds = {**spent(folder), "measure": round(time.monotonic() - read, 1)}
    report = {
        "model": BASE, **{k: v for k, v in vars(given).items() if k != "folder"},
        "settings": {name: {"kind": kind, **own} for name, (kind, own) in STAGES.items()},
        **found, "seconds": seconds, "seconds, all together": round(sum(seconds.values())), "cores": os.cpu_count(),
        "load": [round(x, 1) for x in os.getloadavg()],
    }  # fmt: skip
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
