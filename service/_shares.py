"""Shares and shifts over prompts, with 95% intervals that know that the pairs of one prompt are not independent."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

RULES = {
    "share": "Wilson's interval on the effective number of items: the prompts are the clusters of a ratio estimator "
    "(Korn and Graubard 1998), and where all or none of the items hit, each prompt counts once",
    "shift": "mean over prompts of the new value minus the old one, with Student's interval",
}


def share(clusters: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """The share of hits among items, from (hits, items) of each prompt: value, low, high, n (items), prompts."""
    counted = [(k, n) for k, n in clusters if n]
    hits, items, m = sum(k for k, _ in counted), sum(n for _, n in counted), len(counted)
    if not items:
        return {"value": None, "low": None, "high": None, "n": 0, "prompts": 0, "why": "nothing to count"}
    p = hits / items
    effective = float(m)
    if 0 < p < 1 and m > 1:
        variance = m / (m - 1) * sum((k - p * n) ** 2 for k, n in counted) / items**2
        effective = min(items, p * (1 - p) / variance) if variance > 0 else float(items)
    proportion: Any = import_module("statsmodels.stats.proportion")
    low, high = proportion.proportion_confint(p * effective, effective, method="wilson")
    return {"value": p, "low": max(0.0, float(low)), "high": min(1.0, float(high)), "n": items, "prompts": m}


def shift(differences: Sequence[float]) -> dict[str, Any]:
    """The mean of the prompts' differences: value, low, high, n (prompts)."""
    n = len(differences)
    if not n:
        return {"value": None, "low": None, "high": None, "n": 0, "why": "nothing to compare"}
    made: dict[str, Any] = {"value": sum(differences) / n, "low": None, "high": None, "n": n}
    if len(set(differences)) == 1:
        same = "no prompt differs" if not differences[0] else "all prompts differ by as much"
        return {**made, "why": f"low, high: {same}" if n > 1 else "low, high: it takes two prompts"}
    stats: Any = import_module("scipy.stats")
    ends = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    return {**made, "low": float(ends.low), "high": float(ends.high)}


def percent(figure: dict[str, Any]) -> str:
    """A share in words: "5.4% (3.1 to 9.0, n = 100)"."""
    if figure["value"] is None:
        return f"– ({figure['why']})"
    ends = f"{100 * figure['low']:.1f} to {100 * figure['high']:.1f}, " if figure["low"] is not None else ""
    return f"{100 * figure['value']:.1f}% ({ends}n = {figure['n']:,})"


def change(figure: dict[str, Any], unit: str = "", scale: float = 1.0) -> str:
    """A shift in words: "+1.2 characters (-0.3 to +2.7)"."""
    if figure["value"] is None:
        return "–"
    ends = f" ({scale * figure['low']:+.1f} to {scale * figure['high']:+.1f})" if figure["low"] is not None else ""
    return f"{scale * figure['value']:+.1f}{unit}{ends}"
