"""Puts the service together: its parts, routes, guard and OpenAPI document."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from fastapi import FastAPI

import tenet
from service.api import (
    agreement,
    chat,
    constitutions,
    events,
    health,
    judging,
    labels,
    previews,
    problems,
    reports,
    rows,
    runs,
    session,
)
from service.api.context import Service, constitutions_of
from service.api.engines import Engines
from service.api.guard import OPEN, Guard
from service.api.jobs import Jobs
from service.api.keys import Keys
from service.api.metrics import Metrics
from service.api.policy import Policy
from service.api.settings import Config
from service.api.store import Store
from tenet.engines import Engine
from tenet.engines._cluster import has_replicas

_ROUTERS = (health, session, runs, events, rows, judging, chat, constitutions, previews, labels, agreement, reports)


def create(config: Config, address: str | None = None, engines: dict[str, Engine] | None = None) -> FastAPI:
    """The application. `address` is the Ray cluster for engines; `engines` are used in place of the settings' own
    and left open. Raises InputError for settings that cannot be used, LedgerError for a workspace that cannot."""
    store = Store(config.home / "service.sqlite")
    metrics = Metrics()
    policy = Policy(config, constitutions_of(Path(config.workspace)), address)
    service = Service(
        config=config, store=store, keys=Keys(store), jobs=Jobs(store, config.home, config.limits), policy=policy,
        metrics=metrics, engines=Engines(_with_address(config, address), policy, metrics, engines),
    )  # fmt: skip
    metrics.add(lambda: health.gauges(service))
    app = FastAPI(
        title="tenet", version=tenet.__version__, summary="Preference data from a written constitution.",
        docs_url=None, redoc_url=None, lifespan=_lifespan, redirect_slashes=False,
        # Whatever goes wrong is told in one shape.
        responses={"default": {
            "description": "What went wrong",
            "content": {"application/problem+json": {"schema": problems.Problem.model_json_schema()}},
        }},
    )  # fmt: skip
    app.state.service = service
    problems.install(app)
    for part in _ROUTERS:
        app.include_router(part.router)
    session.mount(app)
    app.add_middleware(Guard, keys=service.keys, limits=config.limits, metrics=metrics)
    app.openapi = _openapi(app)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None]:
    service: Service = app.state.service
    service.jobs.recover(service.config.resume)
    watcher = service.cache["watcher"] = asyncio.create_task(service.jobs.watch())
    try:
        yield
    finally:
        # Jobs go on: they are processes of their own, and the next start finds them again.
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
        service.jobs.close()
        await service.engines.close()
        service.pages.close()
        service.store.close()


def _with_address(config: Config, address: str | None) -> Config:
    """The settings with the cluster's address put into every engine that has replicas."""
    if not address:
        return config
    models = {name: {"address": address, **m} if has_replicas(m) else m for name, m in config.models.items()}
    return config.model_copy(update={"models": models})


def _openapi(app: FastAPI) -> Any:
    """The document less FastAPI's own 422, which stands in another shape than our problems."""
    build = app.openapi

    def made() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = build()
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
                    operation["security"] = [] if path in OPEN else [{"key": []}, {"session": []}]
            schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
            schemes["key"] = {"type": "http", "scheme": "bearer"}
            schemes["session"] = {"type": "apiKey", "in": "cookie", "name": "tenet_session"}
            app.openapi_schema = document
        return app.openapi_schema

    return made
