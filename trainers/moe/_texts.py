"""Texts for a look at the routing: rows of a file as token ids, each token with its class, each row with its topic."""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

from tenet import files
from tenet.errors import DataError
from tenet.files import Malformed

CLASSES = ("special", "word start", "word part", "number", "punctuation", "space", "other")
_COLUMNS = ("messages", "prompt", "text", "completion", "chosen")
Topic = Callable[[str], str | None]


class Row(NamedTuple):
    """One text: its ids, the class of each as an index into CLASSES, and what it is about, if that is known."""

    ids: list[int]
    classes: list[int]
    topic: str | None


def read(path: Path, tok: Any, length: int, limit: int | None = None, topic: Topic = lambda _: None) -> list[Row]:
    """The rows of a JSONL or Parquet file: `messages`, or `prompt` with `completion` or `chosen`, or `text`.

    A row's `topic`, or else its first tag, is its topic; `topic` is asked where it has neither. Texts are cut to
    `length` tokens. DataError names the row that cannot be read.
    """
    where = str(path)
    files.check_exists(where, path, "JSONL or Parquet")
    if path.suffix == ".parquet":
        rows = files.parquet(where, path, lambda names: [n for n in names if n in (*_COLUMNS, "topic", "tags")])
    else:
        rows = files.lines(where, path)
    kinds, made = kinds_of(tok), list[Row]()
    for number, raw in rows:
        try:
            row = raw if isinstance(raw, dict) else files.json_object(raw)
            text = _text(cast("dict[str, Any]", row), tok)
        except Malformed as e:
            raise e.at(f"{where}, row {number}") from None
        ids: list[int] = tok(text, add_special_tokens=False)["input_ids"][:length]
        if len(ids) > 1:
            made.append(Row(ids, [kinds[i] for i in ids], _topic(row) or topic(text)))
        if limit is not None and len(made) == limit:
            break
    if not made:
        raise DataError("holds no text of two tokens or more", where=where, fix="name a file with texts")
    return made


def _text(row: dict[str, Any], tok: Any) -> str:
    turns: Any = row.get("messages")
    if turns is None and isinstance(row.get("prompt"), list):
        reply = row.get("completion") or row.get("chosen") or []
        turns = [*row["prompt"], *(reply if isinstance(reply, list) else [{"role": "assistant", "content": reply}])]
    if isinstance(turns, list) and turns:
        if not tok.chat_template:
            raise Malformed("no template", "is a conversation, and the tokenizer has no chat template", "plain `text`")
        try:
            return str(tok.apply_chat_template(turns, tokenize=False))
        except Exception as error:
            raise Malformed("bad turns", f"the chat template refuses it: {error}", "turns of {role, content}") from None
    parts = [row.get(k) for k in ("prompt", "text", "completion", "chosen")]
    said = [p for p in parts if isinstance(p, str) and p]
    if not said:
        raise Malformed("no text", f"has no text (columns: {', '.join(row) or 'none'})", "messages, prompt or text")
    return "".join(said[:2])


def _topic(row: Any) -> str | None:
    tags: Any = row.get("tags")
    found = row.get("topic") or (tags[0] if isinstance(tags, list) and tags else None)
    return str(found) if found else None


def kinds_of(tok: Any) -> list[int]:
    """The class of every id, as an index into CLASSES."""
    special = set(tok.all_special_ids) | set(tok.added_tokens_decoder)
    return [0 if i in special else CLASSES.index(_kind(tok, i)) for i in range(len(tok))]


def _kind(tok: Any, i: int) -> str:
    piece = str(tok.convert_ids_to_tokens(i))
    text = str(tok.decode([i]))
    bare = text.strip()
    if not bare:
        return "space"
    if bare.isdecimal():
        return "number"
    if bare.isalpha():
        return "word start" if piece[0] in "Ġ▁ " or text[0].isspace() else "word part"
    return "punctuation" if all(not c.isalnum() for c in bare) and "\ufffd" not in bare else "other"
