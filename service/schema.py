"""JSON Schemas of every YAML file that people write, made from the models that read them, for editors and other tools.

What a schema cannot say (a draw's rule over two fields, names that must exist) is left to the command that reads the
file; a schema refuses unknown keys, wrong types and values out of range, and its descriptions are the fields' own.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from constitution.schema import File
from judges.panel import Seat
from service._grid import Axes
from service.judging import Config
from service.recipe import Recipe
from tenet import kinds

DIALECT = "https://json-schema.org/draft/2020-12/schema"
FOLDER = Path(__file__).parent / "schemas"
"""The schemas that come with the package; every bundled YAML file names its own in its first lines."""
_PACKAGES = {"engine": "tenet.engines", "judge": "judges", "adapter": "trainers.adapters"}
_UNNAMED = {"engine": "vllm"}
"""The kind that is meant where none is named."""


class Grid(Axes, Config):
    """A judge with all that it needs, and the settings that vary."""


def schemas() -> dict[str, dict[str, Any]]:
    """Name -> schema: constitution, recipe, judge, grid, and train-KIND for every kind of training."""
    made = {
        "constitution": _Bundle(File).schema(),
        "recipe": _Bundle(Recipe, "engine", "judge").schema(),
        "judge": _Bundle(Config, "engine", "judge").schema(),
        "grid": _Bundle(Grid, "engine", "judge").schema(),
    }
    for kind in kinds.known("trainers"):
        made[f"train-{kind}"] = _Bundle(kinds.load("trainers", kind).Settings, "adapter").schema()
    return made


def write(folder: Path) -> list[Path]:
    """Writes every schema into a folder, as NAME.json; the same models give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for name, schema in schemas().items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(schema, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        paths.append(path)
    return paths


def line(schema: str) -> str:
    """The comment by which editors find a file's schema (its path or address)."""
    return f"# yaml-language-server: $schema={schema}"


class _Documented(GenerateJsonSchema):
    """pydantic's schemas, with the line that stands under each field as its description."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False  # a title that only repeats the key

    def model_schema(self, schema: Any) -> dict[str, Any]:
        made = super().model_schema(schema)
        cls = schema["cls"]
        own = inspect.getdoc(cls)
        if own:
            made["description"] = own
        for name, text in _documented(cls).items():
            if name in made.get("properties", {}):
                made["properties"][name].setdefault("description", text)
        return made


@cache
def _documented(cls: type[Any]) -> dict[str, str]:
    """Field -> its docstring, inherited ones too."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if issubclass(base, BaseModel) and not base.__module__.startswith("pydantic"):
            found |= _docstrings(base)
    return found


def _docstrings(cls: type[Any]) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef))
    found: dict[str, str] = {}
    for field, after in pairwise(body):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            found[field.target.id] = inspect.cleandoc(after.value.value)
    return found


class _Bundle:
    """One file's schema: the root model's, with a case for every kind wherever a kind is chosen."""

    def __init__(self, root: type[BaseModel], *chosen: str) -> None:
        self._root = root
        modules = {c: {k: kinds.load(_PACKAGES[c], k) for k in kinds.known(_PACKAGES[c])} for c in chosen}
        settings = {c: {k: m.Settings for k, m in found.items()} for c, found in modules.items()}
        models: dict[type[BaseModel], None] = {root: None, Seat: None}
        models |= {s: None for found in settings.values() for s in found.values()}
        refs, whole = models_json_schema([(m, "validation") for m in models], schema_generator=_Documented)
        self._defs: dict[str, Any] = whole["$defs"]
        self._names = {model: ref["$ref"].rpartition("/")[2] for (model, _), ref in refs.items()}
        for what, found in settings.items():
            self._choose(what, "mode" if what == "adapter" else "kind", found)
        if "judge" in settings:
            seat = self._defs[self._names[Seat]]["properties"]
            sitting = {k: s for k, s in settings["judge"].items() if k != "panel"}
            self._choose("seat", "kind", sitting, seat)
            panel = self._defs["judge.panel"]["properties"]["members"]
            panel["items"] = _ref("seat")
            every: dict[str, Any] = {n: None for s in settings["judge"].values() for n in s.model_fields}
            self._link(["kind", *every])
        if "adapter" in settings:
            properties = self._defs[self._names[root]]["properties"]
            properties["adapter"] |= {"anyOf": [_ref("adapter"), {"type": "null"}]}

    def _choose(
        self, what: str, key: str, found: Mapping[str, type[BaseModel]], more: Mapping[str, Any] | None = None
    ) -> None:
        """Defines `what`: the settings of the kind that `key` names."""
        cases: list[dict[str, Any]] = []
        for kind, settings in found.items():
            own = json.loads(json.dumps(self._defs[self._names[settings]]))
            own["properties"] = {key: {"const": kind}, **(more or {}), **own.get("properties", {})}
            self._defs[f"{what}.{kind}"] = own
            needed = {} if kind == _UNNAMED.get(what) else {"required": [key]}
            cases.append({"if": {"properties": {key: {"const": kind}}, **needed}, "then": _ref(f"{what}.{kind}")})
        listed = {"enum": sorted(found), "description": f"Which kind of {what}."}
        one: dict[str, Any] = {"type": "object", "properties": {key: listed}, "allOf": cases}
        self._defs[what] = one if what in _UNNAMED else {**one, "required": [key]}

    def _link(self, settings: list[str]) -> None:
        """Puts engines and judges where the root's models take any mapping."""
        properties = self._defs[self._names[self._root]]["properties"]
        properties["models"]["additionalProperties"] = _ref("engine")
        properties["judge"] = {**_ref("judge"), "description": properties["judge"]["description"]}
        for name in ("grid", "variants"):
            part = properties.get(name)
            if part is not None:
                holder = part if name == "grid" else part["additionalProperties"]
                holder["propertyNames"] = {"enum": settings}
        for made in self._defs.values():
            scorer = made.get("properties", {}).get("scorer")
            if scorer is not None:
                scorer.pop("additionalProperties", None)
                scorer["anyOf"] = [{"maxProperties": 0}, _ref("judge")]

    def schema(self) -> dict[str, Any]:
        """The root's schema, with those definitions that it needs."""
        root = self._defs[self._names[self._root]]
        used: dict[str, Any] = {}
        waiting = _named(root)
        while waiting:
            name = waiting.pop()
            if name not in used:
                used[name] = self._defs[name]
                waiting |= _named(used[name])
        return {"$schema": DIALECT, **root, "$defs": dict(sorted(used.items()))}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}"}


def _named(schema: Any) -> set[str]:
    """The definitions that a schema refers to."""
    if isinstance(schema, dict):
        parts = cast(dict[str, Any], schema)
        found = {str(parts["$ref"]).rpartition("/")[2]} if "$ref" in parts else set[str]()
        return found.union(*(_named(v) for v in parts.values()))
    return set[str]().union(*(_named(v) for v in cast(list[Any], schema))) if isinstance(schema, list) else set()
