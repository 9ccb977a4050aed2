"""Settings: strict YAML and `key=value` overrides, assembled into frozen pydantic models."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError, to_json

from tenet import _yaml
from tenet._complaints import closest, complaints, is_list, is_map, shown
from tenet.errors import InputError, SettingsError

__all__ = ["Document", "assemble", "closest", "read", "read_yaml"]

M = TypeVar("M", bound=BaseModel)
Path_ = tuple[str | int, ...]

_SECRET = re.compile(r"(?<![\w/.-])(?:sk-[\w-]{16,}|hf_[A-Za-z0-9]{20,}|gh[pos]_\w{30,})(?![\w/.])")


@dataclass(frozen=True)
class Document:
    """Plain data with the memory of where it was written: file, line, or the command line."""

    data: Any
    where: str = ""
    """The file's name, as errors give it."""
    text: str = field(default="", repr=False)
    prefix: Path_ = ()
    """Where in the file `data` stands; () for the whole file."""
    overridden: Mapping[Path_, str] = field(default_factory=dict[Path_, str])
    """Full path -> the `key=value` that set it."""

    @cached_property
    def _lines(self) -> dict[Path_, int]:
        # Only an error asks for lines, so they are gathered in a second parse, not in every run.
        lines: dict[Path_, int] = {}
        if self.text:
            _yaml.parse(self.text, self.where, lines)
        return lines

    def line_of(self, path: str | Path_) -> int | None:
        """The line (from 1) of a path such as "judge.order", or of the nearest thing around it."""
        keys = (*self.prefix, *(_split(path) if isinstance(path, str) else path))
        for end in range(len(keys), 0, -1):
            if keys[:end] in self._lines:
                return self._lines[keys[:end]]
        return None

    def place(self, path: str | Path_) -> str:
        """How an error names a path: "recipe.yaml, line 3, judge.order"."""
        keys = (*self.prefix, *(_split(path) if isinstance(path, str) else path))
        for spot, said in self.overridden.items():
            below = spot[: len(keys)] == keys and keys and keys not in self._lines
            if keys[: len(spot)] == spot or below:
                return f"{said} on the command line"
        line = self.line_of(path)
        parts = (self.where, f"line {line}" if line else "", ".".join(map(str, keys)))
        return ", ".join(p for p in parts if p)

    def sub(self, key: str) -> Document:
        """The part under a key, for settings that another module reads; {} if it is absent."""
        inner = self.data.get(key) if is_map(self.data) else None
        return replace(self, data={} if inner is None else inner, prefix=(*self.prefix, key))

    def without(self, *keys: str) -> Document:
        """The same document with some of its keys left out."""
        data = {k: v for k, v in self.data.items() if k not in keys}
        return replace(self, data=data)

    def override(self, overrides: Iterable[str]) -> Document:
        """The document with settings like `judge.order=both` put in; of two, the later wins."""
        data, said = self.data, dict(self.overridden)
        for text in overrides:
            keys, value = _override(text)
            said[(*self.prefix, *keys)] = _hidden(text)
            data = _put({} if data is None else data, keys, value, text)
        return replace(self, data=data, overridden=said)


def read(source: Path | str, where: str = "", error: type[InputError] = SettingsError) -> Document:
    """One YAML document from a file (a Path) or from text (a str).

    Raises `error` for anything but plain data: duplicate keys, tags, anchors and aliases, several
    documents, more than 50 levels, more than 32 MiB, text that is not UTF-8, tabs as indentation.
    """
    where = where or (str(source) if isinstance(source, Path) else "the YAML text")
    text = _yaml.read_text(source, where, error)
    data = _yaml.parse(text, where, error=error)
    if data is None:
        raise error("is empty", where=where, fix="write at least one key: value")
    return Document(data, where, text)


def read_yaml(source: Path | str, where: str = "") -> Any:
    """The plain data of `read`: dict, list, str, int, float, bool, None."""
    return read(source, where).data


def assemble(
    model: type[M],
    data: Any,
    overrides: Iterable[str] = (),
    where: str = "",
    error: type[InputError] = SettingsError,
) -> M:
    """The model made of `data` (plain data or a Document) and overrides; types are not coerced.

    Raises `error` naming each problem's file, line, dotted path, value and remedy; if there are
    several, one a line. A value that looks like an API key is refused in settings (a constitution's
    texts may hold anything).
    """
    doc = data if isinstance(data, Document) else Document(data, where)
    doc = doc.override(overrides)
    if not is_map(doc.data):
        fix = "write key: value lines"
        raise error(f"{shown(doc.data)} is not a mapping", where=doc.place(()) or where, fix=fix)
    if error is SettingsError:
        _refuse_secrets(doc, doc.data, ())
    try:
        # JSON mode is strict about types, yet takes a list for a tuple and text for a Path.
        return model.model_validate_json(to_json(doc.data, inf_nan_mode="constants"), strict=True)
    except PydanticSerializationError:
        _refuse_halves(doc, doc.data, (), error)
        raise
    except ValidationError as e:
        found = complaints(model, e, doc.data)
    problems = [error(c.what, where=doc.place(c.path), fix=c.fix) for c in found]
    if len(problems) == 1:
        raise problems[0]
    listed = "\n".join(f"  {p}" for p in problems)
    raise error(f"{len(problems)} problems\n{listed}", where=doc.where or where, parts=problems)


def _split(dotted: str) -> Path_:
    # No list is so long that its index would have ten digits.
    return tuple(int(k) if k.isdecimal() and len(k) < 10 else k for k in dotted.split(".")) if dotted else ()


def _hidden(text: str) -> str:
    """As errors show what was typed: without keys, and half of a character as an escape."""
    return _SECRET.sub("…", text).encode("utf-8", "backslashreplace").decode()


def _override(text: str) -> tuple[Path_, Any]:
    key, equals, value = text.partition("=")
    keys = _split(key.strip())
    where = f"{_hidden(text)!r} on the command line"
    if not _is_unicode(text):
        raise SettingsError("is not valid UTF-8", where=where, fix="type it again")
    if not equals or not keys or "" in keys:
        raise SettingsError("is not key=value", where=where, fix="for example judge.order=both")
    value = value.strip()
    if value[:1] in ('"', "'", "[", "{") and value:
        fix_where = f"{_hidden(text)} on the command line"
        return keys, _yaml.parse(_yaml.read_text(value, fix_where), fix_where)
    # Read by hand, not as YAML: "Be brief: no lists" is a text and not a mapping.
    return keys, _yaml.plain(value) if value else ""


def _put(data: Any, keys: Path_, value: Any, text: str) -> Any:
    """A copy of `data` along the path, with the value set."""
    if not keys:
        return value
    first, rest = keys[0], keys[1:]
    where = f"{_hidden(text)} on the command line"
    if is_list(data):
        items = list(data)
        if not isinstance(first, int) or first >= len(items):
            fix = f"use a number from 0 to {len(items) - 1}" if items else "the list is empty"
            raise SettingsError(f"{first!r} is not an item of the list", where=where, fix=fix)
        items[first] = _put(items[first], rest, value, text)
        return items
    if not is_map(data):
        what = f"{first!r} cannot be set inside {shown(data)}"
        raise SettingsError(what, where=where, fix="set the whole value instead")
    copy = dict(data)
    inner = copy.get(str(first))
    copy[str(first)] = _put({} if inner is None else inner, rest, value, text)
    return copy


def _is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8; a lone surrogate, half of a character, cannot."""
    return text == text.encode("utf-8", "replace").decode()


def _refuse_halves(doc: Document, value: Any, path: Path_, error: type[InputError]) -> None:
    if isinstance(value, str) and not _is_unicode(value):
        raise error("holds half of a character", where=_hidden(doc.place(path)), fix="write it again as UTF-8")
    if is_map(value):
        for k, v in value.items():
            _refuse_halves(doc, k, (*path, k), error)
            _refuse_halves(doc, v, (*path, k), error)
    elif is_list(value):
        for i, v in enumerate(value):
            _refuse_halves(doc, v, (*path, i), error)


def _refuse_secrets(doc: Document, value: Any, path: Path_) -> None:
    if isinstance(value, str):
        if _SECRET.search(value):
            fix = "keys come from the environment only: export it, for example as OPENAI_API_KEY"
            what = "looks like an API key, which does not belong in a recipe"
            raise SettingsError(what, where=doc.place(path), fix=fix)
    elif is_map(value):
        for k, v in value.items():
            _refuse_secrets(doc, v, (*path, k))
    elif is_list(value):
        for i, v in enumerate(value):
            _refuse_secrets(doc, v, (*path, i))
