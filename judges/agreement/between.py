"""Judges beside one another, on the items that both were scored on."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from importlib import import_module
from itertools import combinations
from typing import Any

from judges.agreement.rules import Rules
from judges.agreement.view import View
from judges.agreement.votes import Array

EXACT = 25
"""With fewer discordant items than this, McNemar's test is the exact binomial one."""


def between(views: list[View], rules: Rules) -> dict[str, Any]:
    """McNemar's test and the bootstrap difference in accuracy for every two judges, and how firm their ranks are."""
    pairs = list(combinations(views, 2))
    return {
        "mcnemar": [_mcnemar(x, y) for x, y in pairs],
        "difference": [_difference(x, y, rules) for x, y in pairs],
        "rank_stability": _ranks(views, rules),
    }


def _mcnemar(x: View, y: View) -> dict[str, Any]:
    """A judge is right on an item if its score there is above a half."""
    contingency: Any = import_module("statsmodels.stats.contingency_tables")
    right = [s > 0.5 for s in _shared([x, y])]
    made: dict[str, Any] = {"judges": [x.name, y.name], "n": len(right[0])}
    only = [int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())]
    made |= {"only_first_right": only[0], "only_second_right": only[1], "p": None, "test": None}
    if not sum(only):
        return made | {"why": "p, test: the judges are right on the same items" if made["n"] else "no shared items"}
    exact = sum(only) < EXACT
    table = [[int((right[0] & right[1]).sum()), only[0]], [only[1], int((~right[0] & ~right[1]).sum())]]
    p = float(contingency.mcnemar(table, exact=exact, correction=True).pvalue)
    return made | {"p": p, "test": "exact" if exact else "chi-square with continuity correction"}


def _difference(x: View, y: View, rules: Rules) -> dict[str, Any]:
    """Accuracy of the first minus that of the second; items are resampled with both their scores."""
    import numpy as np

    scores = np.stack(_shared([x, y]))
    made: dict[str, Any] = {"judges": [x.name, y.name], "n": scores.shape[1], "value": None, "low": None, "high": None}
    if scores.shape[1] < 2:
        return made | {"why": "it takes two items that both judges were scored on"}
    means = _resampled(scores, rules)
    low, high = np.percentile(means[:, 0] - means[:, 1], [2.5, 97.5])
    return made | {"value": float(scores[0].mean() - scores[1].mean()), "low": float(low), "high": float(high)}


def _ranks(views: list[View], rules: Rules) -> dict[str, Any]:
    """The judges by accuracy on shared items, and the share of resamples that keep the order, or a judge's place."""
    import numpy as np

    made: dict[str, Any] = {"order": None, "kept": None, "first": None, "n": 0}
    if len(views) < 2:
        return made | {"why": "it takes two judges"}
    scores = np.stack(_shared(views))
    made["n"] = scores.shape[1]
    if scores.shape[1] < 2:
        return made | {"why": "it takes two items that all judges were scored on"}
    order = np.argsort(-scores.mean(axis=1), kind="stable")
    means = _resampled(scores, rules)[:, order]
    firsts = np.bincount(means.argmax(axis=1), minlength=len(views)) / len(means)
    names = [views[i].name for i in order]
    return made | {
        "order": names,
        "kept": float((np.diff(means, axis=1) <= 0).all(axis=1).mean()),
        "first": {name: float(share) for name, share in zip(names, firsts, strict=True)},
    }


def _shared(views: list[View]) -> list[Array]:
    """Each judge's scores on the items that all were scored on."""
    import numpy as np

    scores = [view.right for view in views]
    known = np.isfinite(scores).all(axis=0)
    return [s[known] for s in scores]


def _resampled(scores: Array, rules: Rules) -> Array:
    """[R, J] mean scores over resampled items; equal columns are one cell, as in `View.interval`."""
    import numpy as np

    cells, first, count = np.unique(scores, axis=1, return_index=True, return_counts=True)
    order = np.lexsort((first, -count))
    share = count[order] / count.sum()
    drawn = np.random.RandomState(rules.seed).multinomial(scores.shape[1], share, size=rules.resamples)
    return drawn @ cells[:, order].T / scores.shape[1]
