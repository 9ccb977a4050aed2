"""Pairs files: comparisons with or without people's labels, from JSONL, JSON, CSV or Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast, get_args

from pydantic import Field

from judges._table import Table
from tenet import conversations
from tenet.errors import DataError
from tenet.files import Malformed, check_unicode, kind_of
from tenet.records import Comparison, Frozen, HumanLabel, Label, Message, Prompt, seed_of

Choice = Literal["A", "B", "tie"]
_EXAMPLE = 'a row is {"prompt": …, "a": …, "b": …} or {"prompt": …, "chosen": …, "rejected": …}'
_RATER = "human"


class LabelledPair(Frozen):
    """A comparison with what people said of it."""

    id: str
    """The id that the file gave, or the comparison's own."""
    comparison: Comparison
    labels: tuple[HumanLabel, ...] = ()
    """What people said; empty if nobody did."""
    machine: dict[str, Label] = Field(default_factory=dict[str, Label])
    """What others said (principles, models), by name; only annotated-pairs files hold such labels."""
    slices: dict[str, str] = Field(default_factory=dict[str, str])
    """Names and values of the groups that the pair belongs to."""
    row: int
    """Line or row of the file, from 1."""


def read(path: str | Path) -> Iterator[LabelledPair]:
    """Every pair of a file, in order.

    A row is `{"id"?, "prompt": text or messages, "a", "b", "label"?, "labels"?: {rater: label},
    "slices"?: {name: value}}` with labels A, B or tie, or a preference row with `chosen` and
    `rejected`: texts or messages with a `prompt` (TRL), or whole dialogues that share all but the last
    reply (HH). Chosen is the label of the rater "human"; a coin tossed from the texts picks its slot,
    so that chosen is not always A. In CSV, columns `labels.NAME` and `slices.NAME` stand for the
    objects. Annotated-pairs JSON 2.0 is read too.

    Raises DataError naming file, line, field and remedy at the first row that cannot be used.
    """
    seen: dict[str, int] = {}
    copies: dict[str, int] = {}
    source = Table(str(path))
    for number, value in source.rows("pairs", _EXAMPLE):
        try:
            pair = _pair(source.decode(value, _EXAMPLE), number)
        except Malformed as stop:
            raise stop.at(source.place(number)) from None
        if pair.id != pair.comparison.id and pair.id in seen:
            what = f"the id {pair.id!r} was already given, in {source.word} {seen[pair.id]}"
            raise DataError(what, where=source.place(number), fix="give each row its own id, or none")
        if pair.id in seen:  # the same pair again, without an id: another vote on it, kept apart
            copies[pair.id] = copies.get(pair.id, 1) + 1
            pair = pair.model_copy(update={"id": f"{pair.id}#{copies[pair.id]}"})
        seen[pair.id] = number
        yield pair


def _pair(row: dict[str, Any], number: int) -> LabelledPair:
    if row.get("chosen") is not None or row.get("rejected") is not None:
        comparison, label = _preference(row)
        labels: dict[str, Label] = {_RATER: label, **_labels(row)}
    else:
        comparison, labels = _comparison(row), _labels(row)
    said = tuple(HumanLabel(comparison_id=comparison.id, rater=r, label=label) for r, label in labels.items())
    return LabelledPair(
        id=_id(row.get("id")) or comparison.id,
        comparison=comparison,
        labels=said,
        machine={name: _label(v, f"machine.{name}", get_args(Label)) for name, v in _named(row, "machine").items()},
        slices=_slices(row),
        row=number,
    )


def _comparison(row: dict[str, Any]) -> Comparison:
    texts: list[str] = []
    for key in ("a", "b"):
        if key not in row:
            raise Malformed("missing field", f"the field {key!r} is missing", _EXAMPLE)
        texts.append(_reply(row[key], key))
    return Comparison(prompt=_prompt(row), a=texts[0], b=texts[1])


def _preference(row: dict[str, Any]) -> tuple[Comparison, Label]:
    """The comparison of a chosen and a rejected reply, and the slot of the chosen one."""
    for key in ("chosen", "rejected"):
        if row.get(key) is None:
            raise Malformed("missing field", f"{key!r} is missing or null", "a preference row holds both")
    if row.get("prompt") is not None:
        prompt, texts = _prompt(row), (_reply(row["chosen"], "chosen"), _reply(row["rejected"], "rejected"))
    else:
        prompt, texts = _split(_dialogue(row["chosen"], "chosen"), _dialogue(row["rejected"], "rejected"))
    # The coin sees the two texts, not which of them was chosen.
    low, high = sorted(texts)
    a, b = (low, high) if seed_of("slot", prompt.id, low, high) & 1 else (high, low)
    return Comparison(prompt=prompt, a=a, b=b), "A" if a == texts[0] else "B"


def _dialogue(value: Any, key: str) -> tuple[Message, ...]:
    if isinstance(value, str):
        return conversations.split_dialogue(value)
    if isinstance(value, list):
        return conversations.turns(cast(list[Any], value))
    raise Malformed("wrong type", f"{key!r} is {kind_of(value)}", "write text or a list of messages")


def _split(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> tuple[Prompt, tuple[str, str]]:
    """The shared start of two dialogues, up to a human turn, and the reply that each ends with."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    while shared and chosen[shared - 1].role != "user":
        shared -= 1
    ends = chosen[shared:], rejected[shared:]
    if not shared or not all(ends) or any(m.role != "assistant" for end in ends for m in end):
        what = "chosen and rejected do not share all but the last reply"
        raise Malformed("no shared prompt", what, "give a prompt, and only the replies in chosen and rejected")
    texts = ["\n\n".join(m.content for m in end) for end in ends]
    return Prompt(messages=chosen[:shared]), (texts[0], texts[1])


def _prompt(row: dict[str, Any]) -> Prompt:
    value = row.get("prompt")
    if isinstance(value, str):
        return Prompt(messages=(conversations.message("user", value),))
    if not isinstance(value, list):
        raise Malformed("no prompt", f"'prompt' is {kind_of(value)}", "write text or a list of messages")
    messages = conversations.turns(cast(list[Any], value))
    if messages[-1].role != "user":
        what = f"'prompt' ends with the {messages[-1].role}'s turn"
        raise Malformed("no user turn at the end", what, "end it with the user's turn")
    return Prompt(messages=messages)


def _reply(value: Any, key: str) -> str:
    """A reply's text: text as it is, or a list with one assistant message (TRL)."""
    if isinstance(value, list):
        messages = conversations.turns(cast(list[Any], value))
        if len(messages) != 1 or messages[0].role != "assistant":
            what = f"{key!r} holds {len(messages)} messages, not one assistant turn"
            raise Malformed("wrong reply", what, "leave the shared turns to prompt")
        return messages[0].content
    if not isinstance(value, str):
        raise Malformed("wrong type", f"{key!r} is {kind_of(value)}, not text", "write the reply's text")
    return conversations.message("assistant", value).content


def _labels(row: dict[str, Any]) -> dict[str, Label]:
    labels: dict[str, Label] = {}
    if row.get("label") is not None:
        labels[_RATER] = _label(row["label"], "label")
    for rater, value in _named(row, "labels").items():
        if rater in labels:
            raise Malformed("two labels", f"'label' and labels.{rater} are the same rater", "keep one of them")
        labels[rater] = _label(value, f"labels.{rater}", known=get_args(Label) if "machine" in row else None)
    return labels


def _label(value: Any, key: str, known: tuple[str, ...] | None = None) -> Label:
    if value not in (known or get_args(Choice)):
        shown = repr(value) if isinstance(value, str) else kind_of(value)
        raise Malformed("unknown label", f"{key!r} is {shown}", "A, B or tie; leave it out if there is none")
    return cast(Label, value)


def _id(value: Any) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, str | int) and not isinstance(value, bool):
        check_unicode(str(value), "the id")
        return str(value)
    raise Malformed("wrong id", f"'id' is {kind_of(value)}", "an id is text or a whole number")


def _slices(row: dict[str, Any]) -> dict[str, str]:
    named = _named(row, "slices")
    for name, v in named.items():
        if not isinstance(v, str | int | float):
            raise Malformed("wrong type", f"slices.{name} is {kind_of(v)}", "a slice's value is text or a number")
        check_unicode(str(v), f"slices.{name}")
    return {name: str(v) for name, v in named.items()}


def _named(row: dict[str, Any], key: str) -> dict[str, Any]:
    """The entries of an object that are not null; a Parquet map, a list of pairs, is one too."""
    value = row.get(key)
    if isinstance(value, list) and all(isinstance(x, tuple) for x in cast(list[Any], value)):
        value = dict(cast(list[tuple[str, Any]], value))
    if value is not None and not isinstance(value, dict):
        raise Malformed("wrong type", f"{key!r} is {kind_of(value)}", 'write an object such as {"name": "value"}')
    named = {k: v for k, v in cast(dict[str, Any], value or {}).items() if v is not None}
    check_unicode("".join(map(str, named)), f"a name in {key!r}")
    return named
