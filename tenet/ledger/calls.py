"""Replies by key, in one file per workspace: what was paid for once is never paid for again."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from tenet.errors import LedgerError
from tenet.ledger._lock import make_folder
from tenet.ledger._sqlite import Reader, Writer, insert, parts
from tenet.records import Usage

_FINISH: tuple[Literal["stop", "length"], ...] = ("stop", "length")
_REPLY = "text, finish, logprobs, calls, prompt_tokens, completion_tokens, cached_tokens"
_SCHEMA = (
    # A rowid table beside its index, not WITHOUT ROWID: rows of 1 kB between random keys would make
    # the tree nine levels deep, and every put and get twice as dear.
    f"CREATE TABLE IF NOT EXISTS calls(key BLOB NOT NULL UNIQUE, payer INTEGER NOT NULL, {_REPLY})",
    "CREATE TABLE IF NOT EXISTS payers(id INTEGER PRIMARY KEY, run TEXT NOT NULL, "
    "engine TEXT NOT NULL, calls, prompt_tokens, completion_tokens, cached_tokens, "
    "UNIQUE(run, engine))",
)
_PAY = (
    "INSERT INTO payers(run, engine, calls, prompt_tokens, completion_tokens, cached_tokens) "
    "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT(run, engine) DO UPDATE SET "
    "calls = calls + excluded.calls, "
    "prompt_tokens = prompt_tokens + excluded.prompt_tokens, "
    "completion_tokens = completion_tokens + excluded.completion_tokens, "
    "cached_tokens = cached_tokens + excluded.cached_tokens RETURNING id"
)


class StoredReply(NamedTuple):
    """A reply without fault, as it was paid for. Text and floats come back to the bit."""

    text: str
    finish: Literal["stop", "length"]
    choice_logprobs: tuple[float | None, ...]
    usage: Usage


class Calls:
    """Replies by key, in one file per workspace, shared by all its runs and by several processes.

    Reads happen where they are asked (microseconds), writes in a thread of their own.
    """

    def __init__(self, path: Path) -> None:
        """Opens or creates the file. LedgerError if it cannot be used."""
        make_folder(path.parent)
        self._writer: Writer[_Paid, dict[str, StoredReply] | None] = Writer(path, _SCHEMA, _store)
        try:
            self._reader = Reader(path)
        except LedgerError:
            self._writer.close()
            raise

    async def get_many(self, keys: Sequence[str]) -> dict[str, StoredReply]:
        """The stored replies among the keys (32 hex digits each). LedgerError."""
        return _select(self._reader.all, [bytes.fromhex(key) for key in keys])

    async def put_many(
        self, replies: Mapping[str, StoredReply], run: str, engine: str
    ) -> dict[str, StoredReply]:
        """Stores what a run paid an engine for, and returns, once committed, what is stored.

        The first write of a key wins: if another process was faster, its reply comes back and is
        what everyone builds on; the run has paid all the same, and `usage` says so. LedgerError.
        """
        rows = [(bytes.fromhex(key), *_cells(reply)) for key, reply in replies.items()]
        return await self._writer.commit((run, engine, rows)) or dict(replies)

    def usage(self, run: str) -> dict[str, Usage]:
        """What a run has paid, by engine; lost races count, faults and reused replies do not."""
        found = self._reader.all(
            "SELECT engine, calls, prompt_tokens, completion_tokens, cached_tokens "
            "FROM payers WHERE run = ? ORDER BY engine",
            (run,),
        )
        return {engine: _usage(cells) for engine, *cells in found}

    def counts(self) -> dict[str, int]:
        """Stored replies by the run that paid for them. Reads the whole file: about 1 s per GB."""
        return dict(
            self._reader.all(
                "SELECT run, sum(n) FROM (SELECT payer, count(*) AS n FROM calls GROUP BY payer) "
                "JOIN payers ON id = payer GROUP BY run ORDER BY run"
            )
        )

    def close(self) -> None:
        """Commits what is waiting. May be called twice."""
        self._reader.close()
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_Paid = tuple[str, str, list[tuple[Any, ...]]]


def _cells(reply: StoredReply) -> tuple[Any, ...]:
    """The columns of _REPLY. Half an emoji (a lone surrogate) is not UTF-8: that text is a blob."""
    text: str | bytes = reply.text
    if not reply.text.isascii():
        try:
            reply.text.encode()
        except UnicodeEncodeError:
            text = reply.text.encode("utf-8", "surrogatepass")
    logprobs = b"".join(
        struct.pack("<?d", p is not None, 0.0 if p is None else p) for p in reply.choice_logprobs
    )
    u = reply.usage
    numbers = (u.calls, u.prompt_tokens, u.completion_tokens, u.cached_tokens)
    return text, _FINISH.index(reply.finish), logprobs, *numbers


def _reply(text: str | bytes, finish: int, logprobs: bytes, *numbers: int) -> StoredReply:
    return StoredReply(
        text if isinstance(text, str) else text.decode("utf-8", "surrogatepass"),
        _FINISH[finish],
        tuple(p if known else None for known, p in struct.iter_unpack("<?d", logprobs)),
        _usage(numbers),
    )


def _usage(numbers: Sequence[int]) -> Usage:
    calls, prompt, completion, cached = numbers
    return Usage.model_construct(
        calls=calls, prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached
    )


def _select(
    ask: Callable[[str, Sequence[bytes]], Iterable[Any]], keys: Sequence[bytes]
) -> dict[str, StoredReply]:
    found: dict[str, StoredReply] = {}
    for part in parts(keys):
        marks = ",".join("?" * len(part))
        for key, *cells in ask(f"SELECT key, {_REPLY} FROM calls WHERE key IN ({marks})", part):
            found[key.hex()] = _reply(*cells)
    return found


def _store(db: sqlite3.Connection, jobs: list[_Paid]) -> list[dict[str, StoredReply] | None]:
    """None for a job whose replies are now the stored ones; else what is stored for its keys."""
    totals: dict[tuple[str, str], list[int]] = {}
    for run, engine, rows in jobs:
        total = totals.setdefault((run, engine), [0, 0, 0, 0])
        for *_, calls, prompt, completion, cached in rows:
            total[0] += max(1, calls)  # an engine that forgets to say so has called all the same
            total[1] += prompt
            total[2] += completion
            total[3] += cached
    payers = {who: db.execute(_PAY, (*who, *total)).fetchone()[0] for who, total in totals.items()}
    cells = [(key, payers[run, engine], *rest) for run, engine, rows in jobs for key, *rest in rows]
    if insert(db, "INSERT OR IGNORE INTO calls", cells) == len(cells):
        return [None] * len(jobs)
    return [_select(db.execute, [row[0] for row in rows]) for _, _, rows in jobs]
