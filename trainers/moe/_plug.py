"""Router losses inside transformers' and TRL's trainers: a class that goes before them among the bases.

Imported only by what trains.
"""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any, Literal

from transformers import TrainerCallback

from trainers.moe._coach import Coach, coach_of, split
from trainers.moe.losses import Settings


class RouterLosses:
    """Goes before a transformers `Trainer`; without `mix`, nothing changes.

    The losses of several passes of one optimizer step are averaged, as the trainer's own are.
    """

    coach: Coach | None = None

    def mix(self, settings: Settings | Literal["off"] | None) -> None:
        """Adds router losses to the training, before it starts; None: the defaults if the model has routers.

        SettingsError where settings are given and the model is dense.
        """
        model = self.accelerator.unwrap_model(self.model)  # type: ignore[attr-defined]
        self.coach = coach_of(model, settings)
        if self.coach is None:
            return
        self._seen: list[dict[str, float]] = []
        # The model's own balance loss would be a second one of the same kind.
        config: Any = model.config.get_text_config()
        config.output_router_logits, config.router_aux_loss_coef = False, 0.0
        self.aux_loss_enabled, self.router_aux_loss_coef = False, 0.0
        self.add_callback(_Steps(self))  # type: ignore[attr-defined]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        if self.coach is not None and not any(g.get("router") for g in optimizer.param_groups):
            split(optimizer, self.coach.router_parameters())
        return optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        more = {"return_outputs": return_outputs, "num_items_in_batch": num_items_in_batch}
        if self.coach is None or not model.training:
            return super().compute_loss(model, inputs, **more)  # type: ignore[misc]
        with self.coach.recording():
            found = super().compute_loss(model, inputs, **more)  # type: ignore[misc]
        extra = self.coach.loss()
        if self.model_accepts_loss_kwargs and num_items_in_batch is not None:  # type: ignore[attr-defined]
            # Such a loss is divided by the step's tokens already, and not once more by the number of passes.
            extra = extra / self.current_gradient_accumulation_steps  # type: ignore[attr-defined]
        return (found[0] + extra, *found[1:]) if return_outputs else found + extra

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if self.coach is not None and self._seen and "loss" in logs:
            logs = {**logs, **{k: sum(s[k] for s in self._seen) / len(self._seen) for k in self._seen[0]}}
            self._seen.clear()
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


class _Steps(TrainerCallback):
    """Tells the coach about optimizer steps; a resumed training goes on at its step of the schedule."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_train_begin(self, args, state, control, **_):
        self._trainer.coach.step = state.global_step

    def on_pre_optimizer_step(self, args, state, control, **_):
        self._trainer.coach.before_step(self._trainer.optimizer)

    def on_optimizer_step(self, args, state, control, **_):
        self._trainer._seen.append(self._trainer.coach.after_step())
