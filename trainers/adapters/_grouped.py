"""Rows sorted by group, multiplied by their group's own matrix: products, accumulating products, outer products."""

# pyright: reportUnknownMemberType=false

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn import functional as F


class Groups(Protocol):
    """S rows lie sorted into G groups; group g's rows are multiplied by `w[g]`. No call is seen by autograd."""

    def mm(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """[S, K] by [G, K, N] -> [S, N]."""
        ...

    def addmm_(self, y: torch.Tensor, x: torch.Tensor, w: torch.Tensor, alpha: float) -> None:
        """y [S, N] += alpha * (x by w)."""
        ...

    def outer(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x [S, K], y [S, N] -> [G, K, N], the sum of outer products over each group's rows; 0 where it has none."""
        ...


class Loop:
    """A matrix product per group that has rows: on a CPU it accumulates in place, which grouped kernels cannot."""

    def __init__(self, sizes: list[int], start: int = 0) -> None:
        self.parts: list[tuple[int, int, int]] = []
        for g, n in enumerate(sizes):
            if n:
                self.parts.append((g, start, start + n))
            start += n
        self.count = len(sizes)

    def mm(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        y = x.new_empty(x.shape[0], w.shape[2])
        for g, i, j in self.parts:
            torch.mm(x[i:j], w[g], out=y[i:j])
        return y

    def addmm_(self, y: torch.Tensor, x: torch.Tensor, w: torch.Tensor, alpha: float) -> None:
        for g, i, j in self.parts:
            y[i:j].addmm_(x[i:j], w[g], alpha=alpha)

    def outer(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        made = x.new_zeros(self.count, x.shape[1], y.shape[1])
        for g, i, j in self.parts:
            torch.mm(x[i:j].T, y[i:j], out=made[g])
        return made


class Kernel:
    """torch's grouped_mm, for GPUs. Inner sizes are whole steps of 16 bytes: `aligned` gives the rank that is."""

    def __init__(self, sizes: torch.Tensor) -> None:
        self.ends = torch.cumsum(sizes, 0, dtype=torch.int32)
        self.filled = sizes > 0

    def mm(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return F.grouped_mm(x, w, offs=self.ends)

    def addmm_(self, y: torch.Tensor, x: torch.Tensor, w: torch.Tensor, alpha: float) -> None:
        y.add_(F.grouped_mm(x, w, offs=self.ends), alpha=alpha)

    def outer(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        made = F.grouped_mm(x.T, y, offs=self.ends)
        # A group without rows is left as it was found in memory by some kernels.
        return torch.where(self.filled[:, None, None], made, 0)


def aligned(rank: int, dtype: torch.dtype) -> int:
    """The least rank from `rank` on whose rows are whole steps of 16 bytes, which `Kernel` needs."""
    step = 16 // dtype.itemsize
    return -(-rank // step) * step
