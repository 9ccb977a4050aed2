"""The ledger's files: made whole, brought up from an older format, refused when cut, and what goes wrong is said."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tenet.errors import AccountingError, LedgerError, RunFolderError
from tenet.ledger import Calls, Rows, StoredReply, explain
from tenet.records import Usage, canonical

KEYS = [f"{n * 7919:032x}" for n in range(120)]


def fill(folder: Path) -> None:
    """A run of 60 prompts and a workspace of 120 replies."""

    async def work() -> None:
        with Rows(folder) as rows:
            rows.set_meta("identity", canonical({"a": 1}))
            ends = ("outcome", canonical({"preferences": 1, "retry": False}))
            for n in range(60):
                await rows.put(n, f"p{n}", [("prompt", canonical({"text": "Why " * 20, "n": n})), ends])
        with Calls(folder / "calls.sqlite") as calls:
            said = {k: StoredReply(f"said {k} " + "x" * 99, "stop", (-0.5,), Usage(calls=1)) for k in KEYS}
            await calls.put_many(said, "r", "m")

    asyncio.run(work())


def read(folder: Path) -> tuple[dict[Any, Any], dict[str, StoredReply], Any]:
    """All that a resumed run takes from its files."""
    with Rows(folder) as rows, Calls(folder / "calls.sqlite") as calls:
        rows.reopen()
        held = {r[:2]: r for r in rows.iterate()} | {"identity": rows.meta("identity")}
        return held, asyncio.run(calls.get_many(KEYS)), calls.usage("r")


def test_a_ledger_of_the_format_before_checksums_is_read_and_brought_up(tmp_path: Path) -> None:
    fill(tmp_path / "run")
    good = read(tmp_path / "run")
    for name, tables in (("rows.sqlite", ("rows", "meta")), ("calls.sqlite", ("calls", "payers"))):
        db = sqlite3.connect(tmp_path / "run" / name, isolation_level=None)
        for table in tables:
            db.execute(f"ALTER TABLE {table} DROP COLUMN checksum")
        db.execute("DROP TABLE IF EXISTS served")
        db.execute("PRAGMA user_version=1")
        db.close()
    assert read(tmp_path / "run") == good
    damage_text = (tmp_path / "run/rows.sqlite").read_bytes().replace(b"Why Why", b"Who Why", 1)
    (tmp_path / "run/rows.sqlite").write_bytes(damage_text)
    with pytest.raises(LedgerError, match="not as it was written"):
        read(tmp_path / "run")


def sqlite_error(kind: type[sqlite3.Error], said: str, code: int = 0) -> sqlite3.Error:
    """As SQLite raises it: of the code's extended kinds, the first."""
    error = kind(said)
    if code:
        error.sqlite_errorcode = code | 1 << 8
    return error


OPERATIONAL, DATABASE = sqlite3.OperationalError, sqlite3.DatabaseError
FULL, DAMAGED = "the disk is full, over its quota, or failing", "the file is damaged; move it"
GARBLED = f"a text in it cannot be read ({DAMAGED}"
BUSY, FOLDER = "another process held it for 60 s", "the folder must exist on a local disk and be writable"
NOTHING = "nothing was written; what was stored before stays"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), FULL),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), FULL),
        (OSError(errno.EFBIG, "File too large"), FULL),
        (OSError(errno.EIO, "Input/output error"), FULL),
        (OSError(errno.EACCES, "Permission denied"), FOLDER),
        (sqlite_error(OPERATIONAL, "database or disk is full", sqlite3.SQLITE_FULL), FULL),
        (sqlite_error(OPERATIONAL, "disk I/O error", sqlite3.SQLITE_IOERR), FULL),
        (sqlite_error(OPERATIONAL, "database is locked", sqlite3.SQLITE_BUSY), BUSY),
        (sqlite_error(OPERATIONAL, "database table is locked", sqlite3.SQLITE_LOCKED), BUSY),
        (sqlite_error(OPERATIONAL, "unable to open database file", sqlite3.SQLITE_CANTOPEN), FOLDER),
        (sqlite_error(OPERATIONAL, "attempt to write a readonly database", sqlite3.SQLITE_READONLY), FOLDER),
        (sqlite_error(OPERATIONAL, "access permission denied", sqlite3.SQLITE_PERM), FOLDER),
        (sqlite_error(DATABASE, "database disk image is malformed", sqlite3.SQLITE_CORRUPT), DAMAGED),
        (sqlite_error(DATABASE, "file is not a database", sqlite3.SQLITE_NOTADB), DAMAGED),
        (sqlite_error(OPERATIONAL, "no such table: rows"), DAMAGED),
        (sqlite_error(OPERATIONAL, "malformed JSON"), DAMAGED),
        (sqlite_error(OPERATIONAL, "malformed database schema (rows)"), DAMAGED),
        (sqlite_error(OPERATIONAL, "Could not decode to UTF-8 column 'text'"), GARBLED),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), GARBLED),
        (sqlite_error(OPERATIONAL, "interrupted"), NOTHING),
        (sqlite_error(sqlite3.IntegrityError, "no such luck"), NOTHING),
        (sqlite_error(OPERATIONAL, "no such table: rows, says a full disk", sqlite3.SQLITE_FULL), FULL),
    ],
)
def test_each_error_is_said_with_what_stays_and_the_way_on(error: Exception, says: str) -> None:
    told = explain(Path("ws/calls.sqlite"), error)
    assert isinstance(told, LedgerError)
    assert str(told).startswith("ws/calls.sqlite: ")
    assert says in str(told)
    others = {FULL, DAMAGED, BUSY, FOLDER, NOTHING} - {says, DAMAGED if DAMAGED in says else ""}
    assert not any(other in str(told) for other in others)


@pytest.mark.parametrize("name", ["rows.sqlite", "calls.sqlite"])
def test_a_file_appears_whole_and_alone(tmp_path: Path, name: str) -> None:
    fill(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["calls.sqlite", "rows.sqlite", "run.lock"]
    db = sqlite3.connect(tmp_path / name)
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert db.execute("PRAGMA user_version").fetchone() == (2,)
    db.close()


@pytest.mark.parametrize("name", ["rows.sqlite", "calls.sqlite"])
@pytest.mark.parametrize(("kept", "says"), [(0, "the file is empty"), (9000, "cut off after 9000 bytes"), (8192, "")])
def test_a_file_that_was_cut_is_refused_as_it_is(tmp_path: Path, name: str, kept: int, says: str) -> None:
    fill(tmp_path)
    cut = (tmp_path / name).read_bytes()[:kept]
    (tmp_path / name).write_bytes(cut)
    with pytest.raises(LedgerError, match=f"{name}: .*{says}.*the file is damaged; move it"):
        read(tmp_path)
    if says:
        assert (tmp_path / name).read_bytes() == cut


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    fill(tmp_path)
    db = sqlite3.connect(tmp_path / "rows.sqlite", isolation_level=None)
    db.execute("PRAGMA user_version=3")
    db.close()
    with pytest.raises(LedgerError, match=r"rows\.sqlite: format 3; this version of tenet reads 2"):
        Rows(tmp_path)


def test_an_engine_is_served_by_the_model_that_was_first_heard_of(tmp_path: Path) -> None:
    fill(tmp_path)
    with Calls(tmp_path / "calls.sqlite") as calls:
        assert calls.served("print", "model-1") == "model-1"
        assert calls.served("print", "model-2") == "model-1"
        assert calls.served("print") == "model-1"
        assert calls.served("another") == ""
        assert calls.counts() == {"r": 120}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("rows.sqlite", "UPDATE rows SET stage = 'kept' WHERE ordinal = 7"),
        ("rows.sqlite", "UPDATE meta SET value = '{}'"),
        ("calls.sqlite", "UPDATE calls SET text = 'x' WHERE rowid = 9"),
        ("calls.sqlite", "UPDATE payers SET calls = 7"),
        ("calls.sqlite", "INSERT INTO served VALUES ('print', 'model', 7)"),
    ],
)
def test_a_changed_cell_is_named_whichever_table_it_is_in(tmp_path: Path, name: str, change: str) -> None:
    def everything() -> None:
        read(tmp_path)
        with Calls(tmp_path / "calls.sqlite") as calls:
            calls.served("print")

    fill(tmp_path)
    everything()
    db = sqlite3.connect(tmp_path / name)
    db.execute(change)
    db.commit()
    db.close()
    with pytest.raises(LedgerError, match=f"{name}: a row is not as it was written"):
        everything()


def test_nothing_is_paid_on_top_of_a_bill_that_was_changed(tmp_path: Path) -> None:
    fill(tmp_path)
    db = sqlite3.connect(tmp_path / "calls.sqlite")
    db.execute("UPDATE payers SET prompt_tokens = 7")
    db.commit()
    db.close()
    more = {f"{1:032x}": StoredReply("new", "length", (), Usage(calls=1))}
    with Calls(tmp_path / "calls.sqlite") as calls:
        with pytest.raises(LedgerError, match="not as it was written"):
            asyncio.run(calls.put_many(more, "r", "m"))
        asyncio.run(calls.put_many(more, "another", "m"))
        assert calls.usage("another") == {"m": Usage(calls=1)}


def test_every_kind_of_token_is_added_up_and_a_call_that_is_not_told_counts_as_one(tmp_path: Path) -> None:
    costs = [
        Usage(calls=2, prompt_tokens=30, completion_tokens=8, cached_tokens=16),
        Usage(calls=3, prompt_tokens=500, completion_tokens=70, cached_tokens=9),
        Usage(calls=0, prompt_tokens=1, completion_tokens=1, cached_tokens=1),
    ]
    with Calls(tmp_path / "calls.sqlite") as calls:
        for n, cost in enumerate(costs):
            one = StoredReply("x", "stop", (), cost)
            assert asyncio.run(calls.put_many({f"{n:032x}": one}, "r", "m")) == {f"{n:032x}": one}
        asyncio.run(calls.put_many({f"{9:032x}": StoredReply("x", "stop", (), costs[0])}, "r", "n"))
        paid = {"m": Usage(calls=6, prompt_tokens=531, completion_tokens=79, cached_tokens=26), "n": costs[0]}
        assert calls.usage("r") == paid


def test_a_walk_that_says_retry_is_forgotten_whole(tmp_path: Path) -> None:
    async def work() -> None:
        with Rows(tmp_path) as rows:
            for n in range(6):
                end = ("outcome", canonical({"retry": n % 2 == 1}))
                await rows.put(n, f"p{n}", [("prompt", canonical(n)), end])
            assert rows.done(3) == "p3"
            assert rows.reopen() == 3
            assert [rows.done(n) for n in range(6)] == ["p0", None, "p2", None, "p4", None]
            assert [r.ordinal for r in rows.iterate()] == [0, 0, 2, 2, 4, 4]
            assert rows.reopen() == 0
            await rows.put(3, "again", [("prompt", "3")])
            assert rows.done(3) == "again"

    asyncio.run(work())


def test_who_opens_to_read_changes_nothing_and_is_never_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no run here"):
        Rows(tmp_path / "none", readonly=True)
    assert not (tmp_path / "none").exists()
    fill(tmp_path)
    with Rows(tmp_path) as writer, Rows(tmp_path, readonly=True) as reader:
        assert sum(1 for _ in reader.iterate("outcome")) == 60
        for change in (lambda: reader.set_meta("a", "b"), reader.reopen):
            with pytest.raises(LedgerError, match=r"rows\.sqlite: opened for reading only"):
                change()
        writer.set_meta("a", "b")
        assert reader.meta("a") == "b"


def test_a_lock_that_its_holder_has_not_signed_yet_is_respected(tmp_path: Path) -> None:
    with (tmp_path / "run.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(RunFolderError, match="in use by process unknown"):
            Rows(tmp_path)


def test_a_commit_of_another_is_waited_for(tmp_path: Path) -> None:
    fill(tmp_path)
    other = sqlite3.connect(tmp_path / "calls.sqlite", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    threading.Timer(0.5, lambda: other.execute("ROLLBACK")).start()
    began = time.monotonic()
    with Calls(tmp_path / "calls.sqlite") as calls:
        asyncio.run(calls.put_many({f"{1:032x}": StoredReply("x", "stop", (), Usage())}, "r", "m"))
    assert time.monotonic() - began > 0.4
    other.close()


def test_a_job_that_cannot_be_stored_leaves_its_neighbours_and_is_told(tmp_path: Path) -> None:
    async def work() -> list[Any]:
        with Rows(tmp_path) as rows:
            puts = [rows.put(n % 5, f"p{n}", [("prompt", str(n))]) for n in range(9)]
            told = await asyncio.gather(*puts, return_exceptions=True)
            assert [(r.ordinal, r.record) for r in rows.iterate()] == [(n, str(n)) for n in range(5)]
            return told

    told = asyncio.run(work())
    assert told[:5] == [None] * 5
    assert [type(t) for t in told[5:]] == [AccountingError] * 4
    assert all("a prompt's outcome is stored already" in str(t) for t in told[5:])


def test_a_caller_that_gives_up_loses_no_write(tmp_path: Path) -> None:
    async def work() -> None:
        rows = Rows(tmp_path)
        put = asyncio.create_task(rows.put(0, "p0", [("prompt", "0")]))
        kept = asyncio.create_task(rows.put(1, "p1", [("prompt", "1")]))
        await asyncio.sleep(0)
        put.cancel()
        await kept
        rows.close()

    asyncio.run(work())
    with Rows(tmp_path, readonly=True) as rows:
        assert [r.ordinal for r in rows.iterate()] == [0, 1]
