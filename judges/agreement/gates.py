"""Gates on a judge's figures, such as 'kappa.low>=0.6,invalid<=0.02', that a build can fail on."""

from __future__ import annotations

from typing import Any, NamedTuple

from tenet import gates
from tenet.gates import Gate

__all__ = ["Failure", "Gate", "check", "known", "parse"]

_SHORT = {
    "kappa": "cohen_kappa",
    "ac1": "gwet_ac1",
    "pi": "scott_pi",
    "ece": "calibration.ece",
    "brier": "calibration.brier",
}
_SHARES = ("invalid", "refused", "unreadable")
_LEFT_OUT = ("slices", "confusion", "by_rule", "disagreements", "why", "rogan_gladen", "per_human")
"""Parts whose keys come from the data."""


class Failure(NamedTuple):
    """A gate that a judge did not pass; an undefined figure passes none."""

    judge: str
    gate: Gate
    measured: float | None
    why: str

    def __str__(self) -> str:
        return f"{self.judge}: {self.gate.failed(self.measured, self.why)}"


def parse(text: str, judge: dict[str, Any]) -> list[Gate]:
    """The gates of a text; `judge` is any judge's object, whose figures are the names.

    Names are paths such as `cohen_kappa.low` (short: `kappa.low`; a bare `kappa` is its value), and
    `invalid`, `refused` and `unreadable`, shares of all votes. SettingsError for anything else.
    """

    def find(name: str) -> tuple[str, ...]:
        if name in _SHARES:
            return (name,)
        first, dot, rest = name.partition(".")
        full = tuple((_SHORT.get(first, first) + dot + rest).split("."))
        found = gates.paths(judge, _LEFT_OUT)
        said = ".".join(full) if full in found or (*full, "value") in found else name
        return gates.path_of(said, found, (*_SHARES, *_SHORT))

    return gates.parse(text, find)


def check(asked: list[Gate], judges: dict[str, dict[str, Any]]) -> list[Failure]:
    """Every gate that a judge fails."""
    failures: list[Failure] = []
    for name, judge in judges.items():
        for gate in asked:
            value, why = _figure(judge, gate.path)
            if not gate.holds(value):
                failures.append(Failure(name, gate, value, why))
    return failures


def known(judge: dict[str, Any]) -> list[str]:
    """The names that gates may use."""
    return sorted({".".join(path) for path in gates.paths(judge, _LEFT_OUT)} | set(_SHARES) | set(_SHORT))


def _figure(judge: dict[str, Any], path: tuple[str, ...]) -> tuple[float | None, str]:
    if path[0] not in _SHARES:
        return gates.figure(judge, path)
    states = judge["states"]
    total = sum(states.values())
    wanted = ("invalid", "refused") if path[0] == "unreadable" else path
    return (sum(states[s] for s in wanted) / total, "") if total else (None, "the judge has no votes")
