"""One row of data to one Prompt, or to the reason why it is none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from tenet.conversations import message, split_dialogue, turns
from tenet.errors import DataError
from tenet.files import Malformed, check_unicode, json_object, kind_of
from tenet.records import Dropped, Frozen, Message, Prompt
from tenet.settings import closest

if TYPE_CHECKING:
    from generators._sources import Source

STAGE = "prompts"


class Columns(Frozen):
    """The names of the columns; extra columns in the data are left alone."""

    prompt: str = "prompt"
    """Text of a single user turn, or a list of messages."""
    messages: str = "messages"
    """A list of {role, content}, ending with a user turn."""
    conversation: str = "chosen"
    """A dialogue written as text with Human: and Assistant: turns."""
    id: str = "id"
    """The user's own id of a row; optional."""
    tags: str = "tags"
    """A list of words for `applies_when`; optional."""

    def among(self, names: Iterable[str], where: str) -> list[str]:
        """Those of the columns that exist.

        Raises DataError if a column that the user named is absent, or there is none with prompts.
        """
        there = list(names)
        for field in sorted(self.model_fields_set):
            name = getattr(self, field)
            if name not in there:
                what = f"there is no column {name!r}"
                fix = f"{closest(name, there)} (columns.{field})"
                raise DataError(what, where=where, fix=fix)
        if not {self.prompt, self.messages, self.conversation} & set(there):
            what = f"there is no column {self.prompt!r} or {self.messages!r}"
            fix = f"there are: {', '.join(there)}; name yours with columns.prompt"
            raise DataError(what, where=where, fix=fix)
        wanted = (self.prompt, self.messages, self.conversation, self.id, self.tags)
        return [name for name in dict.fromkeys(wanted) if name in there]


@dataclass(frozen=True, slots=True)
class Unfit:
    """A row that can be read, and holds no prompt that is wanted."""

    reason: str
    place: str
    what: str

    def dropped(self, prompt_id: str) -> Dropped:
        """The record of it."""
        detail = f"{self.place}: {self.what}"
        return Dropped(prompt_id=prompt_id, stage=STAGE, reason=self.reason, detail=detail)


@dataclass(frozen=True, slots=True)
class BadRow(Unfit):
    """A row that cannot be read."""

    fix: str

    def error(self) -> DataError:
        """The error that refuses the whole file."""
        fix = f"{self.fix}; bad_rows: drop leaves such rows out"
        return DataError(self.what, where=self.place, fix=fix)


def read_row(value: Any, columns: Columns, source: Source, number: int) -> Prompt | Unfit | BadRow:
    """The prompt of a row; `value` is raw JSON (bytes), columns by name (dict), or text (str)."""
    hh = source.kind == "hh"
    try:
        if isinstance(value, bytes):
            value = json_object(value)
        if isinstance(value, str):
            messages = (message("user", value),)
            row: dict[str, Any] = {}
        else:
            row = value
            messages, hh = _messages(row, columns, hh)
        if not messages[-1].content.strip():
            # People's dialogues have such turns; in a file of prompts it is a mistake.
            fix = "" if hh else "write a prompt"
            raise Malformed("empty prompt", "the prompt is empty", fix)
        name, tags = _name(row.get(columns.id)), _tags(row.get(columns.tags))
        return Prompt(messages=messages, name=name, tags=tags)
    except Malformed as stop:
        reason, what, fix = stop.args
        place = source.place(number)
        return BadRow(reason, place, what, fix) if fix else Unfit(reason, place, what)


def _messages(row: dict[str, Any], columns: Columns, hh: bool) -> tuple[tuple[Message, ...], bool]:
    """The messages of a row, and whether it is a dialogue with Human: and Assistant: turns."""
    if columns.model_fields_set or not row.keys() & {columns.prompt, columns.messages}:
        _columns_exist(row, columns)
    names = (columns.conversation,) if hh else (columns.messages, columns.prompt)
    found = next((row[n] for n in names if row.get(n) is not None), None)
    if found is None and not hh and isinstance(row.get(columns.conversation), str):
        found, hh = row[columns.conversation], True
    if hh:
        if not isinstance(found, str):
            what = f"{columns.conversation!r} is {kind_of(found)}, not the text of a dialogue"
            raise Malformed("prompt is not text", what, "write the dialogue as one text")
        return _human_last(split_dialogue(found)), True
    if isinstance(found, str):
        return (message("user", found),), False
    if not isinstance(found, list):
        what = f"the prompt is {kind_of(found)}, not text"
        raise Malformed("prompt is not text", what, "write it as text or as a list of messages")
    return _conversation(cast(list[Any], found)), False


def _columns_exist(row: dict[str, Any], columns: Columns) -> None:
    try:
        columns.among(row, "")
    except DataError as e:
        raise Malformed("unknown columns", e.what, e.fix) from None


def _conversation(listed: list[Any]) -> tuple[Message, ...]:
    messages = turns(listed)
    if messages[-1].role != "user":
        what = f"the conversation ends with the {messages[-1].role}'s turn"
        raise Malformed("no user turn at the end", what, "")
    return messages


def _human_last(said: tuple[Message, ...]) -> tuple[Message, ...]:
    """The dialogue up to its last human turn: the answers after it are what tenet is to write."""
    end = len(said)
    while end and said[end - 1].role != "user":
        end -= 1
    if not end:
        raise Malformed("no user turn", "the dialogue has no human turn", "")
    return said[:end]


def _name(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str | int) and not isinstance(value, bool):
        check_unicode(str(value), "the id")
        return str(value)
    raise Malformed("wrong id", f"the id is {kind_of(value)}", "an id is text or a whole number")


def _tags(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    tags = cast(list[Any], value) if isinstance(value, list) else [value]
    if not all(isinstance(t, str) for t in tags):
        raise Malformed("wrong tags", f"tags are {kind_of(value)}", "tags are a list of words")
    check_unicode("".join(tags), "a tag")
    return tuple(tags)
