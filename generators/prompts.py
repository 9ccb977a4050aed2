"""Prompts: files and datasets in, a stream of Prompt records out; every row ends as one item."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from generators._dedup import NearIndex, Seen
from generators._rows import STAGE, BadRow, Columns, Unfit, read_row
from generators._sources import Source, fingerprint, open_source
from tenet.errors import DataError
from tenet.records import Dropped, Frozen, Prompt

_SHOWN = 5


class Settings(Frozen):
    """Where prompts come from, and which of them are used."""

    path: str | tuple[str, ...]
    """Files, folders of a saved dataset, or (with `kind: dataset`) names on a hub."""
    kind: Literal["auto", "jsonl", "parquet", "dataset", "text", "hh"] = "auto"
    """`auto` looks at the name and the contents; `hh` reads dialogues, whatever the container."""
    config: str | None = None
    """A dataset's configuration."""
    split: str | None = None
    """A dataset's split; needed where there are several."""
    columns: Columns = Columns()
    """The names of the columns."""
    paragraphs: bool = False
    """Text files: a blank line ends a prompt, instead of every line."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Read so many rows and no more, over all paths."""
    min_chars: Annotated[int, Field(ge=1)] = 1
    """Shortest conversation, in characters of all its turns."""
    max_chars: Annotated[int, Field(ge=1)] | None = None
    """Longest conversation, in characters of all its turns."""
    dedup: Literal["none", "exact", "near"] = "exact"
    """`near` also drops conversations that are almost the same as an earlier one."""
    near_threshold: Annotated[float, Field(ge=0.5, le=1.0)] = 0.8
    """Jaccard likeness of word triples from which two conversations are near duplicates."""
    bad_rows: Literal["error", "drop"] = "error"
    """What becomes of a row that cannot be read: refuse the file, or drop the row and count it."""

    @model_validator(mode="after")
    def _whole(self) -> Settings:
        if not self.paths or not all(self.paths):
            raise ValueError("path is empty: name at least one file")
        if self.max_chars is not None and self.max_chars < self.min_chars:
            raise ValueError(f"max_chars {self.max_chars} is below min_chars {self.min_chars}")
        return self

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,) if isinstance(self.path, str) else self.path

    def relative_to(self, folder: Path) -> Settings:
        """The same settings with paths taken from a folder; names on a hub stay as they are."""
        moved = tuple(
            path if Path(path).is_absolute() or self._is_hub_name(folder, path) else str(folder / path)
            for path in self.paths
        )
        return self.model_copy(update={"path": moved})

    def _is_hub_name(self, folder: Path, path: str) -> bool:
        try:
            return self.kind == "dataset" and not (folder / path).exists()
        except OSError:  # too long for a file's name, and for a dataset's
            return False


class Census(Frozen):
    """What a first pass over all rows found; `rows` = `usable` + all of `dropped`."""

    rows: int
    usable: int
    """Rows that hold a prompt, before duplicates are looked for."""
    dropped: dict[str, int]
    """Rows without one, by reason."""
    sources: tuple[Source, ...]


def check(settings: Settings) -> Census:
    """Reads and validates all rows once, in flat memory, before a run makes its first call.

    Raises DataError for a source that is missing, empty, damaged or of unknown shape, and, unless
    `bad_rows` is "drop", for rows that cannot be read; it names the first five of them.
    """
    dropped: Counter[str] = Counter()
    bad: list[BadRow] = []
    rows = usable = 0
    sources: list[Source] = []
    for _, item in _items(settings, sources):
        rows += 1
        if isinstance(item, Prompt):
            usable += 1
            continue
        dropped[item.reason] += 1
        if isinstance(item, BadRow) and settings.bad_rows == "error":
            bad.append(item)
            if len(bad) == _SHOWN:
                break
    if len(bad) == 1:
        raise bad[0].error()
    if bad:
        more = " (and maybe more)" if len(bad) == _SHOWN else ""
        listed = "\n".join(f"  {b.error()}" for b in bad)
        raise DataError(f"{len(bad)} rows cannot be read{more}\n{listed}")
    if not usable:
        why = "; ".join(f"{n} x {reason}" for reason, n in dropped.most_common())
        where = ", ".join(settings.paths)
        raise DataError(f"none of {rows} rows holds a usable prompt: {why}", where=where)
    if settings.limit is None:
        sources = [fingerprint(s) for s in sources]
    return Census(rows=rows, usable=usable, dropped=dict(dropped), sources=tuple(sources))


def stream(settings: Settings, seed: int = 0) -> Iterator[tuple[int, Prompt | Dropped]]:
    """(ordinal, item) for every row of all sources: a Prompt, or a Dropped with the reason.

    Ordinals count rows from 0 and do not depend on what is dropped. The seed only picks the hash
    functions that look for near duplicates. Memory does not grow with the number of rows: what
    must be remembered lies in temporary files. Where duplicates are kept, later copies differ in
    `copy_index`. Raises DataError as `check` does, at the row where the trouble is.
    """
    seen = Seen()
    near = NearIndex(settings.near_threshold, seed) if settings.dedup == "near" else None
    for ordinal, item in _items(settings, []):
        if isinstance(item, BadRow) and settings.bad_rows == "error":
            raise item.error()
        if not isinstance(item, Prompt):
            yield ordinal, item.dropped(f"row {ordinal}")
            continue
        first, copies = seen.add(bytes.fromhex(item.id), ordinal)
        if copies and settings.dedup == "none":
            # Built anew: a copied record would carry the first one's cached id along.
            yield (
                ordinal,
                Prompt(messages=item.messages, copy_index=copies, tags=item.tags, name=item.name),
            )
        elif copies:
            yield ordinal, _duplicate(item, "exact duplicate", first)
        elif near is not None and (twin := near.add(item, ordinal)) is not None:
            yield ordinal, _duplicate(item, "near duplicate", twin)
        else:
            yield ordinal, item


def _duplicate(prompt: Prompt, reason: str, first: int) -> Dropped:
    return Dropped(prompt_id=prompt.id, stage=STAGE, reason=reason, detail=f"of row {first}")


def _items(settings: Settings, sources: list[Source]) -> Iterator[tuple[int, Prompt | Unfit | BadRow]]:
    """Every row as a prompt or as what is wrong with it; `sources` receives each one read."""
    ids = Seen()
    start = 0
    for path in settings.paths:
        if settings.limit is not None and start >= settings.limit:
            return
        source, rows = open_source(path, settings)
        left = None if settings.limit is None else settings.limit - start
        count = 0
        for number, value in islice(rows, left):
            item = read_row(value, settings.columns, source, number)
            if isinstance(item, Prompt):
                item = _fit(item, settings, ids, source, number)
            yield start + count, item
            count += 1
        if not count:
            raise DataError("holds no prompts", where=path, fix="name a file with at least one")
        start += count
        sources.append(source.model_copy(update={"rows": count}))


def _fit(prompt: Prompt, settings: Settings, ids: Seen, source: Source, number: int) -> Prompt | Unfit | BadRow:
    if prompt.name:
        first, copies = ids.add(prompt.name.encode(), number)
        if copies:
            what = f"the id {prompt.name!r} was already given, in row {first}"
            fix = "give each row its own id, or none"
            return BadRow("duplicate id", source.place(number), what, fix)
    chars = sum(len(m.content) for m in prompt.messages)
    if chars < settings.min_chars:
        what = f"{chars} of {settings.min_chars} characters"
        return Unfit("too short", source.place(number), what)
    if settings.max_chars is not None and chars > settings.max_chars:
        what = f"{chars} of {settings.max_chars} characters"
        return Unfit("too long", source.place(number), what)
    return prompt
