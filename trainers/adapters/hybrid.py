"""Adapter mode "hybrid": a shared pair per layer and a smaller pair per expert beside it.

The shared pair carries what all experts need, so that experts the data seldom reach learn it too; the small pairs
carry what differs. A little dearer than either alone.
"""

from __future__ import annotations

from pydantic import Field

from trainers.adapters._place import Place
from trainers.adapters._settings import PerExpert, scale


class Settings(PerExpert):
    """A shared pair and a residual pair per expert."""

    residual_r: int = Field(default=4, ge=1)
    """Rank of each expert's own pair; `r` is the shared pair's."""


def build(settings: Settings, place: Place) -> None:
    for block in place.blocks():
        ranks = place.ranks(block, settings.residual_r, settings.rank_by_load)
        place.check_rank(max(settings.r, *ranks), block, settings.targets)
        piece = place.experts(block)
        piece.add_shared(settings.r, scale(settings.alpha, settings.r), settings.targets, place.draw)
        residual = None if settings.alpha is None else settings.alpha * settings.residual_r / settings.r
        piece.add_own(ranks, scale(residual, settings.residual_r), settings.targets, place.draw)
