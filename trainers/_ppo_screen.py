"""What a PPO run shows while it goes: a progress bar, and transformers' reporters."""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from trainers._common import Common


class Screen:
    """A progress bar, and transformers' reporters where the settings name any."""

    def __init__(self, settings: Common, reporters: Sequence[Any], model: Any, steps: int, done: int) -> None:
        self._settings, self._reporters, self._model = settings, reporters, model
        self._steps, self._done = steps, done
        self._handler: Any = None

    def __enter__(self) -> Screen:
        s = self._settings
        bars: Any = import_module("tqdm.auto")
        self._bar: Any = bars.tqdm(total=self._steps, initial=self._done, disable=None, desc="ppo", unit="update")
        if self._reporters:
            hub: Any = import_module("transformers")
            flow: Any = import_module("transformers.trainer_callback")
            self._args = hub.TrainingArguments(
                output_dir=str(Path(s.out) / "checkpoints"), run_name=Path(s.out).name, use_cpu=s.on_cpu, report_to=[]
            )
            self._state, self._control = hub.TrainerState(is_world_process_zero=True), hub.TrainerControl()
            callbacks = [flow.DefaultFlowCallback(), *self._reporters]
            self._handler = flow.CallbackHandler(callbacks, self._model, None, None, None)
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
