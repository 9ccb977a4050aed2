"""What became of every prompt of one run: its chain of records, in a file of the run's own."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from tenet.errors import AccountingError, LedgerError, RunFolderError, TenetError
from tenet.ledger._file import checksum, explain
from tenet.ledger._lock import FolderLock, make_folder
from tenet.ledger._sqlite import Reader, Writer, insert

DROPPED = "dropped"
"""The stage whose records are `Dropped`: `Rows.counts` sorts them by their stage and reason."""

_SCHEMA = (
    "CREATE TABLE rows(ordinal INTEGER NOT NULL, seq INTEGER NOT NULL, prompt_id TEXT NOT NULL, "
    "stage TEXT NOT NULL, record TEXT NOT NULL, checksum INTEGER, UNIQUE(ordinal, seq))",
    "CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum INTEGER)",
)
_UPGRADE = (
    "ALTER TABLE rows ADD COLUMN checksum INTEGER",
    "UPDATE rows SET checksum = checksum_of(ordinal, seq, prompt_id, stage, record)",
    "ALTER TABLE meta ADD COLUMN checksum INTEGER",
    "UPDATE meta SET checksum = checksum_of(key, value)",
)
_WINDOW = 4096
"""Ordinals that `done` reads at once."""


class Row(NamedTuple):
    """One record of one prompt's chain; `record` is its canonical JSON."""

    ordinal: int
    seq: int
    prompt_id: str
    stage: str
    record: str


class Counts(NamedTuple):
    """What a run holds."""

    prompts: int
    stages: dict[str, int]
    """Records by stage."""
    drops: dict[str, dict[str, int]]
    """Dropped records by the stage that dropped them, then by reason."""


class Rows:
    """What became of every prompt of one run, by the prompt's ordinal: in its own file, one writer.

    Nothing in a row depends on time or batching: two runs that did the same compare to the byte.
    """

    def __init__(self, folder: Path, *, readonly: bool = False) -> None:
        """RunFolderError if another process writes this run, or there is nothing to read."""
        self._path = folder / "rows.sqlite"
        self._lock: FolderLock | None = None
        self._writer: Writer[_Chain, None] | None = None
        if readonly and not self._path.is_file():
            raise RunFolderError("no run here", where=str(folder), fix="a folder with rows.sqlite")
        if not readonly:
            make_folder(folder)
            self._lock = FolderLock(folder)
        try:
            if not readonly:
                self._writer = Writer(self._path, _SCHEMA, _write, _explain_row, _UPGRADE)
            self._reader = Reader(self._path, _UPGRADE)
        except TenetError:
            self._release()
            raise
        self._window_at = -1
        self._window: dict[int, str] = {}

    async def put(self, ordinal: int, prompt_id: str, records: Sequence[tuple[str, str]]) -> None:
        """Commits a prompt's whole chain, (stage, canonical JSON) each: all of it or nothing.

        AccountingError if there is no record, or the ordinal has its outcome already. LedgerError.
        """
        if not records:
            raise AccountingError(f"prompt {ordinal} ({prompt_id}) ends without a record")
        chain = [(ordinal, seq, prompt_id, stage, _utf8(record)) for seq, (stage, record) in enumerate(records)]
        await self._writing.commit(chain)
        if ordinal // _WINDOW == self._window_at:
            self._window[ordinal] = prompt_id

    def done(self, ordinal: int) -> str | None:
        """The id of the prompt whose outcome is stored, or None. Fast when asked in rising order.

        The caller compares the id with its own prompt's: a prompts file that was edited between two
        starts of a run gives its ordinals to other prompts.
        """
        if ordinal // _WINDOW != self._window_at:
            at = ordinal // _WINDOW
            query = "SELECT ordinal, prompt_id FROM rows WHERE ordinal BETWEEN ? AND ? AND seq = 0"
            self._window = dict(self._reader.all(query, (at * _WINDOW, at * _WINDOW + _WINDOW - 1)))
            self._window_at = at
        return self._window.get(ordinal)

    def iterate(self, stage: str | None = None) -> Iterator[Row]:
        """All rows, or those of a stage, by ordinal and place in the chain; memory stays flat.

        Reads in pages: one long read would keep SQLite from ever emptying the write-ahead log.
        """
        where, values = ("AND stage = ? ", (stage,)) if stage is not None else ("", ())
        query = (
            "SELECT ordinal, seq, prompt_id, stage, record, checksum FROM rows "
            f"WHERE (ordinal, seq) > (?, ?) {where}ORDER BY ordinal, seq LIMIT 1000"
        )
        last = (-1, -1)
        while page := self._reader.checked(query, (*last, *values)):
            yield from map(Row._make, page)
            last = page[-1][:2]

    def counts(self) -> Counts:
        """Counted from the rows themselves, so that they can prove a run's own tally wrong."""
        stages = dict(self._reader.all("SELECT stage, count(*) FROM rows GROUP BY stage ORDER BY stage"))
        drops: dict[str, dict[str, int]] = {}
        for stage, reason, n in self._reader.all(
            "SELECT json_extract(record, '$.stage') AS s, json_extract(record, '$.reason') AS r, "
            "count(*) FROM rows WHERE stage = ? GROUP BY s, r ORDER BY s, r",
            (DROPPED,),
        ):
            drops.setdefault(stage, {})[reason] = n
        prompts = self._reader.all("SELECT count(*) FROM rows WHERE seq = 0")[0][0]
        return Counts(prompts, stages, drops)

    def reopen(self) -> int:
        """Forgets the chains whose outcome says `retry`, so that they are walked again; how many."""
        with self._writing.transaction() as db:
            again = "SELECT ordinal FROM rows WHERE stage = 'outcome' AND json_extract(record, '$.retry')"
            found = db.execute(f"SELECT count(*) FROM ({again})").fetchone()[0]  # nosec B608 # the words are ours
            if found:
                db.execute(f"DELETE FROM rows WHERE ordinal IN ({again})")  # nosec B608 # the words are ours
        self._window_at = -1
        return found

    def meta(self, key: str) -> str | None:
        """A fact about the run, such as its recipe's hash."""
        found = self._reader.checked("SELECT key, value, checksum FROM meta WHERE key = ?", (key,))
        return found[0][1] if found else None

    def set_meta(self, key: str, value: str) -> None:
        """Committed on return; replaces what was there. LedgerError."""
        with self._writing.transaction() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (key, value, checksum((key, value))))

    def close(self) -> None:
        """Commits what is waiting, then lets another process write. May be called twice."""
        self._reader.close()
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _release(self) -> None:
        for held in (self._writer, self._lock):  # the lock last: nobody may write beside us
            if held is not None:
                held.close()

    @property
    def _writing(self) -> Writer[_Chain, None]:
        if self._writer is None:
            raise LedgerError(f"{self._path}: opened for reading only")
        return self._writer


_Chain = list[tuple[int, int, str, str, str]]


def _utf8(record: str) -> str:
    """The same JSON in valid Unicode: half of an emoji becomes its JSON escape."""
    try:
        record.encode()
    except UnicodeEncodeError:
        return record.encode("utf-8", "backslashreplace").decode()
    return record


def _write(db: sqlite3.Connection, jobs: list[_Chain]) -> list[None]:
    insert(db, "INSERT INTO rows", [(*row, checksum(row)) for chain in jobs for row in chain])
    return [None] * len(jobs)


def _explain_row(path: Path, error: Exception) -> TenetError:
    if isinstance(error, sqlite3.IntegrityError):
        return AccountingError(f"{path}: a prompt's outcome is stored already ({error})")
    return explain(path, error)
