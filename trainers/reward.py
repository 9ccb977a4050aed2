"""Trainer kind "reward": a model that scores a reply, learnt from pairs with soft labels.

The loss is the cross-entropy of softmax(r1, r2) against p_chosen (Lee et al. 2023, arXiv 2309.00267, section 2.2),
which for p = 1 is that of Bradley and Terry. With a margin m the expected loss over both orders of a pair is taken:
-p log sigma(d - m) - (1 - p) log sigma(-d - m) for d = r_chosen - r_rejected, so that turning a pair round and
p into 1 - p changes nothing. The finished model is an engine of kind "classifier", and so a judge and PPO's reward.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from trainers._common import Common, Trainer
from trainers._encode import Ids
from trainers._run import Start, TrlTrainer
from trainers._shapes import Row


class Settings(Common):
    """How to train."""

    lr: float = Field(default=1e-5, gt=0)
    """Peak learning rate of AdamW."""
    labels: Literal["soft", "hard"] = "soft"
    """"hard" takes every p_chosen for 1."""
    centring: float = Field(default=0.01, ge=0)
    """Weight of the mean of (r_chosen + r_rejected)^2, which keeps scores around 0 (arXiv 2312.09244)."""
    save_as: Literal["bfloat16", "float32"] = "float32"
    """Differences of scores are what counts, and bfloat16 keeps three digits."""


def build(settings: Settings) -> Trainer:
    """The trainer."""
    return TrlTrainer("reward", settings, "pairs", lambda coder: coder.scored, _sequence, _make, head="reward")


def _sequence(row: Row) -> Ids:
    return list(row["chosen_ids"])


def _make(start: Start) -> Any:
    from trainers._trl import GuardedReward

    return GuardedReward.of(start)
