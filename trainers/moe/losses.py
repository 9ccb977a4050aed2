"""Router losses: load balance and z, by layer, from the routers' logits with padding left out.

Conventions. With E experts, K a token, f_e the share of tokens that go to expert e (they add up to K) and P_e the
mean probability of e, tenet's balance loss of one layer is E/K * sum_e f_e P_e: 1 at perfect balance and E/k if all
goes to k experts alone. These are the units of Switch (arXiv 2101.03961, eq. 4; its K is 1) and Megatron. Those of
transformers are K times as large. Layers are averaged after the loss, never pooled before it: pooled counts hide
layers that collapse on different experts. The z-loss is ST-MoE's, mean logsumexp(x)^2 (arXiv 2202.08906, eq. 5);
it is (ln E)^2 at zero logits.
"""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tenet.errors import TrainingError
from tenet.records import Frozen
from trainers.moe._hooks import Forward, Layer
from trainers.moe.schedule import Schedule, Warmup

if TYPE_CHECKING:
    import torch

Units = Literal["one", "top_k"]
"""What the balance loss is at perfect balance: 1 (Switch, Megatron), or K (transformers, TRL)."""
Scope = Literal["micro", "accumulated", "global"]


class BiasBalancing(Frozen):
    """Balancing without a loss (DeepSeek-V3, arXiv 2412.19437, section 2.1.2; arXiv 2408.15664)."""

    rate: float = Field(default=0.001, gt=0)
    """How far an expert's bias moves at each step: up if it got less than the mean load, down if more."""


class Settings(Frozen):
    """The `moe:` section of a training."""

    balance: float = Field(default=0.01, ge=0)
    """Weight of the balance loss; where `schedule` is set, that one counts instead."""
    z: float = Field(default=0.001, ge=0)
    """Weight of the z-loss."""
    units: Units = "one"
    """The units that `balance`, `schedule` and `warmup` are meant in."""
    scope: Scope = "accumulated"
    """Whose tokens must be spread: each micro-batch's, the accumulated batch's so far, or that of all workers."""
    schedule: Schedule | None = None
    warmup: Warmup | None = None
    bias_balancing: BiasBalancing | None = None
    """Only for routers that keep a bias for the choice, such as DeepSeek-V3's, GLM-4's and dots1's."""


def convert(value: float, of: Units, to: Units, top_k: int) -> float:
    """A balance loss in other units. A *weight* goes the other way: 0.01 in "one" is 0.01/K in "top_k"."""
    if of == to:
        return value
    return value * top_k if to == "top_k" else value / top_k


def balance(
    logits: torch.Tensor, chosen: torch.Tensor, real: torch.Tensor | None = None, sigmoid: bool = False
) -> torch.Tensor:
    """The balance loss of one layer in units "one", from [N, E] logits, [N, K] chosen experts and [N] real tokens."""
    counts, tokens = count(logits.shape[-1], chosen, real)
    return spread(mean_probabilities(logits, real, sigmoid), counts, tokens, chosen.shape[-1])


def spread(mean: torch.Tensor, counts: torch.Tensor, tokens: torch.Tensor, top_k: int) -> torch.Tensor:
    """E/K * sum f P from [E] mean probabilities and [E] counts over a number of tokens, which may be others'."""
    return mean.shape[-1] / top_k * (counts / tokens.clamp(min=1) * mean).sum()


def z(logits: torch.Tensor, real: torch.Tensor | None = None) -> torch.Tensor:
    """The z-loss of one layer from [N, E] logits and [N] real tokens; 0 where no token is real."""
    import torch

    return _mean(torch.logsumexp(logits.float(), dim=-1).square(), real)


def count(experts: int, chosen: torch.Tensor, real: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """([E] how many real tokens went to each expert, [] how many real tokens there are)."""
    import torch

    weight = torch.ones(chosen.shape[0], device=chosen.device) if real is None else real.to(torch.float32)
    counts = torch.zeros(experts, device=chosen.device)
    counts.index_add_(0, chosen.reshape(-1), weight.repeat_interleave(chosen.shape[-1]))
    return counts, weight.sum()


def probabilities(logits: torch.Tensor, sigmoid: bool) -> torch.Tensor:
    """[N, E] shares of each expert: a softmax, or sigmoid scores made to add up to 1 (DeepSeek-V3, eq. 18)."""
    import torch

    if not sigmoid:
        return torch.softmax(logits.float(), dim=-1)
    scores = logits.float().sigmoid()
    return scores / scores.sum(dim=-1, keepdim=True).clamp(min=1e-20)


def mean_probabilities(logits: torch.Tensor, real: torch.Tensor | None, sigmoid: bool) -> torch.Tensor:
    """[E] the mean of the probabilities over the real tokens."""
    return _mean(probabilities(logits, sigmoid), real)


def _mean(values: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
    """The mean over the first axis, of the real tokens."""
    if real is None:
        return values.mean(dim=0)
    weight = real.to(values.dtype)
    return (weight @ values) / weight.sum().clamp(min=1)


@dataclass
class Tally:
    """What was seen since the last optimizer step: [L, E] counts, tokens, and sums by layer."""

    counts: torch.Tensor
    tokens: torch.Tensor
    sums: torch.Tensor
    """[L, 4]: balance loss, z-loss, entropy in nats and squared logits, each weighted with its pass's tokens."""

    @classmethod
    def empty(cls, layers: list[Layer], device: torch.device) -> Tally:
        import torch

        return cls(
            torch.zeros(len(layers), layers[0].count, device=device),
            torch.zeros((), device=device),
            torch.zeros(len(layers), 4, device=device),
        )


def of_pass(
    seen: Forward, layers: list[Layer], tally: Tally, scope: Scope
) -> tuple[torch.Tensor, torch.Tensor]:
    """(balance loss in units "one", z-loss) of one pass, averaged over layers; the tally takes the pass in.

    With scope "accumulated", f counts all passes since the last step, this one included; with "global" it also
    counts those of the other workers (arXiv 2501.11873). P, which carries the gradient, is this pass's own.
    TrainingError names the first layer whose logits are not finite.
    """
    import torch

    if len(seen.logits) != len(layers) or len(seen.chosen) != len(layers):
        ran = f"{len(seen.logits)} routers and {len(seen.chosen)} sets of experts"
        what = f"{ran} ran in a pass through {len(layers)} layers"
        raise TrainingError(what, fix="report it: the losses would be wrong")
    for layer, logits in zip(layers, seen.logits, strict=True):
        if not torch.isfinite(logits).all():
            raise TrainingError(
                f"{layer.name}: the router's logits are not finite",
                fix="a lower learning rate, a higher moe.z, or float32 where bf16 overflows",
            )
    counted = [count(y.count, chosen, seen.real) for y, chosen in zip(layers, seen.chosen, strict=True)]
    counts, tokens = torch.stack([c for c, _ in counted]), counted[0][1]
    tally.counts += counts
    tally.tokens += tokens
    within = (counts, tokens) if scope == "micro" else (tally.counts, tally.tokens)
    f, n = everywhere(*within) if scope == "global" else within
    balances, zs = [], []
    for i, (layer, logits) in enumerate(zip(layers, seen.logits, strict=True)):
        shares = probabilities(logits, layer.sigmoid)
        balances.append(spread(_mean(shares, seen.real), f[i], n, layer.top_k))
        zs.append(z(logits, seen.real))
        with torch.no_grad():
            entropy = _mean(torch.special.entr(shares).sum(dim=-1), seen.real)
            size = _mean(logits.float().square().mean(dim=-1), seen.real)
            tally.sums[i] += tokens * torch.stack([balances[-1].detach(), zs[-1].detach(), entropy, size])
    return torch.stack(balances).mean(), torch.stack(zs).mean()


def everywhere(counts: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, summed over all workers."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return counts, tokens
    both = torch.cat([counts.reshape(-1), tokens.reshape(1)])
    torch.distributed.all_reduce(both)
    return both[:-1].reshape(counts.shape), both[-1]
