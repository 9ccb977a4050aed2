"""A stage on disk: its weights as matrices that are read a block at a time; shards, fused experts, LoRA adapters."""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from tenet.engines._model import locate, read_json
from tenet.errors import DataError, SettingsError
from trainers.probes import _adapter
from trainers.probes._names import canonical, is_head

if TYPE_CHECKING:
    import torch

_FLOATS = ("F64", "F32", "F16", "BF16")
_KIN = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")


class Span(NamedTuple):
    """A run of rows (axis 0) or columns (axis 1) of a matrix."""

    axis: int
    start: int
    stop: int


Read = Callable[[Span], "torch.Tensor"]


@dataclass(frozen=True)
class Unit:
    """One weight as a matrix [rows, columns]; a vector is one row."""

    shape: tuple[int, int]
    dtype: str
    """As stored: F32, BF16, F16 or F64."""
    read: Read = field(repr=False)
    """The span's values in float32."""
    vector: bool = False
    base: Unit | None = None
    """What an adapter's change stands on."""
    delta: Read | None = field(default=None, repr=False)
    """The adapter's change itself, so that it is not lost in the sum's rounding."""

    def spans(self, most: int) -> Iterator[Span]:
        """Spans along the longer side, of at most `most` weights each (but one row or column at least)."""
        axis = 0 if self.shape[0] >= self.shape[1] else 1
        step = max(1, most // max(1, self.shape[1 - axis]))
        for start in range(0, self.shape[axis], step):
            yield Span(axis, start, min(start + step, self.shape[axis]))


@dataclass(frozen=True)
class Stage:
    """A checkpoint or an adapter over one; its weights stay on disk."""

    name: str
    """As the user wrote it."""
    folder: Path
    config: dict[str, Any]
    units: dict[str, Unit] = field(repr=False)
    base: Stage | None = None
    """The stage that an adapter stands on."""


def open_stage(name: str, earlier: tuple[Stage, ...] = ()) -> Stage:
    """Opens a folder, a bundled model or hub name, or a LoRA adapter's folder ("ADAPTER@BASE" names its base).

    `earlier` stages serve as the base of an adapter that names one of them. Raises SettingsError or DataError
    for what is missing, pickled, quantised, or no model.
    """
    named, at, base = name.partition("@")
    if at and Path(name).exists():
        named, base = name, ""
    folder, _ = locate(named, "stage")
    if (folder / "adapter_config.json").exists():
        return _open_adapter(name, folder, base, earlier)
    if (folder / "adapter.json").exists():
        what, fix = "is an adapter for a mixture of experts, which is read only when merged", "tenet merge it first"
        raise SettingsError(what, where=name, fix=fix)
    if base:
        raise SettingsError(f"{named!r} is no adapter, so it has no base", where=name, fix="leave out the @")
    if not (folder / "config.json").exists():
        raise SettingsError("has no config.json", where=str(folder), fix="a model's or an adapter's folder")
    config = read_json(folder / "config.json", str(folder))
    return Stage(name, folder, config, _units(folder, config))


def kin(stages: tuple[Stage, ...] | list[Stage]) -> list[str]:
    """The names of the weights that all stages have. DataError where the stages are not of one architecture.

    Heads may differ (a reward model has another head on the same trunk): what is not in all is left out.
    """
    first, *rest = stages
    for other in rest:
        for key in _KIN:
            a, b = first.config.get(key), other.config.get(key)
            if a != b:
                raise _alien(first, other, f"{key} is {a!r} in the first and {b!r} in the second")
        missing = [n for n in (*first.units, *other.units) if (n in first.units) != (n in other.units)]
        alien = [n for n in missing if not is_head(n)]
        if alien:
            where = "first" if alien[0] in first.units else "second"
            more = f", and {len(alien) - 1} more" if len(alien) > 1 else ""
            raise _alien(first, other, f"only the {where} has {alien[0]}{more}")
        for n, unit in first.units.items():
            if n in other.units and other.units[n].shape != unit.shape and not is_head(n):
                raise _alien(first, other, f"{n} is {unit.shape} in the first and {other.units[n].shape} in the second")
    shared = [n for n in first.units if all(n in s.units and s.units[n].shape == first.units[n].shape for s in rest)]
    if not shared:
        raise _alien(first, rest[0] if rest else first, "they share no weight")
    return shared


def _alien(a: Stage, b: Stage, why: str) -> DataError:
    return DataError(
        f"the stages are not of one architecture: {why}", where=f"{a.name}, {b.name}", fix="stages of one model"
    )


def _units(folder: Path, config: dict[str, Any]) -> dict[str, Unit]:
    found: dict[str, Unit] = {}
    for name, path in tensors(folder).items():
        shape, dtype = _described(path, name)
        if dtype not in _FLOATS:
            what = f"{name} is stored as {dtype}: quantised weights cannot be compared"
            raise DataError(what, where=str(path), fix="a checkpoint in float32, bfloat16 or float16")
        clean = canonical(name)
        if clean == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue  # a copy of the embedding that some checkpoints carry and no loader reads
        if len(shape) == 3 and ".experts." in clean:
            found |= _experts(clean, path, name, shape, dtype, config)
            continue
        rows, vector = (shape[0], False) if len(shape) > 1 else (1, True)
        size = (rows, math.prod(shape[1:]) if not vector else math.prod(shape))
        found[clean] = Unit(size, dtype, _reader(path, name, size), vector)
    if not found:
        raise DataError("holds no weights", where=str(folder), fix="a complete model folder")
    return found


def tensors(folder: Path) -> dict[str, Path]:
    """Each tensor's name and the file that holds it, through the index where the weights are sharded."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        listed = cast("dict[str, str]", read_json(index, str(folder)).get("weight_map") or {})
        found = {name: folder / file for name, file in listed.items()}
        absent = sorted({p.name for p in found.values() if not p.exists()})
        if absent:
            raise DataError(f"shards are missing: {', '.join(absent[:5])}", where=str(folder), fix="copy them again")
        return found
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        why = "pickled weights are never loaded" if pickled else "no *.safetensors"
        raise DataError(why, where=str(folder), fix="weights as safetensors")
    return {name: path for path in files for name in header(path)}


def header(path: Path) -> dict[str, Any]:
    """A safetensors file's own list: name -> dtype, shape. DataError if it is damaged."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > 100 << 20:
                raise ValueError("no header")
            listed = cast("dict[str, Any]", json.loads(file.read(size)))
    except (OSError, ValueError) as error:
        raise DataError(f"is no whole safetensors file: {error}", where=str(path), fix="copy it again") from None
    return {name: about for name, about in listed.items() if name != "__metadata__"}


_headers: dict[tuple[Path, int, int], dict[str, Any]] = {}


def _described(path: Path, name: str) -> tuple[tuple[int, ...], str]:
    stat = path.stat()
    key = (path, stat.st_mtime_ns, stat.st_size)
    if key not in _headers:
        _headers[key] = header(path)
    about = _headers[key].get(name)
    if about is None:
        raise DataError(f"the index names {name}, which is not there", where=str(path), fix="copy the shards again")
    return tuple(about["shape"]), about["dtype"]


def _slice(path: Path, name: str, cut: tuple[slice, ...]) -> torch.Tensor:
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        # Opened for each block: a map kept open would hold every page that was ever read in memory.
        with safe_open(path, framework="pt") as file:
            return file.get_slice(name)[cut].to(torch.float32)
    except SafetensorError as error:
        raise DataError(f"{name} cannot be read: {error}", where=str(path), fix="copy the file again") from None


def _reader(path: Path, name: str, size: tuple[int, int]) -> Read:
    shape, _ = _described(path, name)

    def read(span: Span) -> torch.Tensor:
        run = slice(span.start, span.stop)
        if len(shape) == 2:
            return _slice(path, name, (run, slice(None)) if span.axis == 0 else (slice(None), run))
        if not shape:
            return _slice(path, name, ()).reshape(1, 1)
        whole = _slice(path, name, (slice(None),) * len(shape)).reshape(size)
        return whole[run] if span.axis == 0 else whole[:, run]

    return read


def _experts(
    clean: str, path: Path, name: str, shape: tuple[int, int, int], dtype: str, config: dict[str, Any]
) -> dict[str, Unit]:
    """A fused tensor [E, rows, columns] as matrices of single experts; gate and up apart, where they lie one
    after the other (transformers 5: gate_up_proj is [E, 2I, H])."""
    e, rows, columns = shape
    stem, _, part = clean.removesuffix(".weight").rpartition(".")

    def cut(expert: int, first: int, last: int) -> Unit:
        def read(span: Span) -> torch.Tensor:
            run = slice(span.start, span.stop)
            if span.axis == 0:
                run = slice(first + span.start, first + span.stop)
                return _slice(path, name, (slice(expert, expert + 1), run, slice(None)))[0]
            return _slice(path, name, (slice(expert, expert + 1), slice(first, last), run))[0]

        return Unit((last - first, columns), dtype, read)

    hidden = config.get("hidden_size")
    if part == "gate_up_proj" and columns == hidden and rows != hidden and rows % 2 == 0:
        parts = (("gate_proj", 0, rows // 2), ("up_proj", rows // 2, rows))
    else:
        parts = ((part, 0, rows),)
    return {f"{stem}.{i}.{said}.weight": cut(i, first, last) for i in range(e) for said, first, last in parts}


def _open_adapter(name: str, folder: Path, base: str, earlier: tuple[Stage, ...]) -> Stage:
    about = read_json(folder / "adapter_config.json", str(folder))
    said = base or str(about.get("base_model_name_or_path") or "")
    if not said:
        raise SettingsError("the adapter names no base model", where=name, fix="write ADAPTER@BASE")
    under = _resolve(said, name, earlier)
    files = {n: p for p in sorted(folder.glob("*.safetensors")) for n in header(p)}
    if not files:
        raise DataError("the adapter has no *.safetensors", where=str(folder), fix="save it as safetensors")
    changes = _adapter.changes(folder, about, files, {n: u.shape for n, u in under.units.items()})
    units = dict(under.units)
    for target, change in changes.items():
        clean = canonical(target)
        old = units.get(clean)
        if change.whole:
            units[clean] = Unit(change.shape, "F32", change.read, vector=old.vector if old else False)
        elif old is None or old.shape != change.shape:
            has = "is not in it" if old is None else f"is {old.shape} there and {change.shape} here"
            what = f"the adapter does not fit its base {under.name}: {clean} {has}"
            raise DataError(what, where=name, fix="ADAPTER@BASE with the base it was trained on")
        else:
            units[clean] = _sum(old, change.read)
    return Stage(name, folder, under.config, units, under)


def _resolve(said: str, name: str, earlier: tuple[Stage, ...]) -> Stage:
    try:
        folder = locate(said, name)[0]
    except SettingsError as error:
        raise SettingsError(f"its base is not found: {error.what}", where=name, fix="write ADAPTER@BASE") from None
    return next((s for s in earlier if s.folder == folder), None) or open_stage(said, earlier)


def _sum(old: Unit, delta: Read) -> Unit:
    def read(span: Span) -> torch.Tensor:
        return old.read(span) + delta(span)

    return Unit(old.shape, old.dtype, read, old.vector, old, delta)
