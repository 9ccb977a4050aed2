"""Rollouts as tensors: prompts and replies of many lengths in one batch, padded on either side."""

# torch ships no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Side = Literal["left", "right"]


@dataclass(frozen=True)
class Sample:
    """One rollout as tokens: what was asked, and what was drawn, the end token included."""

    prompt: tuple[int, ...]
    reply: tuple[int, ...]
    ended: bool
    """Whether the reply closed with an end token; if not, it was cut."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.reply)


@dataclass(frozen=True)
class Batch:
    """B rollouts in L columns; the longest reply has T tokens."""

    ids: Tensor
    """[B, L]"""
    mask: Tensor | None
    """[B, L], 0 at padding; None where all padding is on the right: causal attention never looks there."""
    places: Tensor | None
    """[B, L], each token's position in its own row; None where that is its column."""
    at: Tensor
    """[B, T], the column whose output predicts the reply's t-th token."""
    reply: Tensor
    """[B, T], the reply's tokens."""
    real: Tensor
    """[B, T], whether there is such a token."""


def collate(samples: Sequence[Sample], side: Side = "right", pad: int = 0, device: Any = "cpu") -> Batch:
    """One batch. `side` is where prompts are padded: "right" leaves no gap and needs no mask."""
    import torch

    widest = max(len(s.prompt) for s in samples)
    starts = [widest - len(s.prompt) if side == "left" else 0 for s in samples]
    columns = max(start + len(s) for start, s in zip(starts, samples, strict=True))
    longest = max(len(s.reply) for s in samples)
    ids = torch.full((len(samples), columns), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    at = torch.zeros(len(samples), longest, dtype=torch.long)
    reply = torch.zeros_like(at)
    real = torch.zeros(len(samples), longest, dtype=torch.bool)
    for row, (start, s) in enumerate(zip(starts, samples, strict=True)):
        ids[row, start : start + len(s)] = torch.tensor((*s.prompt, *s.reply))
        mask[row, start : start + len(s)] = 1
        first, n = start + len(s.prompt) - 1, len(s.reply)
        # beyond a reply's end some column must be named; its output is masked by `real`
        at[row] = (first + torch.arange(longest)).clamp(max=columns - 1)
        reply[row, :n] = torch.tensor(s.reply)
        real[row, :n] = True
    whole = side == "right"
    places = None if whole else (mask.cumsum(1) - 1).clamp(min=0).to(device)
    parts = (None if whole else mask.to(device), places, at.to(device), reply.to(device), real.to(device))
    return Batch(ids.to(device), *parts)


def grouped(samples: Sequence[Sample], rows: int) -> list[list[int]]:
    """Indices of samples in groups of at most `rows`, those of like length together."""
    order = sorted(range(len(samples)), key=lambda i: len(samples[i]))
    return [order[i : i + rows] for i in range(0, len(order), rows)]
