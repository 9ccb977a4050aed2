"""Tables of plain rows from JSONL, JSON, CSV or Parquet, for the readers of pairs and votes."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any, cast

from judges import _annotated
from tenet import files
from tenet.errors import DataError
from tenet.files import Malformed, kind_of

_TEXTS = ("prompt", "a", "b", "chosen", "rejected")
"""Columns whose empty fields are empty texts."""
_GROUPS = ("labels.", "slices.")
"""What columns begin with that stand for an object's fields."""
csv.field_size_limit(1 << 27)


class Table:
    """A file's rows, and how errors name them; the file's name says what is inside."""

    def __init__(self, path: str) -> None:
        self.path, self._file = path, Path(path)
        files.check_exists(path, self._file, "JSONL, CSV or Parquet")
        suffixes = [s.lower() for s in self._file.suffixes if s.lower() != ".gz"]
        self._suffix = suffixes[-1] if suffixes else ""
        self.is_text = self._suffix in (".csv", ".tsv")
        """Whether all values come as text."""
        self.word = "line" if self._suffix not in (".parquet", ".pq", ".json") else "row"

    def place(self, number: int) -> str:
        return f"{self.path}, {self.word} {number}"

    def rows(self, what: str, example: str) -> files.Rows:
        """(number, raw row) of every row; DataError if the file is damaged or holds none."""
        number = 0
        for number, row in self._rows():
            yield number, row
        if not number:
            raise DataError(f"holds no {what}", where=self.path, fix=example)

    def _rows(self) -> files.Rows:
        if self._suffix in (".parquet", ".pq"):
            return files.parquet(self.path, self._file, lambda names: names)
        if self._suffix in (".csv", ".tsv"):
            return self._csv("\t" if self._suffix == ".tsv" else ",")
        if self._suffix == ".json":
            return self._json()
        return files.lines(self.path, self._file)

    def decode(self, value: Any, example: str) -> dict[str, Any]:
        """A raw row as an object; Malformed if it is none. In CSV, empty fields are left out."""
        if isinstance(value, bytes):
            return files.json_object(value)
        if isinstance(value, _annotated.Raw):
            return _annotated.row(value)
        if not isinstance(value, dict):
            raise Malformed("not an object", f"is {kind_of(value)}, not an object", example)
        return cast(dict[str, Any], value)

    def _csv(self, delimiter: str) -> files.Rows:
        try:
            text = files.text_of(files.read_bytes(self.path, self._file))
            reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
            _check_header(list(reader.fieldnames or ()))
            for row in reader:
                if None in row or None in row.values():
                    what = "has more or fewer fields than the header"
                    raise DataError(what, where=self.place(reader.line_num), fix="put texts with commas in quotes")
                yield reader.line_num, _nested({k: v for k, v in row.items() if v or k in _TEXTS})
        except Malformed as stop:
            raise stop.at(self.path) from None
        except csv.Error as e:
            raise DataError(f"is not CSV: {e}", where=self.path, fix="put texts in double quotes") from None

    def _json(self) -> files.Rows:
        """A list of rows, annotated pairs, or after all one object a line."""
        raw = files.read_bytes(self.path, self._file)
        try:
            document = json.loads(files.text_of(raw))
        except (ValueError, RecursionError):
            self.word = "line"
            return files.lines(self.path, self._file)
        except Malformed as stop:
            raise stop.at(self.path) from None
        if isinstance(document, list):
            return iter(enumerate(cast(list[Any], document), 1))
        whole = cast(dict[str, Any], document) if isinstance(document, dict) else {}
        if not _annotated.is_annotated(whole):
            return iter([(1, cast(Any, document))])
        try:
            return iter(list(_annotated.rows(whole)))
        except Malformed as stop:
            raise stop.at(self.path) from None


def _check_header(names: list[str]) -> None:
    """Malformed if a column would hide another."""
    groups = {name.partition(".")[0] for name in names if name.startswith(_GROUPS)}
    for name in names:
        if names.count(name) > 1:
            raise Malformed("two columns", f"the header names {name!r} twice", "give each column its own name")
        if name in groups:
            raise Malformed("two columns", f"there are both {name!r} and {name}.NAME", f"keep the {name}.NAME columns")


def _nested(row: dict[str, Any]) -> dict[str, Any]:
    """Columns `labels.NAME` and `slices.NAME` as objects."""
    made: dict[str, Any] = {}
    for key, value in row.items():
        group, dot, name = key.partition(".")
        if dot and group in ("labels", "slices"):
            made.setdefault(group, {})[name] = value
        else:
            made[key] = value
    return made
