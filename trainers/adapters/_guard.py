"""Rules for the optimizer: experts without tokens stay where they are, and learning rates may follow the load.

The gradient of fused experts is zeros for an expert without tokens, never None, so Adam's moments and weight decay
would go on moving it. Here its rows of every parameter, and of every state the optimizer keeps in that shape, are put
back after the step. (State that sums over rows, such as a factored second moment's column part, is not.)
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Owned(NamedTuple):
    """A parameter whose rows (of dimension 0) belong to experts."""

    param: torch.nn.Parameter
    owner: torch.Tensor
    """[rows] the expert of each row."""


class Layer:
    """One mixture's parameters that belong to experts, and what their gradients came to."""

    def __init__(
        self, owned: list[Owned], E: int, tokens: Callable[[], torch.Tensor] | None, lr_by_load: float
    ) -> None:
        self.owned, self.E, self.tokens, self.lr_by_load = owned, E, tokens, lr_by_load
        device = owned[0].param.device
        self.square = torch.zeros(E, dtype=torch.float64, device=device)
        """Sum over steps of the squared gradient norm of each expert."""
        self.steps = torch.zeros(E, dtype=torch.long, device=device)
        """Optimizer steps in which the expert had a gradient."""
        self._kept: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._before: list[torch.Tensor] = []

    def before(self, state: Any) -> None:
        touched = torch.zeros(self.E, dtype=torch.bool, device=self.square.device)
        for param, owner in self.owned:
            if param.grad is None:
                continue
            rows = param.grad.detach().reshape(param.shape[0], -1)
            touched[owner[rows.abs().amax(1) > 0]] = True
            self.square.index_add_(0, owner, torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square())
        self.steps += touched
        self._kept = []
        self._before = [p.detach().clone() for p, _ in self.owned] if self.lr_by_load else []
        for param, owner in self.owned:
            idle = (~touched[owner]).nonzero()[:, 0]
            if param.grad is None or not len(idle):
                continue
            self._kept.append((param.data, idle, param.data[idle].clone()))
            for value in state.get(param, {}).values():
                if torch.is_tensor(value) and value.ndim and value.shape[0] == param.shape[0]:
                    self._kept.append((value, idle, value[idle].clone()))

    def after(self) -> None:
        with torch.no_grad():
            factor = self._factor() if self._before else None
            for (param, owner), old in zip(self.owned, self._before, strict=False):
                assert factor is not None
                by_row = factor[owner].view(-1, *[1] * (param.ndim - 1)).to(param.dtype)
                param.data.copy_(old + by_row * (param.data - old))
            for tensor, idle, values in self._kept:
                tensor[idle] = values
        self._kept, self._before = [], []

    def _factor(self) -> torch.Tensor:
        tokens = self.tokens() if self.tokens is not None else None
        if tokens is None or not int(tokens.sum()):
            return torch.ones(self.E, device=self.square.device)
        load = tokens.double().clamp(min=1)
        return ((load.mean() / load) ** self.lr_by_load).clamp(0.1, 10.0)


def guard(optimizer: Any, layers: list[Layer]) -> list[Any]:
    """Puts the rules on an optimizer; the hooks, for whoever wants to take them off."""
    inner = getattr(optimizer, "optimizer", optimizer)

    def before(opt: Any, args: Any, kwargs: Any) -> None:
        for layer in layers:
            layer.before(opt.state)

    def after(opt: Any, args: Any, kwargs: Any) -> None:
        for layer in layers:
            layer.after()

    return [inner.register_step_pre_hook(before), inner.register_step_post_hook(after)]
