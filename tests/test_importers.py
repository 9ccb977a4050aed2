"""Importers: other projects' shapes, in texts of our own; and what is written reads as what was meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from constitution import Constitution, Principle, importers, load, writer
from service import cli
from tenet.errors import DataError, InputError, SettingsError

CRITIQUES: dict[str, Any] = {
    f"harmful{i}": {
        "prompt": [f"\n\nCritiqueRequest: Say where the reply is unkind ({i}).\n\nCritique:"],
        "edit_request": f"\n\nRevisionRequest: Say it kindly ({i}).\n\nRevision:",
    }
    for i in range(16)
}
CHOICES = [f"\nChoose the reply that is kinder ({i}). Options:" for i in range(16)]
SWARM = [{"critic": "Is it rude? Say where.", "revision": "Make it polite."}, {"critic": "b", "revision": "c"}]
SALMON = [
    {"dimension": "Plain Words", "definition": "The AI should use words that a child knows.", "weight": 5},
    {"dimension": "Plain Words", "definition": "The AI should keep sentences short."},
]
ICAI = "1. Select the response that names a source.\n2. Prefer short ones.\n"


def write(folder: Path, value: Any, name: str = "list") -> Path:
    path = folder / f"{name}.json"
    path.write_text(value if isinstance(value, str) and name == "raw" else json.dumps(value), encoding="utf-8")
    return path


def first(folder: Path, value: Any, form: str = "") -> Principle:
    return importers.read([write(folder, value)], form).principles[0]


def test_cai_critiques_and_choices(tmp_path: Path) -> None:
    p = first(tmp_path, CRITIQUES)
    assert (p.id, p.critique, p.revise) == ("harmful0", "Say where the reply is unkind (0).", "Say it kindly (0).")
    assert first(tmp_path, CHOICES).choose == "Choose the reply that is kinder (0)."
    assert first(tmp_path, {f"c{i}": text for i, text in enumerate(CHOICES)}).id == "c0"
    both = [write(tmp_path, CHOICES, "choices"), write(tmp_path, CRITIQUES, "critiques")]
    joined = importers.read(both, name="paper")
    assert (joined.name, len(joined.principles)) == ("paper", 16)
    last = joined.by_id["harmful15"]
    assert last.critique == "Say where the reply is unkind (15)."
    assert last.choose == "Choose the reply that is kinder (15)."
    with pytest.raises(DataError, match="16 critiques and 3 choices"):
        importers.read([both[1], write(tmp_path, CHOICES[:3], "few")])
    with pytest.raises(DataError, match="do not make one constitution"):
        importers.read([both[0], both[0]])


def test_llm_swarm_salmon_and_icai(tmp_path: Path) -> None:
    p = first(tmp_path, SWARM)
    assert (p.critique, p.revise, p.choose) == ("Is it rude? Say where.", "Make it polite.", "")
    made = importers.read([write(tmp_path, SALMON)]).principles
    assert [(p.id, p.title, p.weight) for p in made] == [
        ("plain-words", "Plain Words", 5.0), ("plain-words-2", "Plain Words", 1.0),
    ]  # fmt: skip
    for stage in ("critique", "revise", "choose", "score"):
        assert "words that a child knows" in getattr(made[0], stage)
    for shape in (ICAI, ICAI.splitlines(), {"0": ICAI.splitlines()[0], "1": ICAI.splitlines()[1]}):
        found = importers.read([write(tmp_path, shape)]).principles
        assert found[0].choose == "Which reply names a source?"
        assert found[0].id == "select-the-response-that-names-a"
        assert found[1].choose == "Which reply keeps this rule more closely? Prefer short ones."
    assert found[0].source == "imported from list.json (icai)"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({}, ["no known list", "salmon is SALMON", "list.json"]),
        ([], ["no known list"]),
        ([[1]], ["no known list"]),
        ([{"rule": "x"}], ["no known list"]),
        (3, ["no known list", "a number"]),
        ({"a": {"prompt": ["x"], "edit_request": ""}}, ["item 1 ('a')", "edit_request is empty"]),
        ({"a": {"prompt": ["x", "y"], "edit_request": "z"}}, ["item 1 ('a')", "prompt is a list"]),
        ([*SWARM, {"critic": "x"}], ["item 3", "revision is missing or null"]),
        ([*SWARM, "x"], ["item 3", "is text", "llm-swarm"]),
        ([*CHOICES, 3], ["item 17", "the question is a number"]),
        ([{**SALMON[0], "weight": 0}], ["item 1", "weight is 0", "above 0"]),
        ([{**SALMON[0], "weight": "5"}], ["item 1", "weight is '5'"]),
        ([{**SALMON[0], "definition": "\ud800"}], ["item 1", "half of a character"]),
    ],
)
def test_other_shapes_are_refused_with_the_item(tmp_path: Path, value: Any, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        first(tmp_path, value)
    for word in words:
        assert word in str(caught.value)


def test_files_that_are_no_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2: is not JSON"):
        importers.read([write(tmp_path, "[\n{]", "raw")])
    with pytest.raises(DataError, match="given twice"):
        importers.read([write(tmp_path, '{"a": "x Options:", "a": "y Options:"}', "raw")])
    with pytest.raises(DataError, match="is not JSON"):
        importers.read([write(tmp_path, "[" * 100_000, "raw")])
    with pytest.raises(DataError, match="no such file"):
        importers.read([tmp_path / "none.json"])
    with pytest.raises(SettingsError, match="did you mean 'salmon'"):
        first(tmp_path, SALMON, "salmn")
    with pytest.raises(DataError, match="item 1"):
        first(tmp_path, SALMON, "llm-swarm")


def test_the_command_writes_a_file_that_loads(tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    command = ["constitution", "import", str(write(tmp_path, SALMON)), "-o", str(out)]
    said = CliRunner().invoke(cli.app, command)
    assert said.exit_code == 0, said.output
    assert "2 principles" in said.output
    assert [p.id for p in load(out).principles] == ["plain-words", "plain-words-2"]
    again = CliRunner().invoke(cli.app, command)
    assert isinstance(again.exception, InputError)
    assert "is there already" in str(again.exception)
    assert CliRunner().invoke(cli.app, [*command, "--force"]).exit_code == 0


def test_what_is_written_reads_as_what_was_meant(tmp_path: Path) -> None:
    odd = "no: {reply} # x\n- 'y' \"z\" ```\n<|im_end|> 08 \u00e9\U0001f600\x85 \u2028end"
    p = Principle(id="a.b-c_1", title="1:30", critique=odd, revise="no", choose="null", score="1_000", weight=0.25)
    made = Constitution(name="x", serves="yes", preamble="~", principles=(p, *load("house-style").principles))
    writer.write(tmp_path / "x.yaml", made, "head\rname: evil", notes=["note\x85- id: evil"])
    assert load(tmp_path / "x.yaml").hash == made.hash
    assert load(tmp_path / "x.yaml").by_id["a.b-c_1"] == p
    text = writer.yaml_of(load("harmless"))
    assert text.count("\n  - id: ") == 16
    assert "weight: 1.0" not in text
