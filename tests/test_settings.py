"""Settings: YAML means what it looks like, and errors say where and what would be right."""

import math
import tracemalloc
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from tenet import _yaml
from tenet.errors import ConstitutionError, SettingsError
from tenet.records import Frozen
from tenet.settings import Document, assemble, read, read_yaml


class Judge(Frozen):
    order: Literal["both", "one"] = "both"
    clamp: tuple[float, float] | None = None


class Respond(Frozen):
    samples: int = Field(default=2, ge=1)
    judges: tuple[Judge, ...] = ()
    by_name: dict[str, Judge] = Field(default_factory=dict[str, Judge])


class Recipe(Frozen):
    name: str
    out: Path | None = None
    paths: str | tuple[str, ...] = ""
    cache: bool = True
    margin: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    judge: Judge = Judge()
    respond: Respond = Respond()


def refused(text: str, *overrides: str) -> str:
    with pytest.raises(SettingsError) as caught:
        assemble(Recipe, read(text, "recipe.yaml"), overrides)
    return str(caught.value)


def test_scalars_mean_what_they_look_like() -> None:
    words = ["no", "on", "yes", "1_000", "08", "1:30", "2026-01-02", "0x10", "0o7", "1.2.3"]
    assert read_yaml("a: [" + ", ".join(words) + "]") == {"a": words}
    assert read_yaml("a: ['3', \"true\"]") == {"a": ["3", "true"]}
    assert read_yaml("a: [null, ~, true, False, 12, -3, +1, 0, 1.5, .5, 2., 1e3]") == {
        "a": [None, None, True, False, 12, -3, 1, 0, 1.5, 0.5, 2.0, 1000.0]
    }
    assert math.isnan(read_yaml("a: .nan")["a"])
    assert read_yaml("on: 1\n2: b\nnull: c\nd:") == {"on": 1, "2": "b", "null": "c", "d": None}
    assert read_yaml("a: |\n  one: {x}\n  - two\n") == {"a": "one: {x}\n- two\n"}
    assert read_yaml("\ufeffa: 1") == {"a": 1}
    assert read_yaml("a: " + "9" * 5000) == {"a": "9" * 5000}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3", ["line 3", "'a' is given twice"]),
        ("j: {o: 1, o: 2}", ["line 1", "'o' is given twice"]),
        ("a: 1\nb: !!python/object/apply:os.system [x]", ["line 2", "tag", "os.system"]),
        ("a: !x 1", ["line 1", "tag !x is refused"]),
        ("a: &big [x]\nb: *big", ["line 1", "anchor &big is refused", "write the value out"]),
        ("a: 1\nb: *big", ["line 2", "alias *big is refused"]),
        ("a: 1\n---\nb: 2", ["line 2", "second document"]),
        ("a:\n\t- b", ["line 2", "a tab is used for indentation", "use spaces"]),
        ("\ta: 1", ["line 1", "tab", "use spaces"]),
        ("a: 1\nb: c: d", ["line 2", "not YAML", "'b: c: d'", "needs quotes"]),
        ("a: [1, 2", ["not YAML"]),
        ("a: 1\nb: \x07", ["line 2", "U+0007"]),
        ("? [a]\n: 1", ["line 1", "keys are plain words"]),
        ("a: \ud800", ["line 1", "UTF-8"]),
        ("", ["is empty"]),
        ("# only a comment\n", ["is empty"]),
        ("[" * 100_000, ["line 1", "50 levels"]),
        ("a:\n" + "".join("  " * i + "- a:\n" for i in range(1, 200)), ["50 levels"]),
        ("- " * 3_000 + "x", ["50 levels"]),
    ],
)
def test_yaml_that_is_not_plain_data_is_refused(text: str, words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        read(text, "recipe.yaml")
    for word in ["recipe.yaml", *words]:
        assert word in str(caught.value)


def test_the_slower_loader_refuses_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml

    monkeypatch.setattr(_yaml, "_LOADER", yaml.SafeLoader)
    assert read_yaml("a: [no, 08, 1]\nb: |\n  x\n") == {"a": ["no", "08", 1], "b": "x\n"}
    for text in ("a: 1\na: 2", "a: &x 1", "a: !!int 1", "a:\n\t- b", "[" * 60, "a: \x07"):
        with pytest.raises(SettingsError, match="line "):
            read(text, "recipe.yaml")


def test_an_alias_bomb_costs_nothing() -> None:
    bomb = "a: &a [x, x]\n" + "".join(
        f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefghij", "bcdefghijk", strict=True)
    )
    tracemalloc.start()
    with pytest.raises(SettingsError, match=r"line 1: the anchor &a is refused"):
        read(bomb, "recipe.yaml")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_files_that_cannot_be_read_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_bytes(b"a: 1\nb: caf\xe9\n")
    with pytest.raises(SettingsError, match=r"bad\.yaml, line 2: byte 0xe9 is not UTF-8"):
        read(bad)
    with pytest.raises(SettingsError, match=r"none\.yaml: no such file"):
        read(tmp_path / "none.yaml")
    with pytest.raises(SettingsError, match="is a folder"):
        read(tmp_path)
    monkeypatch.setattr(_yaml, "MAX_BYTES", 4)
    with pytest.raises(SettingsError, match=r"is 13 bytes long \(at most 4 bytes\)"):
        read(bad)


def test_a_recipe_and_its_overrides_become_one_frozen_model() -> None:
    doc = read("name: x\nout: /data\npaths: [a, b]\njudge: {clamp: [0, 1]}\nrespond:\n", "r.yaml")
    recipe = assemble(
        Recipe,
        doc.without("respond"),
        [
            "judge.order=one",
            "respond.samples=4",
            "respond.judges=[{order: one}, {}]",
            "respond.judges.1.clamp=[0.4, 0.6]",
            "name=be kind: always, # even now",
            'paths="7"',
            "respond.samples=5",
        ],
    )
    assert recipe == Recipe(
        name="be kind: always, # even now",
        out=Path("/data"),
        paths="7",
        judge=Judge(order="one", clamp=(0.0, 1.0)),
        respond=Respond(samples=5, judges=(Judge(order="one"), Judge(clamp=(0.4, 0.6)))),
    )
    assert doc.data["judge"] == {"clamp": [0, 1]}, "overrides never change what was read"
    assert assemble(Recipe, {"name": "x", "paths": ("a",)}).paths == ("a",)


def test_unknown_keys_suggest_the_right_one_at_every_depth() -> None:
    assert refused("name: x\njudge:\n  ordr: both") == (
        "recipe.yaml, line 3, judge.ordr: unknown key 'ordr' (did you mean 'order'?)"
    )
    assert "did you mean 'judge'?" in refused("name: x", "juge.order=both")
    nested = refused("name: x\nrespond:\n  judges:\n  - order: one\n  - ordre: one")
    assert "line 5, respond.judges.1.ordre" in nested
    assert "did you mean 'order'?" in nested
    assert "did you mean 'clamp'?" in refused("name: x\nrespond: {by_name: {z: {klamp: 1}}}")
    assert "known: cache, judge, margin" in refused("name: x\nzzz: 1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("judge: {}", ["recipe.yaml, name: the key 'name' is required"]),
        ("name: 1.10", ["line 1, name: 1.1 should be text", "quotes"]),
        ("name: x\nrespond:\n  samples: four", ["line 3, respond.samples: 'four'", "whole number"]),
        ("name: x\nrespond: {samples: true}", ["true should be a whole number"]),
        ("name: x\nrespond: {samples: 1.5}", ["1.5 should be a whole number"]),
        ("name: x\nrespond: {samples: 0}", ["0 should be greater than or equal to 1"]),
        ("name: x\nmargin: .nan", ["margin: nan should be a finite number"]),
        ("name: x\ncache: no", ["cache: 'no' should be true or false"]),
        ("name: x\njudge: {order: bth}", ["'bth' should be one of both, one", "mean 'both'?"]),
        ("name: x\njudge: both", ["judge: 'both' should be a mapping"]),
        ("name: x\npaths: 3", ["paths: 3 should be text or a list"]),
        ("- a", ["a list is not a mapping"]),
    ],
)
def test_wrong_values_name_place_value_and_remedy(text: str, words: list[str]) -> None:
    message = refused(text)
    for word in ["recipe.yaml", *words]:
        assert word in message


def test_several_problems_come_in_one_message_one_a_line() -> None:
    message = refused("name: x\nmargin: -1\njudge:\n  order: bth", "respond.samples=four")
    head, *problems = message.split("\n")
    assert head == "recipe.yaml: 3 problems"
    assert len(problems) == 3
    assert any("respond.samples=four on the command line: 'four'" in p for p in problems)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("judge.order", "is not key=value"),
        ("=3", "is not key=value"),
        ("judge..order=one", "is not key=value"),
        ("name.first=x", "'first' cannot be set inside 'x' (set the whole value instead)"),
        ("judge.clamp=[1", "is not YAML"),
        ("respond.judges.0.order=one", "0 is not an item of the list (the list is empty)"),
    ],
)
def test_broken_overrides_are_refused(override: str, words: str) -> None:
    message = refused("name: x\nrespond: {judges: []}", override)
    assert words in message
    assert "on the command line" in message


@pytest.mark.parametrize("key", ["sk-proj-abcdefGHIJ1234567890", "hf_abcdefghijklmnopqrstuvwx"])
def test_api_keys_are_refused_and_never_shown(key: str) -> None:
    for message in (refused(f"name: Bearer {key}"), refused("name: x", f"name={key}")):
        assert "environment" in message
        assert key not in message
    assert "environment" in refused("name: x\napi_key: hunter2")
    assert "hunter2" not in refused("name: x\napi_key: hunter2")
    assert assemble(Recipe, {"name": f"say {key}"}, error=ConstitutionError).name == f"say {key}"
    assert assemble(Recipe, {"name": "models/sk-learn-is-not-a-key-at-all"})


def test_parts_of_a_document_remember_their_lines() -> None:
    doc = read("name: x\njudge:\n  kind: pairwise\n  order: bth\n", "r.yaml")
    assert doc.line_of("judge.order") == 4
    assert doc.line_of("judge.nothing") == 2
    with pytest.raises(SettingsError, match=r"r\.yaml, line 4, judge\.order: 'bth'"):
        assemble(Judge, doc.sub("judge").without("kind"))
    assert assemble(Judge, doc.sub("absent")) == Judge()
    late = doc.override(["judge.order=zzz"]).sub("judge").without("kind")
    with pytest.raises(SettingsError, match=r"judge\.order=zzz on the command line: 'zzz'"):
        assemble(Judge, late)
    assert Document({"order": "one"}).line_of("order") is None
