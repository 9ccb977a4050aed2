"""Whether a judge's probabilities mean what they say, before and after the two slot orders are averaged."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from importlib import import_module
from typing import Any, NotRequired, TypedDict

from judges.agreement._fields import empty
from judges.agreement.rules import Undefined
from judges.agreement.view import View
from judges.agreement.votes import TIE, A, Array, B

BINS = 10


class Calibration(TypedDict):
    """Brier score, expected calibration errors, and the points of a reliability curve, over n (p, label) pairs."""

    brier: float | None
    ece: float | None
    ece_confidence: float | None
    bins: list[dict[str, Any]] | None
    n: int | None
    why: NotRequired[str]


def calibration(view: View) -> dict[str, Any]:
    """The figures after averaging an item's orders, and the same again under `before` and `after`.

    p is the probability that A is better, y whether the gold label is A; gold ties and unreadable votes do
    not count. `ece` bins p into ten equal widths (Naeini et al. 2015); `ece_confidence` bins max(p, 1 - p)
    and compares it with accuracy (Guo et al. 2017).
    """
    before, after = (_figures(view, averaged) for averaged in (False, True))
    return {**after, "before": before, "after": after}


def _figures(view: View, averaged: bool) -> Calibration:
    try:
        p, gold = _pairs(view, averaged)
        return _measured(p, gold)
    except Undefined as e:
        return empty(Calibration, str(e))


def _pairs(view: View, averaged: bool) -> tuple[Array, Array]:
    """p [N], and the weights of gold A and B [N, 2]."""
    import numpy as np

    if view.votes.graded:
        raise Undefined("graded votes have no p_a")
    votes = view.cast[np.isfinite(view.votes.p_a[view.cast]) & (view.votes.verdict[view.cast] <= TIE)]
    if not len(votes):
        raise Undefined("no readable vote has a p_a")
    item, p = view.votes.item[votes], view.votes.p_a[votes]
    if averaged:
        item, at = np.unique(item, return_inverse=True)
        p = np.bincount(at, p) / np.bincount(at)
    gold = view.gold[item][:, [A, B]]
    known = gold.sum(axis=1) > 0
    if not known.any():
        raise Undefined("no vote with a p_a is on an item with a gold label for A or B")
    return p[known], gold[known]


def _measured(p: Array, gold: Array) -> Calibration:
    import numpy as np

    metrics: Any = import_module("sklearn.metrics")
    both, y = np.concatenate([p, p]), np.repeat([1, 0], len(p))
    weight = gold.T.reshape(-1)
    brier = float(metrics.brier_score_loss(y, both, sample_weight=weight, pos_label=1, labels=[0, 1]))
    mass, share = gold.sum(axis=1), gold[:, 0] / gold.sum(axis=1)
    bins = _bins(p, share, mass)
    sure = np.maximum(p, 1.0 - p)
    right = np.where(p > 0.5, share, np.where(p < 0.5, 1.0 - share, 0.5))
    confident = _bins(sure, right, mass)
    return Calibration(
        brier=brier, ece=_ece(bins), ece_confidence=_ece(confident), bins=bins, n=len(p)
    )  # fmt: skip


def _bins(p: Array, share: Array, mass: Array) -> list[dict[str, Any]]:
    """The bins that hold something: ends, mean p, share of gold A, and weight n."""
    import numpy as np

    # The nearer end decides, and 1e-9 is rounded off: p and 1 - p fall into bins that mirror each other.
    steps = np.floor(np.round(np.minimum(p, 1.0 - p) * BINS, 9)).astype(np.int64)
    low, high = np.minimum(steps, BINS // 2 - 1), BINS - 1 - np.minimum(steps, BINS // 2 - 1)
    halves = [np.where(p == 0.5, 0.5, p < 0.5), np.where(p == 0.5, 0.5, p > 0.5)]
    total: Any = 0.0
    for at, part in ((low, halves[0]), (high, halves[1])):
        weight = mass * part
        total = total + np.stack([np.bincount(at, w, BINS) for w in (weight, weight * p, weight * share)])
    made: list[dict[str, Any]] = []
    for b in np.flatnonzero(total[0] > 0):
        n, sum_p, sum_y = (float(x) for x in total[:, b])
        made.append({"from": b / BINS, "to": (b + 1) / BINS, "p": sum_p / n, "share": sum_y / n, "n": n})
    return made


def _ece(bins: list[dict[str, Any]]) -> float:
    total = sum(b["n"] for b in bins)
    return sum(b["n"] * abs(b["p"] - b["share"]) for b in bins) / total
