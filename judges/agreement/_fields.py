"""Figures as the JSON holds them: a number, or null with the reason beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NotRequired, TypedDict, get_type_hints, is_typeddict

from judges.agreement.rules import Undefined


class Interval(TypedDict):
    """A value and the ends of its 95% interval."""

    value: float | None
    low: float | None
    high: float | None
    why: NotRequired[str]


class Ends(TypedDict):
    """The ends of a 95% interval."""

    low: float | None
    high: float | None
    why: NotRequired[str]


class Accuracy(Interval):
    """Accuracy over n items, with two intervals."""

    n: int | None
    wilson: Ends


class Share(TypedDict):
    """A share of n."""

    value: float | None
    n: int | None
    why: NotRequired[str]


class Averages(TypedDict):
    """Precision, recall and F1 over several classes."""

    precision: float | None
    recall: float | None
    f1: float | None
    why: NotRequired[str]


class Correlations(TypedDict):
    """Correlations over n items."""

    n: int | None
    pearson: float | None
    spearman: float | None
    kendall: float | None


class Corrected(TypedDict):
    """A class's share, before and after correction."""

    apparent: float | None
    corrected: float | None
    sensitivity: float | None
    specificity: float | None
    why: NotRequired[str]


def interval(value: float, ends: Callable[[], tuple[float, float]]) -> Interval:
    """The value with its ends; they are null where there is no interval."""
    try:
        low, high = ends()
        return Interval(value=value, low=low, high=high)
    except Undefined as e:
        return Interval(value=value, low=None, high=None, why=f"low, high: {e}")


def empty(shape: Any, why: str = "") -> Any:
    """What stands for an undefined figure of a type: null, or the type's keys, all null, with the reason."""
    if not is_typeddict(shape):
        return None
    keys = {k: empty(t, why) for k, t in get_type_hints(shape).items() if k != "why"}
    return keys | ({"why": why} if why else {})


def figure(make: Callable[[Any], Any], of: Any) -> tuple[Any, str]:
    """A metric's figure, and "" or the reason if it is null throughout."""
    shape = get_type_hints(make)["return"]
    try:
        return make(of), ""
    except Undefined as e:
        return empty(shape, str(e)), str(e)
