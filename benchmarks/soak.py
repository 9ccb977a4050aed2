"""Runs under random faults for hours: is any row unaccounted for, and does the driver's memory grow?

    python benchmarks/soak.py --minutes 120 --plot docs/benchmarks/soak.png > docs/benchmarks/soak.json

One job after another (`tenet generate`, each with a seed of its own), each struck by faults drawn from a seed and
started again until it is whole: kill -9 or SIGTERM to the driver, Ctrl-C twice, kill -9 to a process of a replica, a
ledger that another process holds for seconds, a driver that stands still for seconds. After each job its rows are
counted against its prompts. A quarter of the starts are left alone, so that some processes grow old. The driver's
memory is sampled every second; its slope is that within processes (each has a level of its own) of at least `--life`
seconds, in the second half of their lives; its interval comes from resampling processes. Levels say whether a process
that starts late in the soak holds more than one that started early.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from soak_report import Soak, draw_plot, levels, lives, slope

from nano import world
from tenet.ledger import Rows

ROOT = Path(__file__).parent.parent
MODELS = {
    "nano": "{kind: vllm, model: 'nano:assistant', max_model_len: 768, kv_cache_gib: 0.25}",
    "scripted": "{kind: scripted, script: 'tests.oracle_script:play', delay: 0.2}",
}
RECIPE = """
prompts: {path: ../prompts.jsonl, dedup: exact}
constitution: nano
models:
  m: {MODEL}
respond: {samples: 2, sampling: {max_tokens: 48}}
revise: {rounds: 1, principles: 2, sampling: {max_tokens: 64}}
judge: {kind: pairwise, principles: 2}
limits: {in_flight: 32}
seed: {SEED}
"""


class Job:
    """One run of `tenet generate`, started as often as it takes."""

    def __init__(self, folder: Path, engine: str, seed: int) -> None:
        self.recipe = folder / "recipes" / f"job{seed}.yaml"
        self.recipe.parent.mkdir(exist_ok=True)
        self.recipe.write_text(RECIPE.replace("{MODEL}", MODELS[engine]).replace("{SEED}", str(seed)))
        self.out = folder / f"runs/job{seed}"
        self.ledger = folder / "runs/calls.sqlite"

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "service", "generate", str(self.recipe), "--out", str(self.out)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        log = (self.out.parent / "last.log").open("w")
        with log:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, text=True)

    def said(self) -> str:
        """The end of what the last start printed."""
        return (self.out.parent / "last.log").read_text(errors="replace")[-600:]

    def is_whole(self) -> bool:
        manifest = self.out / "manifest.json"
        return manifest.exists() and json.loads(manifest.read_text())["state"] == "whole"

    def unaccounted(self, prompts: int) -> int:
        """Prompts without exactly one outcome, and outcomes that their own records do not bear out."""
        ends: Counter[int] = Counter()
        wrong = 0
        with Rows(self.out, readonly=True) as rows:
            pairs = dropped = 0
            for row in rows.iterate():
                pairs += row.stage == "preference"
                dropped += row.stage == "dropped" and json.loads(row.record)["unit"] == "prompt"
                if row.stage == "outcome":
                    ends[row.ordinal] += 1
                    claimed = json.loads(row.record)["preferences"]
                    wrong += claimed != pairs or dropped != (claimed == 0)
                    pairs = dropped = 0
        return wrong + sum(ends[n] != 1 for n in range(prompts)) + sum(n >= prompts for n in ends)


def kill(job: Job, driver: subprocess.Popen[str], draw: random.Random) -> None:
    driver.kill()


def terminate(job: Job, driver: subprocess.Popen[str], draw: random.Random) -> None:
    driver.terminate()


def interrupt_twice(job: Job, driver: subprocess.Popen[str], draw: random.Random) -> None:
    driver.send_signal(signal.SIGINT)
    time.sleep(draw.uniform(0.1, 2.0))
    driver.send_signal(signal.SIGINT)


def stand_still(job: Job, driver: subprocess.Popen[str], draw: random.Random) -> None:
    driver.send_signal(signal.SIGSTOP)
    time.sleep(draw.uniform(1.0, 8.0))
    driver.send_signal(signal.SIGCONT)


def hold_ledger(job: Job, driver: subprocess.Popen[str], draw: random.Random) -> None:
    db = sqlite3.connect(job.ledger, timeout=20, isolation_level=None)
    try:
        db.execute("BEGIN IMMEDIATE")
        time.sleep(draw.uniform(1.0, 8.0))
        db.execute("ROLLBACK")
    finally:
        db.close()


def kill_replica(job: Job, driver: subprocess.Popen[str], draw: random.Random) -> None:
    family = psutil.Process(driver.pid).children(recursive=True)
    named = [(p, " ".join(p.cmdline())) for p in family if p.is_running()]
    chosen = [p for p, what in named if "EngineCore" in what or "ray::Replica" in what]
    if chosen:
        draw.choice(chosen).kill()


ENDING: dict[str, Callable[[Job, subprocess.Popen[str], random.Random], None]] = {
    "kill -9 of the driver": kill,
    "SIGTERM": terminate,
    "Ctrl-C twice": interrupt_twice,
}
PASSING: dict[str, Callable[[Job, subprocess.Popen[str], random.Random], None]] = {
    "ledger held": hold_ledger,
    "driver stands still": stand_still,
}


def strike(soak: Soak, job: Job, driver: subprocess.Popen[str], kinds: dict[str, Any], draw: random.Random) -> str:
    """One drawn fault."""
    name = draw.choice(sorted(kinds))
    soak.faults[name] += 1
    try:
        kinds[name](job, driver, draw)
    except (psutil.Error, sqlite3.OperationalError, ProcessLookupError):
        soak.faults[name] -= 1  # the driver was gone already, or the ledger was busy all the time
    return name


def watch(
    soak: Soak, job: Job, kinds: dict[str, Any], begun: float, strike_at: list[float], draw: random.Random
) -> None:
    """One start of a job, to its end: struck at the drawn seconds, its memory sampled."""
    driver = job.start()
    soak.starts += 1
    since, process = time.monotonic(), psutil.Process(driver.pid)
    ended_by = ""
    while driver.poll() is None:
        now = time.monotonic()
        try:
            soak.memory.append((soak.starts, now - begun, now - since, process.memory_info().rss / 2**20))
        except psutil.Error:
            break
        if strike_at and now - since >= strike_at[0]:
            strike_at.pop(0)
            ended_by = strike(soak, job, driver, kinds, draw)
            soak.struck.append((now - begun, ended_by))
        time.sleep(1.0)
    code = driver.wait()
    if ended_by.startswith("kill -9 of a replica") and code == 3 and "the engine did not start" in job.said():
        soak.faults["of these, while the engine started: said, and started again"] += 1
    elif code and not (ended_by in ENDING and code in (-9, 130, 1)):
        soak.unexpected.append(f"job {job.out.name}, exit {code} after {ended_by or 'nothing'}: {job.said()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--engine", choices=sorted(MODELS), default="nano")
    parser.add_argument("--prompts", type=int, default=2500, help="of one job")
    parser.add_argument("--every", type=float, default=90.0, help="mean seconds between faults of one start")
    parser.add_argument("--life", type=float, default=120.0, help="seconds that a process must live to be measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--samples", type=Path, help="also write every sample: process, second, its age, MiB")
    given = parser.parse_args()
    draw, soak, begun = random.Random(given.seed), Soak(), time.monotonic()
    kinds = PASSING | ({"kill -9 of a replica's process": kill_replica} if given.engine == "nano" else {})
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "runs").mkdir()
        questions = [json.dumps({"prompt": world.question(draw)[1]}) for _ in range(given.prompts)]
        (folder / "prompts.jsonl").write_text("\n".join(questions) + "\n")
        while time.monotonic() - begun < 60 * given.minutes:
            job = Job(folder, given.engine, soak.jobs)
            for _ in range(40):
                calm = time.monotonic() - begun > 60 * given.minutes  # the last job is brought to its end
                first = draw.expovariate(1 / given.every)
                at = [] if calm or draw.random() < 0.25 else [first, first + draw.expovariate(1 / given.every)]
                watch(soak, job, kinds if draw.random() < 0.4 else ENDING, begun, at, draw)
                if job.is_whole():
                    break
            else:
                soak.unexpected.append(f"{job.out.name} was not whole after 40 starts")
            soak.jobs += 1
            soak.rows += given.prompts
            soak.unaccounted += job.unaccounted(given.prompts)
            print(f"{soak.jobs} jobs, {soak.starts} starts, {dict(soak.faults)}", file=sys.stderr)
    old = lives(soak, given.life)
    if given.plot:
        draw_plot(soak, given.plot)
    if given.samples:
        given.samples.write_text("\n".join(json.dumps([round(x, 1) for x in m]) for m in soak.memory) + "\n")
    print(
        json.dumps(
            {
                "engine": given.engine, "minutes": round((time.monotonic() - begun) / 60, 1), "seed": given.seed,
                "jobs": soak.jobs, "starts": soak.starts, "faults": dict(sorted(soak.faults.items())),
                "rows": soak.rows, "rows_unaccounted": soak.unaccounted,
                "unexpected_ends": soak.unexpected[:20], "memory_slope": slope(old, draw),
                "memory_mib": levels(soak, given.life), "processes_counted_from_s": given.life,
                "cores": os.cpu_count(), "load_average": [round(x, 1) for x in os.getloadavg()],
            },
            indent=1,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
