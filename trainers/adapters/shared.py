"""Adapter mode "shared": one low-rank pair per projection and layer, used by all experts of the layer.

It cannot differ per expert: a change that only some experts need is spread over all of them.
"""

from __future__ import annotations

from trainers.adapters._place import Place
from trainers.adapters._settings import LowRank, scale


class Settings(LowRank):
    """One pair for all experts of a layer."""


def build(settings: Settings, place: Place) -> None:
    for block in place.blocks():
        place.check_rank(settings.r, block, settings.targets)
        piece = place.experts(block)
        piece.add_shared(settings.r, scale(settings.alpha, settings.r), settings.targets, place.draw)
