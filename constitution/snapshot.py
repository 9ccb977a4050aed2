"""A constitution as one flat YAML file: parents joined in, the same hash when it is loaded again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from constitution.schema import Constitution

NAME = "constitution.yaml"
"""What a run's folder calls it."""


class _Dumper(yaml.SafeDumper):
    """PyYAML leaves texts such as 1e3 bare, which are numbers to readers of YAML 1.2: single words are quoted here."""


def _quoted(dumper: Any, value: str) -> Any:
    bare = value.replace("_", "").isalpha() or any(map(str.isspace, value))
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if bare else "'")


_Dumper.add_representer(str, _quoted)


def text(constitution: Constitution) -> str:
    """The YAML; `extends` is left out, since what it brought stands in the file."""
    data = constitution.model_dump(mode="json", exclude={"extends"}, exclude_defaults=True)
    body = yaml.dump(data, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=100)
    return f"# {constitution.name} as a run used it (hash {constitution.hash}), with its parents joined in.\n{body}"


def save(constitution: Constitution, folder: Path) -> Path:
    """Writes `constitution.yaml` into a folder, whole or not at all, unless it says the same already. OSError."""
    path, said = folder / NAME, text(constitution).encode()
    if not (path.is_file() and path.read_bytes() == said):
        new = path.with_suffix(".yaml.new")
        new.write_bytes(said)
        os.replace(new, path)
    return path
