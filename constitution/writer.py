"""Writes a constitution as YAML that people go on with: only the fields that say something, in the schema's order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from constitution.loader import load
from constitution.schema import Constitution, Principle
from tenet.errors import ConstitutionError, InputError


def yaml_of(constitution: Constitution, head: str = "", notes: Sequence[str] = ()) -> str:
    """The YAML of a whole constitution (its parents joined in); `head` and each principle's note become comments."""
    rest = constitution.model_dump(mode="json", exclude={"principles", "extends"}, exclude_defaults=True)
    parts = [_comment(head, ""), _dump({"name": constitution.name, **rest})]
    if constitution.language == "en":
        parts.append("language: en\n")
    parts.append("\nprinciples:\n")
    for i, p in enumerate(constitution.principles):
        body = _dump(_fields(p))
        shifted = "".join(f"    {line}" if line.strip() else line for line in body.splitlines(keepends=True))
        note = _comment(notes[i], "  ") if i < len(notes) else ""
        parts.append(f"{note}  - {shifted[4:]}\n")
    return "".join(parts).rstrip("\n") + "\n"


def write(
    path: Path, constitution: Constitution, head: str = "", notes: Sequence[str] = (), force: bool = False
) -> None:
    """Writes the file; InputError if there is one already and not `force`, or if it would not read as what it holds."""
    if path.exists() and not force:
        raise InputError("is there already", where=str(path), fix="another name, or --force")
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_text(yaml_of(constitution, head, notes), encoding="utf-8")
    try:
        if load(new).hash != constitution.hash:
            raise ConstitutionError("what is written would not read as what was meant", where=str(path))
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _fields(p: Principle) -> dict[str, Any]:
    given = p.model_dump(mode="json", exclude_defaults=True)
    return {k: given[k] for k in Principle.model_fields if k in given}


def _dump(data: dict[str, Any]) -> str:
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


def _comment(text: str, indent: str) -> str:
    # splitlines knows all the characters that YAML takes for the end of a line, and so of a comment.
    return "".join(f"{indent}# {line}".rstrip() + "\n" for line in text.splitlines())
