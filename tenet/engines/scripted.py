"""Engine kind "scripted": answers from a Python function; serves tests and docs, and says so in its name."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Sequence

from tenet.engines import Reply, Request
from tenet.errors import SettingsError
from tenet.records import Frozen, Usage

Script = Callable[[Request], Reply | str]


class Settings(Frozen):
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
        said = self._script(request)
        if isinstance(said, Reply):
            return said
        asked = sum(len(m.content.split()) for m in request.messages) + len((request.text or "").split())
        return Reply(text=said, usage=Usage(calls=1, prompt_tokens=asked, completion_tokens=len(said.split())))

    async def close(self) -> None:
        return None


def echo(request: Request) -> Reply | str:
    """A stand-in script: repeats the last message; for choices it prefers none."""
    if request.choices:
        even = -1.0
        return Reply(
            choice_logprobs=(even,) * len(request.choices), usage=Usage(calls=1, prompt_tokens=1, completion_tokens=1)
        )
    return request.messages[-1].content if request.messages else (request.text or "")


def build(settings: Settings) -> ScriptedEngine:
    """The engine; SettingsError if the script cannot be found."""
    module, _, function = settings.script.partition(":")
    try:
        script = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(
            f"no script {settings.script!r}: {error}", where="engine.script", fix="package.module:function"
        ) from None
    return ScriptedEngine(
        script, name=settings.script, version=settings.version, delay=settings.delay, choices=settings.choices,
        scores=settings.scores, family=settings.family,
    )  # fmt: skip
