"""How often a run was started, and what became of its replicas each time: for the manifest."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from tenet.engines import Engine
from tenet.ledger import Rows

_KEPT = 100
"""The latest so many starts are kept."""


def read(rows: Rows) -> list[dict[str, Any]]:
    """Every start: `began`, `ended` (absent: it was killed, or is under way), and `replicas` by model, where there
    are any."""
    return json.loads(rows.meta("starts") or "[]")


def begin(rows: Rows) -> None:
    """Notes a start."""
    _write(rows, [*read(rows), {"began": _now()}])


def end(rows: Rows, engines: Mapping[str, Engine]) -> None:
    """Notes the end of the latest start, whatever ended it."""
    stories = {name: story for name, e in engines.items() if (story := getattr(e, "story", None))}
    starts = read(rows)
    starts[-1] |= {"ended": _now(), **({"replicas": stories} if stories else {})}
    _write(rows, starts)


def _write(rows: Rows, starts: list[dict[str, Any]]) -> None:
    rows.set_meta("starts", json.dumps(starts[-_KEPT:]))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
