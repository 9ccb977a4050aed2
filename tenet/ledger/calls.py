"""Replies by key, in one file per workspace: what was paid for once is never paid for again."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from tenet.errors import LedgerError
from tenet.ledger._file import checksum, explain, verified
from tenet.ledger._lock import make_folder
from tenet.ledger._sqlite import Reader, Writer, insert, parts
from tenet.records import Usage

_FINISH: tuple[Literal["stop", "length"], ...] = ("stop", "length")
_REPLY = "text, finish, logprobs, calls, prompt_tokens, completion_tokens, cached_tokens"
_PAYER = "id, run, engine, calls, prompt_tokens, completion_tokens, cached_tokens"
_SERVED = "CREATE TABLE served(engine TEXT PRIMARY KEY, model TEXT NOT NULL, checksum INTEGER NOT NULL)"
_SCHEMA = (
    # A rowid table beside its index, not WITHOUT ROWID: rows of 1 kB between random keys would make
    # the tree nine levels deep, and every put and get twice as dear.
    f"CREATE TABLE calls(key BLOB NOT NULL UNIQUE, payer INTEGER NOT NULL, {_REPLY}, checksum INTEGER)",
    "CREATE TABLE payers(id INTEGER PRIMARY KEY, run TEXT NOT NULL, "
    "engine TEXT NOT NULL, calls, prompt_tokens, completion_tokens, cached_tokens, "
    "checksum INTEGER, UNIQUE(run, engine))",
    _SERVED,
)
_UPGRADE = (
    "ALTER TABLE calls ADD COLUMN checksum INTEGER",
    f"UPDATE calls SET checksum = checksum_of(key, payer, {_REPLY})",
    "ALTER TABLE payers ADD COLUMN checksum INTEGER",
    f"UPDATE payers SET checksum = checksum_of({_PAYER})",
    _SERVED,
)
_PAY = (
    "INSERT INTO payers(run, engine, calls, prompt_tokens, completion_tokens, cached_tokens) "
    "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT(run, engine) DO UPDATE SET "
    "calls = calls + excluded.calls, "
    "prompt_tokens = prompt_tokens + excluded.prompt_tokens, "
    "completion_tokens = completion_tokens + excluded.completion_tokens, "
    "cached_tokens = cached_tokens + excluded.cached_tokens "
    f"RETURNING {_PAYER}"
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
        self._writer: Writer[_Paid, dict[str, StoredReply] | None] = Writer(
            path, _SCHEMA, partial(_store, path), explain, _UPGRADE
        )
        try:
            self._reader = Reader(path)
        except LedgerError:
            self._writer.close()
            raise

    async def get_many(self, keys: Sequence[str]) -> dict[str, StoredReply]:
        """The stored replies among the keys (32 hex digits each). LedgerError."""
        return _select(self._reader.checked, [bytes.fromhex(key) for key in keys])

    async def put_many(self, replies: Mapping[str, StoredReply], run: str, engine: str) -> dict[str, StoredReply]:
        """Stores what a run paid an engine for, and returns, once committed, what is stored.

        The first write of a key wins: if another process was faster, its reply comes back and is
        what everyone builds on; the run has paid all the same, and `usage` says so. LedgerError.
        """
        rows = [(bytes.fromhex(key), *_cells(reply)) for key, reply in replies.items()]
        return await self._writer.commit((run, engine, rows)) or dict(replies)

    def usage(self, run: str) -> dict[str, Usage]:
        """What a run has paid, by engine; lost races count, faults and reused replies do not."""
        found = self._reader.checked(f"SELECT {_PAYER}, checksum FROM payers WHERE run = ? ORDER BY engine", (run,))
        return {engine: _usage(cells) for _, _, engine, *cells in found}

    def served(self, fingerprint: str, model: str = "") -> str:
        """What an engine's server calls its model, as first heard; `model` if it never was. LedgerError.

        Replies are stored by the engine's fingerprint, which knows a server's address, and not who answers there.
        """
        query = "SELECT engine, model, checksum FROM served WHERE engine = ?"
        found = self._reader.checked(query, (fingerprint,))
        if not found and model:
            with self._writer.transaction() as db:
                row = (fingerprint, model)
                db.execute("INSERT OR IGNORE INTO served VALUES (?, ?, ?)", (*row, checksum(row)))
            found = self._reader.checked(query, (fingerprint,))  # another process may have been faster
        return found[0][1] if found else model

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
    logprobs = b"".join(struct.pack("<?d", p is not None, 0.0 if p is None else p) for p in reply.choice_logprobs)
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
    return Usage.model_construct(calls=calls, prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached)


def _select(ask: Callable[[str, Sequence[bytes]], Iterable[Any]], keys: Sequence[bytes]) -> dict[str, StoredReply]:
    """The stored replies among the keys; `ask` checks the checksums."""
    found: dict[str, StoredReply] = {}
    for part in parts(keys):
        marks = ",".join("?" * len(part))
        query = f"SELECT key, payer, {_REPLY}, checksum FROM calls WHERE key IN ({marks})"
        for key, _, *cells in ask(query, part):
            found[key.hex()] = _reply(*cells)
    return found


def _store(path: Path, db: sqlite3.Connection, jobs: list[_Paid]) -> list[dict[str, StoredReply] | None]:
    """None for a job whose replies are now the stored ones; else what is stored for its keys."""
    totals: dict[tuple[str, str], list[int]] = {}
    for run, engine, rows in jobs:
        total = totals.setdefault((run, engine), [0, 0, 0, 0])
        for *_, calls, prompt, completion, cached in rows:
            total[0] += max(1, calls)  # an engine that forgets to say so has called all the same
            total[1] += prompt
            total[2] += completion
            total[3] += cached
    payers = {who: _pay(path, db, (*who, *total)) for who, total in totals.items()}
    cells = [(key, payers[run, engine], *rest) for run, engine, rows in jobs for key, *rest in rows]
    if insert(db, "INSERT OR IGNORE INTO calls", [(*row, checksum(row)) for row in cells]) == len(cells):
        return [None] * len(jobs)

    def ask(query: str, values: Sequence[bytes]) -> list[Any]:
        return verified(path, db.execute(query, values).fetchall())

    return [_select(ask, [row[0] for row in rows]) for _, _, rows in jobs]


def _pay(path: Path, db: sqlite3.Connection, paid: tuple[Any, ...]) -> int:
    """Adds to what a run has paid an engine, which must be as it was written; the payer's id."""
    before = f"SELECT {_PAYER}, checksum FROM payers WHERE run = ? AND engine = ?"
    verified(path, db.execute(before, paid[:2]).fetchall())
    row = db.execute(_PAY, paid).fetchone()
    db.execute("UPDATE payers SET checksum = ? WHERE id = ?", (checksum(row), row[0]))
    return row[0]
