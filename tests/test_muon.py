"""Muon in float32 takes the steps of PyTorch's own Muon, up to the bfloat16 that PyTorch rounds to."""

from __future__ import annotations

import pytest
import torch

from trainers._muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(48, 16), (16, 48), (32, 32)])
def test_steps_are_those_of_pytorch(shape: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(1)
    start = torch.randn(shape, generator=draw)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    options = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}
    both = Muon([ours], **options), torch.optim.Muon([theirs], **options)
    for _ in range(5):
        gradient = torch.randn(shape, generator=draw)
        for weight, optimizer in zip((ours, theirs), both, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    moved = (theirs - start).norm()
    assert moved > 0.1
    assert (ours - theirs).norm() < 0.01 * moved


def test_a_step_has_singular_values_near_one() -> None:
    values = torch.linalg.svdvals(orthogonal(torch.randn(24, 64, generator=torch.Generator().manual_seed(2))))
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3


def test_a_matrix_without_a_gradient_stays() -> None:
    weight = torch.nn.Parameter(torch.ones(4, 4))
    Muon([weight], lr=0.1, weight_decay=0.1).step()
    assert torch.equal(weight, torch.ones(4, 4))
