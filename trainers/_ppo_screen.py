"""What a PPO run shows while it goes: a progress bar, and transformers' reporters."""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from trainers._common import Common


class Screen:
    """A progress bar, and transformers' reporters where the settings name any."""

    def __init__(self, settings: Common, model: Any, steps: int, done: int) -> None:
        self._settings, self._model, self._steps, self._done = settings, model, steps, done
        self._handler: Any = None

    def __enter__(self) -> Screen:
        s = self._settings
        bars: Any = import_module("tqdm.auto")
        self._bar: Any = bars.tqdm(total=self._steps, initial=self._done, disable=None, desc="ppo", unit="update")
        if s.report_to:
            hub: Any = import_module("transformers")
            wanted: Any = import_module("transformers.integrations").get_reporting_integration_callbacks
            from transformers.trainer_callback import CallbackHandler

            self._args = hub.TrainingArguments(output_dir=str(Path(s.out) / "checkpoints"), use_cpu=s.on_cpu)
            self._state, self._control = hub.TrainerState(is_world_process_zero=True), hub.TrainerControl()
            self._handler = CallbackHandler([w() for w in wanted(list(s.report_to))], self._model, None, None, None)
            self._handler.on_train_begin(self._args, self._state, self._control)
        return self

    def show(self, told: dict[str, Any]) -> None:
        """One update's figures."""
        self._bar.set_postfix(score=f"{told['score']:.3f}", kl=f"{told['kl']:.2f}")
        self._bar.update()
        if self._handler is not None and told["step"] % self._settings.log_every == 0:
            self._state.global_step = told["step"]
            said = {k: v for k, v in told.items() if v is not None}
            self._handler.on_log(self._args, self._state, self._control, said)

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._handler is not None:
            self._handler.on_train_end(self._args, self._state, self._control)
