"""Our trainers' step time and peak memory over TRL's own, on the same model, rows and settings, taken in turns.

    python benchmarks/trainers.py --json docs/benchmarks/trainers.json

Each repeat is a process of its own, so that peak memory is its own; ours and TRL's alternate. The ratio is that of
the medians over the repeats; a step's time is the median over a repeat's steps, the first two left out. On a busy
machine CPU seconds say more than the clock's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# This file is called as a package of ours is, and would be found first.
sys.path[0] = str(ROOT)
KINDS = ("sft", "reward", "dpo")


def rows(kind: str, n: int) -> list[dict[str, Any]]:
    """Questions and replies of nano's world."""
    import random

    from nano import world

    rng, made = random.Random(0), list[dict[str, Any]]()
    for _ in range(n):
        topic, asked = world.question(rng)
        good, bad = world.answer(rng, topic, ()).text, world.spoiled(rng, topic).text + " No."
        prompt, said = [{"role": "user", "content": asked}], [{"role": "assistant", "content": good}]
        if kind == "sft":
            made.append({"prompt": prompt, "completion": said})
        else:
            made.append({"prompt": prompt, "chosen": said, "rejected": [{"role": "assistant", "content": bad}]})
    return made


def clocked(trainer: Any) -> list[tuple[float, float]]:
    """Trains and gives the seconds of each step: by the clock, and of CPU time, which other work does not lengthen."""
    from transformers import TrainerCallback

    times: list[tuple[float, float]] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begun = time.perf_counter(), time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            wall, cpu = self.begun
            times.append((time.perf_counter() - wall, time.process_time() - cpu))

    trainer.add_callback(Clock())
    trainer.train()
    return times


def once(kind: str, whose: str, steps: int) -> dict[str, float]:
    """One repeat in this process."""
    import datasets
    import torch
    import trl

    from tenet import kinds
    from trainers import _rows
    from trainers._common import load, locate, tokenizer_of
    from trainers._encode import Coder, written
    from trainers._run import Start

    torch.set_num_threads(1)
    data = rows(kind, 8 * steps)
    with tempfile.TemporaryDirectory() as out:
        said = {"model": "nano:assistant", "data": "x", "out": out, "batch": 8, "lr": 1e-4, "save_every": 10_000}
        module = kinds.load("trainers", kind)
        ours = module.build(module.Settings.model_validate(said))
        folder = locate("nano:assistant")
        tok = tokenizer_of(folder)
        model = load(folder, tok, ours.head)
        if whose == "ours":
            labelled = data if kind == "sft" else [{**row, "p_chosen": 0.8} for row in data]
            given = _rows.given(labelled, ours.shape)
            encoded = written(given, ours.encode(Coder(tok, 1024, given.census)), ours.sequence)
            trainer = ours.start(Start(ours.settings, folder, tok, model, encoded, 1024))
        else:
            made, config = {
                "sft": (trl.SFTTrainer, trl.SFTConfig),
                "reward": (trl.RewardTrainer, trl.RewardConfig),
                "dpo": (trl.DPOTrainer, trl.DPOConfig),
            }[kind]
            args = config(
                output_dir=out, per_device_train_batch_size=8, learning_rate=1e-4, num_train_epochs=1, use_cpu=True,
                bf16=False, gradient_checkpointing=False, report_to=[], dataloader_pin_memory=False, max_length=1024,
                save_strategy="no", disable_tqdm=True, logging_steps=10,
            )  # fmt: skip
            more = {"ref_model": load(folder, tok)} if kind == "dpo" else {}
            trainer = made(
                model=model, args=args, train_dataset=datasets.Dataset.from_list(data), processing_class=tok, **more
            )
        times = clocked(trainer)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    wall, cpu = (statistics.median(t) for t in zip(*times[2:], strict=True))
    return {"step_seconds": wall, "step_cpu_seconds": cpu, "peak_mib": peak}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--one", nargs=2, metavar=("KIND", "WHOSE"))
    given = parser.parse_args()
    if given.one:
        print(json.dumps(once(*given.one, given.steps)))
        return
    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared; one torch thread; nano:assistant, float32",
        "steps": given.steps, "repeats": given.repeats, "rows_per_step": 8, "kinds": {},
    }  # fmt: skip
    for kind in KINDS:
        found: dict[str, list[dict[str, float]]] = {"ours": [], "trl": []}
        for i in range(given.repeats):
            for whose in ("ours", "trl") if i % 2 else ("trl", "ours"):
                command = [sys.executable, __file__, "--one", kind, whose, "--steps", str(given.steps)]
                environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
                done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
                found[whose].append(json.loads(done.stdout.splitlines()[-1]))
        told: dict[str, Any] = {"repeats": found}
        for figure in ("step_seconds", "step_cpu_seconds", "peak_mib"):
            ours, trl = (statistics.median(x[figure] for x in found[w]) for w in ("ours", "trl"))
            told[figure] = {"ours": round(ours, 4), "trl": round(trl, 4), "ratio": round(ours / trl, 3)}
        report["kinds"][kind] = told
        print(kind, told["step_seconds"], told["step_cpu_seconds"], told["peak_mib"], flush=True)
        if given.json:  # after each kind, so that a stop loses no more than one
            given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
