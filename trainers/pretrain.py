"""Trainer kind "pretrain": next-token training on plain text, from scratch or continued.

Texts are strung together, each with an end-of-text token, and cut into blocks of `context` tokens.
"""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import Field

from tenet.engines import _model
from tenet.errors import SettingsError
from trainers import _common
from trainers._common import Common, Trainer
from trainers._encode import Ids
from trainers._run import Start, TrlTrainer
from trainers._shapes import Row


class Settings(Common):
    """How to train."""

    lr: float = Field(default=3e-4, gt=0)
    """Peak learning rate of AdamW."""
    schedule: _common.Schedule = "cosine"
    warmup: float = Field(default=0.02, ge=0)
    """Share of the steps over which the rate rises from 0, or from 1 up a number of steps."""
    weight_decay: float = Field(default=0.1, ge=0)
    scratch: dict[str, Any] | None = None
    """Draw new weights by the seed: the model's config with these changes, such as {num_hidden_layers: 4}; {} for none.
    The folder then needs a config and a tokenizer only."""


def build(settings: Settings) -> Trainer:
    """The trainer; SettingsError if the settings cannot go together."""
    if settings.scratch is not None and settings.lora is not None:
        raise SettingsError("adapters on random weights teach little", where="lora", fix="leave out lora or scratch")
    fresh = None if settings.scratch is None else partial(_drawn, settings)
    return TrlTrainer(
        "pretrain", settings, "texts", lambda coder: coder.text, _sequence, _make, chat=False, pack=True, fresh=fresh
    )


def _sequence(row: Row) -> Ids:
    return list(row["input_ids"])


def _drawn(settings: Settings, folder: Path, tok: Any, context: int) -> Any:
    """A causal model of the folder's config, with changes, and new weights in float32."""
    import torch

    hub: Any = import_module("transformers")
    changes = settings.scratch or {}
    told = _model.read_json(folder / "config.json", "model")
    if "num_hidden_layers" in changes and "layer_types" not in changes:
        told.pop("layer_types", None)  # one for each layer: what the model's class makes of their number
    try:
        config = hub.AutoConfig.for_model(**{**told, **changes})
        config.validate()
    except Exception as error:
        what = f"no model can be made of the config of {folder.name} with {changes}: {error}"[:400]
        raise SettingsError(what, where="scratch", fix="values that go together, by the keys of config.json") from None
    unknown = [k for k in changes if k not in type(config)().to_dict()]
    if unknown:
        what = f"{unknown[0]!r} is no key of a {config.model_type} config"
        raise SettingsError(what, where="scratch", fix="keys of the model's config.json")
    config.vocab_size = max(len(tok), int(changes.get("vocab_size", 0)))
    config.max_position_embeddings = max(context, config.max_position_embeddings)
    config.pad_token_id, config.eos_token_id = tok.pad_token_id, tok.eos_token_id
    torch.manual_seed(settings.seed)
    return hub.AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _make(start: Start) -> Any:
    from trainers._trl import GuardedSFT

    return GuardedSFT.of(start)
