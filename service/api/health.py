"""Routes for machines that watch the service: health, readiness, metrics."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel

import tenet
from service.api import metrics, reader, states
from service.api.context import Reads, Service, The
from service.api.metrics import Series
from service.api.problems import Refusal

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The service answers."""

    status: str
    version: str


class Ready(BaseModel):
    """The service can take work."""

    status: str
    jobs: dict[str, int]
    """Jobs by state."""


@router.get("/health")
async def health() -> Health:
    """Whether the process answers at all."""
    return Health(status="ok", version=tenet.__version__)


@router.get("/ready")
async def ready(service: The) -> Ready:
    """Whether the workspace can be written and jobs are looked after; 503 if not."""
    watcher: asyncio.Task[Any] | None = service.cache.get("watcher")
    if watcher is None or watcher.done():
        raise Refusal(503, "nobody looks after the jobs")
    with service.store.change():
        pass  # the write lock can be taken
    states_now = Counter(service.jobs.status(j).state for j in service.jobs.listed())
    return Ready(status="ready", jobs=dict(states_now))


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def scrape(service: The, _: Reads) -> Response:
    """Prometheus' text format."""
    return Response(await asyncio.to_thread(service.metrics.text), media_type=metrics.TYPE)


def gauges(service: Service) -> list[Series]:
    """What the jobs' files say at a scrape."""
    by_state: Counter[str] = Counter()
    rows: list[tuple[tuple[str, ...], float]] = []
    drops: list[tuple[tuple[str, ...], float]] = []
    calls: list[tuple[tuple[str, ...], float]] = []
    tokens: list[tuple[tuple[str, ...], float]] = []
    for name in states.names(service)[:100]:  # the newest: a label for every run there ever was would grow forever
        summary = states.summary(service, name)
        if summary is None:
            continue
        by_state[summary.state] += 1
        if summary.progress:
            rows.append(((name, "done"), summary.progress.done))
            rows.append(((name, "kept"), summary.progress.kept))
            drops += [((name, reason), n) for reason, n in summary.progress.drops.items()]
        for engine, spent in reader.usage(service.workspace, name).items():
            calls.append(((name, engine), spent["calls"]))
            tokens.append(((name, engine, "prompt"), spent["prompt_tokens"]))
            tokens.append(((name, engine, "completion"), spent["completion_tokens"]))
    return [
        ("tenet_runs", "Runs by state", ("state",), [((s,), float(n)) for s, n in by_state.items()]),
        ("tenet_run_rows", "Prompts that ended, preferences that were kept", ("run", "what"), rows),
        ("tenet_run_drops", "Prompts without a preference, by reason", ("run", "reason"), drops),
        ("tenet_run_calls", "Calls paid", ("run", "engine"), calls),
        ("tenet_run_tokens", "Tokens paid", ("run", "engine", "side"), tokens),
        ("tenet_streams", "Event streams that are open", (), [((), float(service.streams))]),
    ]
