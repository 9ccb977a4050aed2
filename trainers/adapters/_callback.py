"""The adapter's place in a transformers Trainer: audit, first-step check, optimizer rules, report, checkpoints."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeArgument=false, reportUnknownParameterType=false

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback


class Watch(TrainerCallback):
    """Says what is trained, stops a training that trains nothing, and saves the adapter beside each checkpoint."""

    def __init__(self, handle: Any, say: Any, checkpoint: Path | None = None) -> None:
        self.handle, self.say, self.checked, self.checkpoint = handle, say, False, checkpoint

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.handle.activate()
        if self.checkpoint is not None and (self.checkpoint / "adapter" / "adapter.json").is_file():
            self.handle.load(self.checkpoint / "adapter")
        self.handle.guard(kwargs["optimizer"])
        if state.is_world_process_zero:
            self.say(self.handle.audit().text())

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.checked:
            self.checked = True
            said = self.handle.check_gradients().text()
            if state.is_world_process_zero:
                self.say(said)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.handle.save(Path(args.output_dir) / f"checkpoint-{state.global_step}" / "adapter")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        said = self.handle.report().text()  # by every process: counts are summed over all
        if state.is_world_process_zero:
            self.say(said)
