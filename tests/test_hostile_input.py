"""Input as nobody would write it on purpose: refused in words, in time, by every reader."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import constitution
from constitution import importers
from generators import prompts
from judges import _parse, pairs_file
from judges.agreement import votes
from service.recipe import Recipe, open_recipe
from tenet.errors import InputError, SettingsError
from tenet.settings import assemble
from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "fuzz" / "corpus"
BIG = "1" + "0" * 400
LONG = "x" * 300


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_but_our_own_errors_comes_out_of_the_corpus(target: str) -> None:
    inputs = sorted((CORPUS / target).iterdir())
    assert len(inputs) >= 3
    for path in inputs:
        TARGETS[target](path.read_bytes())


def read_prompts(path: Path) -> Any:
    return prompts.check(prompts.Settings(path=str(path)))


def read_pairs(path: Path) -> Any:
    return list(pairs_file.read(path))


def read_votes(path: Path) -> Any:
    return votes.read(str(path))


def read_principles(path: Path) -> Any:
    return importers.read([path])


PAIR = '"prompt": "q", "a": "x", "b": "y"'
ANNOTATED = (
    '{"metadata": {"version": 2}, "annotators": {"k": {}}, "comparisons": [{"response_a": {"text": ""}, '
    '"response_b": {"text": ""}, "annotations": {"k": {"pref": []}}}]}'
)


@pytest.mark.parametrize(
    ("read", "name", "text", "words"),
    [
        (read_prompts, "p.jsonl", '{"prompt": "q", "id": "\\ud800"}', ["line 1", "the id is not valid Unicode"]),
        (read_prompts, "p.jsonl", '{"prompt": "q", "tags": ["\\ud800"]}', ["line 1", "a tag is not valid Unicode"]),
        (read_pairs, "p.jsonl", f'{{{PAIR}, "id": "\\ud800"}}', ["line 1", "the id is not valid Unicode"]),
        (read_pairs, "p.jsonl", f'{{{PAIR}, "labels": {{"\\ud800": "A"}}}}', ["line 1", "a name in 'labels'"]),
        (read_pairs, "p.jsonl", f'{{{PAIR}, "slices": {{"t": "\\ud800"}}}}', ["line 1", "slices.t is not valid"]),
        (read_pairs, "p.jsonl", f'{{{PAIR}, "machine": "x"}}', ["line 1", "'machine' is text"]),
        (read_pairs, "p.jsonl", f'{{{PAIR}, "machine": {{"m": 1}}}}', ["'machine.m' is a number (1)", "A, B or tie"]),
        (read_pairs, "p.json", ANNOTATED, ["row 1", "annotations.k.pref is []"]),
        (read_pairs, "p.json", '[{"raw": {}, "raters": 5}]', ["row 1", "the field 'a' is missing"]),
        (read_pairs, "p.csv", "prompt,a,b,labels,labels.r\nq,x,y,A,B\n", ["both 'labels' and labels.NAME"]),
        (read_pairs, "p.csv", "prompt,a,b,a\nq,x,y,z\n", ["the header names 'a' twice"]),
        (read_votes, "v.jsonl", f'{{"item": 1, "rater": "r", "kind": "human", "score": {BIG}}}', ["line 1", "'score'"]),
        (read_principles, "l.json", f'[{{"dimension": "d", "definition": "r", "weight": {BIG}}}]', ["weight is 1000"]),
        (constitution.load, "c.yaml", f"name: a\nextends: ./{LONG}\n", ["line 2, extends", "there is no file"]),
        (constitution.load, "c.yaml", 'name: a\nextends: "./x\\0"\n', ["line 2, extends", "U+0000"]),
    ],
)
def test_a_strange_value_is_named_with_its_place(
    tmp_path: Path, read: Callable[[Path], Any], name: str, text: str, words: list[str]
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read(path)
    assert [w for w in (name, *words) if w not in str(caught.value)] == []
    assert len(str(caught.value)) < len(str(tmp_path)) + 2 * len(LONG)


@pytest.mark.parametrize("read", [read_prompts, read_pairs, read_votes, constitution.load, open_recipe])
def test_a_path_that_no_file_can_have_is_refused(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    with pytest.raises(InputError, match="cannot be read: File name too long"):
        read(tmp_path / LONG)


def test_a_recipe_may_name_what_no_file_can_be_called(tmp_path: Path) -> None:
    for prompt, rules, word in ((LONG, "harmless", ""), ("p.jsonl", '"./a\\0"', "U\\+0000")):
        path = tmp_path / "r.yaml"
        path.write_text(
            f"prompts: {{path: {prompt}, kind: dataset}}\nconstitution: {rules}\nmodels: {{m: {{kind: scripted}}}}\n"
        )
        if word:
            with pytest.raises(InputError, match=word):
                open_recipe(path)
        else:  # whether the prompts are there is asked when they are read
            assert open_recipe(path).recipe.prompts.paths == (str(tmp_path / LONG),)


def test_parquet_cells_that_python_cannot_hold_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    broken = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())
    far = pa.array([2**62], pa.timestamp("us"))
    for column, cell, said in (("prompt", broken, "can't decode byte 0xff"), ("id", far, "date value out of range")):
        sink = io.BytesIO()
        pq.write_table(pa.table({"prompt": ["q"], column: cell}), sink)
        (tmp_path / "p.parquet").write_bytes(sink.getvalue())
        with pytest.raises(InputError, match=said):
            read_prompts(tmp_path / "p.parquet")


@pytest.mark.parametrize("data", [{"out": "\ud800"}, {"models": {"\ud800": {}}}, {"models": {"m": {"x": ["\ud800"]}}}])
def test_half_a_character_in_settings_is_named_and_can_be_printed(data: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=r"(out|models\.\\ud800|models\.m\.x\.0): holds half of a char") as caught:
        assemble(Recipe, data)
    str(caught.value).encode()


def test_an_override_that_is_no_text_or_counts_too_far_is_refused() -> None:
    for text, said in (("out=\udcff", "is not valid UTF-8"), ("9" * 5000 + "=1", "unknown key")):
        with pytest.raises(SettingsError, match=said) as caught:
            assemble(Recipe, {"prompts": {"path": "p"}, "constitution": "c", "models": {"m": {}}}, [text])
        str(caught.value).encode()


@pytest.mark.parametrize("opening", ['"', '"\n', "`", " '", "“", "„", "«", '" '])
@pytest.mark.parametrize("filling", ["a ", "a \n", "8 ", "A\n"])
def test_a_long_reply_that_opens_a_quote_and_goes_on_is_read_at_once(opening: str, filling: str) -> None:
    text = opening + filling * 10_000
    started = time.process_time()
    _parse.verdict(text)
    _parse.score(text)
    assert time.process_time() - started < 0.5  # quadratic, it took 2 s and more
