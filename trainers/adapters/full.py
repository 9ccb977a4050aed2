"""Adapter mode "full": every weight of the model; nothing can be switched off, so a reference is a second model."""

from __future__ import annotations

from trainers.adapters._place import Place
from trainers.adapters._settings import Common


class Settings(Common):
    """Everything."""


def build(settings: Settings, place: Place) -> None:
    place.all()
