"""Singular values and directions of matrices that are seen a block at a time, and what two spectra have in common."""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

    from trainers.probes._checkpoint import Span

SMALL = 512
"""Sides up to which one thread decomposes a matrix."""


class Spectrum(NamedTuple):
    """Of a matrix whose smaller side is n."""

    values: torch.Tensor
    """Singular values [n], falling."""
    directions: torch.Tensor
    """Singular vectors [n, n] of the smaller side, a column each."""


class Gram:
    """The sum of the products of a matrix's blocks: [n, n] in float64, n the smaller side.

    Its eigenvalues are the squared singular values. In float64 that loses nothing that float32 weights hold.
    """

    def __init__(self, side: int) -> None:
        import torch

        self._sum = torch.zeros(side, side, dtype=torch.float64)

    def add(self, block: torch.Tensor, span: Span) -> None:
        """Takes in a run of rows (columns, for a matrix wider than high)."""
        wide = block.double()
        self._sum += wide.T @ wide if span.axis == 0 else wide @ wide.T

    def spectrum(self) -> Spectrum:
        import torch

        threads = torch.get_num_threads()
        # On a busy machine the threads of a small decomposition wait for one another a hundred times as long.
        torch.set_num_threads(1 if len(self._sum) <= SMALL else threads)
        try:
            values, vectors = torch.linalg.eigh(self._sum)
        finally:
            torch.set_num_threads(threads)
        values, vectors = values.flip(0), vectors.flip(1)
        # What is left of a zero eigenvalue is rounding, whose root would look like a small direction.
        floor = values[0].clamp(min=0) * len(values) * torch.finfo(torch.float64).eps
        return Spectrum(torch.where(values > floor, values, 0.0).sqrt(), vectors)


def effective_rank(values: torch.Tensor) -> float:
    """exp of the entropy of the normalised singular values (Roy and Vetterli 2007): 1 to n."""
    import torch

    p = values / values.sum()
    return float(torch.exp(-torch.special.xlogy(p, p).sum()))


def stable_rank(values: torch.Tensor) -> float:
    """Sum of the squared singular values over the largest one's square: 1 to n, moved little by small ones."""
    return float((values**2).sum() / values[0] ** 2)


def shared(a: Spectrum, b: Spectrum, k: int) -> float:
    """How far the top k directions of two spectra span one space: mean squared cosine, 0 to 1; k / n by chance."""
    cosines = a.directions[:, :k].T @ b.directions[:, :k]
    return float((cosines**2).sum() / k)


def changed(before: Spectrum, after: Spectrum, change: Spectrum, k: int, threshold: float) -> dict[str, Any]:
    """The spectral figures of one matrix and one step.

    `intruders`: those of the top k directions of the new weights whose cosine with every old direction is below
    the threshold (Shuttleworth et al., arXiv 2410.21228). `rotation`: what the top k directions of old and new
    weights share; `drift`: change of the singular values over their norm (after arXiv 2511.08567).
    """
    nearest = (before.directions.T @ after.directions[:, :k]).abs().amax(dim=0)
    return {
        "effective_rank": effective_rank(change.values),
        "stable_rank": stable_rank(change.values),
        "top_share": float(change.values[0] ** 2 / (change.values**2).sum()),
        "top_cosine": float((change.directions[:, 0] @ before.directions[:, 0]).abs()),
        "in_top": shared(change, before, k),
        "by_chance": k / len(change.values),
        "rotation": shared(before, after, k),
        "drift": float((after.values - before.values).norm() / before.values.norm()),
        "intruders": int((nearest < threshold).sum()),
        "lowest_cosine": float(nearest.min()),
        "directions": k,
    }
