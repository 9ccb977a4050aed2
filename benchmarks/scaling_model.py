"""What a run costs and how long it takes, from one CPU to 512 GPUs, and what is the bottleneck at each size.

    python benchmarks/scaling_model.py --gpu-tokens-s 2500 --gpu-hour 2.5 > docs/benchmarks/scaling_model.txt

Arithmetic on measured costs of a call (docs/benchmarks/*.json) and on stated speeds of the hardware: no GPU was
measured, so its tokens a second are what you say they are. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "docs/benchmarks"


@dataclass(frozen=True)
class Costs:
    """Measured on one core of the machine that the files name."""

    driver: float
    """CPU seconds of the driver for a call: pipeline, ledger and transport, measured at an HTTP endpoint."""
    stored: float
    """CPU seconds of the ledger for a call: the miss, the reply, its share of the rows."""
    nano: float
    """Generated tokens a second of nano on two cores."""


@dataclass(frozen=True)
class Job:
    """What is to be made."""

    prompts: int
    calls: float
    """Calls a prompt."""
    drawn: float
    """Tokens drawn for a call, on average over all."""
    efficiency: float
    """Share of the engines' speed that a run reaches while all is well: 1 / (measured time over plain vLLM)."""


def read() -> tuple[Costs, float]:
    """The measured costs, and the measured time of a run over plain vLLM's."""

    def figures(name: str) -> Any:
        return json.loads((FOLDER / f"{name}.json").read_text())

    nodes, ledger, floor = figures("nodes"), figures("ledger"), figures("engine_floor")
    busy = next(r for r in nodes["runs"] if r["fault"] == "none, driver busy")
    rows = ledger["rows"].get("append") or ledger["rows"]["write"]
    stored = ledger["calls"]["miss_then_put"]["cpu_microseconds_each"] + rows["cpu_microseconds_each"]
    driver = busy["driver_cpu_ms_a_call"] / 1e3
    costs = Costs(driver, stored / 1e6, floor["pipeline"]["drawn_per_s"])
    return costs, floor["ratio"]


def row(name: str, tokens_s: float, hour: float, shards: int, job: Job, costs: Costs) -> str:
    """One size of hardware: calls a second of engine and drivers, the slower one, time and money for the job."""
    engines, drivers = tokens_s * job.efficiency / job.drawn, shards / costs.driver
    limits = {"engines": engines, "driver's core": drivers, "ledger's thread": shards / costs.stored}
    slowest = min(limits, key=lambda k: limits[k])
    calls = job.prompts * job.calls
    hours = calls / limits[slowest] / 3600
    used = limits[slowest] / engines
    money = f"{hours * hour:,.0f}" if hour else "–"
    span = f"{hours:,.1f} h" if hours < 100 else f"{hours / 24:,.0f} days"
    return f"| {name} | {engines:,.0f} | {shards} | {drivers:,.0f} | {slowest} | {100 * used:.0f}% | {span} | {money} |"


def shards_for(tokens_s: float, job: Job, costs: Costs) -> int:
    """Drivers that are needed so that engines, not drivers, are the bottleneck: each at most 70% busy."""
    need = tokens_s * job.efficiency / job.drawn * costs.driver / 0.7
    n = 1
    while n < need:
        n *= 2
    return n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gpu-tokens-s", type=float, default=2500.0, help="drawn tokens a second of one GPU: stated")
    parser.add_argument("--gpu-hour", type=float, default=2.5, help="price of a GPU for an hour: stated")
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--calls", type=float, default=10.0, help="calls a prompt; `tenet generate --dry-run` tells")
    parser.add_argument("--drawn", type=float, default=150.0, help="tokens drawn for a call; a judged option is one")
    given = parser.parse_args()
    costs, ratio = read()
    job = Job(given.prompts, given.calls, given.drawn, 1 / ratio)
    gpu, hour = given.gpu_tokens_s, given.gpu_hour
    print(
        f"{job.prompts:,} prompts, {job.calls:g} calls each, {job.drawn:g} tokens drawn a call. Measured: driver "
        f"{costs.driver * 1e3:.2f} ms of CPU a call, ledger {costs.stored * 1e6:.0f} µs a call, a run takes {ratio:g} "
        f"times plain vLLM's time. Stated, not measured: a GPU draws {gpu:,.0f} tokens/s and costs {hour:g} an hour.\n"
    )
    print("| hardware | engines, calls/s | drivers | drivers, calls/s | bottleneck | engines used | time | price |")
    print("|---|---|---|---|---|---|---|---|")
    print(row("2 CPU cores, nano (measured)", costs.nano, 0, 1, job, costs))
    for n in (1, 8, 32, 64, 128, 256, 512):
        name = f"{n} GPU{'s' if n > 1 else ''}"
        print(row(name, n * gpu, n * hour, 1, job, costs))
        shards = shards_for(n * gpu, job, costs)
        if shards > 1:
            print(row(f"{name}, `--shard i/{shards}`", n * gpu, n * hour, shards, job, costs))


if __name__ == "__main__":
    main()
