"""The report's drawings, as SVG text; the same figures give the same bytes."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tenet.drawings import COLOURS, GRID, INK, SOFT, drawn, short

MOST = 6
"""Judges drawn apart; more would not be read."""
Named = Sequence[tuple[str, dict[str, Any]]]


def agreement(judges: Named, ceilings: dict[str, float], baselines: dict[str, float]) -> str:
    """Accuracy with its interval, beside what people reach and what trivial judges reach."""

    def draw(axes: Any) -> None:
        for i, (_, judge) in enumerate(judges):
            a = judge["accuracy"]
            colour = COLOURS[i % len(COLOURS)]
            if a["low"] is not None:
                axes.plot([a["low"], a["high"]], [i, i], color=colour, linewidth=2.5, solid_capstyle="round")
            axes.plot(a["value"], i, "o", color=colour, markersize=7)
            axes.annotate(f"{a['value']:.3f}", (a["value"], i), (0, 8), textcoords="offset points", ha="center")
        for (name, x), style in zip(ceilings.items(), ("-", "--"), strict=False):
            axes.axvline(x, color="#2f7d4f", linewidth=1.3, linestyle=style, label=f"{name}, {x:.3f}")
        for (name, x), style in zip(baselines.items(), (":", "-.", (0, (1, 3))), strict=False):
            axes.axvline(x, color=SOFT, linewidth=1.2, linestyle=style, label=f"{name}, {x:.3f}")
        _rows(axes, [short(name) for name, _ in judges])
        axes.set_xlim(0, 1.02)
        axes.set_xlabel("accuracy, with 95% interval")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False, fontsize=9)

    return drawn(draw, 8.4, 1.5 + 0.55 * len(judges))


def confusion(judges: Named) -> str:
    """Gold labels (rows) against verdicts (columns), shares of the row."""

    def draw(axes: Any) -> None:
        for i, (panel, (name, judge)) in enumerate(zip(_listed(axes), judges, strict=True)):
            table = judge["confusion"]
            golds = list(table)
            verdicts = [v for v in next(iter(table.values())) if v in golds or any(table[g][v] for g in golds)]
            sums = {g: sum(table[g].values()) for g in golds}
            shares = [[table[g][v] / sums[g] if sums[g] else 0.0 for v in verdicts] for g in golds]
            panel.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
            for y, g in enumerate(golds):
                for x, v in enumerate(verdicts):
                    dark = "white" if shares[y][x] > 0.6 else INK
                    panel.text(x, y, f"{table[g][v]:,.0f}", ha="center", va="center", color=dark, fontsize=9)
            panel.set_xticks(range(len(verdicts)), verdicts)
            panel.set_yticks(range(len(golds)), golds)
            panel.set_title(short(name), fontsize=10, loc="left")
            panel.set_xlabel("judge")
            if i == 0:
                panel.set_ylabel("people")
            panel.spines[:].set_visible(False)
            panel.tick_params(length=0)

    return drawn(draw, min(3.1 * len(judges) + 0.6, 9.6), 2.9, len(judges))


def reliability(judges: Named) -> str:
    """Share of gold A against the probability that the judge gives A, before and after averaging the orders."""

    def draw(axes: Any) -> None:
        for i, (panel, (name, judge)) in enumerate(zip(_listed(axes), judges, strict=True)):
            panel.plot([0, 1], [0, 1], color=GRID, linewidth=1)
            for key, style, colour in (("before", "o--", SOFT), ("after", "o-", COLOURS[0])):
                part = judge["calibration"][key]
                if part["bins"]:
                    label = f"{key}: ECE {part['ece']:.3f}"
                    xs, ys = [b["p"] for b in part["bins"]], [b["share"] for b in part["bins"]]
                    panel.plot(xs, ys, style, color=colour, markersize=4, linewidth=1.4, label=label)
            panel.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="p(A)")
            panel.set_title(short(name), fontsize=10, loc="left")
            panel.legend(frameon=False, fontsize=8, loc="upper left")
            if i == 0:
                panel.set_ylabel("share of gold A")

    return drawn(draw, min(3.2 * len(judges) + 0.4, 9.6), 3.2, len(judges))


def bias(judges: Named) -> str:
    """Left: shares for the first slot and for the longer reply, people's beside them. Right: accuracy by length."""

    shares: list[tuple[Any, dict[str, Any]]]
    shares = [(j["first_slot_share"], j["bias"]["longer_share"] or {}) for _, j in judges]
    kinds = [
        ("first slot", [(first, None) for first, _ in shares]),
        ("longer reply", [(longer.get("value"), longer.get("humans")) for _, longer in shares]),
    ]
    known = [(name, pairs) for name, pairs in kinds if any(value is not None for value, _ in pairs)]

    def draw(axes: Any) -> None:
        left, right = axes
        height = 0.6 / len(judges)
        for row, (_, pairs) in enumerate(known):
            for i, (value, people) in enumerate(pairs):
                y = row + (i + 0.5) / len(judges) * 0.7 - 0.35
                if value is not None:
                    left.barh(y, value, height=height, color=COLOURS[i % len(COLOURS)])
                if people is not None:
                    left.plot([people, people], [y - height / 2, y + height / 2], color=INK, linewidth=2)
        for i, (name, judge) in enumerate(judges):
            quarters = judge["bias"]["by_length_quartile"] or []
            heights = [q["accuracy"] for q in quarters]
            colour = COLOURS[i % len(COLOURS)]
            right.plot(range(1, len(quarters) + 1), heights, "o-", color=colour, markersize=4, label=short(name))
        left.axvline(0.5, color=SOFT, linewidth=1, linestyle=":")
        left.set(xlim=(0, 1), ylim=(max(1, len(known)) - 0.5, -0.5), xlabel="share (black mark: people)")
        left.set_yticks(range(len(known)), [name for name, _ in known])
        right.set(xlim=(0.7, 4.3), ylim=(0, 1.02), xlabel="quarter of the difference in length", ylabel="accuracy")
        right.set_xticks([1, 2, 3, 4], ["smallest", "2", "3", "largest"])
        right.legend(frameon=False, fontsize=9, loc="lower right")

    return drawn(draw, 9.0, 3.0, 2)


def slices(rows: Sequence[tuple[str, Sequence[dict[str, Any] | None]]], names: Sequence[str]) -> str:
    """Accuracy with its interval by slice; `rows` are (value, one figure a judge)."""

    def draw(axes: Any) -> None:
        for y, (_, figures) in enumerate(rows):
            for i, a in enumerate(figures):
                if a is None or a["accuracy"]["value"] is None:
                    continue
                at = y + (i - (len(figures) - 1) / 2) * 0.22
                colour, thin = COLOURS[i % len(COLOURS)], 0.35 if a["small"] else 1.0
                ends = a["accuracy"]["wilson"]
                axes.plot([ends["low"], ends["high"]], [at, at], color=colour, linewidth=1.6, alpha=thin)
                axes.plot(a["accuracy"]["value"], at, "o", color=colour, markersize=4.5, alpha=thin)
        for i, name in enumerate(names):
            axes.plot([], [], "o-", color=COLOURS[i % len(COLOURS)], label=short(name))
        _rows(axes, [short(value) for value, _ in rows])
        axes.set_xlim(0, 1.02)
        axes.set_xlabel("accuracy, with 95% Wilson interval (pale: n < 30)")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, frameon=False, fontsize=9)

    return drawn(draw, 8.4, 1.3 + 0.34 * len(rows))


def _rows(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)


def _listed(axes: Any) -> list[Any]:
    return axes if isinstance(axes, list) else [axes]
