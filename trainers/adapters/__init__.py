"""Adapters for mixtures of experts: `attach(model, {"mode": "hybrid"})` on any transformers model with fused experts.

Modes are modules: shared, per_expert, router, hybrid, experts, full, attention. `attach` freezes the model, adds the
mode's weights and leaves the model's heads trainable; the handle it returns audits, disables, saves, merges, exports.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenet import kinds
from tenet.errors import SettingsError
from tenet.records import Frozen
from tenet.settings import Document, assemble

if TYPE_CHECKING:
    from trainers.adapters._handle import Handle
    from trainers.adapters._load import Load

__all__ = ["attach", "check", "load", "measure", "of"]


def check(settings: Mapping[str, Any] | Document, where: str = "adapter") -> tuple[str, Frozen]:
    """(mode, its settings) of `{mode: …, …}`; SettingsError names what is wrong. Needs no model and no torch."""
    doc = settings if isinstance(settings, Document) else Document(dict(settings), where)
    data: Any = doc.data
    mode: Any = data.get("mode") if hasattr(data, "get") else None
    modes = ", ".join(kinds.known("trainers.adapters"))
    if not isinstance(mode, str):
        raise SettingsError("no mode is given", where=doc.place("mode"), fix=f"mode: one of {modes}")
    kind = kinds.load("trainers.adapters", mode, doc.place("mode"))
    return mode, assemble(kind.Settings, doc.without("mode"), where=where)


def attach(
    model: Any,
    settings: Mapping[str, Any],
    *,
    name: str = "default",
    batches: Iterable[Mapping[str, Any]] | None = None,
    load: Load | None = None,
    ranks: Mapping[str, Sequence[int]] | None = None,
) -> Handle:
    """Puts an adapter on a transformers model and switches it on.

    `batches` (model inputs), or a `load` measured before, are needed where experts are chosen or ranks are given by
    load; `ranks` (experts' path -> each expert's rank) takes the place of measured ones. SettingsError for a dense
    model, ranks that do not fit, unknown experts, or layouts that are not known.
    """
    from trainers.adapters._handle import Handle
    from trainers.adapters._layout import fingerprint
    from trainers.adapters._pieces import Switch
    from trainers.adapters._place import Place

    mode, checked = check(settings)
    options: Any = checked
    others: dict[str, Handle] = model.__dict__.setdefault("_tenet_adapters", {})
    others = {n: h for n, h in others.items() if h._live}  # pyright: ignore[reportPrivateUsage]
    if name in others:
        raise SettingsError(f"the model has an adapter {name!r} already", where="adapter", fix="give another name")
    if others and (mode == "full" or any(h.whole for h in others.values())):
        raise SettingsError("mode full goes with no other adapter", where="adapter.mode", fix="merge or remove first")
    if batches is not None and load is None:
        load = measure(model, batches)
    first = next(iter(others.values()), None)
    switch = first.switch if first else Switch()
    place = Place(model, name, mode, switch, options.seed, load, ranks)
    place.jitter = getattr(options, "jitter", 0.0)
    was = first._was if first else _implementation(model)  # pyright: ignore[reportPrivateUsage]
    mark = first.fingerprint if first else fingerprint(model)
    handle = Handle(place, {"mode": mode, **checked.model_dump(mode="json")}, mark, was)
    try:
        kinds.load("trainers.adapters", mode).build(checked, place)
        if getattr(options, "attention", None) is not None:
            place.attention(options.attention)
        if place.jitter and mode != "router":
            for block in place.blocks():
                place.router(block, None, 0.0, only_jitter=True)
        handle.activate()
        handle.audit()
    except SettingsError:
        # what was seated before the error must not stay on the model
        handle.remove()
        raise
    others[name] = handle
    model.__dict__["_tenet_adapters"] = others
    return handle


def measure(model: Any, batches: Iterable[Mapping[str, Any]]) -> Load:
    """Each expert's load on batches of model inputs, padding left out."""
    from trainers.adapters import _load

    return _load.measure(model, batches)


def load(model: Any, folder: Path | str, *, name: str = "default") -> Handle:
    """Attaches a saved adapter. SettingsError if it was made for another base."""
    from trainers.adapters import _save

    return _save.load(model, Path(folder), name)


def _implementation(model: Any) -> Any:
    get = getattr(model, "get_experts_implementation", None)
    return get() if get else None


def of(model: Any) -> list[Handle]:
    """The adapters on a model, one of them switched on."""
    found: dict[str, Handle] = getattr(model, "__dict__", {}).get("_tenet_adapters", {})
    return [h for h in found.values() if h._live]  # pyright: ignore[reportPrivateUsage]
