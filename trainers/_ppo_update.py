"""One PPO update once its rollouts are scored: from samples and scores to advantages, and from those to new weights."""

# torch ships no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tenet.records import Frozen
from trainers import _ppo_math as m
from trainers._ppo_batch import Sample, collate, grouped
from trainers._ppo_networks import Networks

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from trainers.moe._coach import Coach

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class Objective(Frozen):
    """What an update maximises, and how far it may go; gamma and clip as in Ouyang et al. 2022, appendix C.4."""

    gamma: Share = 1.0
    """Discount of later rewards; 1: none."""
    lam: Share = 0.95
    """lambda of GAE: 1 trusts the rewards, 0 the value network."""
    clip: Positive = 0.2
    """The ratio of new to old policy counts only within 1 - clip and 1 + clip."""
    clip_value: Positive | None = 0.2
    """The value may move so far from its old one before the loss is the clipped one; null: any distance."""
    value_weight: NotNegative = 0.1
    """Weight of the value's loss beside the policy's; of effect where both share a trunk or an optimizer's clipping."""
    entropy_weight: NotNegative = 0.0
    """Bonus for the entropy of the policy at each token, per nat."""
    whiten_rewards: bool = False
    """Divide the per-token rewards by their standard deviation over the update; the mean stays."""
    whiten_advantages: bool = True
    """Shift and scale the advantages to mean 0 and deviation 1 over the update's tokens."""
    kl_estimator: m.Estimator = "k1"
    """Of the penalty: k1 = log(pi/ref) as in the papers, k3 = r - 1 - log r with r = ref/pi, of less variance."""
    epochs: Annotated[int, Field(ge=1)] = 4
    """Passes over the rollouts."""
    minibatches: Annotated[int, Field(ge=1)] = 4
    """Optimizer steps per pass."""


@dataclass(frozen=True)
class Experience:
    """An update's rollouts, fixed before it learns: [B, T] each."""

    samples: Sequence[Sample]
    real: Tensor
    logp: Tensor
    ref: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    entropy: Tensor


class NotFinite(Exception):
    """A loss or a gradient is NaN or infinite; the weights are still those before it."""


def experience(
    networks: Networks, samples: Sequence[Sample], scores: Sequence[float], beta: float, how: Objective, rows: int
) -> Experience:
    """Log-probabilities, values, shaped rewards and advantages of rollouts, `rows` of them in a forward pass.

    The log-probabilities are recomputed here, wherever the tokens were drawn: a ratio then starts at exactly 1.
    """
    import torch

    networks.train(False)
    real = torch.zeros(len(samples), max(len(s.reply) for s in samples), dtype=torch.bool, device=networks.device)
    logp, ref, values, entropy = (torch.zeros(real.shape, device=networks.device) for _ in range(4))
    with torch.no_grad():
        for group in grouped(samples, rows):
            batch = collate([samples[i] for i in group], device=networks.device)
            width = batch.real.shape[1]
            scored = networks.score(batch)
            if scored.values is None:
                with networks.valuing():
                    found = networks.values(batch)
            else:
                found = scored.values
            parts = (batch.real, scored.logp, networks.reference_logp(batch), found, scored.entropy)
            for whole, part in zip((real, logp, ref, values, entropy), parts, strict=True):
                whole[group, :width] = part
    given = torch.tensor(list(scores), device=networks.device)
    rewards = m.shaped(given, m.kl(logp, ref, how.kl_estimator), beta, real)
    if how.whiten_rewards:
        rewards = m.whiten(rewards, real, shift=False)
    advantages, returns = m.gae(rewards, values, real, how.gamma, how.lam)
    if how.whiten_advantages:
        advantages = m.whiten(advantages, real)
    return Experience(samples, real, logp, ref, values, advantages, returns, entropy)


class Learner:
    """Takes optimizer steps on an experience; `rows` samples at a time are in memory.

    Gradients longer than `longest` are shortened to it; 0 leaves them. `coach` adds the policy's router losses.
    """

    def __init__(
        self, networks: Networks, optimizer: torch.optim.Optimizer, how: Objective, rows: int, longest: float = 1.0,
        coach: Coach | None = None,
    ) -> None:  # fmt: skip
        self._networks, self._optimizer, self._how, self._rows = networks, optimizer, how, rows
        self._longest, self._coach = longest or math.inf, coach
        self._weights = [p for group in optimizer.param_groups for p in group["params"]]

    def learn(self, experience: Experience, seed: int) -> dict[str, float]:
        """All epochs over an experience; means over its tokens and steps. NotFinite before a step that would harm."""
        import torch

        draw = torch.Generator().manual_seed(seed)
        n = len(experience.samples)
        parts = min(self._how.minibatches, n)
        self._networks.train()
        steps: list[dict[str, float]] = []
        for _ in range(self._how.epochs):
            order = torch.randperm(n, generator=draw).tolist()
            steps += [self._step(experience, order[i * n // parts : (i + 1) * n // parts]) for i in range(parts)]
        self._networks.train(False)
        told = {key: math.fsum(s[key] for s in steps) / len(steps) for key in steps[0]}
        told["ratio_max"] = max(s["ratio_max"] for s in steps)
        return told

    def _step(self, whole: Experience, chosen: list[int]) -> dict[str, float]:
        """One optimizer step on some samples; the loss is a mean over their tokens, however they are split in rows."""
        import torch

        tokens = int(whole.real[chosen].sum())
        told: dict[str, float] = {}
        samples = [whole.samples[i] for i in chosen]
        for group in grouped(samples, self._rows):
            part = self._backward(whole, [chosen[i] for i in group], tokens)
            for key, value in part.items():
                told[key] = max(told.get(key, 0.0), value) if key == "ratio_max" else told.get(key, 0.0) + value
        norm = torch.nn.utils.clip_grad_norm_(self._weights, self._longest)
        told["grad_norm"] = float(norm)
        if not all(map(math.isfinite, told.values())):
            self._optimizer.zero_grad()
            raise NotFinite(", ".join(f"{k} {v:g}" for k, v in told.items() if not math.isfinite(v)))
        if self._coach is not None:
            self._coach.before_step(self._optimizer)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self._coach is not None:
            told |= self._coach.after_step()
        return told

    def _backward(self, whole: Experience, rows: list[int], tokens: int) -> dict[str, float]:
        """Adds the rows' gradients; returns their share of the minibatch's means."""
        how, networks = self._how, self._networks
        batch = collate([whole.samples[i] for i in rows], device=networks.device)
        width = batch.real.shape[1]
        real = batch.real
        old, advantages, returns, old_values = (
            x[rows, :width] for x in (whole.logp, whole.advantages, whole.returns, whole.values)
        )

        def share(x: Tensor) -> Tensor:
            return (x * real).sum() / tokens

        with nullcontext() if self._coach is None else self._coach.recording():
            scored = networks.score(batch)
        policy = m.policy_loss(scored.logp, old, advantages, how.clip)
        loss = share(policy.terms)
        if how.entropy_weight:
            loss = loss - how.entropy_weight * share(scored.entropy)
        if self._coach is not None:
            loss = loss + self._coach.loss() * (real.sum() / tokens)
        values = scored.values
        if values is not None:
            value = m.value_loss(values, old_values, returns, how.clip_value)
            (loss + how.value_weight * share(value.terms)).backward()
        else:
            # two passes: under LoRA both networks are one model with another adapter switched on
            loss.backward()
            with networks.valuing():
                value = m.value_loss(networks.values(batch), old_values, returns, how.clip_value)
                (how.value_weight * share(value.terms)).backward()
        ratio = (scored.logp.detach() - old).exp()
        parts: dict[str, Any] = {
            "policy_loss": share(policy.terms),
            "value_loss": share(value.terms),
            "clip_fraction": share(policy.clipped),
            "value_clip_fraction": share(value.clipped),
            "approx_kl": share(ratio - 1 - ratio.log()),
            "ratio_max": ratio[real].max(),
        }
        return {key: float(x.detach()) for key, x in parts.items()}
