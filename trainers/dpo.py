"""Trainer kind "dpo": direct preference optimisation on pairs, with a soft label for each.

For the sigmoid loss L of Rafailov et al. 2023 (arXiv 2305.18290, eq. 7) a pair costs its exact expectation under the
label, p L(chosen, rejected) + (1 - p) L(rejected, chosen). At p = 1 this is TRL's own loss, and at one p for all
pairs it is cDPO with label smoothing 1 - p (Mitchell 2023). TRL's other losses pass through, with hard labels.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from trainers._common import Common, Trainer
from trainers._encode import Ids
from trainers._run import Start, TrlTrainer
from trainers._shapes import Row

Loss = Literal[
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft",
]  # fmt: skip
"""TRL's losses by its names."""


class Settings(Common):
    """How to train."""

    lr: float = Field(default=1e-6, gt=0)
    """Peak learning rate of AdamW."""
    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference."""
    loss: Loss | tuple[Loss, ...] = "sigmoid"
    """One loss, or several that are added up."""
    loss_weights: tuple[float, ...] | None = None
    """Weights of several losses; unset: 1 each."""
    labels: Literal["soft", "hard"] = "soft"
    """"hard" takes every p_chosen for 1; any loss but "sigmoid" wants that."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """For the losses "robust", "exo_pair" and "aot", with hard labels."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        soft = [x for x in self.losses if x != "sigmoid"]
        if soft and self.labels == "soft":
            raise ValueError(f"loss {soft[0]!r} has no form for soft labels: set labels: hard, or loss: sigmoid")
        if self.label_smoothing and self.labels == "soft":
            raise ValueError("label_smoothing is for labels: hard; soft labels carry their own doubt")
        if self.loss_weights is not None and len(self.loss_weights) != len(self.losses):
            raise ValueError(f"{len(self.loss_weights)} loss_weights for {len(self.losses)} losses")
        if "exo_pair" in self.losses and not self.label_smoothing:
            raise ValueError("loss 'exo_pair' needs label_smoothing above 0, such as 0.001")
        return self

    @property
    def losses(self) -> tuple[str, ...]:
        """The losses, as a tuple."""
        return (self.loss,) if isinstance(self.loss, str) else self.loss


def build(settings: Settings) -> Trainer:
    """The trainer."""
    return TrlTrainer("dpo", settings, "pairs", lambda coder: coder.pair, _sequence, _make)


def _sequence(row: Row) -> Ids:
    return [*row["prompt_ids"], *row["chosen_ids"]]


def _make(start: Start) -> Any:
    from trainers._trl import GuardedDPO

    return GuardedDPO.of(start)
