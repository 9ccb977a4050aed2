"""Trainer kind "sft": supervised fine-tuning on replies, such as a constitution's revisions.

Only what the assistant says is learnt. Constitutional AI's supervised stage (Bai et al. 2022, arXiv 2212.08073,
section 3) by name: `schedule: cai` is one epoch at a constant half of the pretraining rate, on the revisions of all
rounds together with helpful samples.
"""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import json
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tenet.errors import SettingsError
from trainers import _common
from trainers._common import Common, Trainer
from trainers._encode import Ids
from trainers._run import Start, TrlTrainer
from trainers._shapes import Row


class Settings(Common):
    """How to fine-tune."""

    lr: float = Field(default=2e-5, gt=0)
    """Peak learning rate of AdamW; under `schedule: cai` it follows from the pretraining's."""
    schedule: _common.Schedule | Literal["cai"] = "linear"  # type: ignore[assignment]
    pretraining_lr: float | None = Field(default=None, gt=0)
    """For `schedule: cai`; unset: what the model's own manifest says, if tenet pretrained it."""
    packing: bool = False
    """Fill sequences of `context` tokens with several rows each; they do not see one another where attention allows."""

    @model_validator(mode="after")
    def _draws(self) -> Self:
        if self.packing and (self.adapter or {}).get("minimum_load"):
            raise ValueError("minimum_load draws rows, which packing strings together: leave out one of them")
        return self


def build(settings: Settings) -> Trainer:
    """The trainer; SettingsError if the settings cannot go together."""
    if settings.schedule == "cai":
        settings = _cai(settings)
    return TrlTrainer("sft", settings, "replies", lambda coder: coder.reply, _sequence, _make)


def _sequence(row: Row) -> Ids:
    return list(row["input_ids"])


def _cai(settings: Settings) -> Settings:
    """The paper's schedule, spelled out."""
    for field in ("lr", "epochs", "steps", "warmup"):
        if field in settings.model_fields_set:
            fix = "leave it out, or name another schedule"
            raise SettingsError(f"schedule: cai decides {field} itself", where=field, fix=fix)
    if any(source.rounds == "last" for source in settings.sources):
        raise SettingsError("schedule: cai takes revisions of all rounds", where="data", fix="rounds: all")
    rate = settings.pretraining_lr or _pretraining_rate(settings.model)
    if rate is None:
        what = "schedule: cai is half the pretraining rate, which is not known"
        raise SettingsError(what, where="pretraining_lr", fix="set pretraining_lr")
    return settings.model_copy(update={"lr": rate / 2, "schedule": "constant", "epochs": 1.0, "warmup": 0.0})


def _pretraining_rate(model: str) -> float | None:
    note = _common.locate(model) / "manifest.json"
    told = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
    return told["settings"]["lr"] if told.get("kind") == "pretrain" else None


def _make(start: Start) -> Any:
    from trainers._trl import GuardedSFT

    return GuardedSFT.of(start)
