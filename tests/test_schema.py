"""JSON Schemas: those that are committed are the models' own, bundled files keep them, mistakes break them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from service import schema
from tenet.settings import read_yaml

ROOT = Path(__file__).parent.parent
BUNDLED = sorted(
    p for folder in ("constitution/files", "service/demo_files", "docs/recipes") for p in (ROOT / folder).glob("*.yaml")
)
JUDGE: dict[str, Any] = {"constitution": "nano", "models": {"m": {"model": "nano:assistant"}}}


def named(path: Path) -> Path:
    """The schema that a file's first line names."""
    first = path.read_text("utf-8").split("\n", 1)[0]
    assert first.startswith(schema.line("")), path
    return (path.parent / first.removeprefix(schema.line(""))).resolve()


def check(name: str, data: Any) -> None:
    made = json.loads((schema.FOLDER / f"{name}.json").read_text("utf-8"))
    jsonschema.Draft202012Validator(made).validate(data)


def test_committed_schemas_are_those_of_the_models(tmp_path: Path) -> None:
    made = {p.name: p.read_text("utf-8") for p in schema.write(tmp_path)}
    assert {"constitution.json", "recipe.json", "judge.json", "grid.json", "train-sft.json"} <= made.keys()
    assert {p.name: p.read_text("utf-8") for p in schema.FOLDER.glob("*.json")} == made, "run: tenet schema"
    for text in made.values():
        jsonschema.Draft202012Validator.check_schema(json.loads(text))


@pytest.mark.parametrize("path", BUNDLED, ids=lambda p: p.name)
def test_a_bundled_file_names_its_schema_and_keeps_it(path: Path) -> None:
    assert named(path).parent == schema.FOLDER
    data = read_yaml(path)
    check(named(path).stem, data)
    with pytest.raises(jsonschema.ValidationError, match="misspelt"):
        check(named(path).stem, {**data, "misspelt": 1})


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("constitution", {"name": "x", "principles": [{"id": "a", "wieght": 2}]}),
        ("constitution", {"name": "x", "principles": [{"id": "a", "weight": 0}]}),
        ("constitution", {"name": "x", "principles": [{"id": "a b"}]}),
        ("constitution", {"name": "x", "version": 1}),
        ("judge", {**JUDGE, "judge": {"kind": "pairwise", "odrer": "both"}}),
        ("judge", {**JUDGE, "judge": {"kind": "pairwise", "order": "twice"}}),
        ("judge", {**JUDGE, "judge": {"kind": "pairwize"}}),
        ("judge", {**JUDGE, "judge": {"order": "both"}}),
        ("judge", {**JUDGE, "judge": {"kind": "panel", "members": [{"kind": "pairwise", "nmae": "x"}]}}),
        ("judge", {**JUDGE, "models": {"m": {"model": "x", "replcas": 2}}}),
        ("judge", {**JUDGE, "models": {"m": {"kind": "openai", "model": "x", "replicas": 2}}}),
        ("judge", {**JUDGE, "models": {}}),
        ("judge", {"constitution": "nano"}),
        ("grid", {**JUDGE, "grid": {"odrer": ["both"]}}),
        ("grid", {**JUDGE, "variants": {"one": {"odrer": "both"}}}),
        ("recipe", {**JUDGE, "prompts": {"path": "x"}, "pairs": [{"kind": "best_of", "scorer": {"kind": "no"}}]}),
        ("train-dpo", {"model": "m", "data": "d", "out": "o", "adapter": {"mode": "hybird"}}),
        ("train-dpo", {"model": "m", "data": "d", "out": "o", "beta": 0}),
        ("train-sft", {"model": "m", "data": [{"path": "d", "wieght": 1}], "out": "o"}),
    ],
)
def test_mistakes_break_the_schema(name: str, data: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        check(name, data)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("constitution", {"name": "x", "extends": "harmless", "principles": [{"id": "privacy", "weight": 2}]}),
        ("judge", {**JUDGE, "judge": {"kind": "panel", "members": [{"kind": "pairwise", "name": "x", "tie": 0.1}]}}),
        ("judge", {**JUDGE, "judge": {"kind": "pairwise", "cot": True, "clamp": [0.4, 0.6]}}),
        ("grid", {**JUDGE, "grid": {"order": ["both"], "cot": [True, None]}, "variants": {"s": {"tie": 0.1}}}),
        ("recipe", {**JUDGE, "prompts": {"path": "x"}, "pairs": [{"scorer": {"kind": "pointwise"}}]}),
        ("train-dpo", {"model": "m", "data": "d", "out": "o", "adapter": {"mode": "hybrid"}, "lr": 1}),
        ("train-sft", {"model": "m", "data": [{"path": "d", "weight": 1}], "out": "o"}),
    ],
)
def test_what_is_right_keeps_the_schema(name: str, data: Any) -> None:
    check(name, data)


def test_editors_see_each_fields_meaning_and_default() -> None:
    made = json.loads((schema.FOLDER / "judge.json").read_text("utf-8"))
    order = made["$defs"]["judge.pairwise"]["properties"]["order"]
    assert order["description"].startswith("Which reply is shown first.")
    assert order["default"] == "both"
    principle = json.loads((schema.FOLDER / "constitution.json").read_text("utf-8"))["$defs"]["Principle"]
    assert all(principle["properties"][f].get("description") for f in ("id", "choose", "weight", "conflicts_with"))
