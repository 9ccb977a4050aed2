"""The page of the weights probe, from the figures that the JSON holds."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tenet.drawings import COLOURS, GRID, SOFT, drawn, short
from tenet.pages import Block, Heading, Plot, Section, Table, Text
from trainers.probes._names import CLASSES
from trainers.probes._numbers import number, percent, spread

SHOWN = 40
"""Matrices listed for each step, those that changed most."""


def sections(f: dict[str, Any]) -> list[Section]:
    """Steps, parts, depth, spectra, angles, matrices, and the rule of each figure."""
    made: dict[str, list[Block]] = {
        "Steps": _steps(f),
        "Parts": _parts(f["steps"]),
        "Depth": _depth(f["steps"]),
        "Directions": _directions(f),
        "Between steps": _between(f["between"]),
        "Matrices": _matrices(f["steps"]),
        "Rules": _rules(f),
    }
    return [Section(title, tuple(blocks)) for title, blocks in made.items() if blocks]


def lead(f: dict[str, Any]) -> list[Block]:
    """What was compared."""
    stored = "; ".join(
        f"{s['name']}: {number(s['weights'])} weights stored as {', '.join(s['stored_as'])}"
        + (f", an adapter over {s['adapter_over']}" if s["adapter_over"] else "")
        for s in f["stages"]
    )
    said: list[Block] = [Text(f"{stored}.")]
    if any(set(s["stored_as"]) <= {"BF16", "F16"} for s in f["stages"]):
        said.append(
            Text("Some stages are stored in 16 bits: what their training changed below that rounding was lost when "
                 "they were saved, and the float32 figures cannot show it.", note=True)
        )  # fmt: skip
    if f["left_out"]:
        said.append(Text(f"Not in every stage, so not compared: {', '.join(f['left_out'][:8])}.", note=True))
    return said


def title_of(step: dict[str, Any]) -> str:
    return f"{step['before']} to {step['after']}"


def _steps(f: dict[str, Any]) -> list[Block]:
    outputs: dict[str, Any] = f.get("outputs") or {"steps": [], "why": ""}
    rows: list[list[str]] = []
    kls: list[list[str]] = []
    for i, step in enumerate(f["steps"]):
        t = step["total"]
        out: dict[str, Any] = outputs["steps"][i] if outputs["steps"] else {}
        shares = (percent(t["moved"]), percent(t["moved_bf16"]))
        sizes = (number(t["relative"], 4), number(t["relative_bf16"], 4))
        rows.append([title_of(step), *sizes, *shares, number(t["intruders"]), spread(out.get("kl"))])
        scaled = [spread((out.get(k) or {}).get("kl")) for k in ("matched", "random")]
        kls.append([title_of(step), spread(out.get("kl")), *scaled])
    head = ["step", "relative change", "after bf16", "weights moved", "after bf16", "intruders", "output KL"]
    blocks: list[Block] = [Table(head, rows)]
    at = outputs.get("common_norm")
    if at is not None:
        norm = f"at relative change {number(at, 4)}"
        blocks.append(Table(["output KL", "of the step", f"the step {norm}", f"noise {norm}"], kls))
    if outputs.get("why"):
        blocks.append(Text(f"No output figures: {outputs['why']}.", note=True))
    for step, out in zip(f["steps"], outputs["steps"], strict=False):
        if out.get("why"):
            blocks.append(Text(f"{title_of(step)}: {out['why']}.", note=True))
        elif out.get("perplexity"):
            p = out["perplexity"]
            blocks.append(
                Text(f"{title_of(step)}: on {number(out['texts'])} texts ({outputs['text']}), {number(out['tokens'])} "
                     f"tokens, perplexity {number(p['before'])} before and {number(p['after'])} after; change scaled "
                     f"by {number(out['matched']['factor'], 4) if out.get('matched') else '–'} for the common norm.",
                     note=True)
            )  # fmt: skip
    blocks.append(
        Text("Norms and shares alone do not rank what a step did to the model's outputs: compare the KL columns, the "
             "one at a common norm above all. The last column is noise of that same norm.", note=True)
    )  # fmt: skip
    return blocks


def _parts(steps: list[dict[str, Any]]) -> list[Block]:
    rows = [
        [title_of(s), kind, number(c["weights"]), number(c["relative"], 4), percent(c["moved"]),
         percent(c["moved_bf16"]), number(c["relative_bf16"], 4)]
        for s in steps for kind, c in s["classes"].items()
    ]  # fmt: skip
    head = ["step", "part", "weights", "relative change", "moved", "moved after bf16", "relative after bf16"]
    return [Plot("parts", _parts_plot(steps), "Relative change of each part, by step."), Table(head, rows, texts=2)]


def _parts_plot(steps: list[dict[str, Any]]) -> str:
    kinds = [k for k in CLASSES if any(k in s["classes"] for s in steps)]

    def draw(axes: Any) -> None:
        height = 0.8 / len(steps)
        for i, step in enumerate(steps):
            values = [(step["classes"].get(k) or {}).get("relative") or 0.0 for k in kinds]
            at = [y + (i - (len(steps) - 1) / 2) * height for y in range(len(kinds))]
            axes.barh(at, values, height=height * 0.9, color=COLOURS[i % len(COLOURS)], label=short(title_of(step)))
        axes.set_yticks(range(len(kinds)), kinds)
        axes.invert_yaxis()
        axes.set_xlabel("norm of the change / norm before")
        axes.grid(axis="x", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2)

    return drawn(draw, 8.4, 1.2 + 0.3 * len(kinds) * max(1, len(steps) * 0.7))


def _depth(steps: list[dict[str, Any]]) -> list[Block]:
    if not any(s["depth"] for s in steps):
        return [Text("No weight stands in a numbered layer.")]
    kinds = [k for k in CLASSES if any(d.startswith(f"{k} ") for s in steps for d in s["depth"])]

    def draw(axes: Any) -> None:
        for i, (panel, step) in enumerate(zip(axes if isinstance(axes, list) else [axes], steps[:3], strict=False)):
            for j, kind in enumerate(kinds):
                points = sorted((int(d.split()[1]), v["relative"]) for d, v in step["depth"].items()
                                if d.split()[0] == kind and v["relative"] is not None)  # fmt: skip
                panel.plot([x for x, _ in points], [y for _, y in points], "o-", color=COLOURS[j % len(COLOURS)],
                           markersize=3.5, linewidth=1.4, label=kind)  # fmt: skip
            panel.set_title(short(title_of(step)), fontsize=10, loc="left")
            panel.set_xlabel("layer")
            panel.set_ylim(bottom=0)
            panel.xaxis.get_major_locator().set_params(integer=True)
            if i == 0:
                panel.set_ylabel("relative change")
        (axes[-1] if isinstance(axes, list) else axes).legend(frameon=False, fontsize=9)

    panels = min(len(steps), 3)
    svg = drawn(draw, max(6.0, min(9.6, 3.3 * panels + 0.6)), 3.1, panels)
    left = "" if len(steps) <= 3 else f" (the first 3 of {len(steps)} steps; all are in the JSON)"
    layers = sorted({int(k) for s in steps for k in s["layers"]})
    shown = layers if len(layers) <= SHOWN else layers[:: -(-len(layers) // SHOWN)]
    rows: list[list[str]] = []
    for s in steps:
        for layer in shown:
            v = s["layers"][str(layer)]
            rows.append([title_of(s), str(layer), number(v["relative"], 4), percent(v["moved"]),
                         percent(v["moved_bf16"])])  # fmt: skip
    return [
        Plot("depth", svg, f"Relative change by layer{left}."),
        Table(["step", "layer", "relative change", "moved", "moved after bf16"], rows, texts=1),
    ]


def _directions(f: dict[str, Any]) -> list[Block]:
    if not f["settings"]["spectra"]:
        return []
    rows: list[list[str]] = []
    for s in f["steps"]:
        for kind, c in s["classes"].items():
            if c["matrices"]:
                keys = ("effective_rank", "stable_rank", "top_cosine", "in_top", "by_chance", "rotation", "drift")
                rows.append([title_of(s), kind, number(c["matrices"]), *(number(c[k]) for k in keys),
                             number(c["intruders"])])  # fmt: skip
    if not rows:
        return [Text("No matrix changed.")]
    k, eps = f["settings"]["top"], f["settings"]["intruder"]
    head = ["step", "part", "matrices", "effective rank", "stable rank", "top cosine", "in top", "by chance",
            "rotation", "drift", "intruders"]  # fmt: skip
    said = f"Means over matrices; the top {k} directions of each; intruders have a cosine below {eps:g} to all old ones"
    return [
        Plot("ranks", _ranks_plot(f["steps"]), "Effective rank of each matrix's change over the highest it could be."),
        Table(head, rows, texts=2),
        Text(f"{said}. Intruders are summed.", note=True),
    ]


def _ranks_plot(steps: list[dict[str, Any]]) -> str:
    kinds = [k for k in CLASSES if any(m["class"] == k and m["spectra"] for s in steps for m in s["matrices"].values())]

    def draw(axes: Any) -> None:
        for i, step in enumerate(steps):
            for y, kind in enumerate(kinds):
                of = [m["spectra"] for m in step["matrices"].values() if m["class"] == kind and m["spectra"]]
                # by chance k / n, so n = k / by_chance
                xs = [s["effective_rank"] * s["by_chance"] / s["directions"] for s in of]
                at = y + (i - (len(steps) - 1) / 2) * 0.2
                axes.plot(xs, [at] * len(xs), "o", color=COLOURS[i % len(COLOURS)], markersize=4, alpha=0.55,
                          label=short(title_of(step)) if y == 0 else None)  # fmt: skip
        axes.set_yticks(range(len(kinds)), kinds)
        axes.set_ylim(len(kinds) - 0.5, -0.5)
        axes.set_xlim(0, 1.02)
        axes.set_xlabel("effective rank / smaller side")
        axes.grid(axis="x", color=GRID, linewidth=0.6)
        axes.tick_params(length=0)
        axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2)

    return drawn(draw, 8.4, 1.3 + 0.35 * len(kinds))


def pair_label(steps: Sequence[str]) -> str:
    """Two steps in a legend: where both start from one stage, their ends are what tells them from other pairs."""
    starts, ends = zip(*(s.rpartition(" to ")[::2] for s in steps), strict=True)
    return " / ".join(short(name) for name in (ends if len(set(starts)) == 1 else steps))


def _between(between: list[dict[str, Any]]) -> list[Block]:
    if not between:
        return []
    rows: list[list[str]] = []
    for pair in between:
        for kind, c in {"all": pair["total"], **pair["classes"]}.items():
            s: dict[str, Any] = c["support"] or {}
            rows.append(
                [" against ".join(pair["steps"]), kind, number(c["degrees"], 1), number(c["cosine"]),
                 f"{percent(s.get('of_first'))} ({percent(s.get('first_by_chance'))})",
                 f"{percent(s.get('of_second'))} ({percent(s.get('second_by_chance'))})"]
            )  # fmt: skip
    head = ["steps", "part", "angle, degrees", "cosine", "of the first, also moved by the second (by chance)",
            "of the second, also by the first (by chance)"]  # fmt: skip
    blocks: list[Block] = [Table(head, rows, texts=2)]
    if any(pair["layers"] for pair in between):

        def draw(axes: Any) -> None:
            for i, pair in enumerate(between):
                points = sorted((int(k), v["degrees"]) for k, v in pair["layers"].items() if v["degrees"] is not None)
                axes.plot([x for x, _ in points], [y for _, y in points], "o-", color=COLOURS[i % len(COLOURS)],
                          markersize=4, label=pair_label(pair["steps"]))  # fmt: skip
            axes.axhline(90, color=SOFT, linewidth=1, linestyle=":")
            axes.set_ylim(0, 180)
            axes.set_yticks([0, 45, 90, 135, 180])
            axes.set_xlabel("layer")
            axes.set_ylabel("degrees")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.legend(frameon=False, fontsize=9)

        blocks.insert(0, Plot("angles", drawn(draw, 7.2, 3.0), "Angle between the changes of two steps, by layer."))
    return blocks


def _matrices(steps: list[dict[str, Any]]) -> list[Block]:
    blocks: list[Block] = []
    for step in steps:
        of = sorted(step["matrices"].items(), key=lambda item: -(item[1]["relative"] or 0.0))
        rows: list[list[str]] = []
        for name, m in of[:SHOWN]:
            s: dict[str, Any] = m["spectra"] or {}
            rows.append(
                [name, m["class"], number(m["relative"], 4), percent(m["moved"]), percent(m["moved_bf16"]),
                 number(s.get("effective_rank"), 1), number(s.get("top_share")), number(s.get("in_top")),
                 number(s.get("intruders")), number(s.get("lowest_cosine"))]
            )  # fmt: skip
        head = ["matrix", "part", "relative change", "moved", "after bf16", "effective rank", "first direction's share",
                "in top", "intruders", "lowest cosine"]  # fmt: skip
        left = f", {SHOWN} of {len(of)}" if len(of) > SHOWN else ""
        blocks += [Heading(f"{title_of(step)}: most changed first{left}"), Table(head, rows, texts=2)]
    return blocks


def _rules(f: dict[str, Any]) -> list[Block]:
    rules = {**f["rules"], **(f.get("outputs") or {}).get("rules", {})}
    return [Table(["figure", "rule"], [[k.replace("_", " "), v] for k, v in rules.items()], texts=2)]


def screen(f: dict[str, Any]) -> list[str]:
    """The figures that decide, as lines for a terminal."""
    lines: list[str] = []
    outputs: dict[str, Any] = f["outputs"]
    for i, step in enumerate(f["steps"]):
        t = step["total"]
        out: dict[str, Any] = outputs["steps"][i] if outputs["steps"] else {}
        lines += [
            title_of(step),
            f"  relative change {number(t['relative'], 4)}, after bf16 {number(t['relative_bf16'], 4)}; weights moved "
            f"{percent(t['moved'])}, after bf16 {percent(t['moved_bf16'])}; intruders {number(t['intruders'])}",
        ]
        if out.get("kl"):
            lines.append(f"  output KL {spread(out['kl'])} on {number(out['texts'])} texts ({outputs['text']})")
        if out.get("matched"):
            lines.append(
                f"  at relative change {number(outputs['common_norm'], 4)}: KL {spread(out['matched']['kl'])}; "
                f"of noise {spread(out['random']['kl'])}"
            )
        if out.get("why"):
            lines.append(f"  no output figures: {out['why']}")
    for pair in f["between"]:
        lines.append(f"{' against '.join(pair['steps'])}: {number(pair['total']['degrees'], 1)} degrees")
    return lines + ([f"no output figures: {outputs['why']}"] if outputs.get("why") else [])
