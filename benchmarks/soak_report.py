"""What a soak saw, and what it says of the driver's memory: slopes within processes, levels over the soak, the plot."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Soak:
    """What was seen so far."""

    jobs: int = 0
    starts: int = 0
    rows: int = 0
    unaccounted: int = 0
    faults: Counter[str] = field(default_factory=Counter[str])
    unexpected: list[str] = field(default_factory=list[str])
    memory: list[tuple[int, float, float, float]] = field(default_factory=list[tuple[int, float, float, float]])
    """(process, seconds since the soak began, seconds since the process did, MiB)"""
    struck: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])


def lives(soak: Soak, life: float) -> list[list[tuple[float, float]]]:
    """(hours, MiB) in the second half of each process's life, of those that lived long enough, in their order."""
    by_process: dict[int, list[tuple[float, float]]] = {}
    for process, _, age, mib in soak.memory:
        by_process.setdefault(process, []).append((age / 3600, mib))
    grown = (samples for _, samples in sorted(by_process.items()) if samples[-1][0] * 3600 >= life)
    return [samples[len(samples) // 2 :] for samples in grown]


def slope(old: list[list[tuple[float, float]]], draw: random.Random) -> dict[str, Any]:
    """MiB an hour: the median over processes of each one's Theil-Sen slope, which the step of the exports at its end
    does not move, with a 95% interval from resampling whole processes."""
    from scipy.stats import theilslopes

    if len(old) < 3:
        return {"processes": len(old), "why": "too few processes lived long enough"}
    each = [float(theilslopes([y for _, y in samples], [x for x, _ in samples])[0]) for samples in old]
    drawn = sorted(statistics.median(draw.choices(each, k=len(each))) for _ in range(2000))
    return {
        "mib_per_hour": round(statistics.median(each), 2), "low": round(drawn[50], 2), "high": round(drawn[1949], 2),
        "processes": len(old), "samples": sum(map(len, old)),
    }  # fmt: skip


def levels(soak: Soak, life: float) -> dict[str, Any]:
    """What old processes held by when they started: MiB for an hour of soak, with a 95% interval."""
    from scipy.stats import linregress, t

    starts = {process: at - age for process, at, age, _ in reversed(soak.memory)}
    grown = sorted({p for p, _, age, _ in soak.memory if age >= life})
    found = [statistics.median(mib for _, mib in samples) for samples in lives(soak, life)]
    if len(found) < 4:
        return {"processes": len(found)}
    fit: Any = linregress([starts[p] / 3600 for p in grown], found)
    half = float(t.ppf(0.975, len(found) - 2)) * fit.stderr
    third = max(1, len(found) // 3)
    early, late = statistics.median(found[:third]), statistics.median(found[-third:])
    return {
        "first_third": round(early, 1), "last_third": round(late, 1), "highest": round(max(found), 1),
        "mib_per_hour_of_soak": round(fit.slope, 2),
        "low": round(fit.slope - half, 2), "high": round(fit.slope + half, 2),
    }  # fmt: skip


def draw_plot(soak: Soak, path: Path) -> None:
    """Memory over time, a line for each process, a tick for each fault."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 4))
    for process in sorted({m[0] for m in soak.memory}):
        points = [(at / 60, mib) for p, at, _, mib in soak.memory if p == process]
        axes.plot(*zip(*points, strict=True), linewidth=0.8, color=f"C{process % 10}")
    colours = {name: f"C{i}" for i, name in enumerate(sorted(soak.faults))}
    for name, colour in colours.items():
        at = [t / 60 for t, what in soak.struck if what == name]
        axes.plot(at, [0] * len(at), "|", markersize=12, color=colour, label=f"{name} ({soak.faults[name]})")
    axes.set_xlabel("minutes")
    axes.set_ylabel("driver's memory, MiB")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7, ncols=3, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
