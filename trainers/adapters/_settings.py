"""Settings that several adapter modes share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tenet.records import Frozen

Target = Literal["gate_up", "down"]


class Attention(Frozen):
    """Ordinary LoRA on attention, beside any mode."""

    r: int = Field(default=8, ge=1)
    alpha: float | None = None
    """Scale is alpha / r; 2 r if not given."""
    targets: tuple[str, ...] | None = None
    """Endings of linear layers' names, such as q_proj; all of the attention's if not given."""


class Common(Frozen):
    """What every mode takes."""

    seed: int = 0
    """Decides how first factors are drawn."""
    attention: Attention | None = None
    jitter: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Router inputs are multiplied by 1 ± this while training (Switch Transformer, arXiv 2101.03961)."""
    minimum_load: float = Field(default=0.0, ge=0.0, le=1.0)
    """Batches are drawn so that every expert gets this share of an even load, as far as the data allow."""


class LowRank(Common):
    """What the low-rank modes take."""

    r: int = Field(default=8, ge=1)
    alpha: float | None = None
    """Scale is alpha / r; 2 r if not given."""
    targets: tuple[Target, ...] = ("gate_up", "down")
    """Which of the experts' projections."""


class PerExpert(LowRank):
    """What the modes with a pair per expert take."""

    lr_by_load: float = Field(default=0.0, ge=0.0, le=1.0)
    """An expert's learning rate is multiplied by (mean load / its load) to this power, at most 10 and at least 0.1."""
    rank_by_load: float = Field(default=0.0, ge=0.0, le=1.0)
    """An expert's rank is r * (its load / mean load) to this power, at least 1, the sum kept; needs batches."""


def scale(alpha: float | None, r: int) -> float:
    return 2.0 if alpha is None else alpha / r
