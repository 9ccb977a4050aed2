"""TRL's trainers with tenet's guards and soft labels, on rows that are ids already.

Imported only by what trains: the classes have TRL's as bases.
"""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportAttributeAccessIssue=false
# pyright: reportIncompatibleMethodOverride=false, reportIncompatibleVariableOverride=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch.nn.functional import logsigmoid
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from trainers import _common, adapters
from trainers._common import peft_config
from trainers._loop import Guarded, arguments
from trainers._run import Start


class GuardedSFT(Guarded, SFTTrainer):
    """TRL's SFT."""

    @classmethod
    def of(cls, start: Start) -> Self:
        """The trainer for a start."""
        s = start.settings
        # Rows are within the context already; only what packs them needs to know it.
        packing = getattr(s, "packing", False)
        own: dict[str, Any] = {"packing": packing, "max_length": start.context if packing else None}
        return cls(
            model=start.model,
            args=arguments(s, SFTConfig, **own),
            train_dataset=start.encoded.data,
            processing_class=start.tok,
            peft_config=peft_config(s.lora, "causal"),
        )


class _WithLabels:
    """A collator that also hands on p_chosen, [B]."""

    def __init__(self, inner: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self._inner = inner

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self._inner(examples)
        batch["p_chosen"] = torch.tensor([e["p_chosen"] for e in examples], dtype=torch.float)
        return batch


class _Soft(Guarded):
    """Pairs whose label is a probability, p_chosen: it travels with the batch."""

    soft = True

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        if "p_chosen" not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, "p_chosen"]

    def _labelled(self, soft: bool) -> Self:
        self.soft = soft
        self.data_collator = _WithLabels(self.data_collator)
        return self


class GuardedReward(_Soft, RewardTrainer):
    """TRL's reward trainer with soft labels."""

    @classmethod
    def of(cls, start: Start) -> Self:
        """The trainer for a start."""
        s = start.settings
        own: dict[str, Any] = {"max_length": None, "center_rewards_coefficient": s.centring or None}
        made = cls(
            model=start.model,
            args=arguments(s, RewardConfig, **own),
            train_dataset=start.encoded.data,
            processing_class=start.tok,
            peft_config=peft_config(s.lora, "reward"),
        )
        return made._labelled(s.labels == "soft")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        p = inputs.pop("p_chosen")
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if self.soft:
            chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
            loss = loss + turned_round(chosen - rejected, inputs["margin"], p)
        return (loss, outputs) if return_outputs else loss


def turned_round(d: torch.Tensor, margin: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """What soft labels cost beyond hard ones: the batch's mean of (1 - p) (L(rejected, chosen) - L(chosen, rejected)).

    All are [B]; L(chosen, rejected) is -log sigma(d - margin), and L(rejected, chosen) is -log sigma(-d - margin).
    """
    return ((1 - p) * (logsigmoid(d - margin) - logsigmoid(-d - margin))).mean()


class _Heard:
    """A model that is called as before, and whose last output can be looked at."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.outputs: Any = None

    def __call__(self, **inputs: Any) -> Any:
        self.outputs = self._model(**inputs)
        return self.outputs


class _Off:
    """A reference that is the trained model with its adapter off."""

    def __init__(self, model: Any, handle: Any) -> None:
        self._model, self._handle = model, handle

    def __call__(self, **inputs: Any) -> Any:
        with self._handle.disabled():
            return self._model(**inputs)


class GuardedDPO(_Soft, DPOTrainer):
    """TRL's DPO with soft labels."""

    @classmethod
    def of(cls, start: Start) -> Self:
        """The trainer for a start; the reference is the same model, loaded once more, or with the adapter off."""
        s = start.settings
        own: dict[str, Any] = {
            "max_length": None, "beta": s.beta, "loss_type": list(s.losses),
            "loss_weights": list(s.loss_weights) if s.loss_weights else None, "label_smoothing": s.label_smoothing,
        }  # fmt: skip
        # Without one, TRL would load its reference from wherever the model's config says that it came from.
        reference = None if s.lora else _common.load(start.folder, start.tok)
        made = cls(
            model=start.model,
            ref_model=reference,
            args=arguments(s, DPOConfig, **own),
            train_dataset=start.encoded.data,
            processing_class=start.tok,
            peft_config=peft_config(s.lora, "causal"),
        )
        for handle in adapters.of(start.model):
            if not handle.whole:
                made.ref_model = _Off(start.model, handle)
        return made._labelled(s.labels == "soft")

    def _prepare_dataset(self, dataset, *_: Any, **__: Any):
        return dataset

    def _compute_loss(self, model, inputs, return_outputs):
        p = inputs.pop("p_chosen")
        if not self.soft:
            return super()._compute_loss(model, inputs, return_outputs)
        references = self.compute_ref_log_probs(self.ref_model or model, inputs)
        inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = references
        heard, self.precompute_ref_logps = _Heard(model), True
        loss = super()._compute_loss(heard, inputs, False)
        chosen, rejected = heard.outputs.log_probs.sum(dim=1).chunk(2)
        d = self.beta * ((chosen - references[0]) - (rejected - references[1]))
        return loss + self.loss_weights[0] * turned_round(d, torch.zeros_like(d), p)
