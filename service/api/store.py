"""The service's own SQLite file: keys, sessions, jobs, label sets and labels. Every commit survives kill -9."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tenet.ledger import atomic, explain

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS keys(name TEXT PRIMARY KEY, id TEXT NOT NULL UNIQUE, hash BLOB NOT NULL, "
    "roles TEXT NOT NULL, created TEXT NOT NULL, revoked TEXT)",
    "CREATE TABLE IF NOT EXISTS sessions(hash BLOB PRIMARY KEY, key TEXT NOT NULL, csrf TEXT NOT NULL, "
    "expires REAL NOT NULL)",
    "CREATE TABLE IF NOT EXISTS jobs(name TEXT PRIMARY KEY, kind TEXT NOT NULL, spec TEXT NOT NULL, "
    "state TEXT NOT NULL, attempt INTEGER NOT NULL DEFAULT 0, status INTEGER, note TEXT NOT NULL DEFAULT '', "
    "owner TEXT NOT NULL, created TEXT NOT NULL, place INTEGER NOT NULL, idempotency TEXT UNIQUE, asked TEXT)",
    "CREATE TABLE IF NOT EXISTS label_sets(name TEXT PRIMARY KEY, spec TEXT NOT NULL, created TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS label_items(label_set TEXT NOT NULL, item TEXT NOT NULL, place INTEGER NOT NULL, "
    "wanted INTEGER NOT NULL, planted TEXT NOT NULL DEFAULT '', content TEXT NOT NULL, "
    "given INTEGER NOT NULL DEFAULT 0, PRIMARY KEY(label_set, item))",
    # The pairs that still want labels, in their order: the next one is found without looking at those that are done.
    "CREATE INDEX IF NOT EXISTS open_items ON label_items(label_set, place) WHERE planted = '' AND given < wanted",
    "CREATE TABLE IF NOT EXISTS leases(label_set TEXT NOT NULL, rater TEXT NOT NULL, item TEXT NOT NULL, "
    "expires REAL NOT NULL, PRIMARY KEY(label_set, rater))",
    "CREATE TABLE IF NOT EXISTS labels(number INTEGER PRIMARY KEY AUTOINCREMENT, label_set TEXT NOT NULL, "
    "item TEXT NOT NULL, rater TEXT NOT NULL, label TEXT NOT NULL, seconds REAL, given TEXT NOT NULL, "
    "undone TEXT)",
    # What makes a doubled label impossible, whoever asks how often.
    "CREATE UNIQUE INDEX IF NOT EXISTS one_label ON labels(label_set, item, rater) WHERE undone IS NULL",
)


class Store:
    """One connection, shared by the event loop and worker threads; answers in microseconds."""

    def __init__(self, path: Path) -> None:
        """Opens or creates the file. LedgerError if it cannot be used."""
        self._path = path
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
            path.chmod(0o600)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            for statement in _SCHEMA:
                self._db.execute(statement)
        except (sqlite3.Error, OSError) as error:
            raise explain(path, error) from error
        self._db.row_factory = sqlite3.Row

    def all(self, query: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """Every row of the answer. LedgerError."""
        with self._lock:
            try:
                return self._db.execute(query, values).fetchall()
            except sqlite3.Error as error:
                raise explain(self._path, error) from error

    def one(self, query: str, values: Sequence[Any] = ()) -> sqlite3.Row | None:
        """The first row, or None."""
        found = self.all(query, values)
        return found[0] if found else None

    @contextmanager
    def change(self) -> Generator[sqlite3.Connection]:
        """One transaction: all of it is committed on leaving, or nothing. LedgerError; IntegrityError passes."""
        with self._lock:
            try:
                with atomic(self._db):
                    yield self._db
            except sqlite3.IntegrityError:
                raise
            except sqlite3.Error as error:
                raise explain(self._path, error) from error

    def close(self) -> None:
        with self._lock:
            self._db.close()
