"""Adapter mode "router": the routers only, whole or low-rank; for narrow changes, since no expert learns anything new.

`Handle.moved` says how much routing and output it moved.
"""

from __future__ import annotations

from pydantic import Field

from trainers.adapters._place import Place
from trainers.adapters._settings import Common, scale


class Settings(Common):
    """Routers, whole or low-rank."""

    r: int | None = Field(default=None, ge=1)
    """Rank of a pair beside each router; the whole router if not given."""
    alpha: float | None = None


def build(settings: Settings, place: Place) -> None:
    for block in place.blocks():
        place.experts(block)  # counts tokens
        place.router(block, settings.r, 0.0 if settings.r is None else scale(settings.alpha, settings.r))
