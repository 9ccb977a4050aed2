"""Probe "weights": what each step between stages changed, matrix by matrix, read from disk a block at a time."""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tenet.errors import SettingsError
from tenet.records import Frozen
from trainers.probes._checkpoint import Span, Stage, Unit, kin
from trainers.probes._names import CLASSES, class_of, layer_of
from trainers.probes._spectra import Gram, Spectrum, changed, shared

if TYPE_CHECKING:
    import torch

BLOCK = 1 << 22
"""Weights of one matrix in memory at a time, for each stage."""
RULES = {
    "relative": "norm of the change over norm of the weights before (Frobenius, float32)",
    "moved": "share of weights whose stored value differs, read as float32",
    "moved_bf16": "share of weights that differ after both stages are rounded to bfloat16",
    "relative_bf16": "norm of the change between the rounded weights over norm of the rounded weights before",
    "effective_rank": "exp of the entropy of the change's normalised singular values (Roy and Vetterli 2007)",
    "stable_rank": "sum of the change's squared singular values over the largest squared",
    "top_cosine": "cosine of the change's first singular direction with the first of the weights before",
    "in_top": "mean squared cosine of the change's top k directions with the span of the top k before; by chance k/n",
    "rotation": "mean squared cosine of the top k directions before and after; 1 is no rotation",
    "drift": "norm of the difference of singular values over their norm before",
    "intruders": "top k directions after with a cosine below the threshold to every direction before",
    "degrees": "angle between two steps' changes, all weights of the group as one vector; 90 is unrelated",
    "support": "of the weights that both rounded steps could move: share moved by the one that the other moves too",
}


class Settings(Frozen):
    """What is compared, and how."""

    branches: bool = False
    """Compare every stage with the first, instead of with the one before it."""
    top: Annotated[int, Field(ge=1)] = 10
    """How many singular directions count as the top ones."""
    intruder: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Cosine below which a direction resembles none of the old ones."""
    spectra: bool = True
    """Singular values and directions; without them a comparison costs no more than reading."""


class Sums:
    """Running sums over the weights of a group, for one step."""

    def __init__(self) -> None:
        self.n = self.moved = self.moved16 = 0
        self.change = self.before = self.change16 = self.before16 = 0.0

    def add(self, other: Sums) -> None:
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def take(self, before: torch.Tensor, after: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """Adds a block; returns which of its weights a bfloat16 copy sees moved."""
        import torch

        low, high = before.to(torch.bfloat16).float(), after.to(torch.bfloat16).float()
        seen = low != high
        self.n += before.numel()
        self.moved += int(torch.count_nonzero(change))
        self.moved16 += int(torch.count_nonzero(seen))
        self.change += float(change.double().square().sum())
        self.before += float(before.double().square().sum())
        self.change16 += float((high - low).double().square().sum())
        self.before16 += float(low.double().square().sum())
        return seen

    def figures(self) -> dict[str, Any]:
        """Shares and relative norms; null where the weights before are all zero, with the reason."""
        made: dict[str, Any] = {"weights": self.n, "norm": math.sqrt(self.change), "moved": self.moved / self.n}
        made["moved_bf16"] = self.moved16 / self.n
        for name, change, before in (
            ("relative", self.change, self.before),
            ("relative_bf16", self.change16, self.before16),
        ):
            made[name] = math.sqrt(change / before) if before else None
        if not self.before or not self.before16:
            made["why"] = "the weights before are all zero"
        return made


class Pair:
    """Running sums over two steps' changes."""

    def __init__(self) -> None:
        self.dot = self.first = self.second = 0.0
        self.n = self.moved_first = self.moved_second = self.moved_both = 0

    def add(self, other: Pair) -> None:
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def take(self, a: torch.Tensor, b: torch.Tensor, seen_a: torch.Tensor, seen_b: torch.Tensor) -> None:
        a, b = a.double(), b.double()
        self.dot += float((a * b).sum())
        self.first += float(a.square().sum())
        self.second += float(b.square().sum())
        self.n += a.numel()
        self.moved_first += int(seen_a.sum())
        self.moved_second += int(seen_b.sum())
        self.moved_both += int((seen_a & seen_b).sum())

    def figures(self) -> dict[str, Any]:
        """Angle and common support; null with the reason where a step changed nothing."""
        if not self.first or not self.second:
            return {"cosine": None, "degrees": None, "support": None, "why": "one of the steps changed nothing here"}
        cosine = max(-1.0, min(1.0, self.dot / math.sqrt(self.first * self.second)))
        made: dict[str, Any] = {"cosine": cosine, "degrees": math.degrees(math.acos(cosine)), "support": None}
        if not self.moved_first or not self.moved_second:
            return {**made, "why": "support: one of the steps is not visible in bfloat16"}
        made["support"] = {
            "of_first": self.moved_both / self.moved_first,
            "of_second": self.moved_both / self.moved_second,
            "first_by_chance": self.moved_second / self.n,
            "second_by_chance": self.moved_first / self.n,
        }
        return made


def steps_of(stages: Sequence[Stage], branches: bool) -> list[tuple[int, int]]:
    """Which stage is compared with which."""
    return [(0 if branches else i - 1, i) for i in range(1, len(stages))]


def compare(
    stages: Sequence[Stage], settings: Settings, progress: Callable[[str, int], None] = lambda _name, _of: None
) -> dict[str, Any]:
    """Every figure of every step between stages.

    In memory at a time: a block of one matrix for each stage, and with spectra a float64 square of the
    matrix's smaller side for each stage and step. DataError unless all stages are of one architecture.
    """
    if len(stages) < 2:
        raise SettingsError("one stage is no comparison", where="stages", fix="name two or more")
    names = kin(list(stages))
    steps = steps_of(stages, settings.branches)
    found = _Found(len(steps))
    for name in names:
        progress(name, len(names))
        found.take(name, [s.units[name] for s in stages], steps, settings)
    left_out = sorted({n for s in stages for n in s.units} - set(names))
    return {
        "probe": "weights",
        "settings": settings.model_dump(),
        "rules": RULES,
        "stages": [_about(s) for s in stages],
        "left_out": left_out,
        "steps": [
            {"before": stages[a].name, "after": stages[b].name, **found.step(i)} for i, (a, b) in enumerate(steps)
        ],
        "between": [
            {"steps": [f"{stages[a].name} to {stages[b].name}" for a, b in (steps[i], steps[j])], **found.pair(i, j)}
            for i, j in combinations(range(len(steps)), 2)
        ],
    }


def _about(stage: Stage) -> dict[str, Any]:
    weights = sum(rows * columns for rows, columns in (u.shape for u in stage.units.values()))
    return {
        "name": stage.name,
        "model_type": stage.config.get("model_type"),
        "architectures": stage.config.get("architectures"),
        "weights": weights,
        "stored_as": sorted({u.dtype for u in stage.units.values()}),
        "adapter_over": stage.base.name if stage.base else None,
    }


class _Found:
    """What has been gathered, matrix by matrix."""

    def __init__(self, steps: int) -> None:
        self.sums: list[dict[str, Sums]] = [{} for _ in range(steps)]
        self.spectral: list[dict[str, dict[str, Any]]] = [{} for _ in range(steps)]
        self.pairs: dict[tuple[int, int], dict[str, Pair]] = {p: {} for p in combinations(range(steps), 2)}
        self.shared: dict[tuple[int, int], dict[str, float]] = {p: {} for p in self.pairs}

    def take(self, name: str, units: Sequence[Unit], steps: Sequence[tuple[int, int]], settings: Settings) -> None:
        """Reads one matrix of all stages, a block at a time."""
        sums, pairs = [Sums() for _ in steps], {p: Pair() for p in self.pairs}
        side = min(units[0].shape)
        with_spectra = settings.spectra and side > 1
        whole = [Gram(side) for _ in units] if with_spectra else []
        moved = [Gram(side) for _ in steps] if with_spectra else []
        for span in units[0].spans(BLOCK):
            blocks = [u.read(span) for u in units]
            changes = [_change(units[a], units[b], blocks[a], blocks[b], span) for a, b in steps]
            seen = [
                s.take(blocks[a], blocks[b], d) for s, (a, b), d in zip(sums, steps, changes, strict=True)
            ]
            for (i, j), pair in pairs.items():
                pair.take(changes[i], changes[j], seen[i], seen[j])
            for gram, block in zip((*whole, *moved), (*blocks, *changes), strict=False):
                gram.add(block, span)
        for i, s in enumerate(sums):
            self.sums[i][name] = s
        for key, pair in pairs.items():
            self.pairs[key][name] = pair
        if with_spectra:
            self._spectra(name, sums, steps, whole, moved, settings)

    def _spectra(
        self,
        name: str,
        sums: Sequence[Sums],
        steps: Sequence[tuple[int, int]],
        whole: Sequence[Gram],
        moved: Sequence[Gram],
        settings: Settings,
    ) -> None:
        live = [i for i, s in enumerate(sums) if s.change and s.before]
        if not live:
            return
        of = {stage: whole[stage].spectrum() for stage in sorted({s for i in live for s in steps[i]})}
        changes: dict[int, Spectrum] = {i: moved[i].spectrum() for i in live}
        k = min(settings.top, len(next(iter(of.values())).values))
        for i in live:
            before, after = of[steps[i][0]], of[steps[i][1]]
            self.spectral[i][name] = changed(before, after, changes[i], k, settings.intruder)
        for i, j in combinations(live, 2):
            self.shared[i, j][name] = shared(changes[i], changes[j], k)

    def step(self, i: int) -> dict[str, Any]:
        """The figures of one step: in all, by class, by layer and by class in each layer, by matrix."""
        sums = self.sums[i]
        matrices: dict[str, dict[str, Any]] = {}
        for name, s in sums.items():
            spectral = self.spectral[i].get(name)
            matrices[name] = {"class": class_of(name), "layer": layer_of(name), **s.figures(), "spectra": spectral}
            if spectral is None:
                matrices[name]["why"] = matrices[name].get("why") or _no_spectra(s)
        intruded = [s["intruders"] for s in self.spectral[i].values()]
        return {
            "total": {
                **_total(sums.values(), Sums()).figures(),
                "intruders": sum(intruded) if intruded else None,
                "matrices_with_intruders": sum(map(bool, intruded)) if intruded else None,
            },
            "classes": {k: {**f.figures(), **self._means(i, k)} for k, f in _by(sums, class_of, Sums).items()},
            "layers": {str(k): f.figures() for k, f in _by(sums, layer_of, Sums).items() if k is not None},
            "depth": {
                f"{kind} {layer}": f.figures()
                for (kind, layer), f in _by(sums, lambda n: (class_of(n), layer_of(n)), Sums).items()
                if layer is not None
            },
            "matrices": matrices,
        }

    def _means(self, i: int, kind: str) -> dict[str, Any]:
        """Means over a class's matrices of the spectral figures that have a common scale."""
        of = [s for name, s in self.spectral[i].items() if class_of(name) == kind]
        keys = ("effective_rank", "stable_rank", "top_cosine", "in_top", "by_chance", "rotation", "drift")
        made: dict[str, Any] = {k: sum(s[k] for s in of) / len(of) if of else None for k in keys}
        return {**made, "intruders": sum(s["intruders"] for s in of) if of else None, "matrices": len(of)}

    def pair(self, i: int, j: int) -> dict[str, Any]:
        pairs, common = self.pairs[i, j], self.shared[i, j]
        return {
            "total": _total(pairs.values(), Pair()).figures(),
            "classes": {k: f.figures() for k, f in _by(pairs, class_of, Pair).items()},
            "layers": {str(k): f.figures() for k, f in _by(pairs, layer_of, Pair).items() if k is not None},
            "matrices": {n: {**p.figures(), "shared_directions": common.get(n)} for n, p in pairs.items()},
        }


def _change(a: Unit, b: Unit, before: torch.Tensor, after: torch.Tensor, span: Span) -> torch.Tensor:
    """The change itself: an adapter's own product where it stands on just these weights, else the difference."""
    return b.delta(span) if b.delta is not None and b.base is a else after - before


def _no_spectra(s: Sums) -> str:
    if not s.change:
        return "nothing changed"
    return "no spectra of a vector, or they were not asked for"


def _total(parts: Iterable[Any], into: Any) -> Any:
    for part in parts:
        into.add(part)
    return into


def _by(parts: dict[str, Any], key: Callable[[str], Any], new: Callable[[], Any]) -> dict[Any, Any]:
    groups: dict[Any, Any] = {}
    for name, part in parts.items():
        groups.setdefault(key(name), new()).add(part)
    order = {kind: i for i, kind in enumerate(CLASSES)}
    return dict(sorted(groups.items(), key=lambda item: order.get(item[0], item[0] if isinstance(item[0], int) else 0)))
