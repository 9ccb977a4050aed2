"""Opens a source of rows: text, JSONL (gzip too), Parquet, or a `datasets` dataset, streaming."""

from __future__ import annotations

import hashlib
import zlib
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from tenet import files
from tenet.errors import DataError
from tenet.files import Rows
from tenet.records import Frozen
from tenet.settings import closest

if TYPE_CHECKING:
    from generators.prompts import Settings

Container = Literal["jsonl", "parquet", "dataset", "text"]

_SUFFIXES: dict[str, Container] = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".txt", ".text"), "text"),
    **dict.fromkeys((".csv", ".tsv", ".arrow"), "dataset"),
}
_BUILDERS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".arrow": "arrow",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_BATCH = 1000


class Source(Frozen):
    """A source that was read."""

    path: str
    kind: Literal["jsonl", "parquet", "dataset", "text", "hh"]
    container: Container
    rows: int = 0
    bytes: int = 0
    """Size of the file; 0 for a dataset, or where only the first rows were read."""
    hash: str = ""
    """BLAKE2b of the file's bytes; empty where `bytes` is 0."""

    def place(self, number: int) -> str:
        """How an error names a row: lines count from 1, and so do rows."""
        word = "line" if self.container in ("jsonl", "text") else "row"
        return f"{self.path}, {word} {number}"


def open_source(path: str, settings: Settings) -> tuple[Source, Rows]:
    """The source, and its (number from 1, value) rows; DataError if it cannot be read at all."""
    file = Path(path)
    container = _container(path, file, settings.kind)
    kind = "hh" if settings.kind == "hh" else container
    if settings.kind == "hh" and container == "text":
        fix = 'put each dialogue into a JSON line: {"chosen": "\\n\\nHuman: …"}'
        raise DataError("a text file cannot hold hh dialogues", where=path, fix=fix)
    source = Source(path=path, kind=kind, container=container)
    if container == "dataset":
        return source, _dataset(path, file, settings)
    files.check_exists(path, file, container)
    if container == "parquet":
        return source, files.parquet(path, file, lambda names: settings.columns.among(names, path))
    lines = files.lines(path, file)
    return source, lines if container == "jsonl" else _text(path, lines, settings.paragraphs)


def _container(path: str, file: Path, kind: str) -> Container:
    if kind not in ("auto", "hh"):
        return cast(Container, kind)
    try:
        is_folder, is_there = file.is_dir(), file.exists()
    except OSError as e:
        raise files.damaged(e, path) from None
    if is_folder:
        return "dataset"
    suffixes = [s.lower() for s in file.suffixes if s.lower() != ".gz"]
    if suffixes and suffixes[-1] in _SUFFIXES:
        return _SUFFIXES[suffixes[-1]]
    if not is_there:
        near = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
        fix = closest(file.name, near) if near and len(near) < 50 else "check the path"
        fix += "; for a dataset's name on a hub say kind: dataset"
        raise DataError("no such file", where=path, fix=fix)
    try:
        with files.open_bytes(file) as f:
            start = f.read(4096).lstrip()
    except (OSError, EOFError, zlib.error) as e:
        raise files.damaged(e, path) from None
    if start.startswith(b"PAR1"):
        return "parquet"
    if start.startswith(b"{"):
        return "jsonl"
    raise DataError(
        "cannot tell what kind of file this is",
        where=path,
        fix="say kind: jsonl, parquet, dataset, text or hh",
    )


def fingerprint(source: Source) -> Source:
    """The source with its file's size and hash; a dataset stays as it is."""
    if source.container == "dataset":
        return source
    with open(source.path, "rb") as f:
        hash = hashlib.file_digest(f, lambda: hashlib.blake2b(digest_size=10)).hexdigest()
        return source.model_copy(update={"bytes": f.tell(), "hash": hash})


def _text(path: str, lines: Rows, paragraphs: bool) -> Rows:
    """(line number, text): every line, or every run of lines with no blank line between."""
    block: list[str] = []
    first = last = 0
    for number, line in lines:
        try:
            text = str(line, "utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as e:
            what = f"byte 0x{line[e.start]:02x} is not UTF-8"
            where = f"{path}, line {number}"
            raise DataError(what, where=where, fix="save the file as UTF-8") from None
        if block and (not paragraphs or number != last + 1):
            yield first, "\n".join(block)
            block = []
        first = first if block else number
        block.append(text)
        last = number
    if block:
        yield first, "\n".join(block)


def _dataset(path: str, file: Path, settings: Settings) -> Rows:
    data = _split(_load(path, file, settings), path, settings)
    names = data.column_names or list(data.features or ())
    if names:
        data = data.select_columns(settings.columns.among(names, path))
    number = 0
    try:
        for batch in data.iter(batch_size=_BATCH):
            if not names:  # a streamed CSV tells its columns only with its rows
                names = settings.columns.among(batch, path)
            for values in zip(*batch.values(), strict=True):
                number += 1
                yield number, dict(zip(batch, values, strict=True))
    except DataError:
        raise
    except Exception as e:  # datasets raises whatever its readers raise
        raise _unreadable(e, f"{path}, after row {number}") from None


def _load(path: str, file: Path, settings: Settings) -> Any:
    """A dataset or its splits; files and hub names are streamed, saved datasets memory-mapped."""
    datasets: Any = import_module("datasets")
    try:
        if (file / "dataset_dict.json").exists() or (file / "state.json").exists():
            return datasets.load_from_disk(path)
        if file.is_file():
            builder = _BUILDERS.get(file.suffix.lower(), "json")
            extra = {"sep": "\t"} if file.suffix.lower() == ".tsv" else {}
            return datasets.load_dataset(builder, data_files=path, streaming=True, **extra)
        return datasets.load_dataset(path, settings.config, streaming=True)
    except Exception as e:  # datasets raises whatever its readers raise
        raise _unreadable(e, path) from None


def _split(data: Any, path: str, settings: Settings) -> Any:
    if not isinstance(data, dict):
        return data
    splits = cast(dict[str, Any], data)
    if settings.split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if settings.split not in splits:
        said = "has several splits" if settings.split is None else f"has no split {settings.split!r}"
        raise DataError(said, where=path, fix=f"set split to one of: {', '.join(splits)}")
    return splits[settings.split]


def _unreadable(e: Exception, where: str) -> DataError:
    first = (str(e).splitlines() or [""])[0][:200]
    what = f"datasets cannot read it: {type(e).__name__}: {first}"
    return DataError(what, where=where, fix="check the name, the config and the files")
