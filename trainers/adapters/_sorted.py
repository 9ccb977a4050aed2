"""Tokens sorted by expert and back: the order of a batch's picks, products by group, sums over a token's picks."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F

from trainers.adapters._grouped import Groups, Kernel, Loop


class Order(NamedTuple):
    """How T tokens x k picks lie once sorted into S = T*k rows, frozen experts first, chosen ones behind."""

    token: torch.Tensor
    """[S] the token of each row."""
    row: torch.Tensor
    """[T, k] the row of each pick."""
    expert: torch.Tensor
    """[S] the expert of each row."""
    sizes: torch.Tensor
    """[E] rows of each expert."""


def sort(picks: torch.Tensor, experts: int, chosen: torch.Tensor | None) -> Order:
    """The order of a batch's picks [T, k]."""
    T, k = picks.shape
    flat = picks.reshape(-1)
    key = flat
    if chosen is not None:
        last = torch.zeros(experts, dtype=flat.dtype, device=flat.device)
        last[chosen] = experts
        key = flat + last[flat]
    perm = torch.argsort(key, stable=True)
    row = torch.empty_like(perm)
    row[perm] = torch.arange(T * k, device=perm.device)
    sizes = torch.zeros(experts, dtype=flat.dtype, device=flat.device).index_add_(0, flat, torch.ones_like(flat))
    return Order(perm // k, row.view(T, k), flat[perm], sizes)


class Rows(NamedTuple):
    """The sorted rows' groups: those of frozen experts, and behind row `first` those of chosen experts."""

    frozen: Groups
    chosen: Groups | None = None
    first: int = 0

    @staticmethod
    def of(sizes: torch.Tensor, chosen: torch.Tensor | None, loop: bool) -> Rows:
        if chosen is None:
            return Rows(Loop(sizes.tolist()) if loop else Kernel(sizes))
        front, behind = sizes.clone(), sizes[chosen]
        front[chosen] = 0
        first = int(front.sum())
        if loop:
            return Rows(Loop(front.tolist()), Loop(behind.tolist()), first)
        return Rows(Kernel(front), Kernel(behind), first)

    def mm(self, x: torch.Tensor, w: torch.Tensor, own: torch.Tensor | None) -> torch.Tensor:
        """[S, K] by the frozen [E, K, N] and the chosen experts' own [C, K, N] -> [S, N]."""
        if self.chosen is None or own is None:
            return self.frozen.mm(x, w)
        return torch.cat([self.frozen.mm(x[: self.first], w), self.chosen.mm(x[self.first :], own)])


def add(values: torch.Tensor, row: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """[S, N] rows back to tokens: the (weighted) sum over each token's k rows, [T, N]; float32 sums for bf16."""
    if values.dtype == torch.float32:
        # one fused pass without the [T, k, N] copy
        return F.embedding_bag(row, values, mode="sum", per_sample_weights=weights)
    picked = values[row]
    if weights is not None:
        picked = picked * weights[..., None]
    return picked.sum(1, dtype=torch.promote_types(values.dtype, torch.float32)).to(values.dtype)
