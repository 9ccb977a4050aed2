"""Seconds of a PPO update (rollout, score, learn) beside TRL's RLOO on the same model, prompts and number of tokens.

Both draw with transformers, score with the same function, take the same number of optimizer steps over the same
number of rollouts, and learn all weights. RLOO has no value network: `shared` costs PPO least, `separate` most.
Prints JSON; the target is a `ratio` of at most 1.15 for `shared`. Of three rounds, the faster counts.

    python -P benchmarks/ppo.py [--updates 6] [--batch 32] [--max-tokens 48]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
import warnings
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from nano import world

MODEL = Path(__file__).parents[1] / "nano" / "models" / "assistant"


def by_length(completions: list[Any], **_: Any) -> list[float]:
    """Scores short replies higher."""
    return [-len(c[0]["content"]) / 100 for c in completions]


def prompts(n: int) -> list[dict[str, Any]]:
    rng = random.Random(5)
    return [{"prompt": [{"role": "user", "content": world.question(rng)[1] + f" I have {i}."}]} for i in range(n)]


def ours(given: argparse.Namespace, network: str) -> dict[str, Any]:
    from tenet.settings import assemble
    from trainers import _rows, ppo

    with tempfile.TemporaryDirectory() as place:
        said = {
            "model": str(MODEL), "data": "rows", "out": place, "steps": given.updates, "batch": given.batch,
            "device": "cpu", "save_every": 10_000, "reward": {"judge": "by_length"}, "lr": 1e-6,
            "rollout": {"max_tokens": given.max_tokens}, "value": {"network": network},
            "update": {"epochs": 1, "minibatches": given.steps},
        }  # fmt: skip
        trainer = ppo.build(assemble(ppo.Settings, said), by_length)
        trainer.train(_rows.given(prompts(256), "prompts"))
        lines = [json.loads(line) for line in (Path(place) / "metrics.jsonl").read_text().splitlines()][1:]
    parts = {k: round(median(line[f"seconds_{k}"] for line in lines), 3) for k in ("rollout", "score", "learn")}
    tokens = round(median(line["tokens"] for line in lines))
    return {"seconds": parts | {"update": round(sum(parts.values()), 3)}, "tokens": tokens}


def theirs(given: argparse.Namespace) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
    from trl import RLOOConfig, RLOOTrainer

    class Clock(TrainerCallback):
        times: list[float]

        def __init__(self) -> None:
            self.times = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times.append(time.perf_counter())

    clock = Clock()
    with tempfile.TemporaryDirectory() as place:
        how = RLOOConfig(
            output_dir=place, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], save_strategy="no",
            per_device_train_batch_size=given.batch // given.steps, steps_per_generation=given.steps,
            max_steps=given.updates * given.steps, num_generations=2, max_completion_length=given.max_tokens,
            beta=0.05, learning_rate=1e-6, logging_steps=1, disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = RLOOTrainer(
            model=AutoModelForCausalLM.from_pretrained(MODEL), reward_funcs=by_length, args=how,
            processing_class=AutoTokenizer.from_pretrained(MODEL), train_dataset=Dataset.from_list(prompts(256)),
            callbacks=[clock],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)  # it would print into the report
        trainer.train()
        lengths = [h["completions/mean_length"] for h in trainer.state.log_history if "completions/mean_length" in h]
    ends = clock.times[given.steps - 1 :: given.steps]
    seconds = round(median(b - a for a, b in pairwise(ends)), 3)
    return {"seconds": {"update": seconds}, "tokens": round(median(lengths) * given.batch)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4, help="Optimizer steps per update.")
    parser.add_argument("--max-tokens", type=int, default=48)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    # interleaved, so that what else the machine does falls on all alike
    rounds = [
        {"rloo": theirs(given), "shared": ours(given, "shared"), "separate": ours(given, "separate")} for _ in range(3)
    ]
    best = {k: min((r[k] for r in rounds), key=lambda x: x["seconds"]["update"]) for k in rounds[0]}
    base = best["rloo"]["seconds"]["update"]
    report = {
        "model": "nano:assistant",
        **vars(given),
        **best,
        "ratio": {k: round(best[k]["seconds"]["update"] / base, 3) for k in ("shared", "separate")},
        "cores": os.cpu_count(),
        "threads": __import__("torch").get_num_threads(),
        "load": [round(x, 1) for x in os.getloadavg()],
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
