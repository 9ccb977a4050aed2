"""Engine kind "scripted": answers from a Python function; serves tests and docs, and says so in its name.

With `replicas` the function is called in Ray actors, which shows what a cluster does before a model is paid for.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Sequence
from typing import Annotated

from pydantic import Field

from tenet.engines import Engine, Reply, Request
from tenet.engines._cluster import OnCluster
from tenet.engines._scaling import Range
from tenet.errors import SettingsError
from tenet.records import Usage

Script = Callable[[Request], Reply | str]


class Settings(OnCluster):
    """Where the script lies, and how slowly it answers."""

    script: str = "tenet.engines.scripted:echo"
    """`package.module:function`; it takes a Request and returns a Reply or a text."""
    delay: float = 0.0
    """Seconds that every call takes."""
    choices: bool = True
    """Whether the script answers `choices`."""
    scores: bool = False
    """Whether the script plays a reward model: it says a number for a conversation."""
    version: str = "1"
    """Part of the fingerprint: change it when the script's answers change."""
    family: str = "scripted"
    """The family of models that the script plays."""
    replicas: Annotated[int, Field(ge=1)] | Range | None = None
    """Ray actors that call the script, with one CPU each on a cluster; unset: it is called in this process."""


class ScriptedEngine:
    """Calls a function for every request. Deterministic if the function is."""

    def __init__(
        self,
        script: Script,
        *,
        name: str = "scripted",
        version: str = "1",
        delay: float = 0.0,
        choices: bool = True,
        scores: bool = False,
        family: str = "scripted",
    ):
        self.name = name
        self.fingerprint = f"scripted:{name}:{version}"
        self.has_choices, self.has_scores = choices and not scores, scores
        self.family = family
        self.delay = delay
        self._script = script
        self.calls = 0

    async def generate(self, requests: Sequence[Request]) -> list[Reply]:
        if self.delay:
            await asyncio.sleep(self.delay)
        return [self._answer(r) for r in requests]

    def _answer(self, request: Request) -> Reply:
        self.calls += 1
        return reply(self._script, request)

    async def close(self) -> None:
        return None


def reply(script: Script, request: Request) -> Reply:
    """What a script says; a text costs as many tokens as it has words."""
    said = script(request)
    if isinstance(said, Reply):
        return said
    asked = sum(len(m.content.split()) for m in request.messages) + len((request.text or "").split())
    return Reply(text=said, usage=Usage(calls=1, prompt_tokens=asked, completion_tokens=len(said.split())))


def echo(request: Request) -> Reply | str:
    """A stand-in script: repeats the last message; for choices it prefers none."""
    if request.choices:
        even = -1.0
        return Reply(
            choice_logprobs=(even,) * len(request.choices), usage=Usage(calls=1, prompt_tokens=1, completion_tokens=1)
        )
    return request.messages[-1].content if request.messages else (request.text or "")


def find(name: str) -> Script:
    """The function that `package.module:function` names; SettingsError if there is none."""
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(
            f"no script {name!r}: {error}", where="engine.script", fix="package.module:function"
        ) from None


def build(settings: Settings) -> Engine:
    """The engine; SettingsError if the script cannot be found."""
    engine = ScriptedEngine(
        find(settings.script), name=settings.script, version=settings.version, delay=settings.delay,
        choices=settings.choices, scores=settings.scores, family=settings.family,
    )  # fmt: skip
    if settings.replicas is None:
        return engine
    from tenet.engines._player import Player
    from tenet.engines._pooled import PooledEngine

    plan = {"script": settings.script, "delay": settings.delay}
    pool = settings.pool(plan, Player, settings.replicas, full=256, cpus=1)
    pooled = PooledEngine(pool, name=engine.name, fingerprint=engine.fingerprint, family=engine.family)
    pooled.has_choices, pooled.has_scores = engine.has_choices, engine.has_scores
    return pooled
