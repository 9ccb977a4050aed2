"""A job's events as a stream (server-sent events); a client that lost it goes on with Last-Event-ID."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse

from service.api import states
from service.api.context import Name, Reads, Service, The
from service.api.problems import Refusal

router = APIRouter(prefix="/v1", tags=["runs"])
_LOOK_S, _BEAT_S = 0.2, 15.0
_BACK = 32_768
"""Bytes of earlier events that a new client gets."""


@router.get(
    "/runs/{name}/events", response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}, "description": "start, stage, progress, warning, end"}},
)  # fmt: skip
async def of_run(
    name: Name, service: The, _: Reads,
    since: Annotated[int | None, Query(ge=0, le=2**53, description="Where to begin; default: near the end")] = None,
    last_event_id: Annotated[str, Header(pattern=r"^(\d{1,15})?$")] = "",
) -> StreamingResponse:  # fmt: skip
    """What a run does, as it does it; ends with the event `end`."""
    states.folder_of(service, name)
    return open_stream(service, name, int(last_event_id) if last_event_id else since)


def open_stream(service: Service, name: str, since: int | None) -> StreamingResponse:
    """The stream of a job. Refusal if there is none, or too many streams are open."""
    if service.jobs.get(name) is None:
        raise Refusal(404, f"{name!r} was made by the command line, which tells of it itself")
    if service.streams >= service.config.limits.streams:
        raise Refusal(429, f"{service.streams} streams are open already")
    return StreamingResponse(_stream(service, name, since), media_type="text/event-stream")


async def _stream(service: Service, name: str, since: int | None) -> AsyncGenerator[str]:
    service.streams += 1
    try:
        path = service.jobs.folder(name) / "events.jsonl"
        at = since if since is not None else _recent(path)
        quiet = 0.0
        yield "retry: 1000\n\n"
        while True:
            # Asked before the file is read: whatever ended by now has told of it in what is read below.
            job = service.jobs.get(name)
            assert job is not None
            status = service.jobs.status(job)
            raw, at_now = await asyncio.to_thread(_read, path, at)
            for data in raw:
                at += len(data)
                if event := _event(data, at):
                    yield event
            at, quiet = at_now, 0.0 if raw else quiet + _LOOK_S
            if status.state not in ("queued", "running", "stopping") and not raw:
                told = json.dumps({"event": "end", "state": status.state, "reason": status.reason})
                yield f"id: {at}\nevent: end\ndata: {told}\n\n"
                return
            if quiet >= _BEAT_S:
                quiet = 0.0
                yield ": still here\n\n"
            await asyncio.sleep(_LOOK_S if not raw else 0)
    finally:
        service.streams -= 1


def _event(raw: bytes, at: int) -> str:
    try:
        event: dict[str, Any] = json.loads(raw)
    except ValueError:  # a line that a killed job did not finish, or a place inside of one
        return ""
    # The job's own last word is told under another name: the stream's end also tells of a crash.
    kind = "outcome" if event["event"] == "end" else event["event"]
    return f"id: {at}\nevent: {kind}\ndata: {json.dumps(event)}\n\n"


def _read(path: Path, at: int) -> tuple[list[bytes], int]:
    """The whole lines behind a place, and the place behind them."""
    try:
        with path.open("rb") as file:
            file.seek(at)
            data = file.read(1 << 20)
    except OSError:
        return [], at
    whole = data[: data.rfind(b"\n") + 1]
    return whole.splitlines(keepends=True), at + len(whole)


def _recent(path: Path) -> int:
    """Where the last kilobytes of events begin, at a line's start."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            at = max(0, size - _BACK)
            file.seek(at)
            return at + len(file.readline()) if at else 0
    except OSError:
        return 0
