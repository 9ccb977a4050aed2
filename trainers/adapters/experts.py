"""Adapter mode "experts": full fine-tuning of chosen experts, by name or by their share of the data's routing.

Selection on data follows ESFT (Wang et al. 2024, arXiv 2407.01906): in each layer, experts are taken from the most
relevant down until their scores sum to `share`. Scores are normalised per layer, which reproduces the published expert
sets; the released script normalises over layers and does not.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from tenet.errors import SettingsError
from trainers.adapters._place import Place
from trainers.adapters._settings import Common


class Settings(Common):
    """Chosen experts, whole."""

    ids: dict[int, tuple[int, ...]] | None = None
    """Mixture layer (from 0) -> expert ids. Without it, experts are selected on data."""
    by: Literal["gate", "token"] = "gate"
    """Relevance: the mean routing weight of an expert, or its share of the picks."""
    share: float | None = Field(default=None, gt=0.0, le=1.0)
    """Take experts until their scores sum to this; ESFT uses 0.1 by gate and 0.2 by token."""
    n: int | None = Field(default=None, ge=1)
    """Or take the n most relevant of each layer."""

    @model_validator(mode="after")
    def _one_way(self) -> Settings:
        if sum(v is not None for v in (self.ids, self.share, self.n)) > 1:
            raise ValueError("give one of ids, share, n")
        return self


def build(settings: Settings, place: Place) -> None:
    found = place.blocks()
    if settings.ids is not None:
        chosen = {layer: list(ids) for layer, ids in settings.ids.items()}
        for layer, ids in chosen.items():
            if not 0 <= layer < len(found):
                fix = f"layers with experts are 0 to {len(found) - 1}"
                raise SettingsError(f"no mixture layer {layer}", where="adapter.ids", fix=fix)
            wrong = sorted(e for e in ids if not 0 <= e < found[layer].E)
            if wrong:
                fix = f"layer {layer} has experts 0 to {found[layer].E - 1}"
                raise SettingsError(f"unknown expert ids {wrong}", where=f"adapter.ids.{layer}", fix=fix)
            if len(set(ids)) < len(ids):
                raise SettingsError(f"expert ids repeat: {ids}", where=f"adapter.ids.{layer}", fix="name each once")
    else:
        share = settings.share or (0.1 if settings.by == "gate" else 0.2)
        load = place.load("adapter.share")
        scores = (load.gate if settings.by == "gate" else load.tokens).double()
        shares: Any = scores / scores.sum(1, keepdim=True)
        listed: list[list[float]] = shares.tolist()
        chosen = {i: select(row, share, settings.n) for i, row in enumerate(listed)}
    for block in found:
        piece = place.experts(block)
        if chosen.get(block.layer):
            piece.add_chosen(chosen[block.layer])


def select(scores: list[float], share: float, n: int | None) -> list[int]:
    """Experts from the highest score down: the first n, or as many as sum to `share`."""
    order = sorted(range(len(scores)), key=lambda e: (-scores[e], e))
    if n is not None:
        return sorted(order[:n])
    total, taken = 0.0, list[int]()
    for e in order:
        if total >= share:
            break
        taken.append(e)
        total += scores[e]
    return sorted(taken)
