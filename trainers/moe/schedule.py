"""How much the balance loss weighs at each step: constant, or from a high start to a low end; and the warm-up stage."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from tenet.records import Frozen

Shape = Literal["constant", "linear", "cosine", "exponential"]


class Schedule(Frozen):
    """From `start` to `end` over `steps`; `end` from there on."""

    shape: Shape = "cosine"
    """How it falls; "constant" stays at `start` until `steps`, then takes `end`."""
    start: float = Field(default=0.1, ge=0)
    end: float = Field(default=0.01, ge=0)
    steps: int = Field(gt=0)

    @model_validator(mode="after")
    def _reachable(self) -> Schedule:
        if self.shape == "exponential" and not (self.start > 0 and self.end > 0):
            raise ValueError("an exponential schedule needs start and end above 0; use linear or cosine to reach 0")
        return self

    def at(self, step: int) -> float:
        """The value at a step, counted from 0."""
        return between(self.shape, self.start, self.end, step / self.steps)


class Warmup(Frozen):
    """A first stage in which the router learns to spread tokens; what comes after it starts at its own step 0."""

    steps: int = Field(gt=0)
    aux_start: float = Field(default=0.1, ge=0)
    """The balance loss's weight at the first step."""
    aux_end: float = Field(default=0.01, ge=0)
    """The same at the last step of the stage."""
    shape: Shape = "cosine"
    """How it falls; "constant" holds `aux_start` to the end of the stage."""
    router_lr: float | None = Field(default=None, gt=0)
    """The routers' learning rate in this stage; None leaves it to the trainer."""
    freeze_experts: bool = True
    """Whether the experts stand still in this stage."""

    @model_validator(mode="after")
    def _reachable(self) -> Warmup:
        Schedule(shape=self.shape, start=self.aux_start, end=self.aux_end, steps=self.steps)
        return self


def between(shape: Shape, start: float, end: float, done: float) -> float:
    """The value when a share of the way (0 to 1) is done."""
    if done >= 1:
        return end
    if shape == "constant":
        return start
    if shape == "exponential":
        return start * (end / start) ** done
    left = 1 - done if shape == "linear" else (1 + math.cos(math.pi * done)) / 2
    return end + (start - end) * left


def balance_weight(constant: float, schedule: Schedule | None, warmup: Warmup | None, step: int) -> float:
    """The balance loss's weight at a step of the training, counted from 0."""
    if warmup is not None:
        if step < warmup.steps:
            return between(warmup.shape, warmup.aux_start, warmup.aux_end, step / warmup.steps)
        step -= warmup.steps
    return constant if schedule is None else schedule.at(step)
