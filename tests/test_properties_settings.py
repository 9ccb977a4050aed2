"""Properties of settings: no unknown key and no value of a wrong type passes, wherever it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from service.recipe import check_recipe
from tenet.errors import InputError
from tenet.settings import Document, read
from tests.test_properties import few, plain, words

RECIPE: dict[str, Any] = {
    "prompts": {"path": "p.jsonl", "columns": {"prompt": "q"}},
    "constitution": "harmless",
    "models": {"m": {"kind": "scripted"}},
    "respond": {"samples": 2},
    "revise": {"rounds": 1},
    "pairs": [{"kind": "samples"}],
    "judge": {"kind": "pairwise", "order": "both"},
    "keep": {"margin": 0.1},
    "limits": {"max_failures": 0.5},
    "seed": 3,
}


def mappings(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all mappings with fields of their own: a model's name may be any word."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    below = [p for k, v in inner for p in mappings(v, (*path, k))]
    return below + [path] * (isinstance(value, dict) and path != ("models",))


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    below = [p for k, v in inner for p in leaves(v, (*path, k))]
    return below or [path]


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of the data with another value at a path."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(copy[path[0]] if path[0] != "zz" else None, path[1:], new) if path[1:] else new
    return copy


def refusal(data: Any) -> str:
    with pytest.raises(InputError) as caught:
        check_recipe(Document(data, "r.yaml"), Path("."), "r")
    return str(caught.value)


@pytest.mark.parametrize("path", mappings(RECIPE))
@pytest.mark.parametrize("value", [1, None, {"a": []}])
def test_an_unknown_key_is_refused_wherever_it_stands(path: tuple[Any, ...], value: Any) -> None:
    said = refusal(put(RECIPE, (*path, "zz"), value))
    assert ".".join(map(str, (*path, "zz"))) in said
    assert "unknown key 'zz'" in said


@pytest.mark.parametrize("path", leaves(RECIPE))
@pytest.mark.parametrize("value", [{"zz": 1}, [[1]], True])
def test_a_value_of_another_type_is_refused_with_its_path(path: tuple[Any, ...], value: Any) -> None:
    said = refusal(put(RECIPE, path, value))
    assert ".".join(map(str, path)) in said
    assert "at least" not in said  # a list with one bad item is not too short as well


class Plain(yaml.SafeDumper):
    """Writes a value that stands twice in full: tenet reads no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


@few
@given(data=st.dictionaries(words, plain, min_size=1, max_size=3))
def test_what_yaml_writes_is_read_as_it_was(data: dict[str, Any]) -> None:
    written = yaml.dump(data, Dumper=Plain, allow_unicode=True)
    assert read(written).data == data
