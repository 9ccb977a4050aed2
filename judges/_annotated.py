"""Annotated-pairs JSON, version 2.0, as inverse-constitutional-AI tools write it, into plain rows.

The layout: `metadata` (version, default_annotator), `annotators` (id -> name, description, type), and
`comparisons`, each with `response_a.text`, `response_b.text` and `annotations` (annotator id -> pref
"a", "b" or null with a `no_pref_reason`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from tenet.files import Malformed, kind_of

_PREFS = {"a": "A", "b": "B", "text_a": "A", "text_b": "B", "tie": "tie"}
_TIES = ("tie", "equal", "both")


class Raw(NamedTuple):
    """One comparison as the file has it, and its annotators: id -> (name, is a person)."""

    item: Any
    raters: dict[str, tuple[str, bool]]


def is_annotated(document: dict[str, Any]) -> bool:
    """Whether a JSON object is such a file, of any version."""
    return "comparisons" in document and "annotators" in document


def rows(document: dict[str, Any]) -> Iterator[tuple[int, Raw]]:
    """(number from 1, row as `pairs_file` reads it) of every comparison; Malformed if the file is none.

    People are the annotators of type "human", and the default one, whose labels came with the data. The
    others (principles, models) go under `machine`. "Not applicable" is no vote; a missing preference
    with any other reason is an invalid one.
    """
    version = _part(document, "metadata", dict).get("version")
    if str(version).partition(".")[0] != "2":
        what = f"metadata.version is {version!r}"
        raise Malformed("wrong version", what, "convert the file to version 2.0")
    raters = _raters(document)
    for number, item in enumerate(_part(document, "comparisons", list), 1):
        yield number, Raw(item, raters)


def row(raw: Raw) -> dict[str, Any]:
    """One comparison as a row with id, prompt, a, b, labels, machine and slices."""
    given: Any = raw.item
    if not isinstance(given, dict):
        raise Malformed("not a comparison", f"is {kind_of(given)}, not an object", "write one object a comparison")
    item = cast(dict[str, Any], given)
    people: dict[str, str] = {}
    machine: dict[str, str] = {}
    for key, annotation in _part(item, "annotations", dict).items():
        if key not in raw.raters:
            what = f"annotations names the annotator {key!r}, which annotators lacks"
            raise Malformed("unknown annotator", what, "add it under annotators")
        name, human = raw.raters[key]
        label = _label(annotation, key)
        if label is not None:
            (people if human else machine)[name] = label
    slices = {k: v for k, v in _optional(item, "metadata").items() if isinstance(v, str | int | float)}
    for side in "ab":
        model = _part(item, f"response_{side}", dict).get("model")
        if isinstance(model, str):
            slices[f"model_{side}"] = model
    return {
        "id": item.get("id"),
        "prompt": "" if item.get("prompt") is None else item["prompt"],
        "a": _part(item, "response_a", dict).get("text"),
        "b": _part(item, "response_b", dict).get("text"),
        "labels": people,
        "machine": machine,
        "slices": slices,
    }


def _raters(document: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Annotator id -> (name, is a person); names that two share get their id added."""
    default = _part(document, "metadata", dict).get("default_annotator")
    found: dict[str, tuple[str, bool]] = {}
    for key, value in _part(document, "annotators", dict).items():
        about = cast(dict[str, Any], value) if isinstance(value, dict) else {}
        name = next((about[k] for k in ("name", "description") if isinstance(about.get(k), str) and about[k]), key)
        found[key] = (name, key == default or about.get("type") == "human")
    names = [name for name, _ in found.values()]
    return {k: (f"{n} ({k})" if names.count(n) > 1 else n, human) for k, (n, human) in found.items()}


def _label(annotation: Any, key: str) -> str | None:
    about = cast(dict[str, Any], annotation) if isinstance(annotation, dict) else {}
    if "pref" not in about:
        raise Malformed("no preference", f"annotations.{key} has no pref", 'write {"pref": "a"}')
    pref, reason = about["pref"], str(about.get("no_pref_reason", "")).lower()
    if pref is None:
        if reason == "not_applicable":
            return None
        return "tie" if reason.startswith(_TIES) else "invalid"
    if not isinstance(pref, str) or pref not in _PREFS:
        raise Malformed("unknown preference", f"annotations.{key}.pref is {pref!r}", "a, b, tie or null")
    return _PREFS[pref]


def _part(of: dict[str, Any], key: str, kind: type) -> Any:
    value = of.get(key)
    if not isinstance(value, kind):
        words = {dict: "an object", list: "a list"}
        raise Malformed("wrong layout", f"{key!r} is {kind_of(value)}", f"it is {words[kind]} in version 2.0")
    return value


def _optional(of: dict[str, Any], key: str) -> dict[str, Any]:
    return _part(of, key, dict) if of.get(key) is not None else {}
