"""A SQLite file that many coroutines write to: one thread gathers their writes, commits once."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from tenet.errors import LedgerError, TenetError
from tenet.ledger._file import atomic, connect, explain, verified

LINGER_SECONDS = 0.002
"""How long the first write of a group waits for company."""
GROUP = 512
"""Most writes in one commit."""
STEPS = (64, 16, 4, 1)
"""Rows per statement: a handful of sizes, so that every statement is found in its cache."""

J = TypeVar("J")
R = TypeVar("R")
Work = Callable[[sqlite3.Connection, list[J]], list[R]]


def insert(db: sqlite3.Connection, into: str, rows: Sequence[tuple[Any, ...]]) -> int:
    """Inserts rows of one width and returns how many are new.

    Many rows go into one statement, not through executemany: that lets go of the interpreter's lock
    at every row and may wait 5 ms to get it back from a busy event loop.
    """
    new = 0
    for part in parts(rows):
        marks = f"({','.join('?' * len(part[0]))})"
        cells = [cell for row in part for cell in row]
        new += db.execute(f"{into} VALUES {','.join([marks] * len(part))}", cells).rowcount
    return new


def parts(items: Sequence[J]) -> Iterator[Sequence[J]]:
    """Cuts items into parts whose lengths are among STEPS."""
    start = 0
    while start < len(items):
        size = next(s for s in STEPS if s <= len(items) - start)
        yield items[start : start + size]
        start += size


class Reader:
    """A connection for reading, used where the question is asked: page cache, microseconds."""

    def __init__(self, path: Path, upgrade: Sequence[str] = ()) -> None:
        self._path, self._db = path, connect(path, upgrade=upgrade)

    def checked(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """As `all`, of rows whose last cell is their checksum, which is left out. LedgerError if one is wrong."""
        return verified(self._path, self.all(query, values))

    def all(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """Every row of the answer. LedgerError if the file cannot be read."""
        try:
            return self._db.execute(query, values).fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise explain(self._path, error) from error

    def close(self) -> None:
        self._db.close()


class Writer(Generic[J, R]):
    """Commits jobs in groups. `work(db, jobs)` runs inside a transaction and returns a result each.

    The file is created where it is missing. A job that cannot be stored fails alone; a disk that
    cannot be written fails all of the group.
    """

    def __init__(
        self,
        path: Path,
        schema: Sequence[str],
        work: Work[J, R],
        explain: Callable[[Path, Exception], TenetError] = explain,
        upgrade: Sequence[str] = (),
    ) -> None:
        self._path, self._work, self._explain = path, work, explain
        self._db = connect(path, schema, upgrade)
        self._lock = threading.Lock()
        self._open = True
        self._queue: queue.SimpleQueue[_Waiting[J] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"{path.name} writer", daemon=True)
        self._thread.start()

    async def commit(self, job: J) -> R:
        """Returns when the job is committed. A caller that is cancelled meanwhile loses nothing."""
        if not self._open:
            raise LedgerError(f"{self._path}: written to after it was closed")
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Any] = loop.create_future()
        self._queue.put((job, loop, waiter))
        return await waiter

    @contextlib.contextmanager
    def transaction(self) -> Generator[sqlite3.Connection]:
        """All or nothing; waits for the thread's own commit."""
        with self._lock:
            try:
                with atomic(self._db):
                    yield self._db
            except (sqlite3.Error, OverflowError, UnicodeError) as error:
                raise self._explain(self._path, error) from error

    def close(self) -> None:
        """Commits what is waiting and closes the connection. May be called twice."""
        if self._open:
            self._open = False
            self._queue.put(None)
            self._thread.join()
            self._db.close()

    def _run(self) -> None:
        while group := self._gather():
            self._commit(group)

    def _gather(self) -> list[_Waiting[J]]:
        first = self._queue.get()
        if first is None:
            return []
        time.sleep(LINGER_SECONDS)
        group = [first]
        with contextlib.suppress(queue.Empty):
            while len(group) < GROUP:
                following = self._queue.get_nowait()
                if following is None:
                    self._queue.put(None)  # the next round ends the thread, after this commit
                    break
                group.append(following)
        return group

    def _commit(self, group: list[_Waiting[J]]) -> None:
        try:
            with self.transaction() as db:
                results: list[Any] = self._work(db, [job for job, _, _ in group])
        except BaseException as error:  # whatever it is, a waiter must hear of it or hang forever
            if len(group) > 1 and not _concerns_all(error):
                for one in group:
                    self._commit([one])
                return
            results = [error] * len(group)
        _deliver(group, results)


_Waiting = tuple[J, asyncio.AbstractEventLoop, "asyncio.Future[Any]"]


def _concerns_all(error: BaseException) -> bool:
    """The disk or the file, not one job's content."""
    cause = error.__cause__
    return type(cause) in (sqlite3.OperationalError, sqlite3.DatabaseError)


def _deliver(group: Sequence[_Waiting[Any]], results: Sequence[Any]) -> None:
    """One wake-up per event loop, because each costs a system call."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for (_, loop, waiter), result in zip(group, results, strict=True):
        by_loop.setdefault(loop, []).append((waiter, result))
    for loop, pairs in by_loop.items():
        # A closed loop has nobody left to tell; what it wrote is committed all the same.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, pairs)


def _settle(pairs: Sequence[tuple[asyncio.Future[Any], Any]]) -> None:
    for waiter, result in pairs:
        if waiter.done():
            continue
        if isinstance(result, BaseException):
            waiter.set_exception(result)
        else:
            waiter.set_result(result)
