"""The routing report's sections, from the figures of `trainers.moe.routing`."""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tenet.drawings import COLOURS, INK, SOFT, drawn, short
from tenet.pages import Block, Heading, Plot, Section, Table, Text

_MOST = 6
"""Layers that are drawn apart: first, last and some between."""


def sections(figures: dict[str, Any], compared: list[dict[str, Any]] | None, names: tuple[str, str]) -> list[Section]:
    """Load, token classes, topics, specialisation, co-activation; and what is other in a second model."""
    layers: list[dict[str, Any]] = figures["layers"]
    made = [Section("Load", tuple(_load(figures, layers)))]
    if compared is not None:
        made.append(Section("Comparison", tuple(_compared(compared, names))))
    made += [
        Section("Token classes", tuple(_by(layers, "class", figures["classes"], ""))),
        Section("Topics", tuple(_by(layers, "topic", figures["topics"], figures["topics_why"]))),
        Section("Specialisation", tuple(_special(layers))),
        Section("Co-activation", tuple(_together(layers))),
    ]
    return made


def lead(figures: dict[str, Any]) -> list[Block]:
    """What was looked at."""
    f = figures
    said = f"{f['tokens']:,} tokens of {f['rows']:,} texts, each to {f['top_k']} of {f['experts']} experts a layer."
    note = "Loads are shares of a layer's assignments. 1.00 of an entropy is an even spread over all experts."
    return [Text(said), Text(note, note=True)]


def brief(name: str) -> str:
    """ "model.layers.3.mlp" -> "layer 3"."""
    number = next((p for p in name.split(".") if p.isdecimal()), None)
    return name if number is None else f"layer {number}"


def _load(figures: dict[str, Any], layers: list[dict[str, Any]]) -> list[Block]:
    rows = [
        [
            brief(y["name"]), f"{y['load_entropy']:.3f}", f"{y['token_entropy']:.3f}", f"{y['max_load']:.2f}",
            ", ".join(map(str, y["dead"])) or "none", f"{y['logits']:.2f}", f"{y['similarity']:.3f}",
        ]
        for y in layers
    ]  # fmt: skip
    head = ["layer", "load entropy", "token entropy", "max / mean load", "without a token", "logits", "weights' cosine"]
    caption = "Load of every expert, as a multiple of the mean load."
    loads = [[f * figures["experts"] for f in y["load"]] for y in layers]
    return [
        Plot("load", _heat(loads, [brief(y["name"]) for y in layers], "expert", 2.0), caption),
        Table(head, rows),
        Text(
            "Token entropy is the mean entropy of a token's router probabilities: low is decided. Logits are their "
            "root mean square. Weights' cosine is the mean over pairs of experts; copies have 1.",
            note=True,
        ),
    ]


def _by(layers: list[dict[str, Any]], kind: str, counts: dict[str, int] | None, why: str) -> list[Block]:
    if not counts:
        return [Text(f"Not told apart: {why}.")]
    blocks: list[Block] = []
    experts = len(layers[0]["load"])
    for y in _some(layers):
        table = [[f * experts for f in y[f"by_{kind}"][name]] for name in counts]
        name = f"{kind}-{brief(y['name']).replace(' ', '-')}"
        labels = [f"{short(c)} ({n:,})" for c, n in counts.items()]
        caption = f"{brief(y['name'])}: load of every expert (multiple of the mean) by {kind}; tokens in brackets."
        blocks.append(Plot(name, _heat(table, labels, "expert", 3.0), caption))
    return blocks


def _special(layers: list[dict[str, Any]]) -> list[Block]:
    def shown(value: dict[str, Any] | None, key: str) -> str:
        return "–" if value is None or value[key] is None else f"{value[key]:.4f}"

    cells = [(kind, part) for kind in ("class", "topic") for part in ("share", "chance")]
    rows = [[brief(y["name"]), *(shown(y["specialisation"][k], part) for k, part in cells)] for y in layers]

    def draw(axes: Any) -> None:
        xs = range(len(layers))
        for k, colour in (("class", COLOURS[0]), ("topic", COLOURS[1])):
            found = [y["specialisation"][k] for y in layers]
            if any(s is None or s["share"] is None for s in found):
                continue
            axes.plot(xs, [s["share"] for s in found], "o-", color=colour, label=f"token {k}" if k == "class" else k)
            axes.plot(xs, [s["chance"] for s in found], ":", color=colour)
        axes.set_xticks(list(xs), [brief(y["name"]).removeprefix("layer ") for y in layers])
        axes.set(xlabel="layer", ylabel="share of the experts' entropy", ylim=(0, None))
        axes.legend(frameon=False)

    caption = "How much a token's class, or its text's topic, tells about its experts (dotted: shuffled labels)."
    return [
        Plot("specialisation", drawn(draw, 6.4, 3.0), caption),
        Table(["layer", "class", "by chance", "topic", "by chance"], rows),
        Text(
            "Mutual information of expert and label, as a share of the experts' entropy: 0 where experts ignore it, 1 "
            "where it decides them. Only the part above chance is specialisation.",
            note=True,
        ),
    ]


def _together(layers: list[dict[str, Any]]) -> list[Block]:
    if layers[0]["coactivation"] is None:
        return [Text("Each token goes to one expert, so none work together.")]
    blocks: list[Block] = []
    for y in _some(layers):
        table = [[float("nan") if x is None else x for x in row] for row in y["coactivation"]]
        name = f"together-{brief(y['name']).replace(' ', '-')}"
        caption = f"{brief(y['name'])}: how often two experts get the same token, relative to even routing."
        labels = [str(e) for e in range(len(table))]
        blocks.append(Plot(name, _heat(table, labels, "expert", 3.0, square=True), caption))
    return blocks


def _compared(compared: list[dict[str, Any]], names: tuple[str, str]) -> list[Block]:
    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.4f}"

    keys = ("dropped", "dropped_even", "same_first", "kl", "load_moved", "load_entropy_change", "router_change")
    head = ["layer", "dropped", "if unrelated", "same first", "KL", "load moved", "load entropy", "router", "experts"]
    rows = [[brief(y["name"]), *(number(y[k]) for k in (*keys, "experts_change"))] for y in compared]

    def draw(axes: Any) -> None:
        xs = range(len(compared))
        axes.bar(xs, [y["dropped"] for y in compared], color=COLOURS[0], width=0.6, label="choices dropped")
        for x, y in enumerate(compared):
            line = [y["dropped_even"]] * 2
            axes.plot([x - 0.3, x + 0.3], line, color=SOFT, label=None if x else "unrelated routers")
        axes.set_xticks(list(xs), [brief(y["name"]).removeprefix("layer ") for y in compared])
        axes.set(xlabel="layer", ylabel="share of choices", ylim=(0, 1.02))
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2)

    return [
        Text(f"The same tokens through {names[0]} and {names[1]}."),
        Plot("dropped", drawn(draw, 6.4, 3.0), f"Choices of {short(names[0])} that {short(names[1])} no longer makes."),
        Table(head, rows),
        Text(
            "Dropped: share of the first model's choices that the second does not make; beside it what two unrelated "
            "routers with these loads would show. KL: of the router's probabilities, first to second, in nats. Load "
            "moved: half the sum of absolute changes of load. Router and experts: relative change of their weights.",
            note=True,
        ),
        Heading("Load gained and lost"),
        Plot(
            "load-change",
            _heat([[100 * x for x in y["load_change"]] for y in compared], [brief(y["name"]) for y in compared],
                  "expert", None),
            "Change of every expert's share of its layer's assignments, in points of a hundred.",
        ),
    ]  # fmt: skip


def _some(layers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """All layers, or some of them evenly spaced."""
    if len(layers) <= _MOST:
        return list(layers)
    return [layers[round(i * (len(layers) - 1) / (_MOST - 1))] for i in range(_MOST)]


def _heat(
    table: Sequence[Sequence[float]], labels: Sequence[str], xlabel: str, most: float | None, square: bool = False
) -> str:
    """A table of numbers as colours; `most` None is a scale with 0 in its middle."""
    wide, high = len(table[0]), len(table)

    def draw(axes: Any) -> None:
        reach = most or max(max(abs(x) for x in row) for row in table) or 1.0
        low, colours = (0.0, "Blues") if most else (-reach, "RdBu_r")
        image = axes.imshow(table, aspect="auto", cmap=colours, vmin=low, vmax=reach)
        if wide <= 16:
            for y, row in enumerate(table):
                for x, value in enumerate(row):
                    if value == value:  # not on the diagonal
                        ink = "white" if abs(value) > 0.6 * reach else INK
                        axes.text(x, y, f"{value:.1f}", ha="center", va="center", fontsize=8, color=ink)
        axes.set_xticks(range(0, wide, max(1, wide // 16)))
        step = max(1, high // 32)
        axes.set_yticks(range(0, high, step), list(labels)[::step])
        axes.set_xlabel(xlabel)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.figure.colorbar(image, ax=axes, shrink=0.8)

    if square:
        return drawn(draw, min(2.2 + 0.42 * wide, 9.0), min(1.2 + 0.34 * high, 8.0))
    return drawn(draw, min(3.2 + 0.5 * wide, 9.6), min(1.0 + 0.34 * high, 12.0))
