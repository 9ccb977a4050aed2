"""Adapters on disk: adapter.safetensors beside adapter.json, which holds settings and the base's fingerprint."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from tenet.errors import DataError, SettingsError
from tenet.records import Frozen
from tenet.settings import assemble
from trainers.adapters._layout import fingerprint

_FORMAT = 1


class Card(Frozen):
    """What adapter.json says."""

    format: int
    settings: dict[str, Any]
    base: str
    """Fingerprint of the base weights."""
    model_type: str
    ranks: dict[str, tuple[int, ...]]
    """Experts' path -> each expert's rank, where they differ by load."""
    ids: dict[str, tuple[int, ...]]
    """Experts' path -> the experts trained whole."""


def save(handle: Any, folder: Path) -> Path:
    """Writes the adapter; the card last, so that its existence means the weights are whole."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {n: t.cpu().contiguous() for n, t in handle.state().items()}
    (folder / "adapter.json").unlink(missing_ok=True)
    _replace(folder / "adapter.safetensors", partial(save_file, state))
    pieces = handle.pieces.items()
    card = Card(
        format=_FORMAT,
        settings=handle.settings,
        base=handle.fingerprint,
        model_type=handle.model.config.model_type,
        ranks={n: tuple(p.ranks) for n, p in pieces if getattr(p, "slots", None) is not None},
        ids={n: tuple(p.ids.tolist()) for n, p in pieces if getattr(p, "ids", None) is not None},
    )
    text = json.dumps(card.model_dump(mode="json"), indent=1).encode()
    _replace(folder / "adapter.json", partial(Path.write_bytes, data=text))
    return folder


def _replace(path: Path, write: Any) -> None:
    beside = path.with_name(path.name + ".new")
    write(beside)
    os.replace(beside, path)


def read(folder: Path) -> tuple[Card, dict[str, Any]]:
    """The card and the weights. DataError if the folder holds no whole adapter."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    at = folder / "adapter.json"
    if not at.is_file():
        peft = (folder / "adapter_config.json").is_file()
        fix = "it is a PEFT adapter: merge it with PEFT" if peft else "a folder that an adapter was saved into"
        raise DataError("no adapter.json", where=str(folder), fix=fix)
    try:
        card = assemble(Card, json.loads(at.read_text(encoding="utf-8")), where=str(at), error=DataError)
        return card, load_file(folder / "adapter.safetensors")
    except (OSError, ValueError, SafetensorError) as e:
        raise DataError(f"cannot be read: {e}", where=str(folder), fix="save the adapter again") from None


def load(model: Any, folder: Path, name: str) -> Any:
    """Attaches a saved adapter to its base."""
    from trainers import adapters

    card, state = read(folder)
    check_base(model, card, folder)
    settings = dict(card.settings)
    if card.ids:
        from trainers.adapters._layout import blocks

        layer = {b.name: b.layer for b in blocks(model, str(settings["mode"]))}
        settings |= {"ids": {str(layer[n]): list(ids) for n, ids in card.ids.items()}, "share": None, "n": None}
    handle = adapters.attach(model, settings, name=name, ranks=card.ranks or None)
    try:
        handle.load_state(state)
    except SettingsError:
        handle.remove()
        raise
    return handle


def check_base(model: Any, card: Card, folder: Path) -> None:
    """SettingsError if the adapter was made for another base."""
    live = [h for h in model.__dict__.get("_tenet_adapters", {}).values() if h._live]
    own = live[0].fingerprint if live else fingerprint(model)
    if own != card.base:
        what = f"the adapter was made for another base ({card.model_type}, weights {card.base}; here {own})"
        raise SettingsError(what, where=str(folder), fix="load the model that it was trained on")


def load_into(handle: Any, folder: Path) -> None:
    """The weights of a saved adapter into an attached one, to go on with it."""
    card, state = read(folder)
    if card.base != handle.fingerprint:
        what = f"the adapter was made for another base (weights {card.base}; here {handle.fingerprint})"
        raise SettingsError(what, where=str(folder), fix="load the model that it was trained on")
    handle.load_state(state)
