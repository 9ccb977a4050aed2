"""Two runs side by side, as `tenet runs diff` tells it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from constitution import diff as by_meaning
from constitution.diff import Side
from service import _chains, runs
from service.run import differences

_CHANGES = 1000


def compare(first: Path, second: Path) -> dict[str, Any]:
    """`settings` and `constitution` that differ, counts by stage, and the labels that changed.

    RunFolderError if one of the two holds no run that can be read.
    """
    a, b = _chains.open_run(first), _chains.open_run(second)
    edit = by_meaning.diff(*(Side(said=r.folder.name, constitution=r.constitution) for r in (a, b)))
    figures = runs.compare(a, b).figures()
    changes: list[dict[str, Any]] = figures.pop("changes")
    before, after = (_chains.identity_of(folder) for folder in (first, second))
    return {
        "first": first.name, "second": second.name, "settings": differences(before, after),
        "constitution": edit.model_dump(mode="json"), **figures, "changes": changes[:_CHANGES],
        "changes_left_out": max(0, len(changes) - _CHANGES),
    }  # fmt: skip
