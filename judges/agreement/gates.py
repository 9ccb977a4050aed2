"""Gates: conditions on a judge's figures, such as 'kappa.low>=0.6,invalid<=0.02', that a build can fail on."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from tenet.errors import SettingsError
from tenet.settings import closest

_GATE = re.compile(r"\s*([A-Za-z0-9_.]+)\s*(>=|<=|==|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
_HOLDS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, "==": operator.eq, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
_SHORT = {
    "kappa": "cohen_kappa",
    "ac1": "gwet_ac1",
    "pi": "scott_pi",
    "ece": "calibration.ece",
    "brier": "calibration.brier",
}
_LEFT_OUT = ("slices", "confusion", "by_rule", "disagreements", "why", "rogan_gladen")
"""Parts whose keys come from the data."""


class Gate(NamedTuple):
    """One condition."""

    name: str
    """As the user wrote it."""
    path: tuple[str, ...]
    """Where the figure stands in a judge's object."""
    sign: str
    bound: float


class Failure(NamedTuple):
    """A gate that a judge did not pass; an undefined figure passes none."""

    judge: str
    gate: Gate
    measured: float | None
    why: str

    def __str__(self) -> str:
        said = f"{self.measured:.6g}" if self.measured is not None else f"undefined: {self.why}"
        return f"{self.judge}: {self.gate.name} {self.gate.sign} {self.gate.bound:g} failed, measured {said}"


def parse(text: str, judge: dict[str, Any]) -> list[Gate]:
    """The gates of a text; `judge` is any judge's object, whose figures are the names.

    Names are paths such as `cohen_kappa.low` (short: `kappa.low`; a bare `kappa` is its value), and
    `invalid`, `refused` and `unreadable`, shares of all votes. SettingsError for anything else.
    """
    gates: list[Gate] = []
    for part in text.split(","):
        found = _GATE.fullmatch(part)
        if found is None:
            fix = "name, then >=, <=, >, < or ==, then a number, such as kappa.low>=0.6"
            raise SettingsError(f"{part.strip()!r} is no gate", where="--gate", fix=fix)
        name, sign, bound = found.groups()
        gates.append(Gate(name, _path(name, judge), sign, float(bound)))
    return gates


def check(gates: list[Gate], judges: dict[str, dict[str, Any]]) -> list[Failure]:
    """Every gate that a judge fails."""
    failures: list[Failure] = []
    for name, judge in judges.items():
        for gate in gates:
            value, why = _figure(judge, gate.path)
            if value is None or not _HOLDS[gate.sign](value, gate.bound):
                failures.append(Failure(name, gate, value, why))
    return failures


def known(judge: dict[str, Any]) -> list[str]:
    """The names that gates may use."""
    return sorted({".".join(path) for path in _paths(judge)} | {"invalid", "refused", "unreadable"} | set(_SHORT))


def _paths(part: dict[str, Any], before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    paths: list[tuple[str, ...]] = []
    for key, value in part.items():
        if key in _LEFT_OUT or key == "per_human":
            continue
        if isinstance(value, dict):
            paths += _paths(cast(dict[str, Any], value), (*before, key))
        elif value is None or isinstance(value, bool | int | float):
            paths.append((*before, key))
    return paths


def _path(name: str, judge: dict[str, Any]) -> tuple[str, ...]:
    if name in ("invalid", "refused", "unreadable"):
        return (name,)
    first, dot, rest = name.partition(".")
    full = tuple((_SHORT.get(first, first) + dot + rest).split("."))
    paths = _paths(judge)
    if full in paths:
        return full
    if (*full, "value") in paths:
        return (*full, "value")
    names = known(judge)
    near = closest(name, names)
    fix = near if near.startswith("known") else f"{near} known: {', '.join(names)}"
    raise SettingsError(f"no figure is called {name!r}", where="--gate", fix=fix)


def _figure(judge: dict[str, Any], path: tuple[str, ...]) -> tuple[float | None, str]:
    states = judge["states"]
    if path[0] in ("invalid", "refused", "unreadable"):
        total = sum(states.values())
        wanted = ("invalid", "refused") if path[0] == "unreadable" else path
        return (sum(states[s] for s in wanted) / total, "") if total else (None, "the judge has no votes")
    value: Any = judge
    why = ""
    for key in path:
        said: Any = value.get("why", "")
        why = str(cast(dict[str, Any], said).get(key, "") if isinstance(said, dict) else said) or why
        value = value[key]
    why = (why or "it does not exist for these votes") if value is None else ""
    return (None if value is None else float(value)), why
