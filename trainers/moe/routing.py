"""Where tokens go: load, entropy, specialisation and co-activation of experts, and how two models differ in them."""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from typing import TYPE_CHECKING

from trainers.moe._hooks import Layer

if TYPE_CHECKING:
    import torch


def similarity(layer: Layer) -> float:
    """Mean pairwise cosine of the layer's experts' weights, each expert taken as one vector: 1 for copies."""
    import torch

    with torch.no_grad():
        flat = torch.cat([p.float().flatten(1) for p in layer.experts.parameters() if p.ndim == 3], dim=1)
        return _pairwise(torch.nn.functional.normalize(flat, dim=1)[:, None])


def answers(layer: Layer, inputs: torch.Tensor) -> float:
    """Mean pairwise cosine of what the layer's experts give for the same [N, H] inputs: 1 for copies."""
    import torch

    with torch.no_grad():
        n = inputs.shape[0]
        ones = torch.ones(n, 1, dtype=inputs.dtype, device=inputs.device)
        given = [
            layer.experts(inputs, torch.full((n, 1), e, device=inputs.device), ones).float() for e in range(layer.count)
        ]
        return _pairwise(torch.nn.functional.normalize(torch.stack(given), dim=-1))


def _pairwise(unit: torch.Tensor) -> float:
    """The mean of u_i . u_j over pairs i < j and over the middle axis, from [E, N, D] unit vectors."""
    total = unit.sum(dim=0).square().sum(dim=-1)  # sum over all i, j of the products
    e = unit.shape[0]
    own = unit.square().sum(dim=(0, 2))
    return float(((total - own) / (e * (e - 1))).mean())
