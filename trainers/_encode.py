"""Rows -> token ids, on disk: what is too long is dropped or cut here, and counted."""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from tenet.errors import DataError, SettingsError
from trainers._rows import Rows
from trainers._shapes import Census, Row

_BATCH = 1000
Ids = list[int]
Encode = Callable[[Row], dict[str, Any] | str]
"""Columns of a row, or the reason why it is dropped."""


@dataclass(frozen=True)
class Encoded:
    """Rows as ids, memory-mapped; the file goes with this object."""

    data: Any
    """A `datasets.Dataset` with a column `id`, the row's place in its file, and the kind's columns of ids."""
    census: Census
    sequence: Callable[[Row], Ids]
    """What a row of `data` looks like in a batch's input_ids."""

    def find(self, sequences: Iterable[Ids]) -> list[str]:
        """The ids of the rows that these are, for an error's sake; a scan over all rows."""
        wanted = {tuple(s) for s in sequences}
        return sorted({str(row["id"]) for row in self.data if tuple(self.sequence(row)) in wanted})


def written(rows: Rows, encode: Encode, sequence: Callable[[Row], Ids], block: int = 0) -> Encoded:
    """Encodes all rows into an Arrow file of their own, or, strung together, into blocks of so many ids.

    DataError if no row is left.
    """
    datasets: Any = import_module("datasets")
    pa: Any = import_module("pyarrow")
    batches = _batches(_blocks(_encoded(rows, encode), block) if block else _encoded(rows, encode))
    first = next(batches, None)
    if first is None:
        gone = ", ".join(f"{n} {why}" for why, n in rows.census.dropped.items())
        where = ", ".join(name for name, _, _ in rows.sources)
        raise DataError(f"no row is left of {rows.census.read} ({gone})", where=where, fix="shorter rows, more context")
    folder = tempfile.mkdtemp(prefix="tenet-rows-")
    path = Path(folder) / "rows.arrow"
    schema = pa.Table.from_pylist(first).schema
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as stream:
        stream.write_table(pa.Table.from_pylist(first, schema=schema))
        for batch in batches:
            stream.write_table(pa.Table.from_pylist(batch, schema=schema))
    data = datasets.Dataset.from_file(str(path))
    # Not a TemporaryDirectory: where an error's traceback holds it to the end, that one warns.
    weakref.finalize(data, shutil.rmtree, folder, ignore_errors=True)
    return Encoded(data, rows.census, sequence)


def _encoded(rows: Rows, encode: Encode) -> Iterator[dict[str, Any]]:
    for row in rows:
        made = encode(row)
        if isinstance(made, str):
            rows.census.kept -= 1
            rows.census.dropped[made] += 1
        else:
            yield {"id": row["id"], **made}


def _blocks(rows: Iterator[dict[str, Any]], size: int) -> Iterator[dict[str, Any]]:
    """Rows strung together and cut; the last block may be shorter. A block's id says which rows it holds."""
    ids: Ids = []
    first = last = ""
    for row in rows:
        ids += row["input_ids"]
        first, last = first or row["id"], row["id"]
        while len(ids) >= size:
            yield {"id": f"{first} to {last}", "input_ids": ids[:size], "labels": ids[:size]}
            ids = ids[size:]
            first = last if ids else ""
    if len(ids) > 1:
        yield {"id": f"{first} to {last}", "input_ids": ids, "labels": ids}


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while batch := list(islice(rows, _BATCH)):
        yield batch


PROMPT_TOO_LONG = "prompt longer than the context"
TOO_LONG = "longer than the context"


class Coder:
    """Renders rows with a tokenizer's chat template, as TRL does, and keeps them within `context` tokens."""

    def __init__(self, tok: Any, context: int, census: Census) -> None:
        self._tok, self._context, self._census = tok, context, census
        self._training: str | None = None

    def ids(self, said: Any, **options: Any) -> Ids:
        """Ids of a conversation through the template, or of plain text as it is."""
        if isinstance(said, str):
            return list(self._tok(text=said)["input_ids"])
        return list(self._tok.apply_chat_template(said, tokenize=True, return_dict=True, **options)["input_ids"])

    def reply(self, row: Row) -> dict[str, Any] | str:
        """input_ids and labels of one row of "replies"; only what the assistant says is learnt.

        Of a prompt and its completion, that is the completion: earlier turns may be another model's, or an attacker's.
        """
        if "messages" in row:
            ids, labels = self._turns(row["messages"])
        else:
            asked, whole = self._both(row["prompt"], row["completion"])
            start = _common(asked, whole)
            ids, labels = whole, [-100] * start + whole[start:]
        return self._cut(ids, labels)

    def text(self, row: Row) -> dict[str, Any] | str:
        """input_ids of one row of "texts", with the end-of-text token."""
        ids = [*self.ids(row["text"]), self._tok.eos_token_id]
        return {"input_ids": ids}

    def pair(self, row: Row) -> dict[str, Any] | str:
        """prompt_ids, chosen_ids, rejected_ids of one row of "pairs": DPO's columns."""
        asked, chosen = self._both(row["prompt"], row["chosen"])
        _, rejected = self._both(row["prompt"], row["rejected"])
        start = min(_common(asked, chosen), _common(asked, rejected))
        if start >= self._context:
            return PROMPT_TOO_LONG
        self._census.cut += len(chosen) > self._context
        self._census.cut += len(rejected) > self._context
        chosen, rejected = chosen[: self._context], rejected[: self._context]
        if chosen == rejected:
            return "equal replies once cut"
        ids = {"prompt_ids": asked[:start], "chosen_ids": chosen[start:], "rejected_ids": rejected[start:]}
        return {**ids, "p_chosen": row["p_chosen"]}

    def scored(self, row: Row) -> dict[str, Any] | str:
        """chosen_ids and rejected_ids with the prompt in each: a reward model's columns. Half a reply has no score."""
        chosen, rejected = (self._both(row["prompt"], row[side])[1] for side in ("chosen", "rejected"))
        if max(len(chosen), len(rejected)) > self._context:
            return TOO_LONG
        ids = {"chosen_ids": chosen, "rejected_ids": rejected}
        return {**ids, "p_chosen": row["p_chosen"], "margin": row.get("margin", 0.0)}

    def _both(self, prompt: Any, reply: Any) -> tuple[Ids, Ids]:
        """Ids of a prompt, ready to be answered, and of prompt and reply."""
        if isinstance(prompt, str):
            end = self._tok.eos_token
            return self.ids(prompt), self.ids(prompt + reply + ("" if reply.endswith(end) else end))
        return self.ids(prompt, add_generation_prompt=True), self.ids(prompt + reply)

    def _turns(self, messages: list[dict[str, str]]) -> tuple[Ids, Ids]:
        if self._training is None:
            self._training = self._marked()
        made = self._tok.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, chat_template=self._training
        )
        ids: Ids = list(made["input_ids"])
        return ids, [i if learn else -100 for i, learn in zip(ids, made["assistant_masks"], strict=True)]

    def _marked(self) -> str:
        """The template with marks around what the assistant says."""
        if "{% generation %}" in self._tok.chat_template or "{%- generation" in self._tok.chat_template:
            return str(self._tok.chat_template)
        utils: Any = import_module("trl.chat_template_utils")
        try:
            return str(utils.get_training_chat_template(self._tok))
        except ValueError:
            fix = "rows of prompt and completion, or {% generation %} around the assistant's turns"
            what = "the chat template does not mark what the assistant says, so `messages` cannot be learnt from"
            raise SettingsError(what, where="model", fix=fix) from None

    def _cut(self, ids: Ids, labels: Ids) -> dict[str, Any] | str:
        if all(label == -100 for label in labels[: self._context]):
            return PROMPT_TOO_LONG if len(ids) > self._context else "nothing to learn"
        self._census.cut += len(ids) > self._context
        return {"input_ids": ids[: self._context], "labels": labels[: self._context]}


def _common(a: Ids, b: Ids) -> int:
    """How many ids both begin with: where the reply starts, though a template may render a prompt alone otherwise."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n
