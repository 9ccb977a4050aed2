"""pydantic's errors in a user's words: the path, the value, and what would be right."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Annotated, Any, NamedTuple, TypeGuard, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

Path_ = tuple[str | int, ...]
_PRIVATE = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)
_KEYS = "keys and passwords come from the environment only"


class Complaint(NamedTuple):
    """One problem: where in the data, what is wrong, what would be right."""

    path: Path_
    what: str
    fix: str


def is_map(value: Any) -> TypeGuard[dict[str, Any]]:
    """Whether plain data is a mapping; its keys are always text."""
    return isinstance(value, dict)


def is_list(value: Any) -> TypeGuard[list[Any]]:
    """Whether plain data is a list."""
    return isinstance(value, list)


def shown(value: Any) -> str:
    """A value as an error message quotes it: short, and never a whole document."""
    if is_map(value):
        return "a mapping"
    if is_list(value):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…" + text[0]


def closest(word: str, known: Iterable[str]) -> str:
    """ "did you mean …?", or the list of what is known."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return "known: " + ", ".join(names) if names else ""


def complaints(model: type[BaseModel], error: ValidationError, data: Any) -> list[Complaint]:
    """One complaint per place in the data, in the order in which pydantic found them."""
    grouped: dict[Path_, list[Complaint]] = {}
    for e in error.errors(include_url=False):
        # pydantic counts a list's good items only; where one is wrong, that is already told.
        if e["type"] == "too_short" and len(e["input"]) >= e.get("ctx", {})["min_length"]:
            continue
        path = _data_path(e["loc"], data, e["type"] in ("missing", "missing_argument"))
        grouped.setdefault(path, []).append(_complaint(model, e, path))
    merged: list[Complaint] = []
    for path, same in grouped.items():
        # The branches of a union complain one by one; together they say what the field takes.
        heads = list(dict.fromkeys(c.what for c in same))
        tails = [h.partition(" should be ")[2] or h for h in heads[1:]]
        fixes = "; ".join(dict.fromkeys(c.fix for c in same if c.fix))
        merged.append(Complaint(path, " or ".join([heads[0], *tails]), fixes))
    return merged


def _complaint(model: type[BaseModel], e: Any, path: Path_) -> Complaint:
    kind, message, ctx = e["type"], str(e["msg"]), e.get("ctx", {})
    last = str(path[-1]) if path else ""
    if kind == "extra_forbidden":
        models = _models_at(model, path[:-1])
        fix = closest(last, {name for m in models for name in _names(m)})
        return Complaint(path, f"unknown key {last!r}", _KEYS if _PRIVATE.search(last) else fix)
    if kind == "missing":
        return Complaint(path, f"the key {last!r} is required", f"add {last}: …")
    value = "the value" if _PRIVATE.search(last) else shown(e["input"])
    if kind == "literal_error":
        options = re.findall(r"'([^']*)'", ctx["expected"])
        near = difflib.get_close_matches(str(e["input"]), options, n=1)
        fix = f"did you mean {near[0]!r}?" if near else ""
        return Complaint(path, f"{value} should be one of {', '.join(options) or message}", fix)
    if kind == "string_type" and isinstance(e["input"], int | float | bool):
        fix = "put it in quotes, as it was meant to be written"
        return Complaint(path, f"{value} should be text", fix)
    if kind == "value_error":
        return Complaint(path, f"{value}: {message.removeprefix('Value error, ')}", "")
    return Complaint(path, f"{value} {_plainly(kind, message)}", "")


def _plainly(kind: str, message: str) -> str:
    words = {
        "string_type": "should be text",
        "int_type": "should be a whole number",
        "int_from_float": "should be a whole number",
        "float_type": "should be a number",
        "bool_type": "should be true or false",
        "finite_number": "should be a finite number",
        "tuple_type": "should be a list",
        "list_type": "should be a list",
        "dict_type": "should be a mapping",
        "model_type": "should be a mapping",
        "model_attributes_type": "should be a mapping",
        "path_type": "should be a path",
        "none_required": "should be null",
    }
    return words.get(kind) or message.replace("Input should", "should").replace("String", "text")


def _names(model: type[BaseModel]) -> list[str]:
    return [f.alias or name for name, f in model.model_fields.items()]


def _data_path(loc: tuple[str | int, ...], data: Any, missing: bool) -> Path_:
    """pydantic's location without the names of union branches, which are not in the data."""
    path: list[str | int] = []
    for i, key in enumerate(loc):
        if is_list(data) and isinstance(key, int) and key < len(data):
            data = data[key]
        elif is_map(data) and str(key) in data:
            data = data[str(key)]
        elif not (missing and i == len(loc) - 1):
            continue
        path.append(key)
    return tuple(path)


def _models_at(model: type[BaseModel], path: Path_) -> list[type[BaseModel]]:
    """The models that may stand at a path of the data."""
    types: list[Any] = [model]
    for key in path:
        types = [inner for t in types for inner in _step(t, key)]
    return [t for t in types if _is_model(t)]


def _step(annotation: Any, key: str | int) -> list[Any]:
    """What the annotation says of the value under a key, its alternatives one by one."""
    origin, args = get_origin(annotation), get_args(annotation)
    held: list[Any] = []
    if _is_model(annotation):
        fields = annotation.model_fields.items()
        held = [f.annotation for name, f in fields if key in (name, f.alias)]
    elif origin in (list, tuple) and isinstance(key, int):
        held = [a for a in args if a is not ...]
    elif origin in (dict, Mapping):
        held = list(args[1:])
    return [branch for h in held for branch in _branches(h)]


def _branches(annotation: Any) -> list[Any]:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _branches(args[0])
    if origin in (Union, UnionType):
        return [branch for a in args for branch in _branches(a)]
    return [annotation]


def _is_model(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
