"""PPO's arithmetic: KL estimates, shaped rewards, advantages, clipped losses. Pure functions on [B, T] tensors.

B replies of up to T tokens, padded on the right; `real` is True where a token is one of the reply's. A value
belongs to the state *before* its token. All rewards, values and losses are in the reward's units, log-probabilities
and KL in nats.
"""

# torch ships no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Estimator = Literal["k1", "k3"]


def mean(x: Tensor, real: Tensor) -> Tensor:
    """Mean over the real tokens, a scalar; NaN if there are none."""
    return (x * real).sum() / real.sum()


def variance(x: Tensor, real: Tensor) -> Tensor:
    """Unbiased variance over the real tokens, a scalar; NaN if there are fewer than two."""
    n = real.sum()
    return mean((x - mean(x, real)) ** 2, real) * n / (n - 1)


def whiten(x: Tensor, real: Tensor, shift: bool = True) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-8) over the real tokens, 0 elsewhere; without `shift` the mean stays.

    One token alone has no variance and keeps its value (or 0, if shifted).
    """
    import torch

    centre = mean(x, real)
    spread = variance(x, real) if int(real.sum()) > 1 else torch.ones_like(centre)
    whitened = (x - centre) * torch.rsqrt(spread + 1e-8)
    return (whitened if shift else whitened + centre).masked_fill(~real, 0.0)


def kl(logp: Tensor, ref: Tensor, estimator: Estimator = "k1") -> Tensor:
    """Per-token estimate of KL(policy || reference) at tokens that the policy drew, [B, T].

    With r = pi_ref / pi: k1 = -log r, unbiased and of either sign (the penalty of Ziegler et al. 2019, eq. 2);
    k3 = (r - 1) - log r, unbiased, never negative, of less variance (Schulman 2020, "Approximating KL divergence").
    """
    log_r = ref - logp
    return -log_r if estimator == "k1" else log_r.exp() - 1.0 - log_r


@dataclass(frozen=True)
class KLController:
    """The weight beta of the KL penalty: fixed, or steered so that the KL of a reply comes to `target` nats.

    Ziegler et al. 2019, section 2.2: e = clip(KL / target - 1, -0.2, 0.2); beta <- beta (1 + rate e).
    """

    beta: float
    target: float | None = None
    rate: float = 0.1

    def after(self, measured: float) -> KLController:
        """The controller for the next update, given this one's mean KL of a reply in nats."""
        if self.target is None:
            return self
        error = min(max(measured / self.target - 1.0, -0.2), 0.2)
        return KLController(self.beta * (1.0 + self.rate * error), self.target, self.rate)


def shaped(scores: Tensor, penalty: Tensor, beta: float, real: Tensor) -> Tensor:
    """Per-token rewards, [B, T]: -beta KL at each token, and the reply's score [B] at its last token.

    R(x, y) = r(x, y) - beta log(pi(y|x) / pi_ref(y|x)), the log-ratio spread over its tokens (Ziegler et al. 2019,
    eq. 2; Stiennon et al. 2020, section 3.4; Ouyang et al. 2022, eq. 2).
    """
    rewards = (-beta * penalty).masked_fill(~real, 0.0)
    last = real.sum(1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores[:, None].to(rewards.dtype))


def gae(rewards: Tensor, values: Tensor, real: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """(advantages, returns), [B, T] each, 0 where padded; nothing is to be had after a reply's last token.

    delta_t = r_t + gamma V_{t+1} - V_t; A_t = delta_t + gamma lambda A_{t+1}; return_t = A_t + V_t
    (Schulman et al. 2016, eq. 16; 2017, eq. 11-12).
    """
    import torch

    values = values.masked_fill(~real, 0.0)
    rewards = rewards.masked_fill(~real, 0.0)
    last = torch.zeros_like(values[:, 0])
    after = torch.zeros_like(last)
    found: list[Tensor] = []
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * after - values[:, t]
        # where a row is padded all three are 0, so nothing leaks from the padding into its last token
        last, after = delta + gamma * lam * last, values[:, t]
        found.append(last)
    advantages = torch.stack(found[::-1], 1)
    return advantages, (advantages + values).masked_fill(~real, 0.0)


@dataclass(frozen=True)
class Clipped:
    """A clipped loss: its terms [B, T], and where the clipped term was the larger, so that it decided."""

    terms: Tensor
    clipped: Tensor


def policy_loss(logp: Tensor, old: Tensor, advantages: Tensor, clip: float) -> Clipped:
    """max(-A rho, -A clip(rho, 1 - clip, 1 + clip)), rho = pi / pi_old (Schulman et al. 2017, eq. 7, negated)."""
    import torch

    ratio = (logp - old).exp()
    free, held = -advantages * ratio, -advantages * ratio.clamp(1.0 - clip, 1.0 + clip)
    return Clipped(torch.maximum(free, held), held > free)


def value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float | None) -> Clipped:
    """Half the squared error of the value, the larger of plain and clipped to within `clip` of the old value.

    The form of OpenAI's lm-human-preferences (Ziegler et al. 2019) and of Stiennon et al. 2020; None: no clipping.
    """
    import torch

    free = 0.5 * (values - returns) ** 2
    if clip is None:
        return Clipped(free, torch.zeros_like(free, dtype=torch.bool))
    held = 0.5 * (old + (values - old).clamp(-clip, clip) - returns) ** 2
    return Clipped(torch.maximum(free, held), held > free)


def explained_variance(values: Tensor, returns: Tensor, real: Tensor) -> float | None:
    """1 - Var(returns - values) / Var(returns) over the real tokens; None where the returns do not vary."""
    if int(real.sum()) < 2:
        return None
    total = float(variance(returns, real))
    return 1.0 - float(variance(returns - values, real)) / total if total > 0 else None
