"""Output change of each step on held-out text: KL, perplexity, and KL at a common norm of change."""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tenet.errors import TenetError
from trainers.probes._checkpoint import Stage
from trainers.probes._models import Coded, Loaded, same_tokens
from trainers.probes._stats import weighted
from trainers.probes._texts import Sample

if TYPE_CHECKING:
    import torch

RULES = {
    "kl": "mean over predicted tokens of KL(before || after) in nats; 95% bootstrap interval over texts",
    "matched": "the step's change, scaled as a whole until its relative norm is the common one, on the weights before",
    "random": "normal noise with each weight's own share of the change's norm, scaled to the same relative norm",
}


class Texts(NamedTuple):
    """Held-out samples, and what to call them."""

    samples: Sequence[Sample]
    source: str


def measure(
    stages: Sequence[Stage],
    steps: Sequence[dict[str, Any]],
    pairs: Sequence[tuple[int, int]],
    texts: Texts,
    norm: float | None = None,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Output figures of every step; `steps` are the steps' weight figures and `pairs` their stages.

    The common norm is `norm`, or else the smallest relative change among the steps. Two models are in
    memory at a time, and one more copy of the weights while changes are scaled.
    """
    sizes = [s["total"]["relative"] for s in steps]
    common = norm if norm is not None else min((s for s in sizes if s), default=None)
    made: list[dict[str, Any]] = []
    for (a, b), size in zip(pairs, sizes, strict=True):
        progress(f"{stages[a].name} to {stages[b].name}")
        try:
            made.append(_step(stages[a], stages[b], texts.samples, size, common, device))
        except TenetError as error:
            made.append({"kl": None, "why": str(error)})
    return {"rules": RULES, "text": texts.source, "common_norm": common, "steps": made}


def _step(
    a: Stage, b: Stage, samples: Sequence[Sample], size: float | None, common: float | None, device: str
) -> dict[str, Any]:
    before, after = Loaded(a, device), Loaded(b, device)
    try:
        if not same_tokens(before, after):
            return {"kl": None, "why": "the stages' tokenizers differ, so their distributions are over other things"}
        coded = [c for s in samples if (c := before.code(s)) is not None]
        if not coded:
            return {"kl": None, "why": "no text has tokens to predict within the model's window"}
        made: dict[str, Any] = {"texts": len(coded), "too_long_or_empty": len(samples) - len(coded)}
        made |= _kl(before, after, coded, full=True)
        if not size or common is None:
            return {**made, "matched": None, "random": None, "why": "matched, random: the step changed nothing"}
        old = dict(before.model.named_parameters())
        new = {n: p for n, p in after.model.named_parameters() if n in old and p.shape == old[n].shape}
        by = common / size
        _blend(old, new, lambda _, change: by * change)
        made["matched"] = {"factor": by, **_kl(before, after, coded)}
        import torch

        draw = torch.Generator(device="cpu").manual_seed(0)

        def noise(_: str, change: torch.Tensor) -> torch.Tensor:
            drawn = torch.randn(change.shape, generator=draw).to(change.device)
            return drawn * (change.norm() / drawn.norm().clamp(min=1e-30))

        _blend(old, new, noise)
        made["random"] = _kl(before, after, coded)
        return made
    finally:
        before.close()
        after.close()


def _blend(
    old: dict[str, torch.Tensor], new: dict[str, torch.Tensor], turn: Callable[[str, torch.Tensor], torch.Tensor]
) -> None:
    """Puts old + turn(new - old) into the new model, one weight at a time."""
    import torch

    with torch.no_grad():
        for name, weight in new.items():
            weight.copy_(old[name] + turn(name, weight - old[name]))


def _kl(before: Loaded, after: Loaded, coded: Sequence[Coded], full: bool = False) -> dict[str, Any]:
    sums: list[float] = []
    sizes: list[int] = []
    losses: list[tuple[float, float]] = []
    for one, p, q in zip(coded, before.distributions(coded), after.distributions(coded), strict=True):
        sums.append(float(divergence(p, q).sum()))
        sizes.append(len(p))
        losses.append((loss(p, one), loss(q, one)))
    made: dict[str, Any] = {"kl": weighted(sums, sizes)}
    if full:
        made |= {"tokens": sum(sizes), "perplexity": {k: _perplexity((x[i] for x in losses), sum(sizes))
                                                      for i, k in enumerate(("before", "after"))}}  # fmt: skip
    return made


def divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) in nats at each position, from log-probabilities [T, V]."""
    # An impossible token adds nothing, where exp(-inf) * -inf would be no number.
    return (p.exp() * (p - q)).nan_to_num(nan=0.0).sum(dim=-1).clamp(min=0.0)


def loss(p: torch.Tensor, one: Coded) -> float:
    """Negative log-likelihood of a sample's predicted tokens, summed, in nats."""
    import torch

    wanted = torch.tensor(one.ids[one.start :], device=p.device)
    return float(-p.gather(1, wanted[:, None]).sum())


def _perplexity(losses: Iterable[float], tokens: int) -> float:
    return math.exp(min(700.0, sum(losses) / tokens))
