"""From votes to principles: which candidates predict people's labels on pairs that had no part in choosing them.

Candidates are proposed and sorted out on one part of the pairs, and tested on the other: one-sided exact binomial tests
against chance, with Benjamini and Hochberg's correction, so that at most one in twenty of what is kept is expected to
be there by luck, however long the list of candidates was.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from constitution import Principle
from service._by_principle import Table, wilson
from tenet.records import Frozen, Verdict

LEVEL = 0.05
"""False discovery rate of what is kept."""
TWINS = 0.6
"""Share of the pairs that either of two candidates decides, on which both decide alike, from which they are one."""


class Score(Frozen):
    """How a candidate's votes compare with people's labels on some pairs."""

    pairs: int
    decided: int
    """Pairs on which it says A or B, and the same in both slot orders if both were asked."""
    right: int
    share: float | None
    """right / decided."""
    low: float | None
    high: float | None
    """95% Wilson interval of the share."""
    coverage: float
    """decided / pairs."""


class Found(Frozen):
    """A candidate with all that was measured of it."""

    principle: Principle
    origin: str
    """Where it comes from: the pool, or a model's proposal."""
    kept: bool
    why: str = ""
    """Why it is not kept."""
    chosen_on: Score
    """On the pairs that candidates were chosen on."""
    held_out: Score
    p: float | None = None
    """Corrected p-value on the held-out pairs; null for one that was not tested there."""


def decision(verdict: Verdict) -> int:
    """1 for A, -1 for B, 0 where the principle says nothing: a tie, something unreadable, or two orders that differ."""
    if verdict.consistent is False:
        return 0
    return {"A": 1, "B": -1}.get(verdict.label, 0)


def score(decisions: Sequence[int], labels: Sequence[str]) -> Score:
    """Decisions held against labels "A" and "B"."""
    truth = [1 if label == "A" else -1 for label in labels]
    decided = sum(d != 0 for d in decisions)
    right = sum(d == t for d, t in zip(decisions, truth, strict=True))
    low, high = wilson(right, decided)
    share = right / decided if decided else None
    n = len(labels)
    return Score(
        pairs=n, decided=decided, right=right, share=share, low=low, high=high, coverage=decided / n if n else 0.0
    )


def twins(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two candidates decide alike so often that they are the same in effect."""
    either = sum(bool(a or b) for a, b in zip(one, other, strict=True))
    alike = sum(a == b != 0 for a, b in zip(one, other, strict=True))
    return either > 0 and alike >= TWINS * either


def select(
    candidates: Sequence[tuple[Principle, str]],
    chosen_on: tuple[Table, Sequence[str]],
    held_out: tuple[Table, Sequence[str]],
    min_coverage: float = 0.02,
) -> list[Found]:
    """Every candidate, those that are kept first, by how many held-out labels they explain.

    Each table holds a verdict per candidate for every pair of its part; the labels are people's, A or B.
    """
    ids = [p.id for p, _ in candidates]
    seen, tested = (
        {id: [decision(row[id]) for row in table] for id in ids} for table in (chosen_on[0], held_out[0])
    )
    first = {id: score(seen[id], chosen_on[1]) for id in ids}
    last = {id: score(tested[id], held_out[1]) for id in ids}
    why: dict[str, str] = {}
    left: list[str] = []
    for id in sorted(ids, key=lambda id: first[id].decided - 2 * first[id].right):
        s = first[id]
        twin = next((other for other in left if twins(seen[id], seen[other])), None)
        if s.coverage < min_coverage:
            why[id] = f"decides {s.decided} of {s.pairs} pairs, fewer than {min_coverage:.0%}"
        elif 2 * s.right <= s.decided:
            why[id] = f"no better than chance where candidates are chosen: {s.right} of {s.decided}"
        elif twin is not None:
            why[id] = f"decides as {twin!r} does"
        else:
            left.append(id)
    p = _corrected([(last[id].right, last[id].decided) for id in left])
    ps = dict(zip(left, p, strict=True))
    for id in left:
        if ps[id] >= LEVEL:
            s = last[id]
            why[id] = f"not better than chance on held-out pairs: {s.right} of {s.decided}, p = {ps[id]:.2g}"
    found = [
        Found(
            principle=principle, origin=origin, kept=principle.id not in why, why=why.get(principle.id, ""),
            chosen_on=first[principle.id], held_out=last[principle.id], p=ps.get(principle.id),
        )
        for principle, origin in candidates
    ]  # fmt: skip
    return sorted(found, key=lambda f: (not f.kept, f.held_out.decided - 2 * f.held_out.right, f.principle.id))


def together(found: Sequence[Found], table: Table, labels: Sequence[str]) -> Score:
    """What the kept principles say together, by majority; a pair on which they balance is not decided."""
    kept = [f.principle.id for f in found if f.kept]
    sums = [sum(decision(row[id]) for id in kept) for row in table]
    return score([(s > 0) - (s < 0) for s in sums], labels)


def _corrected(counts: Sequence[tuple[int, int]]) -> list[float]:
    """One-sided p-values of (right, decided) against a fair coin, corrected for their number."""
    if not counts:
        return []
    stats: Any = import_module("scipy.stats")
    multiple: Any = import_module("statsmodels.stats.multitest")
    raw = [float(stats.binomtest(k, n, 0.5, alternative="greater").pvalue) if n else 1.0 for k, n in counts]
    return [float(p) for p in multiple.multipletests(raw, method="fdr_bh")[1]]
