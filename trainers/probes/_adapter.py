"""A LoRA adapter's changes, read from PEFT's own files: scale * B A, one matrix's block at a time."""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tenet.errors import DataError
from trainers.probes._names import canonical

if TYPE_CHECKING:
    import torch

Shapes = Mapping[str, tuple[int, int]]
_FACTOR = re.compile(r"(.*)\.lora_(embedding_)?([AB])(?:\.weight)?")


@dataclass(frozen=True)
class Change:
    """What an adapter adds to a weight [rows, columns], or puts in its place (`whole`)."""

    shape: tuple[int, int]
    read: Callable[[Any], torch.Tensor]
    whole: bool = False


def changes(folder: Path, about: dict[str, Any], files: dict[str, Path], shapes: Shapes) -> dict[str, Change]:
    """The changes by the name of the weight they belong to; `shapes` are the base's. DataError for what is not LoRA.

    Modules saved whole ("modules_to_save") replace their weight. `target_parameters` on fused experts follow
    PEFT 0.21's packing: lora_A [E r, in] with the expert slowest, lora_B [out, r E] with the expert fastest.
    """
    _check(folder, about)
    pairs: dict[str, dict[str, str]] = {}
    found: dict[str, Change] = {}
    for key in files:
        name = key.removeprefix("base_model.model.")
        parts = _FACTOR.fullmatch(name)
        if parts:
            pairs.setdefault(f"{parts[1]}|{parts[2] or ''}", {})[parts[3]] = key
        elif "lora_" in name:
            what = f"{key} is neither A nor B of a LoRA"
            raise DataError(what, where=str(folder), fix="merge the adapter into its base and compare the result")
        elif ".base_layer." not in name:  # a copy of the base's own, which PEFT saves beside an embedding's LoRA
            found[name.replace(".modules_to_save", "")] = _whole(files[key], key)
    for spot, keys in pairs.items():
        module, _, embedding = spot.partition("|")
        if keys.keys() != {"A", "B"}:
            raise DataError(f"{module} has only one factor of its LoRA", where=str(folder), fix="save it again")
        a, b = (_load(files[keys[k]], keys[k]) for k in "AB")
        if embedding:  # A [r, V] and B [H, r] change a table [V, H]
            found[f"{module}.weight"] = _low_rank(a.T, b.T, scale(module, a.shape[0], about))
        elif module.removesuffix(".base_layer").endswith(".experts"):
            found |= _experts(module, a, b, about, shapes)
        elif a.ndim == b.ndim == 2 and a.shape[0] == b.shape[1]:
            found[f"{module}.weight"] = _low_rank(b, a, scale(module, a.shape[0], about))
        else:
            what = f"{module}: A {tuple(a.shape)} and B {tuple(b.shape)} make no matrix"
            raise DataError(what, where=str(folder), fix="merge the adapter into its base")
    if not found:
        raise DataError("the adapter changes nothing", where=str(folder), fix="save it again")
    return found


def _check(folder: Path, about: dict[str, Any]) -> None:
    kind = about.get("peft_type")
    if kind != "LORA":
        raise DataError(f"is an adapter of type {kind}, not LORA", where=str(folder), fix="merge it into its base")
    for key in ("use_dora", "fan_in_fan_out", "use_qalora", "use_bdlora", "layer_replication"):
        if about.get(key):
            raise DataError(f"{key} is set, which is not plain LoRA", where=str(folder), fix="merge it into its base")


def _load(path: Path, key: str) -> torch.Tensor:
    import torch
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.get_tensor(key).to(torch.float32)


def _whole(path: Path, key: str) -> Change:
    shape = _load(path, key).shape
    size = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))

    def read(span: Any) -> torch.Tensor:
        tensor = _load(path, key).reshape(size)
        return tensor[span.start : span.stop] if span.axis == 0 else tensor[:, span.start : span.stop]

    return Change(size, read, whole=True)


def scale(module: str, rank: int, about: dict[str, Any]) -> float:
    """alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA; alpha may be set by module (`alpha_pattern`)."""
    patterns = cast("dict[str, Any]", about.get("alpha_pattern") or {})
    of = next((v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", module)), about["lora_alpha"])
    return float(of) / (math.sqrt(rank) if about.get("use_rslora") else rank)


def _low_rank(left: torch.Tensor, right: torch.Tensor, by: float) -> Change:
    """by * left [rows, r] @ right [r, columns], one span at a time."""

    def read(span: Any) -> torch.Tensor:
        run = slice(span.start, span.stop)
        rows, columns = (left[run], right) if span.axis == 0 else (left, right[:, run])
        return by * (rows @ columns)

    return Change((left.shape[0], right.shape[1]), read)


def _experts(module: str, a: torch.Tensor, b: torch.Tensor, about: dict[str, Any], shapes: Shapes) -> dict[str, Change]:
    """The changes of single experts; which fused weight it is, only the shapes tell: PEFT nests the names."""
    stem = module.removesuffix(".base_layer")
    clean = canonical(stem)
    rank = int(about["r"])
    n = a.shape[0] // rank
    out, into, by = b.shape[0], a.shape[1], scale(module, rank, about)

    def of(part: str) -> tuple[int, int] | None:
        return shapes.get(f"{clean}.0.{part}.weight")

    gate = of("gate_proj")
    if gate is not None and (2 * gate[0], gate[1]) == (out, into):
        parts = (("gate_proj", 0, gate[0]), ("up_proj", gate[0], out))
    else:
        named = next((p for p in ("down_proj", "gate_up_proj", "up_proj") if of(p) == (out, into)), None)
        if named is None or n * rank != a.shape[0]:
            what = f"{module}: a change of {out} x {into} fits no expert of the base"
            raise DataError(what, fix="merge the adapter into its base and compare the result")
        parts = ((named, 0, out),)
    return {
        f"{stem}.{e}.{part}.weight": _low_rank(b[first:last, e::n], a[e * rank : (e + 1) * rank], by)
        for e in range(n)
        for part, first, last in parts
    }
