"""Adapter mode "per_expert": one low-rank pair per expert and projection.

An expert that the data seldom reach gets little gradient: see the starvation report, and `lr_by_load`, `rank_by_load`,
`jitter`, `minimum_load`, or mode `hybrid`.
"""

from __future__ import annotations

from trainers.adapters._place import Place
from trainers.adapters._settings import PerExpert, scale


class Settings(PerExpert):
    """A pair for every expert."""


def build(settings: Settings, place: Place) -> None:
    for block in place.blocks():
        ranks = place.ranks(block, settings.r, settings.rank_by_load)
        place.check_rank(max(ranks), block, settings.targets)
        piece = place.experts(block)
        piece.add_own(ranks, scale(settings.alpha, settings.r), settings.targets, place.draw)
