"""Reads a run's ledger while others write it: pages with filters, whole chains, counts, usage; never locks a writer."""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections import Counter, OrderedDict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from tenet.ledger import Row, explain

_quoted = lru_cache(1024)(json.dumps)
Place = tuple[int, int]
"""(ordinal, seq) of a row; a page starts behind one."""
START: Place = (-1, -1)
_HELD = 32
"""Runs whose pages are read without opening their file anew."""
_STEP = 2000
"""Rows that a filter looks at between two looks at the clock."""


@dataclass(frozen=True)
class Filter:
    """Which rows are wanted; what is not given lets everything through."""

    stages: tuple[str, ...] = ()
    principle: str = ""
    """A principle that a vote, a critique or a revision names."""
    margin: tuple[float, float] | None = None
    """Bounds on |p - 0.5| of a judged pair, both included."""
    reason: str = ""
    """Why something was dropped."""
    dropped_at: str = ""
    """The stage that dropped it."""
    text: str = ""
    """Stands in a text of the record; case is ignored for ASCII letters."""
    prompt_id: str = ""

    def where(self) -> tuple[str, list[Any]]:
        """SQL conditions, each begun with AND, and their values."""
        parts: list[str] = []
        values: list[Any] = []

        def add(sql: str, *given: Any) -> None:
            parts.append(f" AND {sql}")
            values.extend(given)

        if self.stages:
            add(f"stage IN ({','.join('?' * len(self.stages))})", *self.stages)
        if self.prompt_id:
            add("prompt_id = ?", self.prompt_id)
        if self.principle:
            # The quick look first: parsing every record would cost fifty times as much.
            add("instr(record, ?)", json.dumps(self.principle, ensure_ascii=False))
            add(
                "EXISTS (SELECT 1 FROM json_tree(record) t WHERE t.atom = ? "
                "AND (t.key = 'principle' OR t.path LIKE '%.principles'))",
                self.principle,
            )
        if self.margin is not None:
            p = (
                "CASE stage WHEN 'preference' THEN json_extract(record, '$.p_chosen') "
                "WHEN 'judged' THEN json_extract(record, '$.verdict.p_a') END"
            )
            add(f"round(abs({p} - 0.5), 12) BETWEEN ? AND ?", *self.margin)
        if self.reason:
            add("stage = 'dropped' AND json_extract(record, '$.reason') = ?", self.reason)
        if self.dropped_at:
            add("stage = 'dropped' AND json_extract(record, '$.stage') = ?", self.dropped_at)
        if self.text:
            add("record LIKE ? ESCAPE '\\'", f"%{_like(json.dumps(self.text, ensure_ascii=False)[1:-1])}%")
        return "".join(parts), values

    def keeps(self, row: Row) -> bool:
        """Whether a row that passed the SQL has the text in a value, and not in the name of a field."""
        return not self.text or any(_fold(self.text) in _fold(s) for s in _texts(json.loads(row.record)))


class Page(NamedTuple):
    """Rows, and where to go on; None if these were the last."""

    rows: list[Row]
    next: Place | None


@dataclass
class Counted:
    """How far a run's rows were counted."""

    generation: str
    last: int = 0
    stages: Counter[str] = field(default_factory=Counter[str])
    drops: Counter[tuple[str, str, str]] = field(default_factory=Counter[tuple[str, str, str]])


class Pages:
    """Pages without a filter, for the event loop: microseconds on a connection that is kept, for the runs in use."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, tuple[int, sqlite3.Connection]] = OrderedDict()

    def page(self, folder: Path, after: Place, most: int) -> Page:
        """At most `most` rows behind a place. LedgerError."""
        path = folder / "rows.sqlite"
        db = self._connection(path)
        if db is None:
            with reading(path, "rows") as fresh:
                if fresh is None:
                    return Page([], None)
            db = self._keep(path)
        try:
            found = [Row._make(r) for r in db.execute(_page(""), (*after, most + 1))]
        except sqlite3.Error as error:
            raise explain(path, error) from error
        return Page(found[:most], found[most - 1][:2] if len(found) > most else None)

    def close(self) -> None:
        for _, db in self._open.values():
            db.close()
        self._open.clear()

    def _connection(self, path: Path) -> sqlite3.Connection | None:
        held = self._open.get(path)
        if held is None:
            return None
        # A folder that was taken away and made anew is another run.
        if not path.exists() or path.stat().st_ino != held[0]:
            self._open.pop(path)[1].close()
            return None
        self._open.move_to_end(path)
        return held[1]

    def _keep(self, path: Path) -> sqlite3.Connection:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)
        self._open[path] = (path.stat().st_ino, db)
        if len(self._open) > _HELD:
            self._open.popitem(last=False)[1][1].close()
        return db


class Reader:
    """A run's rows, read from any thread with a connection of its own."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "rows.sqlite"

    def page(self, after: Place, most: int, wanted: Filter, budget_s: float) -> Page:
        """At most `most` rows behind a place that are found within the budget, and how far it looked."""
        with reading(self._path, "rows") as db:
            if db is None:
                return Page([], None)
            return self._search(db, after, most, wanted, *wanted.where(), budget_s)

    def _search(
        self, db: sqlite3.Connection, after: Place, most: int, wanted: Filter, where: str, values: Sequence[Any],
        budget_s: float,
    ) -> Page:  # fmt: skip
        found: list[Row] = []
        give_up = time.monotonic() + budget_s
        bound = "SELECT ordinal, seq FROM rows WHERE (ordinal, seq) > (?, ?) ORDER BY ordinal, seq LIMIT 1 OFFSET ?"
        while True:
            end: Place | None = db.execute(bound, (*after, _STEP - 1)).fetchone()
            upto, last = (" AND (ordinal, seq) <= (?, ?)", end) if end else ("", ())
            for row in map(Row._make, db.execute(_page(where + upto), (*after, *values, *last, _STEP))):
                if wanted.keeps(row):
                    found.append(row)
                if len(found) > most:
                    return Page(found[:most], found[most - 1][:2])
            if end is None:
                return Page(found, None)
            after = end
            if time.monotonic() > give_up:
                return Page(found, after)

    def chain(self, ordinal: int) -> list[Row]:
        """All records of one prompt, in the order of its walk."""
        query = "SELECT ordinal, seq, prompt_id, stage, record FROM rows WHERE ordinal = ? ORDER BY seq"
        with reading(self._path, "rows") as db:
            return [Row._make(r) for r in db.execute(query, (ordinal,))] if db else []

    def count(self, before: Counted | None, generation: str) -> Counted:
        """Rows by stage and drops by (unit, stage, reason); what was counted before is not read again.

        A new generation (start of the run) is counted anew: what may be tried again was taken out.
        """
        kept = before if before is not None and before.generation == generation else None
        made = Counted(generation)
        if kept:
            made = Counted(generation, kept.last, Counter(kept.stages), Counter(kept.drops))
        with reading(self._path, "rows") as db:
            if db is None:
                return made
            newest = db.execute("SELECT coalesce(max(rowid), 0) FROM rows").fetchone()[0]
            span = (made.last, newest)
            for stage, n in db.execute(
                "SELECT stage, count(*) FROM rows WHERE rowid > ? AND rowid <= ? GROUP BY stage", span
            ):
                made.stages[stage] += n
            for unit, stage, reason, n in db.execute(
                "SELECT json_extract(record, '$.unit') u, json_extract(record, '$.stage') s, "
                "json_extract(record, '$.reason') r, count(*) FROM rows "
                "WHERE rowid > ? AND rowid <= ? AND stage = 'dropped' GROUP BY u, s, r",
                span,
            ):
                made.drops[unit or "prompt", stage, reason] += n
        made.last = newest
        return made


@contextmanager
def reading(path: Path, table: str) -> Generator[sqlite3.Connection | None]:
    """A connection that can change nothing; None while the file or its table is not there yet. LedgerError."""
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10, check_same_thread=False)
    except sqlite3.OperationalError as error:
        if path.exists():
            raise explain(path, error) from error
        yield None
        return
    try:
        known = db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        yield db if known else None
    except sqlite3.Error as error:
        raise explain(path, error) from error
    finally:
        db.close()


def usage(workspace: Path, run: str) -> dict[str, dict[str, int]]:
    """What a run has paid, by engine."""
    names = ("calls", "prompt_tokens", "completion_tokens", "cached_tokens")
    with reading(workspace / "calls.sqlite", "payers") as db:
        query = f"SELECT engine, {', '.join(names)} FROM payers WHERE run = ? ORDER BY engine"
        found = db.execute(query, (run,)).fetchall() if db else []
    return {engine: dict(zip(names, numbers, strict=True)) for engine, *numbers in found}


def line(row: Row) -> str:
    """A row as JSON; its record is taken as it stands, so that a page costs no parsing."""
    head = f'{{"ordinal":{row.ordinal},"seq":{row.seq},"prompt_id":{_quoted(row.prompt_id)},'
    return f'{head}"stage":{_quoted(row.stage)},"record":{strict(row.record)}}}'


def strict(record: str) -> str:
    """A stored record as JSON that every reader takes: log-probabilities of -inf become null."""
    if "Infinity" not in record and "NaN" not in record:
        return record
    return json.dumps(_finite(json.loads(record)), ensure_ascii=False, separators=(",", ":"))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list):
        return [_finite(v) for v in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def _page(where: str) -> str:
    return (
        "SELECT ordinal, seq, prompt_id, stage, record FROM rows "
        f"WHERE (ordinal, seq) > (?, ?){where} ORDER BY ordinal, seq LIMIT ?"
    )


def _like(text: str) -> str:
    for sign in ("\\", "%", "_"):
        text = text.replace(sign, "\\" + sign)
    return text


def _fold(text: str) -> str:
    """Lower case for ASCII letters only, as SQLite's LIKE has it."""
    return "".join(c.lower() if c.isascii() else c for c in text)


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    items: list[Any] = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []  # pyright: ignore
    return [s for item in items for s in _texts(item)]
