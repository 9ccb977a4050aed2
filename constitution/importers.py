"""Lists of principles in other projects' JSON, made into constitutions: from the user's own copy of the files.

Their texts are kept, less the labels of a prompt around them ("CritiqueRequest:", "Options:"); where a project has
no text of a kind that we need, a frame of ours is put around its rule.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from constitution.schema import Constitution, Principle
from tenet import files
from tenet.errors import DataError, SettingsError
from tenet.files import Malformed, kind_of
from tenet.settings import closest

Item = tuple[str, dict[str, Any]]
"""(what to name the principle after, its fields)."""

SHAPES = {
    "cai-critiques": 'Constitutional AI, critique and revision: {name: {"prompt": [text], "edit_request": text}}',
    "cai-choices": 'Constitutional AI, pair choice: ["… Options:", …], or the same as {name: text}',
    "llm-swarm": 'llm-swarm: [{"critic": text, "revision": text}]',
    "salmon": 'SALMON: [{"dimension": text, "definition": text, "weight": number}]',
    "icai": 'Inverse Constitutional AI: "1. Select the response that …", a list of such, or {"0": such}',
}
"""Format -> the shape by which it is known."""

_MOST_BYTES = 32 * 2**20
_LABELS = re.compile(r"^\s*(?:CritiqueRequest|RevisionRequest)\s*:\s*|\s*(?:Critique|Revision|Options)\s*:\s*$")
_SELECT = re.compile(
    r"^(?:please\s+)?(?:select|choose|prefer|pick)\s+(?:the|a)\s+(?:response|reply|answer|output|text)\s+(?:that|which)\s+"
    r"(.+?)[.?]?$",
    re.IGNORECASE | re.DOTALL,
)
_NUMBER = re.compile(r"^\s*\d+[.)]\s+")


def read(paths: Sequence[Path], form: str = "", name: str = "") -> Constitution:
    """The constitution of one file, or of the CAI repository's two: critiques and choices, joined in their order.

    `form` is one of SHAPES; empty: found by the file's shape. DataError naming file, item and what would be right.
    """
    if form and form not in SHAPES:
        raise SettingsError(f"there is no format {form!r}", where="--format", fix=closest(form, SHAPES))
    lists: list[list[Item]] = []
    forms: list[str] = []
    for path in paths:
        value = _json(path)
        found = form or _form(value, path)
        items = _READERS[found](value, str(path))
        if not items:
            raise DataError("holds no principle", where=str(path), fix="name a file with at least one")
        forms.append(found)
        lists.append(items)
    items = lists[0] if len(lists) == 1 else _joined(lists, forms, paths)
    source = " and ".join(f"{path.name} ({f})" for path, f in zip(paths, forms, strict=True))
    return Constitution(
        name=_slug(name or paths[0].stem) or "imported", principles=tuple(_principles(items, f"imported from {source}"))
    )


def _json(path: Path) -> Any:
    files.check_exists(str(path), path, "JSON")
    if path.stat().st_size > _MOST_BYTES:
        raise DataError(f"is {path.stat().st_size:,} bytes long", where=str(path), fix=f"at most {_MOST_BYTES:,} bytes")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, value in pairs:
            if key in made:
                raise DataError(f"the key {key!r} is given twice", where=str(path), fix="keep one of the two")
            made[key] = value
        return made

    try:
        return json.loads(files.text_of(files.read_bytes(str(path), path)), object_pairs_hook=once)
    except Malformed as stop:
        raise stop.at(str(path)) from None
    except (ValueError, RecursionError) as e:
        what = f"is not JSON: {getattr(e, 'msg', e)}"
        raise DataError(what, where=f"{path}, line {getattr(e, 'lineno', 1)}", fix="name a JSON file") from None


def _form(value: Any, path: Path) -> str:
    """The format that a file's first item has."""
    items: list[Any] = [value]
    if isinstance(value, dict | list):
        items = list(cast(dict[str, Any], value).values()) if isinstance(value, dict) else cast(list[Any], value)
    first = items[0] if items else None
    if isinstance(first, dict):
        for form, key in (("cai-critiques", "edit_request"), ("llm-swarm", "critic"), ("salmon", "dimension")):
            if key in first:
                return form
    if isinstance(first, str) and first.strip():
        return "cai-choices" if first.rstrip().endswith("Options:") else "icai"
    known = "; ".join(f"{form} is {shape}" for form, shape in SHAPES.items())
    raise DataError(f"no known list of principles ({kind_of(value)})", where=str(path), fix=known)


def _joined(lists: Sequence[list[Item]], forms: Sequence[str], paths: Sequence[Path]) -> list[Item]:
    """CAI's critiques with its choices: the first with the first, and so on, since draws know one list only."""
    if sorted(forms) != ["cai-choices", "cai-critiques"]:
        what = f"{len(paths)} files of the formats {', '.join(forms)} do not make one constitution"
        raise DataError(what, where=str(paths[0]), fix="one file; or a cai-critiques and a cai-choices file")
    by_form = dict(zip(forms, lists, strict=True))
    critiques, choices = by_form["cai-critiques"], by_form["cai-choices"]
    if len(critiques) != len(choices):
        what = f"{len(critiques)} critiques and {len(choices)} choices cannot be joined one to one"
        raise DataError(what, where=str(paths[0]), fix="import them one by one, or make the lists equally long")
    return [(name, {**fields, **more}) for (name, fields), (_, more) in zip(critiques, choices, strict=True)]


# Readers of the formats.


def _text(value: Any, where: str, field: str) -> str:
    listed: list[Any] = cast(list[Any], value) if isinstance(value, list) else [value]
    text = listed[0] if len(listed) == 1 else listed  # CAI's "prompt" is a list of one
    if not isinstance(text, str) or not text.strip():
        said = "empty" if isinstance(text, str) else kind_of(text)
        raise DataError(f"{field} is {said}", where=where, fix=f"{field}: a text")
    if re.search("[\ud800-\udfff]", text):
        raise DataError(f"{field} holds half of a character", where=where, fix="write the file again as UTF-8")
    while (cleaned := _LABELS.sub("", text)) != text:
        text = cleaned
    return text.strip()


def _objects(value: Any, where: str, form: str) -> list[tuple[str, str, dict[str, Any]]]:
    """(name, place, object) of every item of a list, or of a mapping by name."""
    named: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        named = list(cast(dict[str, Any], value).items())
    elif isinstance(value, list):
        named = [("", item) for item in cast(list[Any], value)]
    found: list[tuple[str, str, dict[str, Any]]] = []
    for i, (name, item) in enumerate(named, 1):
        place = f"{where}, item {i}" + (f" ({name!r})" if name else "")
        if not isinstance(item, dict):
            raise DataError(f"is {kind_of(item)}", where=place, fix=SHAPES[form])
        found.append((name, place, cast(dict[str, Any], item)))
    return found


def _cai_critiques(value: Any, where: str) -> list[Item]:
    return _two(value, where, "cai-critiques", "prompt", "edit_request")


def _two(value: Any, where: str, form: str, critique: str, revise: str) -> list[Item]:
    return [
        (name, {"critique": _text(x.get(critique), at, critique), "revise": _text(x.get(revise), at, revise)})
        for name, at, x in _objects(value, where, form)
    ]


def _cai_choices(value: Any, where: str) -> list[Item]:
    return [(name, {"choose": _text(text, at, "the question")}) for name, at, text in _texts(value, where)]


def _llm_swarm(value: Any, where: str) -> list[Item]:
    return _two(value, where, "llm-swarm", "critic", "revision")


def _salmon(value: Any, where: str) -> list[Item]:
    items: list[Item] = []
    for _, at, x in _objects(value, where, "salmon"):
        title, rule = _text(x.get("dimension"), at, "dimension"), _text(x.get("definition"), at, "definition")
        weight: Any = x.get("weight", 1)
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not 0 < weight <= sys.float_info.max:
            said = repr(weight)[:40]  # JSON has whole numbers of 400 digits
            raise DataError(f"weight is {said}", where=at, fix="a number above 0; to silence one, take it out")
        items.append((title, {"title": title, **_framed(rule), "weight": float(weight)}))
    return items


def _framed(rule: str) -> dict[str, str]:
    """The texts for all stages from a rule that is worded for none."""
    return {
        "critique": f"Quote what your reply does against this rule, or say that it keeps it: {rule}",
        "revise": f"Put your reply so that it keeps this rule: {rule}",
        "choose": f"Which reply keeps this rule more closely? {rule}",
        "score": f"How closely does the reply keep this rule? {rule}",
    }


def _icai(value: Any, where: str) -> list[Item]:
    if isinstance(value, str):
        value = [line for line in value.split("\n") if line.strip()]
    items: list[Item] = []
    for _, at, text in _texts(value, where):
        rule = _NUMBER.sub("", _text(text, at, "the principle"))
        found = _SELECT.match(rule)
        choose = f"Which reply {found[1]}?" if found else f"Which reply keeps this rule more closely? {rule}"
        items.append((rule, {"choose": choose}))
    return items


def _texts(value: Any, where: str) -> list[tuple[str, str, Any]]:
    """(name, place, text) of a list of texts, or of a mapping of names that are no mere numbers to texts."""
    if isinstance(value, dict):
        named = [("" if k.isdecimal() else k, v) for k, v in cast(dict[str, Any], value).items()]
    else:
        named = [("", v) for v in cast(list[Any], value)] if isinstance(value, list) else []
    return [(name, f"{where}, item {i}" + (f" ({name!r})" if name else ""), v) for i, (name, v) in enumerate(named, 1)]


_READERS: dict[str, Callable[[Any, str], list[Item]]] = {
    "cai-critiques": _cai_critiques, "cai-choices": _cai_choices, "llm-swarm": _llm_swarm, "salmon": _salmon,
    "icai": _icai,
}  # fmt: skip


# Names.


def _principles(items: Sequence[Item], source: str) -> list[Principle]:
    made: dict[str, Principle] = {}
    for i, (name, fields) in enumerate(items, 1):
        base = _slug(name) or f"principle-{i}"
        free = (base, *(f"{base}-{n}" for n in range(2, len(items) + 2)))
        id = next(id for id in free if id not in made)
        made[id] = Principle(id=id, source=source, **fields)
    return list(made.values())


def _slug(text: str) -> str:
    """A name that is an id already, or an id from at most six of its words."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,59}", text):
        return text
    return "-".join(re.findall(r"[a-z0-9]+", text.lower())[:6])[:60].rstrip("-")
