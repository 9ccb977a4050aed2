"""A SQLite file of ours: opened, made, told from a damaged one, and its rows checked by their checksums."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

from tenet.errors import LedgerError, TenetError

BUSY_SECONDS = 60.0
"""How long one process waits for another one's commit before it gives up."""
FORMAT = 2
"""What `user_version` says of a file; 1 had no checksums, and is brought up to 2 when it is opened."""


def explain(path: Path, error: Exception) -> TenetError:
    """What went wrong with the file, what stays, and what to do about it."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    # None of these has a code of its own, and only damage brings them about: all SQL and all JSON here are ours.
    said = str(error)
    garbled = isinstance(error, UnicodeDecodeError) or (
        isinstance(error, sqlite3.OperationalError)
        and said.startswith(("Could not decode", "malformed JSON", "no such ", "malformed database schema"))
    )
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
    if full or code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        why = (
            "the disk is full, over its quota, or failing; everything stored before stays: "
            "make room and run the same command again"
        )
    elif garbled or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return damaged(path, "a text in it cannot be read" if "decode" in said else said)
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


def damaged(path: Path, what: str) -> LedgerError:
    """A file that cannot be trusted, and the way on: it is never mended behind its owner's back."""
    return LedgerError(
        f"{path}: {what} (the file is damaged; move it and its -wal and -shm files away, or put back a copy, "
        "and run the same command again: what the file held is then made anew)"
    )


def connect(path: Path, schema: Sequence[str] = (), upgrade: Sequence[str] = ()) -> sqlite3.Connection:
    """Opens the file in WAL mode and creates it where it is missing. LedgerError if it cannot be used.

    `upgrade` brings a file of format 1 up to the schema. An empty file is refused: ours appear with
    their tables in them, so an empty one was cut off.

    synchronous=NORMAL: a commit is safe against the death of the process, kill -9 included. When
    the machine itself loses power, the commits of the last seconds may be undone; never half of
    one, and never the file. Those calls are then asked again.
    """
    db: sqlite3.Connection | None = None
    try:
        if schema and not path.exists():
            _create(path, schema)
        _check_size(path)
        db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        _check_format(db, path, upgrade)
        _enter_wal(db)
        db.execute("PRAGMA synchronous=NORMAL")
        # Keys are hashes, so every insert dirties some index page: four times SQLite's own
        # interval lets one checkpoint write a page once where it would be written again and again.
        db.execute("PRAGMA wal_autocheckpoint=4000")
        db.execute("PRAGMA journal_size_limit=67108864")
    except (sqlite3.Error, OSError, UnicodeDecodeError, LedgerError) as error:
        if db is not None:
            db.close()
        raise (error if isinstance(error, LedgerError) else explain(path, error)) from error
    return db


def _check_size(path: Path) -> None:
    """LedgerError if the file is cut off in the middle of a page, which SQLite would fill up with zeros."""
    if not path.exists() or path.with_name(f"{path.name}-wal").exists():
        return
    with path.open("rb") as file:
        page = int.from_bytes(file.read(18)[16:], "big")
    size = path.stat().st_size
    if not size:
        raise damaged(path, "the file is empty")
    if page >= 512 and size % page:
        raise damaged(path, f"the file is cut off after {size} bytes")


def _create(path: Path, schema: Sequence[str]) -> None:
    """The file appears whole or not at all, and never in place of one that another process made meanwhile."""
    new = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.new")
    try:
        with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as db:
            for statement in ("BEGIN", *schema, f"PRAGMA user_version={FORMAT}", "COMMIT"):
                db.execute(statement)
        with contextlib.suppress(FileExistsError):
            os.link(new, path)
    finally:
        new.unlink(missing_ok=True)


def _check_format(db: sqlite3.Connection, path: Path, upgrade: Sequence[str]) -> None:
    found = db.execute("PRAGMA user_version").fetchone()[0]
    if found == 1:
        db.create_function("checksum_of", -1, lambda *cells: checksum(cells), deterministic=True)
        with atomic(db):
            if db.execute("PRAGMA user_version").fetchone()[0] == 1:  # else another process was faster
                for statement in (*upgrade, f"PRAGMA user_version={FORMAT}"):
                    db.execute(statement)
    elif found != FORMAT:
        raise LedgerError(f"{path}: format {found}; this version of tenet reads {FORMAT} (move it away, or update)")


def checksum(cells: Iterable[object]) -> int:
    """The CRC-32 of a row's other cells. SQLite notices a broken page, but not a changed byte in a text."""
    return zlib.crc32(b"\0".join([b"\1" + c if type(c) is bytes else str(c).encode() for c in cells]))


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


def verified(path: Path, rows: Sequence[Any]) -> list[Any]:
    """The rows without their last cell, their checksum. LedgerError if one is wrong."""
    for row in rows:
        if row[-1] != checksum(row[:-1]):
            raise damaged(path, f"a row is not as it was written ({str(row[0])[:40]!r}, …)")
    return [row[:-1] for row in rows]


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
