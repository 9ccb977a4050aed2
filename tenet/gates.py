"""Gates: conditions on figures, such as 'kappa.low>=0.6,invalid<=0.02', that a build can fail on."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Container, Iterable
from typing import Any, NamedTuple, cast

from tenet.errors import SettingsError
from tenet.settings import closest

_GATE = re.compile(r"\s*([A-Za-z0-9_.-]+?)\s*(>=|<=|==|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
_HOLDS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, "==": operator.eq, ">": operator.gt, "<": operator.lt,
}  # fmt: skip


class Gate(NamedTuple):
    """One condition."""

    name: str
    """As the user wrote it."""
    path: tuple[str, ...]
    """Where the figure stands in the object of all figures."""
    sign: str
    bound: float

    def holds(self, value: float | None) -> bool:
        """Whether a figure passes; one that is undefined passes no gate."""
        return value is not None and _HOLDS[self.sign](value, self.bound)

    def failed(self, value: float | None, why: str) -> str:
        """What a report of the failure says."""
        said = f"{value:.6g}" if value is not None else f"undefined: {why}"
        return f"{self.name} {self.sign} {self.bound:g} failed, measured {said}"


def parse(text: str, find: Callable[[str], tuple[str, ...]]) -> list[Gate]:
    """The gates of a text; `find` gives a name's path, or raises. SettingsError for what is no gate."""
    gates: list[Gate] = []
    for part in text.split(","):
        found = _GATE.fullmatch(part)
        if found is None:
            fix = "name, then >=, <=, >, < or ==, then a number, such as kappa.low>=0.6"
            raise SettingsError(f"{part.strip()!r} is no gate", where="--gate", fix=fix)
        name, sign, bound = found.groups()
        gates.append(Gate(name, find(name), sign, float(bound)))
    return gates


def paths(part: dict[str, Any], left_out: Container[str] = (), before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Where every figure of an object stands; keys in `left_out` are not looked into."""
    found: list[tuple[str, ...]] = []
    for key, value in part.items():
        if key in left_out:
            continue
        if isinstance(value, dict):
            found += paths(cast(dict[str, Any], value), left_out, (*before, key))
        elif value is None or isinstance(value, bool | int | float):
            found.append((*before, key))
    return found


def path_of(name: str, known: Iterable[tuple[str, ...]], more: Iterable[str] = ()) -> tuple[str, ...]:
    """A name's path among the known ones; the name of an object with a `value` means that. SettingsError if none.

    Keys may hold dots themselves, as names of tasks and judges do. `more` are names that the error lists too.
    """
    spelt = {".".join(path): path for path in known}
    for said in (name, f"{name}.value"):
        if said in spelt:
            return spelt[said]
    names = sorted({*spelt, *more})
    near = closest(name, names)
    fix = near if near.startswith("known") else f"{near} known: {', '.join(names)}"
    raise SettingsError(f"no figure is called {name!r}", where="--gate", fix=fix)


def figure(of: dict[str, Any], path: tuple[str, ...]) -> tuple[float | None, str]:
    """(the figure at a path, the reason if it is undefined)."""
    value: Any = of
    why = ""
    for key in path:
        said: object = value.get("why", "")
        of_key: str = cast(dict[str, str], said).get(key, "") if isinstance(said, dict) else str(said)
        why = of_key or why
        value = value[key]
    why = (why or "it does not exist for this data") if value is None else ""
    return (None if value is None else float(value)), why


def check(gates: Iterable[Gate], of: dict[str, Any]) -> list[str]:
    """A line for every gate that the figures fail."""
    measured = ((gate, *figure(of, gate.path)) for gate in gates)
    return [gate.failed(value, why) for gate, value, why in measured if not gate.holds(value)]
