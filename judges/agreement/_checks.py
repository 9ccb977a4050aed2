"""Single values of a vote: taken as they should be, or Malformed with what would be right."""

from __future__ import annotations

import sys
from typing import Any

from tenet.files import Malformed, check_unicode, kind_of

EXAMPLE = 'a vote is {"item": "q1", "rater": "ann", "kind": "human", "verdict": "A"}'


def name_of(value: Any, key: str) -> str:
    """The name of an item or rater: text, or a whole number as text."""
    if isinstance(value, str) and value:
        check_unicode(value, repr(key))
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    said = "empty" if value == "" else kind_of(value)
    raise Malformed("no name", f"{key!r} is {said}", f"every vote names its {key}; {EXAMPLE}")


def number_of(value: Any, key: str, low: float, high: float) -> float:
    """A finite number in [low, high]."""
    # JSON has whole numbers that no float can hold.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        said = f"a number ({value!r})" if isinstance(value, float) else kind_of(value)
        raise Malformed("not a number", f"{key!r} is {said}", "write a finite number, or leave it out")
    if not low <= value <= high:
        raise Malformed("out of range", f"{key!r} is {value!r}", f"it lies in [{low:g}, {high:g}]")
    return float(value)


def shown(value: Any) -> str:
    """A value as an error quotes it."""
    return repr(value[:60]) if isinstance(value, str) else kind_of(value)


def typed(row: dict[str, Any]) -> dict[str, Any]:
    """A CSV row with its numbers as numbers."""
    made = dict(row)
    for key in ("p_a", "score", "len_a", "len_b"):
        if key in made:
            try:
                made[key] = float(made[key])
            except ValueError:
                raise Malformed("not a number", f"{key!r} is {made[key]!r}", "write a finite number") from None
    return made
