"""The service's own engines and judges: for chat, judge and score; started when first asked, shared by all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import judges
from constitution import Constitution
from judges import Judge, Scorer
from service.api.metrics import Metrics, Series
from service.api.policy import Policy
from service.api.problems import Refusal
from service.api.settings import Config
from service.recipe import Models, build_engines, load_constitution, read_models
from tenet.engines import Engine, Reply, Request
from tenet.engines._cache import CachedEngine
from tenet.engines._unasked import Unasked
from tenet.errors import InputError, SettingsError
from tenet.ledger import Calls
from tenet.settings import Document, closest

_PAYER = "service"
"""The name under which the ledger books what judge and score pay."""


class Watched:
    """An engine that is started once, when it is first asked, and tells how many wait for it."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self._engine, self._metrics = engine, metrics
        self.name, self.fingerprint, self.family = engine.name, engine.fingerprint, engine.family
        self.has_choices, self.has_scores = engine.has_choices, engine.has_scores
        self.waiting = 0
        """Requests that have no answer yet."""
        self.ready = not hasattr(engine, "start")
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        """Starts the engine unless it runs. EngineError if it cannot start; the next call tries again."""
        async with self._starting:
            if self.ready:
                return
            await getattr(self._engine, "start")()  # noqa: B009 (not every engine has it)
            self.ready = True

    async def generate(self, requests: Sequence[Request]) -> list[Reply]:
        self.waiting += len(requests)
        try:
            if not self.ready:
                await self.start()
            replies = await self._engine.generate(requests)
        finally:
            self.waiting -= len(requests)
        self._metrics.asked(self.name, replies)
        return replies

    async def close(self) -> None:
        await self._engine.close()


class Engines:
    """Engines by model name, judges by name, constitutions by name."""

    def __init__(
        self, config: Config, policy: Policy, metrics: Metrics, given: dict[str, Engine] | None = None
    ) -> None:
        """SettingsError if a model or judge of the service's settings cannot be used."""
        self._config, self._policy, self._metrics = config, policy, metrics
        doc = Document(config.model_dump(mode="json"), "the service's settings")
        self._models: Models = {} if given else read_models(doc, Path.cwd())
        self._given = given
        self._engines: dict[str, Watched] = {}
        self._calls: Calls | None = None
        self._judges: dict[str, Judge] = {}
        self._asking = 0
        metrics.add(self._gauges)
        unasked: dict[str, Engine] = {name: Unasked() for name in self.names}
        self._scorers: list[str] = []
        for name in config.judges:
            judge = judges.open_judge(*self._judge_settings(name, unasked))
            if judge.scale:
                self._scorers.append(name)
        for field, known in (("judge", config.judges), ("scorer", self._scorers)):
            if (named := getattr(config, field)) and named not in known:
                raise SettingsError(f"there is no {field} {named!r}", where=field, fix=closest(named, known))

    @property
    def names(self) -> list[str]:
        """The models, the first of which serves where none is named."""
        return list(self._given or self._models)

    @property
    def scorers(self) -> list[str]:
        """The judges that can score single replies."""
        return self._scorers

    def engine(self, name: str) -> Watched:
        """The engine of a model; it starts when it is first asked."""
        if not self._engines:
            built = self._given or build_engines(self._models)
            unique = {id(e): Watched(e, self._metrics) for e in built.values()}
            self._engines = {n: unique[id(e)] for n, e in built.items()}
        return self._engines[name]

    def judge(self, name: str) -> Judge:
        """The judge of a name; empty: the default one. Its replies are stored and never paid twice. Refusal 404."""
        name = name or self._config.judge or next(iter(self._config.judges), "")
        if name not in self._config.judges:
            raise Refusal(404, f"there is no judge {name!r}; known: {', '.join(self._config.judges) or 'none'}")
        if name not in self._judges:
            if self._calls is None:
                self._calls = Calls(Path(self._config.workspace) / "calls.sqlite")
            wrapped: dict[int, CachedEngine] = {}
            engines: dict[str, Engine] = {}
            for model in self.names:
                engine = self.engine(model)
                engines[model] = wrapped.setdefault(id(engine), CachedEngine(engine, self._calls, _PAYER))
            self._judges[name] = judges.open_judge(*self._judge_settings(name, engines))
        return self._judges[name]

    def scorer(self, name: str) -> tuple[str, Scorer]:
        """(name, judge) that scores single replies. Refusal 404 if there is none, 422 if it gives no scores."""
        name = name or self._config.scorer or next(iter(self._scorers), "")
        judge = self.judge(name)
        if name not in self._scorers or not isinstance(judge, Scorer):
            known = ", ".join(self._scorers) or "none"
            raise Refusal(422, f"the judge {name!r} gives no scores of single replies; those that do: {known}")
        return name, judge

    def constitution(self, name: str) -> Constitution:
        """A constitution by its packaged or saved name. Refusal 404 if there is none."""
        if "/" in name or name.startswith("."):
            raise Refusal(404, "a constitution is named, not given as a path", code="model_not_found")
        try:
            return load_constitution(self._policy.constitution(name), Path.cwd())
        except InputError as error:
            raise Refusal(404, str(error), code="model_not_found") from None

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncGenerator[None]:
        """One of the calls that may be worked on at once. Refusal 429 if there are too many."""
        self.check_free()
        self._asking += 1
        try:
            yield
        finally:
            self._asking -= 1

    def check_free(self) -> None:
        """Refusal 429 if as many calls as may be are worked on."""
        most = self._config.limits.asking
        if self._asking >= most:
            raise Refusal(429, f"{most} calls to models are worked on already", code="rate_limit")

    async def close(self) -> None:
        """Ends what was started."""
        for engine in {id(e): e for e in self._engines.values()}.values():
            if self._given is None:
                await engine.close()
        if self._calls is not None:
            self._calls.close()

    def _judge_settings(self, name: str, engines: dict[str, Engine]) -> tuple[Any, Any, Constitution, int]:
        data = dict(self._config.judges[name])
        rules = load_constitution(self._policy.constitution(str(data.pop("constitution", "")) or "nano"), Path.cwd())
        return Document(data, f"judges.{name}"), engines, rules, self._config.seed

    def _gauges(self) -> list[Series]:
        unique = {id(e): e for e in self._engines.values()}.values()
        queue = [((e.name,), float(e.waiting)) for e in unique]
        ready = [((e.name,), float(e.ready)) for e in unique]
        return [
            ("tenet_engine_queue", "Requests to an engine that have no answer yet", ("engine",), queue),
            ("tenet_engine_ready", "Whether an engine was started", ("engine",), ready),
            ("tenet_asking", "Calls to chat, judge and score in flight", (), [((), float(self._asking))]),
        ]
