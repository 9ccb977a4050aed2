"""Adapter mode "attention": ordinary LoRA on attention and nothing else; works on dense models too."""

from __future__ import annotations

from trainers.adapters._place import Place
from trainers.adapters._settings import Attention


class Settings(Attention):
    """Low-rank pairs beside the attention's linear layers."""

    seed: int = 0


def build(settings: Settings, place: Place) -> None:
    place.attention(Attention(r=settings.r, alpha=settings.alpha, targets=settings.targets))
