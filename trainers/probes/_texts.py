"""Held-out texts and prompts for probes: files of plain text, of TRL's rows, or of prompts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from tenet import conversations, files
from tenet.errors import DataError
from tenet.files import Malformed
from tenet.records import Frozen, Message

_EXAMPLE = 'a row is {"text"}, {"messages"}, {"prompt", "completion"} or {"prompt", "chosen"}'


class Sample(Frozen):
    """A text to be predicted, and the conversation before it."""

    messages: tuple[Message, ...] = ()
    """What is only read; empty for plain text."""
    reply: str = ""
    """What is predicted; empty for a prompt alone."""
    round: int | None = None
    """The revision round, where the row names one."""


def read(path: str | Path, limit: int | None = None) -> list[Sample]:
    """The samples of a file or of a run folder's SFT export, in order.

    JSONL and Parquet rows hold `text`, `messages`, or `prompt` with `completion` or `chosen`, as texts or as
    lists of messages; in a .txt file, each line is a text. DataError names the first row that cannot be used.
    """
    file, name = _file(Path(path)), str(path)
    files.check_exists(name, file, "JSONL, Parquet or text")
    found: list[Sample] = []
    for number, value in _rows(name, file):
        if limit is not None and len(found) == limit:
            break
        try:
            found.append(_sample(value))
        except Malformed as stop:
            raise stop.at(f"{file}, row {number}") from None
    if not found:
        raise DataError("holds no rows", where=name, fix=_EXAMPLE)
    return found


def prompts(path: str | Path, limit: int | None = None) -> list[Sample]:
    """The prompts of a file: what is to be answered, any reply left out."""
    return [as_prompt(s) for s in read(path, limit)]


def as_prompt(sample: Sample) -> Sample:
    """The conversation without its reply; a plain text is a question."""
    if sample.messages:
        return Sample(messages=sample.messages)
    return Sample(messages=(Message(role="user", content=sample.reply),))


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for folder in (path / "data", path):
        for name in ("sft.jsonl", "sft.parquet"):
            if (folder / name).exists():
                return folder / name
    raise DataError("holds no data/sft.jsonl or data/sft.parquet", where=str(path), fix="a run folder, or a file")


def _rows(name: str, file: Path) -> Iterator[tuple[int, Any]]:
    suffix = file.suffixes[-2] if file.suffix == ".gz" and len(file.suffixes) > 1 else file.suffix
    if suffix in (".parquet", ".pq"):
        yield from files.parquet(name, file, lambda names: names)
        return
    for number, line in files.lines(name, file):
        try:
            yield number, {"text": files.text_of(line).rstrip("\r\n")} if suffix == ".txt" else files.json_object(line)
        except Malformed as stop:
            raise stop.at(f"{file}, row {number}") from None


def _sample(row: dict[str, Any]) -> Sample:
    round = row.get("round")
    at = round if isinstance(round, int) else None
    prompt, said = row.get("prompt"), row.get("completion", row.get("chosen"))
    if isinstance(row.get("text"), str):
        return Sample(reply=conversations.message("assistant", row["text"]).content, round=at)
    if isinstance(row.get("messages"), list):
        return _split(conversations.turns(cast(list[Any], row["messages"])), at)
    if prompt is None:
        what = f"has none of text, messages and prompt, but {', '.join(row) or 'nothing'}"
        raise Malformed("no text", what, _EXAMPLE)
    before = _turns(prompt, "user", "prompt")
    if said is None:
        return Sample(messages=before, round=at)
    return _split((*before, *_turns(said, "assistant", "completion")), at)


def _turns(value: Any, role: str, name: str) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (conversations.message(role, value),)
    if isinstance(value, list):
        return conversations.turns(cast(list[Any], value))
    raise Malformed("no text", f"{name} is {files.kind_of(value)}, not text or messages", _EXAMPLE)


def _split(messages: tuple[Message, ...], round: int | None) -> Sample:
    if messages[-1].role != "assistant":
        return Sample(messages=messages, round=round)
    return Sample(messages=messages[:-1], reply=messages[-1].content, round=round)
