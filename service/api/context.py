"""What routes share: the service's parts, and who is calling."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from fastapi import Depends, Request
from fastapi import Path as InPath

from service.api.jobs import Jobs
from service.api.keys import Caller, Keys, Role
from service.api.metrics import Metrics
from service.api.policy import Policy
from service.api.problems import Refusal
from service.api.reader import Pages
from service.api.settings import Config
from service.api.store import Store

if TYPE_CHECKING:
    from service.api.engines import Engines

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
"""Names of runs, label sets and constitutions: one segment of a path, which no dots climb out of."""
Name = Annotated[str, InPath(pattern=NAME, description="Letters, digits, dot, dash, underscore; at most 64.")]


@dataclass
class Service:
    """The parts of one service."""

    config: Config
    store: Store
    keys: Keys
    jobs: Jobs
    policy: Policy
    metrics: Metrics
    engines: Engines
    pages: Pages = field(default_factory=Pages)
    streams: int = 0
    """Event streams that are open."""
    cache: dict[str, Any] = field(default_factory=dict[str, Any])
    """What was read off files that do not change, by the file's path and time."""

    @property
    def workspace(self) -> Path:
        return Path(self.config.workspace)

    @property
    def constitutions(self) -> Path:
        """Where saved constitutions lie."""
        return constitutions_of(self.workspace)


def constitutions_of(workspace: Path) -> Path:
    """The folder of saved constitutions in a workspace."""
    return workspace / "constitutions"


async def service_of(request: Request) -> Service:
    """The service that a request came to."""
    # A coroutine although it awaits nothing: FastAPI would take anything else to a thread and back.
    return cast(Service, request.app.state.service)


The = Annotated[Service, Depends(service_of)]


def needs(role: Role) -> Callable[[Request], Awaitable[Caller]]:
    """A dependency that gives the caller, and refuses one whose key lacks the role."""

    async def check(request: Request) -> Caller:
        caller: Caller | None = request.state.caller
        if caller is None:
            raise Refusal(401, "this needs a key: Authorization: Bearer tenet_…", code="invalid_api_key")
        if not caller.may(role):
            raise Refusal(403, f"the key {caller.name!r} has not the role {role!r}", code="permission_denied")
        return caller

    return check


Reads = Annotated[Caller, Depends(needs("read"))]
Runs = Annotated[Caller, Depends(needs("run"))]
Labels = Annotated[Caller, Depends(needs("label"))]
Admin = Annotated[Caller, Depends(needs("admin"))]


def valid_name(name: str, what: str) -> str:
    """The name; Refusal 422 for one that cannot be a file's."""
    if not re.fullmatch(NAME, name):
        raise Refusal(422, f"{name[:80]!r} is no name for {what}: letters, digits, dot, dash, underscore; at most 64")
    return name
