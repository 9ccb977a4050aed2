"""Finds a module by its kind name: `judges/pairwise.py` is judge kind "pairwise". There is no registry."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from tenet.errors import SettingsError


def known(package: str) -> list[str]:
    """The kinds in a package: its modules that define `Settings` and `build`, helpers (`_x`) left out.

    Names are read without importing the modules, since a kind may need torch or vllm.
    """
    folder = importlib.import_module(package).__path__
    found: list[str] = []
    for info in pkgutil.iter_modules(folder):
        if info.name.startswith("_") or info.ispkg:
            continue
        spec = info.module_finder.find_spec(info.name, None)
        source = spec.loader.get_source(info.name) if spec and spec.loader else ""  # type: ignore[union-attr]
        if "class Settings(" in (source or "") and "def build(" in (source or ""):
            found.append(info.name)
    return sorted(found)


def load(package: str, kind: str, where: str = "") -> ModuleType:
    """The module of a kind; a SettingsError that lists the known kinds if there is none."""
    names = known(package)
    if kind not in names:
        raise SettingsError(f"unknown kind {kind!r}", where=where, fix="known kinds: " + ", ".join(names))
    return importlib.import_module(f"{package}.{kind}")
