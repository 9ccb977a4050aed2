"""What a row must hold to be trained on, for each shape of data, and the counts of what became of the rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

from tenet import conversations
from tenet.errors import DataError
from tenet.files import Malformed, kind_of

Row = dict[str, Any]
Shape = Literal["replies", "pairs", "prompts", "texts"]
"""What a trainer reads: prompt and completion, or messages; pairs of replies; prompts alone; plain text."""



@dataclass
class Census:
    """What became of the rows that were read."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter[str])
    """Rows left out, by reason."""
    swapped: int = 0
    """Pairs with p_chosen below 0.5, whose sides were exchanged."""
    hard: int = 0
    """Pairs without a p_chosen, taken as certain."""
    cut: int = 0
    """Replies whose end lies beyond the context."""
    files: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    """By path: SHA-256 and rows."""

    def clear(self) -> None:
        """Counts from nothing again."""
        self.__dict__.update(Census().__dict__)

    def told(self) -> dict[str, Any]:
        """The counts as plain data."""
        return {
            "read": self.read, "kept": self.kept, "dropped": dict(self.dropped), "swapped": self.swapped,
            "hard": self.hard, "cut": self.cut, "files": self.files,
        }  # fmt: skip


def _table(raw: Any) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        raise Malformed("not a row", f"is {kind_of(raw)}, not an object", "one object of columns a row")
    return cast(dict[str, Any], raw)


def _lacks(row: dict[str, Any], column: str, wants: str) -> Malformed:
    there = ", ".join(k for k, v in row.items() if v is not None) or "none"
    return Malformed("missing column", f"has no column {column!r} (it has: {there})", wants)


class _Said(NamedTuple):
    """A prompt or a reply, as text or as messages."""

    text: str
    messages: list[dict[str, str]] | None


def _said(value: Any, column: str, role: str) -> _Said:
    if isinstance(value, str):
        return _Said(conversations.message("user", value).content, None)
    if not isinstance(value, list):
        raise Malformed("wrong type", f"{column!r} is {kind_of(value)}", "text, or a list of {role, content}")
    turns = conversations.turns(cast(list[Any], value))
    if role == "assistant" and any(m.role != "assistant" for m in turns):
        raise Malformed("not a reply", f"{column!r} holds a turn that is not the assistant's", "replies only")
    return _Said("\n".join(m.content for m in turns), [{"role": m.role, "content": m.content} for m in turns])


def _together(prompt: _Said, *replies: _Said) -> tuple[Any, ...]:
    """Prompt and replies in one form: all text, or all messages where one of them is."""
    if all(s.messages is None for s in (prompt, *replies)):
        return tuple(s.text for s in (prompt, *replies))
    asked = prompt.messages or [{"role": "user", "content": prompt.text}]
    return (asked, *(r.messages or [{"role": "assistant", "content": r.text}] for r in replies))


def _reply_row(raw: Any, census: Census, last: bool) -> Row | None:
    row = _table(raw)
    wants = "prompt and completion, or messages, as TRL's SFTTrainer reads them"
    if last:
        if not isinstance(row.get("last"), bool):
            raise _lacks(row, "last", "rounds: last is for a run's own sft export")
        if not row["last"]:
            census.dropped["not the last round"] += 1
            return None
    if row.get("messages") is not None:
        messages = _said(row["messages"], "messages", "any").messages
        if messages is None:
            raise Malformed("wrong type", "'messages' is text", "a list of {role, content}")
        spoken = [m["content"] for m in messages if m["role"] == "assistant"]
        if not spoken:
            raise Malformed("no reply", "has no turn of the assistant, so nothing to learn", wants)
        if not all(s.strip() for s in spoken):
            census.dropped["empty reply"] += 1
            return None
        return {"messages": messages}
    for column in ("prompt", "completion"):
        if row.get(column) is None:
            raise _lacks(row, column, wants)
    prompt, reply = _said(row["prompt"], "prompt", "any"), _said(row["completion"], "completion", "assistant")
    if not reply.text.strip():
        census.dropped["empty reply"] += 1
        return None
    asked, answer = _together(prompt, reply)
    return {"prompt": asked, "completion": answer}


def _pair_row(raw: Any, census: Census, _: bool) -> Row | None:
    row = _table(raw)
    for column in ("chosen", "rejected"):
        if row.get(column) is None:
            raise _lacks(row, column, "prompt, chosen, rejected and, for soft labels, p_chosen")
    if row.get("prompt") is None:
        asked, chosen, rejected = _shared(row["chosen"], row["rejected"])
    else:
        said = [_said(row[c], c, "assistant") for c in ("chosen", "rejected")]
        asked, chosen, rejected = _together(_said(row["prompt"], "prompt", "any"), *said)
    if chosen == rejected:
        census.dropped["equal replies"] += 1
        return None
    if not (_text(chosen).strip() and _text(rejected).strip()):
        census.dropped["empty reply"] += 1
        return None
    p = _probability(row, census)
    if p < 0.5:
        census.swapped += 1
        chosen, rejected, p = rejected, chosen, 1.0 - p
    made: Row = {"prompt": asked, "chosen": chosen, "rejected": rejected, "p_chosen": p}
    if row.get("margin") is not None:
        if not isinstance(row["margin"], int | float) or not math.isfinite(row["margin"]):
            raise Malformed("margin", f"the margin is {kind_of(row['margin'])}", "a number")
        made["margin"] = float(row["margin"])
    return made


def _probability(row: dict[str, Any], census: Census) -> float:
    if "p_chosen" not in row:
        census.hard += 1
        return 1.0
    p = row["p_chosen"]
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0.0 <= p <= 1.0:
        what = f"p_chosen is {kind_of(p)}"
        raise Malformed("p_chosen", what, "a probability from 0 to 1; leave the column out for certain labels")
    return float(p)


def _text(said: Any) -> str:
    return said if isinstance(said, str) else "".join(m["content"] for m in said)


def _shared(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """(prompt, chosen, rejected) of two whole dialogues that begin alike, as HH and TRL write them."""
    both: list[list[dict[str, str]]] = []
    for column, value in (("chosen", chosen), ("rejected", rejected)):
        if isinstance(value, str):
            turns = [{"role": m.role, "content": m.content} for m in conversations.split_dialogue(value)]
        else:
            turns = _said(value, column, "any").messages or []
        both.append(turns)
    n = 0
    while n < min(map(len, both)) and both[0][n] == both[1][n]:
        n += 1
    while n and both[0][n - 1]["role"] != "user":
        n -= 1
    ends = [turns[n:] for turns in both]
    if not n or not all(ends) or any(m["role"] != "assistant" for end in ends for m in end):
        what = "chosen and rejected do not share all but the last reply"
        raise Malformed("no shared prompt", what, "give a prompt, and only the replies in chosen and rejected")
    return both[0][:n], ends[0], ends[1]


def _prompt_row(raw: Any, census: Census, _: bool) -> Row | None:
    row = _table(raw)
    value = row.get("prompt") if row.get("prompt") is not None else row.get("messages")
    if value is None:
        raise _lacks(row, "prompt", "a prompt: text, or a list of {role, content}")
    said = _said(value, "prompt", "any")
    messages = said.messages or [{"role": "user", "content": said.text}]
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages or not messages[-1]["content"].strip():
        census.dropped["empty prompt"] += 1
        return None
    return {"prompt": messages}


def _text_row(raw: Any, census: Census, _: bool) -> Row | None:
    row = _table(raw)
    if not isinstance(row.get("text"), str):
        raise _lacks(row, "text", "plain text: .txt, one passage a line, or a column 'text'")
    if not row["text"].strip():
        census.dropped["empty text"] += 1
        return None
    return {"text": conversations.message("user", row["text"]).content}


READERS: dict[Shape, Callable[[Any, Census, bool], Row | None]] = {
    "replies": _reply_row, "pairs": _pair_row, "prompts": _prompt_row, "texts": _text_row,
}  # fmt: skip


class Sameness:
    """Notices data that holds one class only: nothing in it could be told apart."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._first: Any = None
        self._seen = 0
        self._varied = shape in ("prompts", "texts")
        self._decided = shape != "pairs"

    def see(self, row: Row) -> None:
        """Takes a row in."""
        self._seen += 1
        self._decided = self._decided or row["p_chosen"] != 0.5
        if not self._varied:
            said = (row.get("chosen"), row.get("rejected"), row.get("completion"), row.get("messages"))
            self._first = said if self._seen == 1 else self._first
            self._varied = said != self._first

    def judge(self, census: Census, where: str) -> None:
        """DataError if the rows were none, or of one class."""
        if not self._seen:
            gone = ", ".join(f"{n} {why}" for why, n in census.dropped.items())
            what = f"no row is left of {census.read}" + (f" ({gone})" if gone else "")
            raise DataError(what, where=where, fix=f"give at least one row of {self._shape}")
        if not self._decided:
            what = "every p_chosen is 0.5: no pair prefers anything"
            raise DataError(what, where=where, fix="pairs that were judged")
        if self._seen > 1 and not self._varied:
            what = f"all {self._seen} rows hold the same replies: one class, with nothing to tell apart"
            raise DataError(what, where=where, fix="rows with different replies")
