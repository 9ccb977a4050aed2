"""A SQLite file that many coroutines write to: one thread gathers their writes, commits once."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from tenet.errors import LedgerError, TenetError

BUSY_SECONDS = 60.0
"""How long one process waits for another one's commit before it gives up."""
LINGER_SECONDS = 0.002
"""How long the first write of a group waits for company."""
GROUP = 512
"""Most writes in one commit."""
STEPS = (64, 16, 4, 1)
"""Rows per statement: a handful of sizes, so that every statement is found in its cache."""

J = TypeVar("J")
R = TypeVar("R")
Work = Callable[[sqlite3.Connection, list[J]], list[R]]


def explain(path: Path, error: Exception) -> TenetError:
    """What went wrong with the file, what stays, and what to do about it."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
    if full or code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        why = (
            "the disk is full, over its quota, or failing; everything stored before stays: "
            "make room and run the same command again"
        )
    elif code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        why = (
            "the file is damaged; move it and its -wal and -shm files away, or put back a copy, "
            "and run the same command again: what the file held is then made anew"
        )
    elif code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        why = f"another process held it for {BUSY_SECONDS:.0f} s; is one of them stopped?"
    elif isinstance(error, OSError) or code in (
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PERM,
    ):
        why = "the folder must exist on a local disk and be writable"
    else:
        why = "nothing was written; what was stored before stays"
    return LedgerError(f"{path}: {error} ({why})")


def connect(path: Path, schema: Sequence[str] = (), version: int = 1) -> sqlite3.Connection:
    """Opens the file in WAL mode and creates what is missing. LedgerError if it cannot be used.

    synchronous=NORMAL: a commit is safe against the death of the process, kill -9 included. When
    the machine itself loses power, the commits of the last seconds may be undone; never half of
    one, and never the file. Those calls are then asked again.
    """
    db: sqlite3.Connection | None = None
    try:
        db = sqlite3.connect(
            path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        _enter_wal(db)
        db.execute("PRAGMA synchronous=NORMAL")
        # Keys are hashes, so every insert dirties some index page: four times SQLite's own
        # interval lets one checkpoint write a page once where it would be written again and again.
        db.execute("PRAGMA wal_autocheckpoint=4000")
        db.execute("PRAGMA journal_size_limit=67108864")
        found = db.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, version):
            raise LedgerError(f"{path}: format {found}; this version of tenet reads {version}")
        if schema and not found:
            for statement in ("BEGIN IMMEDIATE", *schema, f"PRAGMA user_version={version}"):
                db.execute(statement)
            db.execute("COMMIT")
    except (sqlite3.Error, OSError, LedgerError) as error:
        if db is not None:
            db.close()
        raise (error if isinstance(error, LedgerError) else explain(path, error)) from error
    return db


def _enter_wal(db: sqlite3.Connection) -> None:
    """SQLite does not wait when two processes switch a new file to WAL at once, so wait here."""
    give_up = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
            time.sleep(0.01)


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

    def __init__(self, path: Path) -> None:
        self._path, self._db = path, connect(path)

    def all(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """Every row of the answer. LedgerError if the file cannot be read."""
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise explain(self._path, error) from error

    def close(self) -> None:
        self._db.close()


@contextlib.contextmanager
def atomic(db: sqlite3.Connection) -> Generator[None]:
    """One transaction: committed on leaving, or rolled back whatever went wrong."""
    try:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.rollback()
        raise


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
    ) -> None:
        self._path, self._work, self._explain = path, work, explain
        self._db = connect(path, schema)
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
