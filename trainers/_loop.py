"""transformers' training loop with guards: whole checkpoints, a stop at what is not finite, metrics as JSONL.

Imported only by what trains: its classes have transformers' as bases.
"""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich import progress
from rich.console import Console
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback

from tenet.errors import TrainingError
from trainers import _disk
from trainers._common import Common, plain
from trainers.moe._plug import RouterLosses


class Guarded(RouterLosses):
    """Goes before a transformers `Trainer` among the bases of a class.

    A checkpoint is written beside its place and then renamed, so that one under its name is whole. A loss or a
    gradient that is not finite raises TrainingError before the weights take it in.
    """

    culprits: Callable[[dict[str, Any]], list[str]]
    """Which rows a batch holds; set by whoever makes the trainer."""
    keep = 2
    draws: Any = None
    """How often each row is to be drawn, relative to the others [N]; None: each once an epoch."""

    _staging: Path | None = None
    _batch: dict[str, Any] | None = None

    def _get_train_sampler(self, train_dataset=None):
        if self.draws is None:
            return super()._get_train_sampler(train_dataset)  # type: ignore[misc]
        return Weighted(self.draws, self.args.data_seed)  # type: ignore[attr-defined]

    def training_step(self, model, inputs, num_items_in_batch=None):
        self._batch = inputs
        loss = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        if not torch.isfinite(loss):
            raise self._stopped("the loss is not finite")
        return loss

    def _clip_grad_norm(self, model):
        norm = super()._clip_grad_norm(model)  # type: ignore[misc]
        if not math.isfinite(float(norm)):
            raise self._stopped("the gradient is not finite")
        return norm

    def _stopped(self, what: str) -> TrainingError:
        rows = self.culprits(self._batch or {})
        told = ", ".join(rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
        fix = "look at these rows, or take a lower learning rate; the last checkpoint is good, and so are its weights"
        step = self.state.global_step + 1  # type: ignore[attr-defined]
        what = f"{what}; the batch held {told or 'rows that are not known'}"
        return TrainingError(what, where=f"step {step}", fix=fix)

    def _get_output_dir(self, trial):
        return str(self._staging) if self._staging else super()._get_output_dir(trial)  # type: ignore[misc]

    def _save_checkpoint(self, model, trial):
        final = Path(self.args.output_dir)  # type: ignore[attr-defined]
        self._staging = final / ".saving"
        self._first_alone(lambda: shutil.rmtree(final / ".saving", ignore_errors=True))
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
        except Exception as error:
            shutil.rmtree(final / ".saving", ignore_errors=True)
            if _disk.full(error):
                raise _disk.explained(final, error) from None
            raise
        finally:
            self._staging = None
        self._first_alone(self._settle)

    def _first_alone(self, work: Callable[[], None]) -> None:
        """Work on files by the first process, with all others waiting before and after."""
        self.accelerator.wait_for_everyone()  # type: ignore[attr-defined]
        if self.args.should_save:  # type: ignore[attr-defined]
            work()
        self.accelerator.wait_for_everyone()  # type: ignore[attr-defined]

    def _settle(self) -> None:
        """Moves the new checkpoint to its place, then lets the oldest go."""
        final = Path(self.args.output_dir)  # type: ignore[attr-defined]
        for made in (final / ".saving").iterdir():
            _disk.swap(made, final / made.name)
        shutil.rmtree(final / ".saving", ignore_errors=True)
        for old in checkpoints(final)[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Nothing: the finished folder gets tenet's card."""


class Weighted(Sampler[int]):
    """Rows drawn with replacement, as many an epoch as there are; the seed and the epoch decide, on every worker."""

    def __init__(self, weights: torch.Tensor, seed: int) -> None:
        self._weights, self._seed, self._epoch = weights, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._weights)

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        yield from torch.multinomial(self._weights, len(self), replacement=True, generator=draw).tolist()


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a training, oldest first."""
    found = [p for p in folder.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdecimal()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("checkpoint-")))


class Scribe(TrainerCallback):
    """Writes metrics.jsonl: one line of figures whenever the loop logs; a resumed training goes on in the same file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_begin(self, args, state, control, **_):
        """Lines after the checkpoint that the training goes on from belong to steps that will be done again."""
        if state.is_world_process_zero:
            self._path.write_text("".join(_line(entry) for entry in state.log_history), encoding="utf-8")

    def on_step_end(self, args, state, control, **_):
        """The last steps are logged too: a training shorter than `log_every` would have no loss to show."""
        control.should_log = control.should_log or state.global_step >= state.max_steps

    def on_log(self, args, state, control, **_):
        """One more line."""
        if state.is_world_process_zero and state.log_history:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line(state.log_history[-1]))


class Bars(TrainerCallback):
    """A progress bar with what is left, where a person looks on."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._bars: progress.Progress | None = None

    def on_train_begin(self, args, state, control, **_):
        """Shows the bar."""
        if state.is_world_process_zero and sys.stderr.isatty():
            columns = ("{task.description}", progress.BarColumn(bar_width=28), progress.MofNCompleteColumn())
            self._bars = progress.Progress(*columns, progress.TimeRemainingColumn(), console=Console(stderr=True))
            self._bars.start()
            self._task = self._bars.add_task(self._kind, total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args, state, control, **_):
        """One step further."""
        if self._bars is not None:
            self._bars.update(self._task, completed=state.global_step)

    def on_log(self, args, state, control, logs=None, **_):
        """The loss, beside the bar."""
        if self._bars is not None and logs and "loss" in logs:
            self._bars.update(self._task, description=f"{self._kind} loss {logs['loss']:.4f}")

    def on_train_end(self, args, state, control, **_):
        """Takes the bar away."""
        self.close()

    def close(self) -> None:
        """Takes the bar away, also after an error."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


@contextmanager
def watched(trainer: Any, kind: str) -> Generator[None]:
    """Shows a bar while the trainer works."""
    bars = Bars(kind)
    trainer.add_callback(bars)
    try:
        yield
    finally:
        bars.close()


def _line(figures: dict[str, Any]) -> str:
    return json.dumps(plain(figures)) + "\n"


def guard(trainer: Any, settings: Common, culprits: Callable[[dict[str, Any]], list[str]]) -> Any:
    """Sets up a trainer whose class has `Guarded` among its bases."""
    assert isinstance(trainer, Guarded)
    assert isinstance(trainer, Trainer)
    trainer.culprits = culprits
    trainer.keep = settings.keep
    trainer.mix(settings.moe)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Scribe(Path(settings.out) / "metrics.jsonl"))
    return trainer


def arguments(settings: Common, kind: Any, **own: Any) -> Any:
    """transformers' or TRL's arguments of class `kind`: what the settings say, and nothing that they do not."""
    cpu = settings.on_cpu
    said: dict[str, Any] = {
        "output_dir": str(Path(settings.out) / "checkpoints"),
        "num_train_epochs": settings.epochs,
        "max_steps": settings.steps or -1,
        "per_device_train_batch_size": settings.batch // (settings.workers * settings.accumulation),
        "gradient_accumulation_steps": settings.accumulation,
        "learning_rate": settings.lr,
        "lr_scheduler_type": settings.schedule,
        "warmup_steps": settings.warmup,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        # TRL turns both on by default, and bf16 without a GPU that has it fails.
        "bf16": settings.bf16,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "use_cpu": cpu,
        "dataloader_pin_memory": not cpu,
        "seed": settings.seed,
        "data_seed": settings.seed,
        "save_strategy": "steps",
        "save_steps": settings.save_every,
        "logging_steps": settings.log_every,
        "disable_tqdm": True,
        "report_to": [],  # `_reporters` opens them
        "run_name": Path(settings.out).name,
        **own,
    }
    return kind(**said)
