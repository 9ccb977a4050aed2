"""Rows to train on: a run's exports, or any data in TRL's formats, read and checked one by one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field

from tenet import files
from tenet.errors import DataError
from tenet.files import Malformed, kind_of
from tenet.records import Frozen, seed_of
from trainers._shapes import READERS, Census, Row, Sameness, Shape

_EXPORTS: dict[Shape, tuple[str, ...]] = {
    "replies": ("sft",), "pairs": ("preference", "reward"), "prompts": ("sft", "preference"), "texts": (),
}  # fmt: skip
_COLUMNS: dict[Shape, tuple[str, ...]] = {
    "replies": ("messages", "prompt", "completion", "last"),
    "pairs": ("prompt", "chosen", "rejected", "p_chosen", "margin"),
    "prompts": ("prompt", "messages"),
    "texts": ("text",),
}
_ENDINGS = (".jsonl", ".json", ".parquet", ".txt", ".jsonl.gz", ".json.gz", ".txt.gz")


class Source(Frozen):
    """One source of a mixture."""

    path: str
    """A run's folder, a file (JSONL, JSON, Parquet; gzip too), a folder of files, or a saved `datasets` folder."""
    weight: float = Field(default=1.0, gt=0, le=100)
    """How often each row is seen in an epoch: 0.5 takes half of them, drawn by the seed; 2 takes all twice."""
    rounds: Literal["all", "last"] = "all"
    """For a run's revisions: those of all rounds, or each reply's last."""


@dataclass(frozen=True)
class Rows:
    """Rows of one shape; each iteration reads them anew and counts them anew in `census`.

    A row of "pairs" has id, prompt, chosen, rejected, p_chosen >= 0.5 and maybe margin; one of "replies" id and
    messages, or id, prompt and completion; one of "prompts" id and prompt; one of "texts" id and text. Where prompts
    are conversations, they and the replies are lists of {role, content}; otherwise all are text.
    """

    shape: Shape
    sources: tuple[tuple[str, Callable[[Census], Iterator[tuple[str, Any]]], Source], ...]
    seed: int = 0
    census: Census = field(default_factory=Census)

    def __iter__(self) -> Iterator[Row]:
        """DataError, with file and line, for a row that cannot be used, and at the end for rows that teach nothing."""
        self.census.clear()
        check = READERS[self.shape]
        sameness = Sameness(self.shape)
        for name, read, source in self.sources:
            for place, raw in read(self.census):
                self.census.read += 1
                try:
                    row = check(raw, self.census, source.rounds == "last")
                except Malformed as e:
                    raise e.at(place) from None
                if row is None:
                    continue
                row["id"] = place
                sameness.see(row)
                for _ in range(self._times(name, place, source.weight)):
                    self.census.kept += 1
                    yield row
        sameness.judge(self.census, ", ".join(name for name, _, _ in self.sources))

    def _times(self, name: str, place: str, weight: float) -> int:
        whole, part = divmod(weight, 1.0)
        return int(whole) + (seed_of("mixture", self.seed, name, place) < part * 2**31)


def read(sources: str | Iterable[Source], shape: Shape, seed: int = 0) -> Rows:
    """The rows of files or of a mixture; DataError if one of them is not there. Rows are read on iteration."""
    listed = [Source(path=sources)] if isinstance(sources, str) else list(sources)
    found = [(s.path, _reader(s.path, found_files(s.path, shape), shape), s) for s in listed]
    return Rows(shape, tuple(found), seed)


def given(rows: Iterable[Mapping[str, Any]], shape: Shape) -> Rows:
    """Rows from memory, in TRL's formats."""
    kept = [dict(row) for row in rows]

    def again(_: Census) -> Iterator[tuple[str, Any]]:
        yield from ((f"row {i}", row) for i, row in enumerate(kept, 1))

    return Rows(shape, (("rows", again, Source(path="rows")),))


def found_files(path: str, shape: Shape) -> list[Path]:
    """The files that a path stands for; DataError if there are none, or the run is not finished."""
    place = Path(path).expanduser()
    if not place.is_dir():
        files.check_exists(path, place, "data")
        return [place]
    for name in _EXPORTS[shape]:
        export = place / "data" / f"{name}.parquet"
        if export.exists():
            if not (place / "manifest.json").exists():
                raise DataError("the run is not whole", where=path, fix="let `tenet generate` finish it")
            return [export]
    if any((place / name).exists() for name in ("dataset_dict.json", "dataset_info.json")):
        return [place]
    inside = [p for d in (place, place / "data") if d.is_dir() for p in sorted(d.iterdir())]
    found = [p for p in inside if p.name.endswith(_ENDINGS) and p.name not in ("manifest.json", "dataset_infos.json")]
    train = [p for p in found if p.name.startswith("train")]
    if not found:
        fix = "a run's folder, or a folder with JSONL, JSON, Parquet or a saved `datasets` data set"
        raise DataError(f"holds no data for {shape}", where=path, fix=fix)
    return train or found


def _reader(name: str, found: list[Path], shape: Shape) -> Callable[[Census], Iterator[tuple[str, Any]]]:
    def every(census: Census) -> Iterator[tuple[str, Any]]:
        for file in found:
            label = name if file == Path(name) else str(file)
            before = census.read
            yield from _rows_of(label, file, shape)
            census.files[label] = {"rows": census.read - before, "sha256": _sha256(file)}

    return every


def _rows_of(label: str, file: Path, shape: Shape) -> Iterator[tuple[str, Any]]:
    """(place, row) of every row of a file."""
    ending = file.name.removesuffix(".gz")
    if file.is_dir():
        yield from _saved(label, file)
    elif ending.endswith(".parquet"):
        wanted = _COLUMNS[shape]
        choose: Callable[[list[str]], list[str]] = lambda names: [n for n in names if n in wanted]  # noqa: E731
        for number, row in files.parquet(label, file, choose):
            yield f"{label}, row {number}", row
    elif ending.endswith(".json"):
        yield from _listed(label, file)
    else:
        plain = ending.endswith(".txt")
        for number, line in files.lines(label, file):
            place = f"{label}, line {number}"
            try:
                yield place, {"text": files.text_of(line).rstrip("\r\n")} if plain else files.json_object(line)
            except Malformed as e:
                raise e.at(place) from None


def _saved(label: str, folder: Path) -> Iterator[tuple[str, Any]]:
    """A folder written by `Dataset.save_to_disk`; of a dictionary of splits, "train"."""
    datasets: Any = import_module("datasets")
    data = datasets.load_from_disk(str(folder))
    if isinstance(data, datasets.DatasetDict):
        splits = data
        if "train" not in splits:
            raise DataError(f"has no split 'train', only {', '.join(splits)}", where=label, fix="name a split's folder")
        data = splits["train"]
    for number, row in enumerate(data, 1):
        yield f"{label}, row {number}", row


def _listed(label: str, file: Path) -> Iterator[tuple[str, Any]]:
    try:
        value = json.loads(files.text_of(files.read_bytes(label, file)))
    except Malformed as e:
        raise e.at(label) from None
    except ValueError as e:
        raise DataError(f"is not JSON: {e}", where=label, fix="a list of rows; or .jsonl for one row a line") from None
    if not isinstance(value, list):
        raise DataError(f"is {kind_of(value)}, not a list of rows", where=label, fix="a list of JSON objects")
    for number, row in enumerate(cast(list[Any], value), 1):
        yield f"{label}, row {number}", row


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    for file in sorted(path.rglob("*.arrow")) if path.is_dir() else [path]:
        with file.open("rb") as f:
            total.update(hashlib.file_digest(f, "sha256").digest() if path.is_dir() else b"")
            if not path.is_dir():
                return hashlib.file_digest(f, "sha256").hexdigest()
    return total.hexdigest()
