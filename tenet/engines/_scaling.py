"""How many replicas there should be: between two bounds, by how many questions wait."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from pydantic import Field, model_validator

from tenet.records import Frozen


class Range(Frozen):
    """Replicas that come and go with the work."""

    min: int = Field(1, ge=1)
    """Replicas at the start, and at least."""
    max: int = Field(ge=1)
    """Replicas at most."""
    full: int | None = Field(None, ge=1)
    """Questions for each replica from which on another is started; unset: as many as it decodes at once."""
    calm_s: float = Field(60.0, gt=0)
    """Seconds that one fewer must have been enough before one is ended."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max < self.min:
            raise ValueError(f"max {self.max} is less than min {self.min}")
        return self


@dataclass
class Scale:
    """Bounds, and since when fewer replicas would do."""

    low: int
    high: int
    full: int
    calm: float
    _since: float | None = None

    @classmethod
    def of(cls, replicas: int | Range, full: int) -> Scale:
        """`full` is used where a range does not say its own."""
        if isinstance(replicas, int):
            return cls(replicas, replicas, full, 60.0)
        return cls(replicas.min, replicas.max, replicas.full or full, replicas.calm_s)

    def wanted(self, have: int, questions: int, now: float) -> int:
        """How many there should be, with so many questions unanswered, at a time in seconds: more at once, one fewer
        after a calm."""
        need = max(self.low, min(self.high, math.ceil(questions / self.full)))
        if need >= have or have <= self.low:
            self._since = None
            return max(need, have)
        self._since = now if self._since is None else self._since
        if now - self._since < self.calm:
            return have
        self._since = None
        return have - 1
