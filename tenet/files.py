"""Reads files of rows: lines (gzip too), JSON objects, Parquet; errors name the file and the line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import IO, Any, cast

from tenet.errors import DataError

Rows = Iterator[tuple[int, Any]]

_GZIP = b"\x1f\x8b"
_BATCH = 1000


class Malformed(Exception):
    """What is wrong with a row, before anyone knows where it stands: (reason, what, fix)."""

    def __init__(self, reason: str, what: str, fix: str) -> None:
        self.reason, self.what, self.fix = reason, what, fix
        super().__init__(reason, what, fix)

    def at(self, where: str) -> DataError:
        """The error that refuses the file."""
        return DataError(self.what, where=where, fix=self.fix)


def check_exists(path: str, file: Path, kind: str) -> None:
    """DataError unless the file is there and holds something."""
    try:
        is_folder, is_there = file.is_dir(), file.exists()
    except OSError as e:  # too long a name, or a folder that may not be entered
        raise damaged(e, path) from None
    if is_folder:
        raise DataError("is a folder", where=path, fix=f"name a {kind} file")
    if not is_there:
        raise DataError("no such file", where=path, fix="check the path")
    if not file.stat().st_size:
        raise DataError("is empty", where=path, fix="name a file with at least one row")


def open_bytes(file: Path) -> IO[bytes]:
    """The file's bytes, unpacked if it is gzip; raises OSError, EOFError or zlib.error, see `damaged`."""
    with file.open("rb") as f:
        zipped = f.read(2) == _GZIP
    if file.suffix == ".gz" and not zipped:
        raise gzip.BadGzipFile("the file is not gzip, whatever its name says")
    return cast(IO[bytes], gzip.open(file, "rb")) if zipped else file.open("rb")


def damaged(e: Exception, where: str) -> DataError:
    """The error for what `open_bytes` and its readers raise."""
    if isinstance(e, OSError) and e.strerror:
        return DataError(f"cannot be read: {e.strerror}", where=where)
    what = f"the gzip is damaged or cut off: {e}"
    return DataError(what, where=where, fix="copy or download the file again")


def read_bytes(path: str, file: Path) -> bytes:
    """The whole file, unpacked; DataError if it cannot be read."""
    try:
        with open_bytes(file) as f:
            return f.read()
    except (OSError, EOFError, zlib.error) as e:
        raise damaged(e, path) from None


def lines(path: str, file: Path) -> Rows:
    """(line number from 1, bytes) of every line that is not blank; DataError if the file is damaged."""
    number = 0
    try:
        with open_bytes(file) as f:
            for number, line in enumerate(f, 1):
                if not line.isspace():
                    yield number, line
    except (OSError, EOFError, zlib.error) as e:
        raise damaged(e, f"{path}, after line {number}") from None


def parquet(path: str, file: Path, choose: Callable[[list[str]], list[str]]) -> Rows:
    """(row number from 1, {column: value}) with the columns that `choose` picks from all names."""
    pq: Any = import_module("pyarrow.parquet")
    pa: Any = import_module("pyarrow")
    number = 0
    try:
        with pq.ParquetFile(file) as table:
            wanted = choose(list(table.schema_arrow.names))
            for batch in table.iter_batches(batch_size=_BATCH, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    # Beside its own errors: a text that is not UTF-8, a date beyond the year 9999, an unknown time zone.
    except (pa.ArrowException, OSError, ValueError, ArithmeticError, LookupError) as e:
        what = f"is not a whole Parquet file: {(str(e).splitlines() or [type(e).__name__])[0][:200]}"
        raise DataError(what, where=f"{path}, after row {number}", fix="write it again") from None


def text_of(raw: bytes) -> str:
    """UTF-8 text without a byte-order mark; Malformed if it is something else."""
    try:
        return str(raw, "utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as e:
        what = f"byte 0x{raw[e.start]:02x} is not UTF-8"
        raise Malformed("not UTF-8", what, "save the file as UTF-8") from None


def check_unicode(text: str, name: str) -> None:
    """Malformed if the text, which `name` stands for, cannot be written as UTF-8."""
    # A lone surrogate would pass here and break the first export, call or report that encodes it.
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            fix = "take out the lone surrogate"
            raise Malformed("not Unicode", f"{name} is not valid Unicode", fix) from None


def json_object(line: bytes) -> dict[str, Any]:
    """The JSON object of a line; Malformed if it is none."""
    text = text_of(line)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        start = repr(line[:40].decode("utf-8", "replace"))
        what = f"is not JSON: {getattr(e, 'msg', e)}; it begins with {start}"
        raise Malformed("not JSON", what, "one JSON object a line") from None
    if not isinstance(value, dict):
        what = f"is a JSON {type(value).__name__}, not an object"
        raise Malformed("not JSON", what, 'one JSON object a line, such as {"prompt": "…"}')
    return cast(dict[str, Any], value)


def kind_of(value: Any) -> str:
    """What a value is, in an error's words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    if value is None:
        return "missing or null"
    number = repr(value)
    return names.get(value.__class__, f"a number ({number if len(number) <= 40 else number[:39] + '…'})")
