"""Routes of what lies in the workspace beside runs: trained stages, and reports of stages, probes and agreement."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import Response
from pydantic import BaseModel

from service.api.agreement import SANDBOX
from service.api.context import Reads, The
from service.api.problems import Refusal

router = APIRouter(prefix="/v1/reports", tags=["reports"])
_DEPTH, _MOST = 3, 500
_TYPES = {".html": "text/html; charset=utf-8", ".svg": "image/svg+xml"}


class TrainingOut(BaseModel):
    """A folder of tenet train."""

    folder: str
    """From the workspace, as all paths here."""
    kind: str
    steps: int | None
    rows: int | None
    seconds: float | None
    figures: dict[str, float | None]
    """Means of the last tenth of what it logged."""
    curves: str | None
    """The picture's path."""


class ReportOut(BaseModel):
    """A page that tenet report, inspect, agree or a preview wrote."""

    path: str
    title: str


class ReportList(BaseModel):
    """What there is, by folder."""

    trainings: list[TrainingOut]
    reports: list[ReportOut]


@router.get("")
async def listed(service: The, _: Reads) -> ReportList:
    """Trainings and reports of the workspace."""
    return await asyncio.to_thread(_find, service.workspace)


@router.get("/file", response_class=Response, responses={200: {"content": {"text/html": {}, "image/svg+xml": {}}}})
async def file(service: The, _: Reads, path: Annotated[str, Query(max_length=1000)]) -> Response:
    """A report or a picture of curves as it was written; it runs nothing and reaches nothing."""
    found = await asyncio.to_thread(_find, service.workspace)
    # Only what the list names is given out, so that no path leads anywhere else.
    if path not in [r.path for r in found.reports] + [t.curves for t in found.trainings]:
        raise Refusal(404, f"there is no report {path[:80]!r}")
    place = service.workspace / path
    text = await asyncio.to_thread(place.read_bytes)
    return Response(text, media_type=_TYPES[place.suffix], headers={"content-security-policy": SANDBOX})


def _find(workspace: Path) -> ReportList:
    trainings: list[TrainingOut] = []
    reports: list[ReportOut] = []
    for folder in _folders(workspace):
        if (training := _training(workspace, folder)) and len(trainings) < _MOST:
            trainings.append(training)
        page = folder / "report.html"
        if page.is_file() and not page.is_symlink() and len(reports) < _MOST:
            reports.append(ReportOut(path=page.relative_to(workspace).as_posix(), title=_title(page)))
    return ReportList(trainings=trainings, reports=reports)


def _folders(workspace: Path) -> Iterator[Path]:
    """The workspace's folders, a few levels deep; links are not followed, and the service's own state is left out."""
    for here, below, _ in os.walk(workspace):
        depth = len(Path(here).relative_to(workspace).parts)
        below[:] = sorted(f for f in below if not f.startswith(".") and depth < _DEPTH)
        if depth:
            yield Path(here)


def _training(workspace: Path, folder: Path) -> TrainingOut | None:
    try:
        m: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if "kind" not in m or "run" in m:
        return None
    drawn = folder / "curves.svg"
    figures: dict[str, Any] = m.get("figures") or {}
    data: dict[str, Any] = m.get("data") or {}
    rows = _number(data.get("kept"))
    steps = _number(m.get("steps"))
    return TrainingOut(
        folder=folder.relative_to(workspace).as_posix(), kind=str(m["kind"]), seconds=_number(m.get("seconds")),
        steps=None if steps is None else int(steps), rows=None if rows is None else int(rows),
        figures={k: _number(v) for k, v in figures.items()},
        curves=drawn.relative_to(workspace).as_posix() if drawn.is_file() and not drawn.is_symlink() else None,
    )  # fmt: skip


def _number(value: Any) -> float | None:
    finite = isinstance(value, int | float) and abs(value) < float("inf")
    return float(value) if finite else None


def _title(file: Path) -> str:
    with file.open(encoding="utf-8", errors="replace") as text:
        start = text.read(4096)
    return start.partition("<title>")[2].partition("</title>")[0][:200]
