"""Tables and plots of docs/moe-modes.md from what `benchmarks.moe_modes` found.

    python -m benchmarks.moe_modes_page [docs/benchmarks/moe_modes.json] [--plots docs/moe]

Prints Markdown. Figures are means over seeds, with the least and the greatest in brackets.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from tenet import drawings

KINDS = {"sft": "SFT on the revisions", "dpo": "DPO on the pairs"}
DATA = {"broad": "All rules", "narrow": "One rule: a reply must name a caveat"}


def cell(seeds: list[dict[str, Any]], key: str) -> str:
    """A share in percent: mean and, of several seeds, range."""
    found = [100 * s[key] for s in seeds]
    if len(found) == 1:
        return f"{found[0]:.1f}"
    return f"{mean(found):.1f} ({min(found):.1f}–{max(found):.1f})"


def table(report: dict[str, Any], kind: str, data: str) -> list[str]:
    """One trainer on one data set: what each arm changed, kept, cost and moved."""
    heads = (
        "mode", "weights trained", "named faults, %", "no caveat, %", "useful, %", "tokens/CPU-s", "peak, MiB",
        "adapter, KiB", "idle experts", "picks changed, %",
    )  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "--:|" * (len(heads) - 1)]
    base = report["base"]
    shares = [f"{100 * base[key]:.1f}" for key in ("named", "narrow", "useful")]
    lines.append(f"| *before* | | {' | '.join(shares)} | | | | | |")
    for arm, seeds in arms(report, kind, data).items():
        first = seeds[0]
        adapter = first.get("adapter_kib")
        moved = first.get("moved")
        picks = [100 * mean(s["moved"]["picks_changed"]) for s in seeds] if moved else []
        idle = first.get("idle_experts")
        row = (
            arm,
            f"{first['trainable']:,}",
            *(cell(seeds, key) for key in ("named", "narrow", "useful")),
            f"{mean(s['tokens'] / s['cpu_seconds'] for s in seeds):.0f}",
            f"{mean(s['peak_mib'] for s in seeds):.0f}",
            f"{adapter:.0f}" if adapter else "",
            f"{mean(s['idle_experts'] for s in seeds):.1f}" if idle is not None else "",
            f"{mean(picks):.1f}" if picks else "",
        )
        lines.append("| " + " | ".join(row) + " |")
    return lines


def arms(report: dict[str, Any], kind: str, data: str) -> dict[str, list[dict[str, Any]]]:
    """What each mode's seeds found, under one trainer on one data set."""
    start = f"{kind} {data} "
    return {name.removeprefix(start): of["seeds"] for name, of in report["arms"].items() if name.startswith(start)}


def draw(report: dict[str, Any], data: str, path: Path) -> None:
    """Faults and useful sentences after training, by mode: dots are seeds, bars their mean, the line is the start."""
    key, label = ("named", "replies with a named fault, %") if data == "broad" else ("narrow", "no caveat, %")

    def panels(axes: Any) -> None:
        for axis, (what, text) in zip(axes, ((key, label), ("useful", "useful sentences, %")), strict=True):
            for i, kind in enumerate(KINDS):
                colour = drawings.COLOURS[i]
                found = arms(report, kind, data)
                for y, seeds in enumerate(found.values()):
                    values = [100 * s[what] for s in seeds]
                    at = y - 0.17 + 0.34 * i
                    axis.plot(values, [at] * len(values), "o", color=colour, alpha=0.6, markersize=5)
                    axis.plot(mean(values), at, "|", color=colour, markersize=12, label=kind.upper() if not y else None)
            axis.axvline(100 * report["base"][what], color=drawings.INK, linewidth=1, linestyle=":")
            axis.set_yticks(range(len(found)), list(found) if axis is axes[0] else [""] * len(found))
            axis.invert_yaxis()
            axis.set_xlabel(text)
        axes[0].legend(frameon=False, fontsize=8)

    path.write_text(drawings.drawn(panels, 11.0, 4.2, 2), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path, nargs="?", default=Path("docs/benchmarks/moe_modes.json"))
    parser.add_argument("--plots", type=Path, default=Path("docs/moe"))
    given = parser.parse_args()
    report = json.loads(given.report.read_text("utf-8"))
    for data, title in DATA.items():
        draw(report, data, given.plots / f"modes-{data}.svg")
        print(f"## {title}\n![{title}](moe/modes-{data}.svg)\n")
        for kind, name in KINDS.items():
            seeds = len(next(iter(arms(report, kind, data).values())))
            print(f"{name}, {seeds} seed{'s' if seeds > 1 else ''}:\n", *table(report, kind, data), "", sep="\n")


if __name__ == "__main__":
    main()
