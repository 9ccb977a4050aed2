"""Routes of a run's rows: pages with filters, one prompt's whole chain, exports to download."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel

from service import export
from service.api import reader, states
from service.api.context import Name, Reads, The
from service.api.problems import Refusal

router = APIRouter(prefix="/v1/runs/{name}", tags=["rows"])
Stage = Literal["prompt", "candidate", "score", "preference", "judged", "dropped", "outcome"]
_FILES = {
    **{f"{n}.parquet": "application/vnd.apache.parquet" for n in export.NAMES},
    **{f"{n}.jsonl": "application/jsonl" for n in export.NAMES},
}
_BESIDE = {"manifest.json": "application/json", "README.md": "text/markdown; charset=utf-8"}


class RowOut(BaseModel):
    """One record of one prompt's chain."""

    ordinal: int
    """The prompt's number in its source."""
    seq: int
    """The record's place in the chain."""
    prompt_id: str
    stage: str
    record: dict[str, Any]


class RowPage(BaseModel):
    """A page of rows. A filter may give fewer rows than asked for, even none, before the last page."""

    rows: list[RowOut]
    next: str | None
    """The `after` of the next page; null if these were the last rows there are now."""


class FileOut(BaseModel):
    """A file to download."""

    name: str
    bytes: int
    rows: int | None = None
    sha256: str | None = None


class FileList(BaseModel):
    """The files of a run."""

    files: list[FileOut]


@router.get("/rows", response_model=RowPage)
async def page(
    name: Name, service: The, _: Reads,
    limit: Annotated[int, Query(ge=1, le=1000, description="At most the service's own page size")] = 50,
    after: Annotated[str, Query(pattern=r"^(-?\d{1,18}\.-?\d{1,9})?$", description="`next` of the page before")] = "",
    stage: Annotated[list[Stage] | None, Query(description="May be repeated")] = None,
    principle: Annotated[str, Query(max_length=64)] = "",
    min_margin: Annotated[float | None, Query(ge=0, le=0.5, description="Least |p - 0.5|")] = None,
    max_margin: Annotated[float | None, Query(ge=0, le=0.5)] = None,
    reason: Annotated[str, Query(max_length=200, description="Why something was dropped")] = "",
    dropped_at: Annotated[str, Query(max_length=40, description="The stage that dropped it")] = "",
    q: Annotated[str, Query(max_length=200, description="Stands in a text; ASCII case is ignored")] = "",
    prompt_id: Annotated[str, Query(max_length=64)] = "",
) -> Response:  # fmt: skip
    """Records in the prompts' order; pages stay right while the run writes."""
    folder = states.folder_of(service, name)
    limits = service.config.limits
    if limit > limits.page:
        raise Refusal(422, f"limit={limit}: a page has at most {limits.page} rows")
    if not (folder / "rows.sqlite").is_file():
        return _page([], None)
    margin = None
    if min_margin is not None or max_margin is not None:
        margin = (min_margin or 0.0, 0.5 if max_margin is None else max_margin)
    wanted = reader.Filter(tuple(stage or ()), principle, margin, reason, dropped_at, q, prompt_id)
    start: reader.Place = reader.START
    if after:
        ordinal, seq = after.split(".")
        start = (int(ordinal), int(seq))
    if wanted == reader.Filter():  # microseconds: cheaper here than the way to a thread and back
        found = service.pages.page(folder, start, limit)
    else:
        search = reader.Reader(folder).page
        found = await asyncio.to_thread(search, start, limit, wanted, limits.scan_ms / 1000)
    return _page([reader.line(row) for row in found.rows], found.next)


def _page(lines: list[str], following: reader.Place | None) -> Response:
    after = json.dumps(f"{following[0]}.{following[1]}") if following else "null"
    return Response(f'{{"rows":[{",".join(lines)}],"next":{after}}}', media_type="application/json")


@router.get("/prompts/{ordinal}", response_model=RowPage)
async def chain(name: Name, ordinal: int, service: The, _: Reads) -> Response:
    """Everything that became of one prompt: replies, critiques, revisions, votes in both orders, drops."""
    folder = states.folder_of(service, name)
    fits = 0 <= ordinal < 2**63 and (folder / "rows.sqlite").is_file()
    found = await asyncio.to_thread(reader.Reader(folder).chain, ordinal) if fits else []
    if not found:
        raise Refusal(404, f"the run {name!r} has no outcome for prompt {ordinal}")
    return _page([reader.line(row) for row in found], None)


@router.get("/files")
async def files(name: Name, service: The, _: Reads) -> FileList:
    """The exports of a run that has ended."""
    folder = states.folder_of(service, name)
    manifest = states.manifest_of(service, folder)
    if manifest is None:  # exports of an earlier start are not what the rows say now
        return FileList(files=[])
    facts: dict[str, Any] = manifest["files"]
    paths = [*(folder / "data" / f for f in _FILES), *(folder / f for f in _BESIDE)]
    made = [FileOut(name=p.name, bytes=p.stat().st_size, **facts.get(p.name, {})) for p in paths if p.is_file()]
    return FileList(files=made)


@router.get(
    "/files/{file}", response_class=FileResponse,
    responses={200: {"content": {"application/octet-stream": {}}}, 206: {"description": "A part, as Range asked"}},
)  # fmt: skip
async def download(name: Name, file: str, service: The, _: Reads) -> Response:
    """A file, whole or in ranges."""
    folder = states.folder_of(service, name)
    path = folder / "data" / file if file in _FILES else folder / file
    if file not in {**_FILES, **_BESIDE} or states.manifest_of(service, folder) is None or not path.is_file():
        raise Refusal(404, f"the run {name!r} has no file {file[:80]!r}; those of a run appear when it has ended")
    return FileResponse(path, media_type={**_FILES, **_BESIDE}[file], filename=f"{name}-{file}")
