"""How figures read on a page: a dash for what does not exist."""

from __future__ import annotations

from typing import Any


def number(value: Any, digits: int = 3) -> str:
    """A figure for a table's cell: as many digits as are worth reading, a dash for null."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    size = abs(value)
    return f"{value:.{digits}f}" if size >= 0.01 or size == 0 else f"{value:.2e}"


def percent(value: Any) -> str:
    return "–" if value is None else f"{value:.1%}"


def spread(figure: dict[str, Any] | None, digits: int = 3) -> str:
    """A value with its 95% interval: "0.711 (0.682 to 0.740)"."""
    if not figure or figure["value"] is None:
        return "–"
    said = number(figure["value"], digits)
    if figure.get("low") is None:
        return said
    return f"{said} ({number(figure['low'], digits)} to {number(figure['high'], digits)})"
