"""Votes: who said what of which item, read from long-form files and held in columns."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from judges._table import Table
from judges.agreement import _checks
from judges.agreement._checks import EXAMPLE
from judges.pairs_file import LabelledPair
from tenet.errors import DataError
from tenet.files import Malformed, check_unicode, kind_of
from tenet.records import Comparison

VERDICTS = ("A", "B", "tie", "invalid", "refused")
A, B, TIE, INVALID, REFUSED = range(5)
NO_ORDER, AB, BA = range(3)
_ORDERS = {None: NO_ORDER, "ab": AB, "ba": BA}
_KINDS = ("human", "judge")
_KNOWN = ("item", "rater", "kind", "verdict", "order", "p_a", "score", "slices", "len_a", "len_b")
_NAN = float("nan")

Array = Any
"""A numpy array; numpy is imported where it is used, so that `import judges` stays light."""
Place = Callable[[int], str]
"""Names a row of a file in an error."""


@dataclass(frozen=True)
class Votes:
    """All votes, sorted by item, rater and order, so that the order of a file's lines changes nothing.

    Arrays of length V (votes): `item`, `rater` (indices), `verdict` (index into VERDICTS, -1 if graded),
    `order`, `p_a`, `score` (NaN if absent). Arrays of length I (items): `len_a`, `len_b`.
    """

    items: list[str]
    raters: list[str]
    is_judge: tuple[bool, ...]
    """By rater."""
    item: Array
    rater: Array
    verdict: Array
    order: Array
    p_a: Array
    score: Array
    len_a: Array
    len_b: Array
    slices: dict[str, dict[int, str]]
    """Slice name -> item index -> value."""
    graded: bool = False
    ignored: tuple[str, ...] = ()
    """Columns of the file that nothing reads."""
    pairs: dict[str, Comparison] = field(default_factory=dict[str, Comparison])
    """The texts of items, where they are known."""

    def of_kind(self, judges: bool) -> list[int]:
        """The raters that are judges, or people."""
        return [r for r, judge in enumerate(self.is_judge) if judge == judges]


def read(path: str, duplicates: Literal["refuse", "last", "majority"] = "refuse") -> Votes:
    """The votes of a JSONL, JSON, CSV or Parquet file; a pairs file gives its people's and machines' labels.

    Raises DataError naming file, line, field and remedy for an unknown verdict, order or kind, a missing
    item, a number that is NaN or out of range, a rater under two kinds, graded and categorical votes in
    one file, facts about an item that contradict each other, and, with "refuse", duplicate votes.
    """
    from judges import pairs_file

    table = Table(path)
    gathered = _Gathered(duplicates)
    first = True
    for number, value in table.rows("votes", EXAMPLE):
        try:
            row = table.decode(value, EXAMPLE)
            if first and not row.keys() & {"verdict", "score", "item"} and row.keys() & {"a", "chosen"}:
                return from_pairs(pairs_file.read(path), duplicates)
            first = False
            gathered.add(_checks.typed(row) if table.is_text else row, number)
        except Malformed as stop:
            raise stop.at(table.place(number)) from None
    return gathered.votes(table.place)


def from_pairs(pairs: Iterable[LabelledPair], duplicates: Literal["refuse", "last", "majority"] = "refuse") -> Votes:
    """People's labels as votes of kind "human", the machines' labels as votes of kind "judge"."""
    gathered, known = _Gathered(duplicates), dict[str, Comparison]()
    for pair in pairs:
        add_pair(gathered, pair)
        known[pair.id] = pair.comparison
    return gathered.votes(pairs=known)


def add_pair(gathered: _Gathered, pair: LabelledPair) -> None:
    """Adds a pair's labels; the lengths of its texts, in characters, go with them."""
    said = [(x.rater, "human", x.label) for x in pair.labels]
    said += [(rater, "judge", label) for rater, label in pair.machine.items()]
    lengths = {"len_a": len(pair.comparison.a), "len_b": len(pair.comparison.b)}
    for rater, kind, verdict in said:
        row = {"item": pair.id, "rater": rater, "kind": kind, "verdict": verdict, "slices": pair.slices}
        gathered.add({**row, **lengths}, pair.row)


def gather(duplicates: Literal["refuse", "last", "majority"] = "refuse") -> _Gathered:
    """An empty collection that takes votes as rows with `add` and gives Votes with `votes`."""
    return _Gathered(duplicates)


class _Gathered:
    """Columns that grow by one vote a row."""

    def __init__(self, duplicates: Literal["refuse", "last", "majority"]) -> None:
        self._duplicates = duplicates
        self._items: dict[str, int] = {}
        self._raters: dict[str, int] = {}
        self._kinds: list[str] = []
        self._ints = {name: array("i") for name in ("item", "rater", "verdict", "order", "row")}
        self._floats = {name: array("d") for name in ("p_a", "score")}
        self._facts: dict[str, dict[int, Any]] = {"len_a": {}, "len_b": {}}
        self._slices: dict[str, dict[int, str]] = {}
        self._unknown: dict[str, int] = {}
        self._graded: tuple[bool, int] | None = None

    def add(self, row: dict[str, Any], number: int) -> None:
        """Checks one vote and keeps it; Malformed if it cannot be used."""
        item = self._items.setdefault(_checks.name_of(row.get("item"), "item"), len(self._items))
        rater = self._rater(_checks.name_of(row.get("rater"), "rater"), row.get("kind"))
        verdict, score = self._said(row, number)
        order = row.get("order")
        if order is not None and order not in ("ab", "ba"):
            raise Malformed("unknown order", f"'order' is {_checks.shown(order)}", "ab (A was shown first) or ba")
        p_a = row.get("p_a")
        p = _NAN if p_a is None else _checks.number_of(p_a, "p_a", 0.0, 1.0)
        for name, value in zip(
            ("item", "rater", "verdict", "order", "row"), (item, rater, verdict, _ORDERS[order], number), strict=True
        ):
            self._ints[name].append(value)
        self._floats["p_a"].append(p)
        self._floats["score"].append(score)
        if len(row) > 4:
            self._about(row, item)

    def _said(self, row: dict[str, Any], number: int) -> tuple[int, float]:
        verdict, score = row.get("verdict"), row.get("score")
        graded = score is not None
        if graded == (verdict is not None):
            what = "there are both a verdict and a score" if graded else "there is no verdict"
            raise Malformed("verdict or score", what, f"write one of {', '.join(VERDICTS)}, or a score")
        if self._graded is None:
            self._graded = graded, number
        elif self._graded[0] != graded:
            what = f"is {'graded' if graded else 'a verdict'}, and row {self._graded[1]} is not"
            raise Malformed("mixed", what, "keep scores and verdicts in files of their own")
        if graded:
            return -1, _checks.number_of(score, "score", -math.inf, math.inf)
        if verdict not in VERDICTS:
            raise Malformed(
                "unknown verdict", f"'verdict' is {_checks.shown(verdict)}", f"one of {', '.join(VERDICTS)}"
            )
        return VERDICTS.index(verdict), _NAN

    def _rater(self, name: str, kind: Any) -> int:
        rater = self._raters.get(name)
        if rater is None:
            if kind not in _KINDS:
                raise Malformed("unknown kind", f"'kind' is {_checks.shown(kind)}", "human or judge")
            rater = self._raters[name] = len(self._kinds)
            self._kinds.append(kind)
        elif kind != self._kinds[rater]:
            if kind not in _KINDS:
                raise Malformed("unknown kind", f"'kind' is {_checks.shown(kind)}", "human or judge")
            what = f"the rater {name!r} is a {kind} here and a {self._kinds[rater]} in an earlier vote"
            raise Malformed("two kinds", what, "give people and judges names of their own")
        return rater

    def _about(self, row: dict[str, Any], item: int) -> None:
        for name, known in self._facts.items():
            if (value := row.get(name)) is not None:
                length = _checks.number_of(value, name, 0, math.inf)
                if known.setdefault(item, length) != length:
                    raise Malformed("contradiction", f"{name!r} is {value}; it was {known[item]:g} before", "mend one")
        given = row.get("slices")
        if given:
            if not isinstance(given, dict):
                raise Malformed("wrong type", f"'slices' is {kind_of(given)}", 'write {"name": "value"}')
            for name, value in cast(dict[str, Any], given).items():
                self._slice(name, value, item)
        for name in row.keys() - set(_KNOWN):
            self._unknown[name] = self._unknown.get(name, 0) + 1

    def _slice(self, name: str, value: Any, item: int) -> None:
        if value is None:
            return
        if not isinstance(value, str | int | float):
            raise Malformed("wrong type", f"slices.{name} is {kind_of(value)}", "a slice's value is text or a number")
        check_unicode(f"{name}{value}", repr(f"slices.{name}"))
        known = self._slices.setdefault(name, {})
        if known.setdefault(item, str(value)) != str(value):
            what = f"slices.{name} is {str(value)!r}; it was {known[item]!r} before"
            raise Malformed("contradiction", what, "an item has one value of a slice")

    def votes(self, place: Place = "row {}".format, pairs: dict[str, Comparison] | None = None) -> Votes:
        """The columns, sorted; DataError for duplicates, and for orders that do not fit together."""
        import numpy as np

        items, raters = sorted(self._items), sorted(self._raters)
        at_item = np.array([self._items[x] for x in items], dtype=np.int64)
        at_rater = np.array([self._raters[x] for x in raters], dtype=np.int64)
        columns = {k: np.frombuffer(v, dtype=np.int32) for k, v in self._ints.items()}
        columns |= {k: np.frombuffer(v, dtype=np.float64) for k, v in self._floats.items()}
        columns["item"], columns["rater"] = _rank(at_item)[columns["item"]], _rank(at_rater)[columns["rater"]]
        judge = np.array([self._kinds[i] == "judge" for i in at_rater], dtype=bool)
        kept = self._unique(columns, judge, items, raters, place)
        lengths = {
            name: np.array([known.get(int(i), _NAN) for i in at_item], dtype=np.float64)
            for name, known in self._facts.items()
        }
        rank = _rank(at_item)
        slices = {n: {int(rank[i]): v for i, v in of.items()} for n, of in sorted(self._slices.items())}
        return Votes(
            items=items, raters=raters, is_judge=tuple(bool(x) for x in judge), **kept, **lengths, slices=slices,
            graded=bool(self._graded and self._graded[0]), ignored=tuple(sorted(self._unknown)), pairs=pairs or {},
        )  # fmt: skip

    def _unique(
        self, columns: dict[str, Array], judge: Array, items: list[str], raters: list[str], place: Place
    ) -> Any:
        """The columns sorted and, as the rule for duplicates says, without repeated votes."""
        import numpy as np

        # A person has one say on an item, whatever was shown first.
        slot = np.where(judge[columns["rater"]], columns["order"], 0)
        order = np.lexsort((columns["row"], slot, columns["rater"], columns["item"]))
        columns, slot = {k: v[order] for k, v in columns.items()}, slot[order]
        new = np.ones(len(order), dtype=bool)
        keys = (columns["item"], columns["rater"], slot)
        new[1:] = np.logical_or.reduce([k[1:] != k[:-1] for k in keys])

        def told(i: int) -> tuple[str, str]:
            return items[int(columns["item"][i])], raters[int(columns["rater"][i])]

        if not new.all():
            if self._duplicates == "refuse":
                i = int(np.argmin(new))
                what = "{1!r} voted on {0!r} before, in {2}".format(*told(i), place(int(columns["row"][i - 1])))
                fix = "take one out, or say --duplicates last or majority"
                raise DataError(what, where=place(int(columns["row"][i])), fix=fix)
            if self._duplicates == "majority":
                _majority(columns, new, place)
            keep = np.append(new[1:], True)  # the last of each group; majority has written its result there
            columns, slot = {k: v[keep] for k, v in columns.items()}, slot[keep]
        mixed = (columns["item"][1:] == columns["item"][:-1]) & (columns["rater"][1:] == columns["rater"][:-1])
        mixed &= slot[:-1] == NO_ORDER
        if mixed.any():
            i = int(np.argmax(mixed)) + 1
            what = "{1!r} voted on {0!r} with an order and without one".format(*told(i))
            raise DataError(what, where=place(int(columns["row"][i])), fix="give every vote its order")
        columns.pop("row")
        return columns


def _majority(columns: dict[str, Array], new: Array, place: Place) -> None:
    """Writes a group's most frequent verdict, or "invalid" if two are as frequent, to its last row."""
    import numpy as np

    starts = np.flatnonzero(new)
    ends = np.append(starts[1:], len(new))
    for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
        if columns["verdict"][start] < 0:
            fix = "say --duplicates last, or average the scores yourself"
            raise DataError("graded votes have no majority", where=place(int(columns["row"][end - 1])), fix=fix)
        counts = np.bincount(columns["verdict"][start:end], minlength=len(VERDICTS))
        top = np.flatnonzero(counts == counts.max())
        columns["verdict"][end - 1] = top[0] if len(top) == 1 else INVALID
        known = columns["p_a"][start:end]
        known = known[~np.isnan(known)]
        columns["p_a"][end - 1] = known.mean() if len(known) and len(top) == 1 else _NAN


def _rank(order: Array) -> Array:
    """Old index -> place in the sorted list."""
    import numpy as np

    rank = np.empty(len(order), dtype=np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return rank
