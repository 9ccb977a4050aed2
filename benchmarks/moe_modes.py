"""The adapter modes side by side on nano:assistant-moe: what each changes, keeps, costs and moves.

`tenet generate` makes the data with real vLLM: the model answers questions of the small world, critiques and revises
under all rules of the nano constitution (broad), or under one of them (narrow), and judges the pairs. Each mode then
learns from them, by SFT on the revisions and by DPO on the pairs. The oracle counts, on replies to held-out
questions, how many still have a fault that the rules name, and how many of the other sentences are useful.

Every run is a process of its own, so that its peak memory is its own. The learning rate of each mode is the one of
two that left the fewest faults (and the most caveats) at a seed and questions that are not used again. Prints JSON.

    python -m benchmarks.moe_modes [--seeds 3] [--prompts 240] [--jobs 2] [--out FOLDER] \
      > docs/benchmarks/moe_modes.json
"""

# transformers and torch ship no complete types
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

from nano import world
from nano.lexicon import UNNAMED

MODEL = "nano:assistant-moe"
NARROW = "caveat"
"""The one rule of the narrow change: a reply must name a caveat. No other rule asks for what it asks for."""
LOW_RANK, WHOLE, ROUTER = (6e-3, 2e-2), (2e-4, 8e-4), (1e-2, 5e-2)
ARMS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "shared r8": ({"mode": "shared", "r": 8}, LOW_RANK),
    "per_expert r8": ({"mode": "per_expert", "r": 8}, LOW_RANK),
    "hybrid r8 + 4": ({"mode": "hybrid", "r": 8, "residual_r": 4}, LOW_RANK),
    "per_expert r1": ({"mode": "per_expert", "r": 1}, LOW_RANK),
    "hybrid r1 + 1": ({"mode": "hybrid", "r": 1, "residual_r": 1}, LOW_RANK),
    "attention r8": ({"mode": "attention", "r": 8}, LOW_RANK),
    "router": ({"mode": "router"}, ROUTER),
    "experts, 2 a layer": ({"mode": "experts", "n": 2}, WHOLE),
    "full": ({"mode": "full"}, WHOLE),
}
STEPS, BATCH = {"sft": 12, "dpo": 12}, 16
HELD_OUT = 400
TUNING = 99
"""The seed of the runs that choose learning rates."""


def questions(n: int, seed: int) -> Iterator[str]:
    """Different questions of the small world."""
    rng, seen = random.Random(seed), set[str]()
    while len(seen) < n:
        asked = world.question(rng)[1]
        if asked not in seen:
            seen.add(asked)
            yield asked


def generate(folder: Path, name: str, prompts: int) -> Path:
    """A run's folder: made with real vLLM in a process of its own."""
    out = folder / "runs" / name
    if (out / "manifest.json").exists():
        return out
    lines = (json.dumps({"prompt": q}) for q in questions(prompts, 11))
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    rules, remove = "nano", ""
    if name == "narrow":
        from constitution import load

        others = [p.id for p in load("nano").principles if p.id != NARROW]
        remove = f"remove: [{', '.join(others)}]"
        rules = "one-rule.yaml"
        (folder / rules).write_text(f"name: narrow\nextends: nano\n{remove}\n")
    draws = 1 if name == "narrow" else 5
    (folder / f"{name}.yaml").write_text(f"""
prompts: {{path: prompts.jsonl}}
constitution: {rules}
models: {{moe: {{kind: vllm, model: "{MODEL}", threads: 1}}}}
respond: {{samples: 2, sampling: {{max_tokens: 160}}}}
revise: {{rounds: 2, principles: {draws}, sampling: {{max_tokens: 200, temperature: 0.3}}}}
pairs: [{{kind: initial_vs_revision, per_prompt: 2}}, {{kind: samples}}]
judge: {{kind: pairwise, order: both, principles: {draws}}}
keep: {{margin: 0.02}}
""")
    command = [sys.executable, "-m", "service", "generate", str(folder / f"{name}.yaml"), f"out={out}"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return out


def learn(kind: str, data: Path, arm: str, lr: float, seed: int, out: Path) -> dict[str, Any]:
    """Trains one arm in this process; what it took, and what the oracle says of the trained model's replies."""
    from tenet import kinds
    from tenet.settings import assemble

    module = kinds.load("trainers", kind)
    said: dict[str, Any] = {
        "model": MODEL, "data": str(data), "out": str(out), "steps": STEPS[kind], "batch": BATCH, "lr": lr,
        "seed": seed, "adapter": ARMS[arm][0], "device": "cpu", "save_every": 10_000, "log_every": 4,
    }  # fmt: skip
    if kind == "dpo":
        said["beta"] = 0.1
    trainer = module.build(assemble(module.Settings, said))
    rows = trainer.rows()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun, cpu = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(sys.stderr):
        trainer.train(rows)
    took = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu}
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    tokens = max(line.get("num_tokens", 0) for line in lines)
    return {**took, "tokens": tokens, "peak_mib": peak, **look(out, arm, seed)}


def look(out: Path, arm: str, seed: int) -> dict[str, Any]:
    """The trained model's replies under the oracle, its adapter's size, and how far its routing moved."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tenet.engines import _model
    from trainers import adapters

    auto: Any = AutoTokenizer
    base, _ = _model.locate(MODEL, "model")
    tokenizer = auto.from_pretrained(base, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    facts: dict[str, Any] = {}
    # the rates are chosen on other questions than those that count
    held_out = 13 if seed == TUNING else 12
    batch = _batch(tokenizer, list(questions(64, 14)))
    if (out / "adapter" / "adapter.safetensors").exists():
        handle = adapters.load(model, out / "adapter")
        audit, report = handle.audit(), handle.report()
        facts = {
            "trainable": audit.trainable,
            "active": round(audit.active),
            "adapter_kib": (out / "adapter" / "adapter.safetensors").stat().st_size / 1024,
            "idle_experts": len(report.idle) if any(e.change_norm is not None for e in report.experts) else None,
            # a model that was trained whole has no adapter to switch off
            "moved": None if ARMS[arm][0]["mode"] == "full" else handle.moved([batch]),
        }
    elif arm:
        model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        facts = {"trainable": sum(p.numel() for p in model.parameters())}
    texts: list[str] = []
    asked = list(questions(HELD_OUT // 2 if seed == TUNING else HELD_OUT, held_out))
    torch.manual_seed(seed)
    with torch.no_grad():
        for i in range(0, len(asked), 200):
            given = _batch(tokenizer, asked[i : i + 200])
            drawn = model.generate(**given, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=120)
            texts += tokenizer.batch_decode(drawn[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
    return {**facts, **oracle(asked, texts)}


def _batch(tokenizer: Any, asked: list[str]) -> Any:
    chats = [[{"role": "user", "content": q}] for q in asked]
    return tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )


def oracle(asked: list[str], texts: list[str]) -> dict[str, Any]:
    """Shares of replies with a named fault, with the narrow rule's, with an unnamed one; and of useful sentences."""
    named = frozenset(world.AVOID) - UNNAMED
    sets = {"named": named, "narrow": {NARROW}, "unnamed": frozenset(world.AVOID) & UNNAMED}
    found = {key: mean(bool(world.faults(t, which)) for t in texts) for key, which in sets.items()}
    useful = total = 0
    for question, text in zip(asked, texts, strict=True):
        topic = world.topic_of(question)
        assert topic is not None
        for sentence in world.read(text).sentences:
            if sentence.concept is None:  # neither a fault nor a part that a rule asks for
                total += 1
                useful += world.is_useful(sentence.text, topic)
    return {**found, "useful": useful / max(total, 1), "words": mean(len(t.split()) for t in texts)}


def one(folder: Path, kind: str, data: str, arm: str, lr: float, seed: int) -> dict[str, Any]:
    """`learn` in a process of its own; a finished one is read again."""
    out = folder / "trained" / f"{kind}-{data}-{arm}-{lr:g}-{seed}".replace(" ", "_").replace(",", "")
    if (out / "result.json").exists():
        return json.loads((out / "result.json").read_text())
    command = [sys.executable, "-m", "benchmarks.moe_modes", "--one", kind, str(folder / "runs" / data), arm, str(lr)]
    command += [str(seed), str(out)]
    subprocess.run(command, check=True, stdout=sys.stderr, env=os.environ | {"OMP_NUM_THREADS": "1"})
    for heavy in [*out.glob("*.safetensors"), *out.glob("checkpoint-*/*.pt")]:
        heavy.unlink()
    return json.loads((out / "result.json").read_text())


def compare(folder: Path, seeds: int, prompts: int, pool: ThreadPoolExecutor) -> dict[str, Any]:
    """All arms on both data sets and by both trainers; the pool's threads wait for processes of one core each."""
    runs = {name: generate(folder, name, prompts) for name in ("broad", "narrow")}
    counted = {n: json.loads((r / "manifest.json").read_text())["pairs"]["exported"] for n, r in runs.items()}
    base = subprocess.run(
        [sys.executable, "-m", "benchmarks.moe_modes", "--base"], check=True, capture_output=True, text=True
    )
    report: dict[str, Any] = {"pairs": counted, "steps": STEPS, "batch": BATCH, "replies": HELD_OUT}
    report |= {"narrow_rule": NARROW, "base": json.loads(base.stdout), "lr": {}, "arms": {}}
    by_rate = [(kind, arm, lr) for kind in ("dpo", "sft") for arm, (_, rates) in ARMS.items() for lr in rates]
    tried = dict(zip(by_rate, pool.map(lambda t: one(folder, t[0], "broad", *t[1:], TUNING), by_rate), strict=True))
    for kind, arm in dict.fromkeys((kind, arm) for kind, arm, _ in by_rate):
        at = {lr: tried[kind, arm, lr] for lr in ARMS[arm][1]}
        report["lr"][f"{kind} {arm}"] = {
            f"{lr:g}": [t[k] for k in ("named", "narrow", "useful")] for lr, t in at.items()
        }
        fine = {lr: t for lr, t in at.items() if t["useful"] >= report["base"]["useful"] - 0.05} or at
        best = min(fine, key=lambda lr: fine[lr]["named"] + fine[lr]["narrow"])
        for data in runs:
            report["arms"][f"{kind} {data} {arm}"] = {"lr": best, "seeds": []}
    each = [(seed, name) for seed in range(seeds) for name in report["arms"]]
    done = pool.map(lambda t: one(folder, *t[1].split(" ", 2), report["arms"][t[1]]["lr"], t[0]), each)
    for (_, name), result in zip(each, done, strict=True):
        report["arms"][name]["seeds"].append(result)
    return report | {"load": round(os.getloadavg()[0], 1), "cores": os.cpu_count()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=240)
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side, each on one core")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=6)
    parser.add_argument("--base", action="store_true")
    given = parser.parse_args()
    if given.one:
        kind, data, arm, lr, seed, out = given.one
        found = learn(kind, Path(data), arm, float(lr), int(seed), Path(out))
        (Path(out) / "result.json").write_text(json.dumps(found))
        return
    if given.base:
        print(json.dumps(look(Path("-"), "", 0)))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = given.out or Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(given.jobs) as pool:
            print(json.dumps(compare(folder.absolute(), given.seeds, given.prompts, pool), indent=1))


if __name__ == "__main__":
    main()
