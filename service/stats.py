"""`tenet constitution stats`: what each principle of a run's constitution did, as a table, a page and a matrix."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.markup import escape

from judges.agreement import votes as votes_file
from judges.agreement.people import People
from service import _chains
from service._chains import RunView
from service._shares import percent
from service._stats_figures import RULES, SMALL, measure
from service.screen import columns, console
from tenet import pages
from tenet.drawings import drawn, short
from tenet.errors import DataError
from tenet.pages import Block, Plot, Section, Table, Text

_SHARES = ("found", "revised", "flips", "others", "people", "without")
_HEAD = (
    "principle", "rounds", "found", "revised", "words", "pairs", "A", "B", "tie", "unread", "margin", "flips", "others",
    "people", "without", "sole",
)  # fmt: skip


def main(folder: Path, labels: Path | None, out: Path | None, json_out: Path | None) -> None:
    """Measures a run, shows and writes. Raises InputError."""
    run = _chains.open_run(folder)
    gold = people_of(run, labels) if labels else None
    figures = measure(run, gold)
    show(figures)
    if json_out:
        json_out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(figures, indent=1, ensure_ascii=False, allow_nan=False)
        json_out.write_text(text + "\n", encoding="utf-8", newline="\n")
        console.print(f"JSON: {escape(str(json_out))}", soft_wrap=True)
    if out:
        page, _ = save(out, figures)
        console.print(f"report: {escape(str(page))}, and report.md beside it", soft_wrap=True)


def people_of(run: RunView, path: Path) -> dict[str, str]:
    """The majority label by comparison id, from votes whose items are comparison ids, or from labelled pairs.

    DataError if nothing of it is a pair of this run, or the labels are scores.
    """
    votes = votes_file.read(str(path))
    people = People.of(votes)
    if votes.graded:
        raise DataError("holds scores, not labels", where=str(path), fix="labels A, B or tie")
    gold: dict[str, str] = {}
    for item, of in zip(votes.items, people.majority, strict=True):
        if of >= 0:
            pair = votes.pairs.get(item)
            gold[pair.id if pair else item] = people.classes[of]
    made = (p.comparison for w in run.walks() for p in w.pairs.values() if p.comparison)
    known = {id for c in made for id in (c.id, c.swap().id)}
    if not known & gold.keys():
        fix = "items are comparison ids (tenet judge writes them), or rows hold prompt, a and b as the run made them"
        raise DataError("labels no pair of this run", where=str(path), fix=fix)
    return gold


def show(f: dict[str, Any]) -> None:
    """The table, on one screen."""
    labelled = "" if f["labelled"] is None else f", {f['labelled']:,} of them labelled by people"
    console.print(
        f"[bold]{escape(f['run'])}[/]: constitution {escape(f['constitution'])} ({f['hash'][:8]}), {f['prompts']:,} "
        f"prompts, {f['pairs']:,} judged pairs{labelled}"
    )
    for line in columns([list(_HEAD), *_rows(f, short_form=True)]):
        console.print(escape(line), soft_wrap=True)
    for line in findings(f):
        console.print(escape(line), soft_wrap=True)


def findings(f: dict[str, Any]) -> list[str]:
    """The pairs of principles that say the same, or the opposite, on enough pairs to believe it."""
    cells = [c for c in f["matrix"] if not c["small"]]
    alike = sorted((c for c in cells if (c["correlation"] or 0) > 0.8), key=lambda c: -c["correlation"])
    apart = sorted((c for c in cells if (c["conflict"] or 0) > 0.5), key=lambda c: -c["conflict"])
    made = [f"alike: {c['a']} and {c['b']} (correlation {c['correlation']:.2f}, n = {c['n']})" for c in alike[:5]]
    made += [
        f"in conflict: {c['a']} and {c['b']} (opposite on {100 * c['conflict']:.0f}% of {c['decided']} pairs that both "
        "decide)"
        for c in apart[:5]
    ]
    return made or [f"no two principles with {SMALL} pairs in common are alike (above 0.8) or in conflict (above 50%)"]


def _rows(f: dict[str, Any], short_form: bool = False) -> list[list[str]]:
    def cell(figure: dict[str, Any]) -> str:
        if figure["value"] is None:
            return "–"
        return f"{100 * figure['value']:.0f}%" if short_form else percent(figure)

    rows: list[list[str]] = []
    for id, p in f["principles"].items():
        v = p["votes"]
        counts = [str(v.get(k, 0)) for k in ("A", "B", "tie")]
        words, margin = ("–" if p[k] is None else f"{p[k]:.2f}" for k in ("words", "margin"))
        bad = str(v.get("invalid", 0) + v.get("refused", 0))
        head = [id, str(p["rounds"]), cell(p["found"]), cell(p["revised"]), words]
        shares = [cell(p[k]) for k in ("flips", "others", "people", "without")]
        rows.append([*head, str(p["pairs"]), *counts, bad, margin, *shares, str(p["sole"])])
    return rows


# The page.


def save(out: Path, f: dict[str, Any]) -> tuple[Path, Path]:
    """Writes report.html and report.md."""
    rows = _rows(f)
    work = [[r[i] for i in (0, 1, 2, 3, 4)] for r in rows]
    votes = [[r[i] for i in (0, 5, 6, 7, 8, 9, 10, 11)] for r in rows]
    standing = [[r[i] for i in (0, 12, 13, 14, 15)] for r in rows]
    heads = [[_HEAD[i] for i in which] for which in ((0, 1, 2, 3, 4), (0, 5, 6, 7, 8, 9, 10, 11), (0, 12, 13, 14, 15))]
    labelled = "" if f["labelled"] is None else f" People labelled {f['labelled']:,} of them."
    lead = [
        Text(f"Run {f['run']}: {f['prompts']:,} prompts, {f['pairs']:,} judged pairs.{labelled}"),
        Text("95% intervals stand in brackets. A dash stands for a figure that does not exist: the JSON says why."),
    ]
    sections = [
        Section("Critiques and revisions", (Table(heads[0], work),)),
        Section("Votes", (Table(heads[1], votes),)),
        Section("Each against the others", (Table(heads[2], standing),)),
        Section("Alike and in conflict", tuple(_matrix_blocks(f))),
        Section("Rules", (Table(["figure", "rule"], [[k, v] for k, v in RULES.items()], texts=2),)),
    ]
    return pages.save(out, f"What each principle of {f['constitution']} did", lead, sections)


def _matrix_blocks(f: dict[str, Any]) -> list[Block]:
    cells = f["matrix"]
    if not cells:
        return [Text("No two principles were asked about one pair: judge.principles above 1 shows how they stand.")]
    caption = (
        f"Left: correlation of what two principles say of a pair. Right: how often they contradict each other. Grey: "
        f"undefined; a dot: fewer than {SMALL} pairs."
    )
    rows = [
        [c["a"], c["b"], _number(c["correlation"]), _number(c["conflict"]), str(c["n"]), str(c["decided"]),
         "few" if c["small"] else ""]
        for c in sorted(cells, key=lambda c: -abs(c["correlation"] or 0))[:40]
    ]  # fmt: skip
    head = ["principle", "and", "correlation", "conflict", "pairs", "decided by both", ""]
    return [
        *map(Text, findings(f)), Plot("matrix", matrix(list(f["principles"]), cells), caption),
        Text("The forty strongest correlations; the JSON holds all."), Table(head, rows, texts=2),
    ]  # fmt: skip


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def matrix(ids: Sequence[str], cells: Sequence[dict[str, Any]]) -> str:
    """Two square pictures, correlation and conflict, as SVG."""
    matplotlib: Any = import_module("matplotlib")
    place, size = {id: i for i, id in enumerate(ids)}, len(ids)
    names = [short(id) for id in ids]

    def fill(axes: Any, key: str, colours: str, low: float, title: str) -> None:
        grid = [[math.nan] * size for _ in ids]
        for c in cells:
            if c[key] is not None:
                i, j = place[c["a"]], place[c["b"]]
                grid[i][j] = grid[j][i] = c[key]
                if c["small"]:
                    axes.plot([j, i], [i, j], ".", color="#1d2126", markersize=2.5)
        shades = matplotlib.colormaps[colours].with_extremes(bad="#eceff2")
        edges = [i - 0.5 for i in range(size + 1)]
        import numpy as np

        mesh = axes.pcolormesh(edges, edges, np.ma.masked_invalid(grid), cmap=shades, vmin=low, vmax=1.0)
        axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), aspect="equal")
        axes.set_xticks(range(size), names, rotation=90, fontsize=8)
        axes.set_yticks(range(size), names, fontsize=8)
        axes.tick_params(length=0)
        axes.set_title(title, fontsize=10, loc="left")
        axes.figure.colorbar(mesh, ax=axes, shrink=0.6)

    def draw(axes: Any) -> None:
        fill(axes[0], "correlation", "RdBu_r", -1.0, "correlation")
        fill(axes[1], "conflict", "Oranges", 0.0, "conflict")

    side = min(2.2 + 0.22 * size, 9.0)
    return drawn(draw, 2 * side + 1.0, side + 0.6, 2)
