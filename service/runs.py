"""`tenet runs`: the runs of a workspace with their constitutions, and what differs between two of them."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

from rich.markup import escape

from constitution import diff as by_meaning
from constitution.diff import Side
from service import _chains
from service._chains import RunView, Walk, walk_of
from service.constitution_edits import headline
from service.screen import columns, console
from tenet.errors import RunFolderError, TenetError
from tenet.ledger import Rows, in_use
from tenet.records import Frozen, canonical

MOST = 20
"""Changed labels that are shown, if nothing else is said."""


class Summary(Frozen):
    """One run, as the list shows it."""

    run: str
    constitution: str = ""
    version: str = ""
    hash: str = ""
    prompts: int | None = None
    """Prompts that have an outcome."""
    pairs: int | None = None
    """Preferences among its rows."""
    exported: int | None = None
    """Those that the exports hold; None before there are any."""
    state: str
    """whole, stopped, …; "going" while a process writes it, "interrupted" if none does and none ended it."""
    reused: int | None = None
    asked: int | None = None
    """Of its last start: replies that were stored, and calls."""
    time: str = ""
    """When it ended, or its last row was written (UTC)."""


def listed(workspace: Path) -> list[Summary]:
    """Every run of a workspace, the earliest first; one that cannot be read says why in its state.

    RunFolderError if there is no such folder.
    """
    if not workspace.is_dir():
        raise RunFolderError("no such folder", where=str(workspace), fix="--workspace, the folder that holds the runs")
    return sorted((_summary(p) for p in workspace.iterdir() if _chains.is_run(p)), key=lambda s: (s.time, s.run))


def _summary(folder: Path) -> Summary:
    try:
        c, m = _chains.constitution_of(folder), _chains.manifest_of(folder)
        about: dict[str, Any] = {"run": folder.name, "constitution": c.name, "version": c.version, "hash": c.hash}
        if m:
            return Summary(
                **about, prompts=m["prompts"]["rows"], pairs=m["pairs"]["preferences"], exported=m["pairs"]["exported"],
                state=m["state"], reused=m["reused"], asked=m["asked"], time=m["finished"],
            )  # fmt: skip
        with Rows(folder, readonly=True) as rows:
            stages = rows.counts().stages
        written = max(p.stat().st_mtime for p in folder.glob("rows.sqlite*"))
        return Summary(
            **about, prompts=stages.get("outcome", 0), pairs=stages.get("preference", 0),
            state="going" if in_use(folder) else "interrupted",
            time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(written)),
        )  # fmt: skip
    except (TenetError, KeyError) as error:
        return Summary(run=folder.name, state=f"cannot be read: {error}")


def show(workspace: Path, form: str) -> None:
    """Prints the list."""
    found = listed(workspace)
    if form == "json":
        print(json.dumps([s.model_dump() for s in found], indent=1, ensure_ascii=False))
        return
    if not found:
        console.print(f"no runs in {escape(str(workspace))}")
        return
    rows = [["run", "constitution", "version", "hash", "prompts", "pairs", "reused", "asked", "state", "ended (UTC)"]]
    for s in found:
        counts = ["–" if n is None else f"{n:,}" for n in (s.prompts, s.pairs, s.reused, s.asked)]
        rows.append([s.run, s.constitution, s.version, s.hash[:8], *counts, s.state, s.time.replace("T", " ")[:16]])
    for line in columns(rows):
        console.print(escape(line), soft_wrap=True)


# What differs between two runs.


class Change(NamedTuple):
    """A pair whose label is another one."""

    prompt: str
    key: str
    """The pair's place, such as "first 0-1"."""
    before: str
    after: str
    p_before: float | None
    """Probability that the pair's a is better."""
    p_after: float | None


@dataclass
class Difference:
    """Counts over two runs, prompts matched by their content."""

    prompts: Counter[str] = field(default_factory=Counter[str])
    """both, touched (of both), first only, second only."""
    labels: Counter[str] = field(default_factory=Counter[str])
    """pairs (in both), changed, flipped (A to B or back), first only, second only."""
    rows: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])
    """By stage: same, restamped (all but the principles' hashes is the same), changed, first only, second only."""
    changes: list[Change] = field(default_factory=list[Change])

    def figures(self) -> dict[str, Any]:
        """For JSON."""
        counts = {"prompts": dict(self.prompts), "labels": dict(self.labels)}
        rows = {stage: dict(n) for stage, n in sorted(self.rows.items())}
        return {**counts, "rows": rows, "changes": [c._asdict() for c in self.changes]}


_Chain = list[tuple[str, str]]


def compare(a: RunView, b: RunView) -> Difference:
    """The rows of two runs side by side; memory stays flat where both read the same prompts file."""
    found = Difference()
    for one, two in _matched(a, b):
        _count_rows(found, one or [], two or [])
        walks = (walk_of(one, a.recipe) if one else None, walk_of(two, b.recipe) if two else None)
        if walks[0] and walks[1]:
            found.prompts["both"] += 1
            found.prompts["touched"] += one != two and _bare(one or []) != _bare(two or [])
            _count_labels(found, *walks)  # pyright: ignore[reportArgumentType]
        elif walks[0] or walks[1]:
            found.prompts["first only" if walks[0] else "second only"] += 1
    return found


def _matched(a: RunView, b: RunView) -> Iterator[tuple[_Chain | None, _Chain | None]]:
    """The chains of both runs by prompt: those in step come out at once, the others wait for their twin."""
    waiting: tuple[dict[str, _Chain], dict[str, _Chain]] = ({}, {})
    sides = (a.chains(), b.chains())
    heads = [next(side, None) for side in sides]
    while heads[0] or heads[1]:
        first = min(h[0] for h in heads if h)
        now = [h[1] if h and h[0] == first else None for h in heads]
        for i, side in enumerate(sides):
            if now[i] is not None:
                heads[i] = next(side, None)
        if now[0] and now[1] and _name(now[0]) == _name(now[1]):
            yield now[0], now[1]
            continue
        for i, chain in enumerate(now):
            if chain is None:
                continue
            twin = waiting[1 - i].pop(name := _name(chain), None)
            if twin is None:
                waiting[i][name] = chain
            else:
                yield (chain, twin) if i == 0 else (twin, chain)
    yield from ((chain, None) for chain in waiting[0].values())
    yield from ((None, chain) for chain in waiting[1].values())


def _name(chain: _Chain) -> str:
    """The prompt of a chain; for a row that held none, its first record."""
    return chain[0][1]


def _count_rows(found: Difference, one: _Chain, two: _Chain) -> None:
    for stage in dict.fromkeys(stage for stage, _ in (*one, *two)):
        n = found.rows.setdefault(stage, Counter())
        mine, theirs = (Counter(r for s, r in chain if s == stage) for chain in (one, two))
        n["same"] += (mine & theirs).total()
        left, right = (
            Counter(r for _, r in _bare([(stage, r) for r in c.elements()])) for c in (mine - theirs, theirs - mine)
        )
        stamped = (left & right).total()
        n["restamped"] += stamped
        n["changed"] += min(left.total(), right.total()) - stamped
        n["first only"] += max(left.total() - right.total(), 0)
        n["second only"] += max(right.total() - left.total(), 0)


def _bare(chain: _Chain) -> _Chain:
    """The records without the hashes that say which wording of a principle they are from."""
    return [(stage, canonical(_unstamped(json.loads(record)))) for stage, record in chain]


def _unstamped(value: Any) -> Any:
    if isinstance(value, dict):
        held = cast("dict[str, Any]", value)
        return {k: _unstamped(v) for k, v in held.items() if k not in ("hashes", "principle_hash")}
    return [_unstamped(v) for v in cast("list[Any]", value)] if isinstance(value, list) else value


def _count_labels(found: Difference, one: Walk, two: Walk) -> None:
    for key in sorted(one.pairs.keys() | two.pairs.keys()):
        a, b = one.pairs.get(key), two.pairs.get(key)
        if a is None or b is None:
            found.labels["first only" if a else "second only"] += 1
            continue
        found.labels["pairs"] += 1
        if a.label == b.label:
            continue
        found.labels["changed"] += 1
        found.labels["flipped"] += {a.label, b.label} == {"A", "B"}
        ps = [p.verdict.p_a if p.verdict else None for p in (a, b)]
        found.changes.append(Change(one.prompt.messages[-1].content, key, a.label, b.label, *ps))


def show_difference(first: Path, second: Path, form: str, limit: int = MOST) -> None:
    """Prints what differs between two runs. RunFolderError if one is none."""
    a, b = _chains.open_run(first), _chains.open_run(second)
    found = compare(a, b)
    sides = [Side(said=str(r.folder), constitution=r.constitution) for r in (a, b)]
    edit = by_meaning.diff(*sides)
    if form == "json":
        told = {"constitution": edit.model_dump(mode="json"), **found.figures()}
        print(json.dumps(told, indent=1, ensure_ascii=False))
        return
    for line in lines(a, b, found, headline(edit), limit):
        console.print(escape(line), soft_wrap=True)


def lines(a: RunView, b: RunView, found: Difference, edited: str, limit: int) -> Iterator[str]:
    """The difference in words."""
    for run in (a, b):
        c, state = run.constitution, run.manifest.get("state", "not ended")
        yield f"{run.folder}: constitution {c.name} {c.version} ({c.hash[:8]}), {state}"
    yield f"constitution: {edited}"
    p, n = found.prompts, found.labels
    yield f"prompts in both: {p['both']:,}, of which {p['touched']:,} differ{_only(p)}"
    share = f" ({100 * n['changed'] / n['pairs']:.1f}%)" if n["pairs"] else ""
    flips = f"{n['flipped']:,} of them from one reply to the other"
    yield f"labels in both: {n['pairs']:,}, of which {n['changed']:,} changed{share}, {flips}{_only(n)}"
    for stage, counts in sorted(found.rows.items()):
        stamped = f", {counts['restamped']:,} from another wording of a principle" if counts["restamped"] else ""
        yield f"rows, {stage}: {counts['same']:,} the same{stamped}, {counts['changed']:,} changed{_only(counts)}"
    for c in found.changes[:limit]:
        ps = " -> ".join("–" if x is None else f"{x:.2f}" for x in (c.p_before, c.p_after))
        yield f"  {c.before} -> {c.after} (p of A {ps}), {c.key}: {' '.join(c.prompt.split())[:80]}"
    if len(found.changes) > limit:
        yield f"  … and {len(found.changes) - limit:,} more (--limit)"


def _only(n: Counter[str]) -> str:
    said = [f"{n[k]:,} in the {k.partition(' ')[0]} only" for k in ("first only", "second only") if n[k]]
    return f"; {', '.join(said)}" if said else ""
