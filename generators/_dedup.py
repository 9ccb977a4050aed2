"""Finds exact and near duplicates; what was seen lies in temporary files, not in memory."""

from __future__ import annotations

import re
import sqlite3
from array import array
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from tenet.records import Prompt

if TYPE_CHECKING:
    import numpy as np

_PERMUTATIONS = 128
_SHINGLE = 3
_CANDIDATES = 200
# Scripts without spaces between words count every character as a word.
_CJK = "\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")


def _temporary(schema: str) -> sqlite3.Connection:
    # The empty name is a private file that SQLite deletes by itself, even when the process is
    # killed; its 16 MiB page cache is all the memory it takes.
    db = sqlite3.connect("", isolation_level=None)
    for setting in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-16384"):
        db.execute(f"PRAGMA {setting}")
    db.executescript(schema)
    db.execute("BEGIN")
    return db


class Seen:
    """Remembers keys, with the row where each was first seen and how often it came again."""

    def __init__(self) -> None:
        self._db = _temporary("CREATE TABLE seen (key BLOB PRIMARY KEY, row INT, copies INT) WITHOUT ROWID")

    def add(self, key: bytes, row: int) -> tuple[int, int]:
        """(the row that had this key first, how many rows had it before this one)."""
        return self._db.execute(
            "INSERT INTO seen VALUES (?, ?, 0)"
            " ON CONFLICT (key) DO UPDATE SET copies = copies + 1 RETURNING row, copies",
            (key, row),
        ).fetchone()


def bands(threshold: float, permutations: int = _PERMUTATIONS) -> tuple[int, int]:
    """(bands, rows per band): the longest bands that still find 98% of pairs at the threshold.

    A pair of likeness s shares a band of r rows with probability s^r, and at least one of b bands
    with 1 - (1 - s^r)^b (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4).
    """
    for r in range(permutations, 1, -1):
        b = permutations // r
        if 1 - (1 - threshold**r) ** b >= 0.98:
            return b, r
    return permutations, 1


class NearIndex:
    """Finds rows alike by Jaccard (0..1) of word triples: MinHash bands propose, sets decide."""

    def __init__(self, threshold: float, seed: int) -> None:
        import numpy
        from datasketch import MinHash

        self._hash32: Any = import_module("datasketch.hashfunc").sha1_hash32
        self._threshold = threshold
        self._bands, self._rows = bands(threshold)
        # One object for all rows: to draw its permutations costs more than to hash a prompt.
        self._minhash: Any = MinHash(num_perm=_PERMUTATIONS, seed=seed % 2**32, hashfunc=int)
        odd = numpy.random.default_rng(seed).integers(0, 2**63, self._rows, dtype=numpy.uint64)
        self._odd = odd * 2 + 1
        self._offsets = numpy.arange(self._bands, dtype=numpy.uint64) << numpy.uint64(56)
        self._db = _temporary(
            "CREATE TABLE bands (key INT, row INT, PRIMARY KEY (key, row)) WITHOUT ROWID;"
            "CREATE TABLE shingles (row INTEGER PRIMARY KEY, hashes BLOB)"
        )
        self._find = f"SELECT DISTINCT row FROM bands WHERE key IN ({','.join('?' * self._bands)}) LIMIT {_CANDIDATES}"

    def add(self, prompt: Prompt, row: int) -> int | None:
        """The earlier row that this one nearly repeats; else None, and it is remembered."""
        text = "\n".join(m.content for m in prompt.messages)
        hashes = _shingles(text, self._hash32)
        if not hashes:
            return None
        keys = self._keys(hashes)
        for (other,) in self._db.execute(self._find, keys).fetchall():
            if _likeness(hashes, self._hashes(other)) >= self._threshold:
                return other
        self._db.executemany("INSERT INTO bands VALUES (?, ?)", [(k, row) for k in keys])
        blob = array("I", sorted(hashes)).tobytes()
        self._db.execute("INSERT INTO shingles VALUES (?, ?)", (row, blob))
        return None

    def _keys(self, hashes: set[int]) -> list[int]:
        """One signed 64-bit key for each band of the MinHash signature."""
        self._minhash.clear()
        self._minhash.update_batch(sorted(hashes))
        values = cast("np.ndarray[Any, Any]", self._minhash.hashvalues)
        grid = values[: self._bands * self._rows].reshape(self._bands, self._rows)
        mixed = (grid.astype("uint64") * self._odd).sum(axis=1, dtype="uint64") ^ self._offsets
        return list(dict.fromkeys(mixed.view("int64").tolist()))

    def _hashes(self, row: int) -> set[int]:
        query = "SELECT hashes FROM shingles WHERE row = ?"
        return set(array("I", self._db.execute(query, (row,)).fetchone()[0]))


def _shingles(text: str, hash32: Callable[[bytes], int]) -> set[int]:
    """32-bit hashes of the text's word triples; case and punctuation do not count."""
    words = _WORD.findall(text.casefold())
    spans = range(max(1, len(words) - _SHINGLE + 1)) if words else ()
    return {hash32(" ".join(words[i : i + _SHINGLE]).encode()) for i in spans}


def _likeness(a: set[int], b: set[int]) -> float:
    return len(a & b) / len(a | b)
