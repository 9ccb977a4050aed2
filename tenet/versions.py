"""Which versions made something: for manifests and cards."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import sqlite3

import tenet


@functools.cache
def versions(*packages: str) -> dict[str, str]:
    """Versions of tenet, Python, SQLite, and those of the packages that are installed."""
    found = {"tenet": tenet.__version__, "python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
