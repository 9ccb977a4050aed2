"""Intervals for probes: means, ratios and shares over items, with the rule that made each."""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

RESAMPLES = 1000
SMALL = 30
"""Fewer items than this are marked in reports."""


def weighted(sums: Sequence[float], weights: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """Sum of the items' sums over the sum of their weights, with a 95% bootstrap interval over the items."""
    from scipy.stats import bootstrap

    top, bottom = np.asarray(sums, dtype=float), np.asarray(weights, dtype=float)
    n = len(top)
    if not n or not bottom.sum():
        return {"value": None, "low": None, "high": None, "n": n, "why": "there are no items"}
    value = float(top.sum() / bottom.sum())
    if n < 2 or np.ptp(top / bottom) == 0:
        why = "low, high: one item has no interval" if n < 2 else "low, high: all items are alike"
        return {"value": value, "low": None, "high": None, "n": n, "why": why}

    def ratio(t: Any, b: Any, axis: int = -1) -> Any:
        return t.sum(axis=axis) / b.sum(axis=axis)

    found: Any = bootstrap(
        (top, bottom), ratio,
        paired=True, vectorized=True, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(seed),
    )  # fmt: skip
    return {"value": value, "low": float(found.confidence_interval.low), "high": float(found.confidence_interval.high),
            "n": n}  # fmt: skip


def share(hits: int, n: int) -> dict[str, Any]:
    """A share with its 95% Wilson interval."""
    from statsmodels.stats.proportion import proportion_confint

    if not n:
        return {"value": None, "low": None, "high": None, "n": 0, "why": "there are no items"}
    bounds: Any = proportion_confint(hits, n, method="wilson")
    low, high = bounds
    return {"value": hits / n, "low": float(low), "high": float(high), "n": n}


def gap(before: tuple[int, int], after: tuple[int, int]) -> dict[str, Any]:
    """Difference of two shares (hits, n), after less before, with Newcombe's 95% interval for independent samples."""
    from statsmodels.stats.proportion import confint_proportions_2indep

    (x0, n0), (x1, n1) = before, after
    if not n0 or not n1:
        return {"value": None, "low": None, "high": None, "why": "there are no items"}
    bounds: Any = confint_proportions_2indep(x1, n1, x0, n0, method="newcomb", compare="diff")
    low, high = bounds
    return {"value": x1 / n1 - x0 / n0, "low": float(low), "high": float(high)}


def paired_p(only_before: int, only_after: int) -> float | None:
    """McNemar's exact p for items that changed sides; None where none did."""
    from statsmodels.stats.contingency_tables import mcnemar

    if not only_before + only_after:
        return None
    tested: Any = mcnemar([[0, only_before], [only_after, 0]], exact=True)
    return float(tested.pvalue)
