"""One row of data to one Prompt, or to the reason why it is none."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from tenet.errors import DataError
from tenet.records import Dropped, Frozen, Message, Prompt
from tenet.settings import closest

if TYPE_CHECKING:
    from generators._sources import Source

STAGE = "prompts"
# A turn begins at the very start or after an empty line; a body may hold colons and empty lines.
_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_ROLES = ("system", "user", "assistant")


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


class _Stop(Exception):
    """Carries (reason, what, fix) out of the depths of a row."""


def read_row(value: Any, columns: Columns, source: Source, number: int) -> Prompt | Unfit | BadRow:
    """The prompt of a row; `value` is raw JSON (bytes), columns by name (dict), or text (str)."""
    hh = source.kind == "hh"
    try:
        if isinstance(value, bytes):
            value = _decode(value)
        if isinstance(value, str):
            messages = (_message("user", value),)
            row: dict[str, Any] = {}
        else:
            row = value
            messages, hh = _messages(row, columns, hh)
        if not messages[-1].content.strip():
            # People's dialogues have such turns; in a file of prompts it is a mistake.
            fix = "" if hh else "write a prompt"
            raise _Stop("empty prompt", "the prompt is empty", fix)
        name, tags = _name(row.get(columns.id)), _tags(row.get(columns.tags))
        return Prompt(messages=messages, name=name, tags=tags)
    except _Stop as stop:
        reason, what, fix = stop.args
        place = source.place(number)
        return BadRow(reason, place, what, fix) if fix else Unfit(reason, place, what)


def split_dialogue(text: str) -> tuple[Message, ...]:
    """The turns of an HH dialogue, each body to the letter but for the space after its colon."""
    before, *rest = _TURN.split(text)
    if before.strip() or not rest:
        what = f"{before.strip()[:40]!r} stands where a dialogue begins with '\\n\\nHuman:'"
        raise _Stop("not a dialogue", what, "mark every turn with Human: or Assistant:")
    roles = ("user" if r == "Human" else "assistant" for r in rest[::2])
    return tuple(_message(role, body.removeprefix(" ")) for role, body in zip(roles, rest[1::2], strict=True))


def _decode(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(str(line, "utf-8").removeprefix("\ufeff"))
    except UnicodeDecodeError as e:
        what = f"byte 0x{line[e.start]:02x} is not UTF-8"
        raise _Stop("not UTF-8", what, "save the file as UTF-8") from None
    except (ValueError, RecursionError) as e:
        start = repr(line[:40].decode("utf-8", "replace"))
        what = f"is not JSON: {getattr(e, 'msg', e)}; it begins with {start}"
        raise _Stop("not JSON", what, "one JSON object a line") from None
    if not isinstance(value, dict):
        what = f"is a JSON {type(value).__name__}, not an object"
        raise _Stop("not JSON", what, 'one JSON object a line, such as {"prompt": "…"}')
    return cast(dict[str, Any], value)


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
            what = f"{columns.conversation!r} is {_kind(found)}, not the text of a dialogue"
            raise _Stop("prompt is not text", what, "write the dialogue as one text")
        return _human_last(split_dialogue(found)), True
    if isinstance(found, str):
        return (_message("user", found),), False
    if not isinstance(found, list):
        what = f"the prompt is {_kind(found)}, not text"
        raise _Stop("prompt is not text", what, "write it as text or as a list of messages")
    return _conversation(cast(list[Any], found)), False


def _columns_exist(row: dict[str, Any], columns: Columns) -> None:
    try:
        columns.among(row, "")
    except DataError as e:
        raise _Stop("unknown columns", e.what, e.fix) from None


def _conversation(turns: list[Any]) -> tuple[Message, ...]:
    messages: list[Message] = []
    for i, turn in enumerate(turns):
        fields = cast(dict[str, Any], turn) if isinstance(turn, dict) else {}
        role, content = fields.get("role"), fields.get("content")
        if not isinstance(content, str):
            what = f"the content of message {i} is {_kind(content)}, not text"
            raise _Stop("prompt is not text", what, 'messages are {"role": …, "content": text}')
        if role not in _ROLES or (role == "system" and i):
            what = f"message {i} has the role {role!r}"
            fix = "user or assistant; system only first"
            raise _Stop("unknown role", what, fix)
        messages.append(_message(role, content))
    if not messages:
        raise _Stop("empty prompt", "the conversation has no messages", "write at least one")
    if messages[-1].role != "user":
        what = f"the conversation ends with the {messages[-1].role}'s turn"
        raise _Stop("no user turn at the end", what, "")
    return tuple(messages)


def _human_last(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """The dialogue up to its last human turn: the answers after it are what tenet is to write."""
    end = len(turns)
    while end and turns[end - 1].role != "user":
        end -= 1
    if not end:
        raise _Stop("no user turn", "the dialogue has no human turn", "")
    return turns[:end]


def _message(role: Any, text: str) -> Message:
    # A lone surrogate would pass here and break the first export or call that encodes it.
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            fix = "take out the lone surrogate"
            raise _Stop("not Unicode", "the text is not valid Unicode", fix) from None
    return Message(role=role, content=text)


def _name(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    raise _Stop("wrong id", f"the id is {_kind(value)}", "an id is text or a whole number")


def _tags(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    tags = cast(list[Any], value) if isinstance(value, list) else [value]
    if not all(isinstance(t, str) for t in tags):
        raise _Stop("wrong tags", f"tags are {_kind(value)}", "tags are a list of words")
    return tuple(tags)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    if value is None:
        return "missing or null"
    return names.get(value.__class__, f"a number ({value!r})")
