"""Judging what exists: a judge's config file, its engines behind the ledger, and verdicts on pairs, in order."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

import judges
from constitution import Constitution
from judges import Judge
from judges.pairs_file import LabelledPair
from judges.pairwise import CUT
from service._memory import rare_collections
from service.recipe import Limits, Models, Recipe, build_engines, check_judge, judge_doc, load_constitution, read_models
from tenet.engines import Engine
from tenet.engines._cache import Budget, CachedEngine
from tenet.errors import TenetError, TooManyFailures
from tenet.ledger import Calls
from tenet.records import Comparison, Frozen, Usage, Verdict, digest
from tenet.settings import assemble, read


class Config(Frozen):
    """A judge with all that it needs. A recipe is one too: what else it says is left aside."""

    constitution: str
    """A packaged constitution's name, or a path."""
    models: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """Engines by name: `kind` and that kind's settings. The first serves where none is named."""
    judge: dict[str, Any] = Field(default={"kind": "pairwise"})
    """`kind` and that kind's settings."""
    limits: Limits = Limits()
    """When to stop early; `in_flight` pairs are judged at once, `max_prompts` says nothing here."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides every draw of principles and samples."""


@dataclass(frozen=True)
class JudgePlan:
    """A judge's config that was checked; nothing is started yet."""

    config: Config
    constitution: Constitution
    models: Models
    source: str
    """Where the config came from, for messages and as the judge's name."""

    def build_engines(self) -> dict[str, Engine]:
        """Engines by model name; a wrong model path ends here."""
        return build_engines(self.models)

    def open(self, engines: Mapping[str, Engine]) -> Judge:
        """The judge on these engines; SettingsError if they cannot give what it needs."""
        return judges.open_judge(dict(self.config.judge), engines, self.constitution, self.config.seed)


def open_config(path: Path, overrides: Iterable[str] = ()) -> JudgePlan:
    """Reads and checks a judge's config, or a recipe. Paths in it are relative to its own folder.

    Raises SettingsError or ConstitutionError: file, field, value, and what would be right.
    """
    doc = read(path).override(overrides)
    others = [k for k in Recipe.model_fields if k not in Config.model_fields]
    config = assemble(Config, doc.without(*others) if isinstance(doc.data, dict) else doc)
    models = read_models(doc, path.parent)
    rules = load_constitution(config.constitution, path.parent)
    check_judge(judge_doc(doc, config.judge), models, rules)
    return JudgePlan(config, rules, models, str(path))


@dataclass
class Session:
    """An open judge, its engines behind the ledger, and what they were asked."""

    judge: Judge
    engines: dict[str, CachedEngine]

    @property
    def usage(self) -> Usage:
        """What was paid in this session; stored replies are free."""
        return sum((e.usage for e in self._unique), Usage())

    @property
    def asked(self) -> int:
        """Requests that went to an engine."""
        return sum(e.asked for e in self._unique)

    @property
    def reused(self) -> int:
        """Requests that a stored reply answered."""
        return sum(e.reused for e in self._unique)

    @property
    def _unique(self) -> list[CachedEngine]:
        return list({id(e): e for e in self.engines.values()}.values())


@asynccontextmanager
async def opened(
    plan: JudgePlan, workspace: Path, run: str, engines: Mapping[str, Engine] | None = None
) -> AsyncGenerator[Session]:
    """The judge of a plan, ready to be asked; its replies are stored in the workspace's `calls.sqlite`.

    `run` is the name under which the ledger books what is paid. `engines` are used as they are and left open;
    without them the plan's own are built, started and closed.
    """
    built = plan.build_engines() if engines is None else dict(engines)
    unique = {id(e): e for e in built.values()}
    try:
        plan.open(built)  # what an engine cannot give is found before it takes half a minute to start
        with Calls(workspace / "calls.sqlite") as calls:
            limits = plan.config.limits
            budget = Budget.resume(calls, run, max_calls=limits.max_calls, max_tokens=limits.max_tokens)
            wrapped = {i: CachedEngine(e, calls, run, budget) for i, e in unique.items()}
            cached = {name: wrapped[id(e)] for name, e in built.items()}
            judge = plan.open(cached)
            asked = {id(e) for e in judge.engines}
            await asyncio.gather(*(_start(unique[i]) for i, e in wrapped.items() if id(e) in asked))
            with rare_collections():
                yield Session(judge, cached)
    finally:
        if engines is None:
            for engine in unique.values():
                await engine.close()


async def _start(engine: Engine) -> None:
    start = getattr(engine, "start", None)
    if start is not None:
        await start()


class Judged(NamedTuple):
    """A pair and what was said of it."""

    pair: LabelledPair
    verdict: Verdict
    orders: Mapping[str, Verdict]
    """What each slot order ("ab", "ba") says by itself; {"": verdict} where replies were not shown side by side."""


async def judge_pairs(
    judge: Judge,
    pairs: Iterable[LabelledPair],
    in_flight: int = 256,
    max_failures: float = 1.0,
    watch: Callable[[Judged], None] = lambda _: None,
) -> AsyncIterator[Judged]:
    """A verdict for every pair, in the pairs' order, `in_flight` of them at once.

    A pair that cannot be judged has an `invalid` verdict that says why, and stops nothing. TooManyFailures if after
    20 pairs more than `max_failures` of them ended so through an engine's fault. EngineError, LedgerError pass.
    """
    waiting: deque[tuple[LabelledPair, asyncio.Task[Verdict]]] = deque()
    done = failed = 0

    async def next_one() -> Judged:
        nonlocal done, failed
        pair, task = waiting[0]
        verdict = await task
        judged = Judged(pair, verdict, judge.split(verdict))
        waiting.popleft()
        done += 1
        failed += verdict.p_a is None and any(v.fault for v in verdict.votes)
        if done >= 20 and failed > max_failures * done:
            raise TooManyFailures(
                f"{failed} of {done} pairs could not be judged, more than limits.max_failures={max_failures:g} "
                f"allows ({verdict.why})"
            )
        watch(judged)
        return judged

    try:
        for pair in pairs:
            waiting.append((pair, asyncio.create_task(_safely(judge, pair.comparison))))
            if len(waiting) >= in_flight:
                yield await next_one()
        while waiting:
            yield await next_one()
    finally:
        for _, task in waiting:
            task.cancel()
        await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)


async def _safely(judge: Judge, comparison: Comparison) -> Verdict:
    try:
        return await judge.judge(comparison, key_of(comparison))
    except TenetError:
        raise
    except Exception as error:  # one pair that we cannot handle must not stop the others
        return Verdict(label="invalid", why=f"internal error: {type(error).__name__}: {error}"[:300])


def key_of(comparison: Comparison) -> str:
    """The place of a pair in its prompt's draws; the same with the slots exchanged."""
    return digest("pair", *sorted((comparison.a, comparison.b)))


def line_of(judged: Judged) -> dict[str, Any]:
    """A judged pair as a row of JSON; log-probabilities of -inf are null, as p_a says 0 or 1 there."""
    pair, verdict, _ = judged
    told = verdict.model_dump(mode="json")
    for vote in told["votes"]:
        if vote["logprobs"]:
            vote["logprobs"] = [x if x is not None and x > float("-inf") else None for x in vote["logprobs"]]
    head = {"id": pair.id, "comparison_id": pair.comparison.id}
    return {**head, "verdict": told.pop("label"), **told}


def votes_of(judged: Judged, rater: str) -> list[dict[str, Any]]:
    """Rows of a votes file (`tenet agree`): the judge's, one for each slot order, and people's, if the pair has any."""
    pair = judged.pair
    c = pair.comparison
    base = {"item": pair.id, "slices": pair.slices, "len_a": len(c.a), "len_b": len(c.b)}
    rows = [{**base, "rater": h.rater, "kind": "human", "verdict": h.label} for h in pair.labels]
    for order, said in judged.orders.items():
        row: dict[str, Any] = {**base, "rater": rater, "kind": "judge", "verdict": said.label}
        row |= {"order": order} if order else {}
        row |= {"p_a": said.p_a} if said.p_a is not None else {}
        rows.append(row)
    return rows


@dataclass
class Summary:
    """Counts over judged pairs, for the screen."""

    labels: Counter[str] = field(default_factory=Counter[str])
    reasons: Counter[str] = field(default_factory=Counter[str])
    both: int = 0
    consistent: int = 0
    readable: int = 0
    first: int = 0
    cut: int = 0

    def add(self, judged: Judged) -> None:
        """Takes one pair in."""
        verdict = judged.verdict
        self.labels[verdict.label] += 1
        if verdict.p_a is None:
            self.reasons[verdict.why.partition(":")[0][:60]] += 1
        self.both += verdict.consistent is not None
        self.consistent += bool(verdict.consistent)
        for vote in verdict.votes:
            self.cut += vote.why.endswith(CUT)
            if vote.order is not None and vote.label in ("A", "B"):
                self.readable += 1
                self.first += (vote.label == "A") == (vote.order == "ab")
