"""The pipeline: every prompt walks its own chain from first replies to judged preferences.

There is no barrier between stages: a prompt that is done with one goes on to the next, and the engines
batch whatever is in flight. A chain is stored whole when it ends; until then its replies are in the
ledger of calls, so a killed run walks the same chains again without paying twice.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import judges
from generators import filters, pairs, prompts, respond, revise
from judges import Judge
from service.recipe import Plan
from tenet.engines import Engine
from tenet.errors import RunFolderError, TenetError, TooManyFailures
from tenet.ledger import Rows
from tenet.records import (
    Candidate,
    Comparison,
    Dropped,
    Frozen,
    Preference,
    Prompt,
    Response,
    Score,
    Verdict,
    canonical,
    may_pass,
)

Chain = list[tuple[str, Frozen]]
"""(stage, record) pairs, the last of which is the Outcome."""


class Outcome(Frozen):
    """How a prompt ended: with this many preferences, or without one."""

    preferences: int
    comparisons: int = 0
    retry: bool = False
    """Something of it was dropped for a reason that may pass; the next start of the run walks it again."""


class Judged(Frozen):
    """A comparison that became no preference, with its verdict."""

    key: str
    comparison: Comparison
    verdict: Verdict


class Scored(Frozen):
    """A reply's score, where pairs are made by score."""

    key: str
    sample: int
    score: Score


class Window(NamedTuple):
    """Which rows of the prompts' file a run works on."""

    limit: int | None = None
    """Only so many rows."""
    shard: tuple[int, int] = (0, 1)
    """(i, n): only rows whose number leaves i when divided by n."""

    def size(self, rows: int, most: int | None) -> int:
        """How many of a file's rows the window holds, of which at most `most` may be used."""
        used = min(n for n in (rows, self.limit, most) if n is not None)
        i, n = self.shard
        return len(range(i, used, n))


EVERYTHING = Window()
_UNREADABLE = ("invalid verdict", "refused verdict", "invalid score", "refused score")


@dataclass
class Tally:
    """Where a run stands, for progress and for stopping early."""

    done: int = 0
    """Prompts that have ended, earlier starts included."""
    resumed: int = 0
    """Those of them that an earlier start had ended."""
    kept: int = 0
    """Preferences that the caps let through."""
    failed: int = 0
    """Prompts that ended without a preference through an engine's faults or unreadable verdicts."""
    walked: int = 0
    """Prompts that had calls made for them in this start."""
    drops: Counter[str] = field(default_factory=Counter[str])
    """Prompts without a preference, by reason."""


class Pipeline:
    """Walks prompts through a plan's stages."""

    def __init__(
        self,
        plan: Plan,
        engines: Mapping[str, Engine],
        rows: Rows,
        watch: Callable[[Tally], None] = lambda _: None,
    ) -> None:
        self.plan, self.tally = plan, Tally()
        self._engines, self._rows, self._watch = engines, rows, watch
        recipe = plan.recipe
        self._judge: Judge = judges.open_judge(dict(recipe.judge), engines, plan.constitution, recipe.seed)
        self._scorers = {
            i: judges.open_scorer(dict(p.scorer or recipe.judge), engines, plan.constitution, recipe.seed)
            for i, p in enumerate(recipe.pairs)
            if p.kind == "best_of"
        }
        # The caps are the same whatever the order, so they can be counted while chains end in any order.
        self._sieve = filters.Sieve(plan.recipe.keep.model_copy(update={"exactly": None}))
        self._stop = False
        self._puts: set[asyncio.Future[None]] = set()

    def stop(self) -> None:
        """Takes no more prompts; `run` returns when those in flight have ended."""
        self._stop = True

    async def run(self, window: Window = EVERYTHING) -> None:
        """Walks all prompts of the window that have no stored outcome.

        Raises TooManyFailures, EngineError, LedgerError; whatever was stored stays.
        """
        for row in self._rows.iterate("preference"):
            self.tally.kept += self._sieve.passes(Preference.model_validate_json(row.record))
        source = self._source(window)
        workers = [asyncio.create_task(self._work(source)) for _ in range(self.plan.recipe.limits.in_flight)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            await asyncio.gather(*self._puts, return_exceptions=True)

    def _source(self, window: Window) -> Iterator[tuple[int, Prompt | Dropped]]:
        recipe = self.plan.recipe
        most = min((n for n in (window.limit, recipe.limits.max_prompts) if n is not None), default=None)
        i, n = window.shard
        for ordinal, item in prompts.stream(recipe.prompts, recipe.seed):
            if most is not None and ordinal >= most:
                return
            if ordinal % n != i:
                continue
            stored = self._rows.done(ordinal)
            if stored is not None:
                self._check_same(ordinal, stored, item)
                self.tally.done += 1
                self.tally.resumed += 1
                continue
            if self.stopped or self.has_enough():
                return
            yield ordinal, item

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stop

    def has_enough(self) -> bool:
        """Whether as many pairs are kept as `keep.exactly` asks for."""
        wanted = self.plan.recipe.keep.exactly
        return wanted is not None and self.tally.kept >= wanted

    def _check_same(self, ordinal: int, stored: str, item: Prompt | Dropped) -> None:
        now = item.id if isinstance(item, Prompt) else item.prompt_id
        if now != stored:
            raise RunFolderError(
                f"row {ordinal} of the prompts is another prompt than when the run began",
                where=str(self.plan.folder),
                fix="restore the prompts file, or choose another run folder with --out",
            )

    async def _work(self, source: Iterator[tuple[int, Prompt | Dropped]]) -> None:
        for ordinal, item in source:
            if isinstance(item, Dropped):
                chain: Chain = [("dropped", item), ("outcome", Outcome(preferences=0))]
                prompt_id = item.prompt_id
            else:
                chain = await self.walk(item)
                prompt_id = item.id
                self.tally.walked += 1
            records = [(stage, canonical(r.model_dump(mode="json"))) for stage, r in chain]
            # A commit that has begun is waited for even if this worker is cancelled meanwhile: else its row would
            # appear behind the back of whoever counts the rows.
            put = asyncio.ensure_future(self._rows.put(ordinal, prompt_id, records))
            self._puts.add(put)
            put.add_done_callback(self._puts.discard)
            await asyncio.shield(put)
            self._count(chain)

    def _count(self, chain: Chain) -> None:
        tally = self.tally
        outcome = chain[-1][1]
        assert isinstance(outcome, Outcome)
        tally.done += 1
        tally.kept += sum(self._sieve.passes(r) for _, r in chain if isinstance(r, Preference))
        if not outcome.preferences:
            last = next(r for _, r in reversed(chain) if isinstance(r, Dropped))
            tally.drops[last.reason] += 1
            tally.failed += outcome.retry or last.reason in _UNREADABLE
        self._watch(tally)
        most = self.plan.recipe.limits.max_failures
        # Twenty prompts must have been tried: one bad first row is not a bad run.
        if tally.walked >= 20 and tally.failed > most * tally.walked:
            top = ", ".join(f"{reason}: {n}" for reason, n in tally.drops.most_common(3))
            raise TooManyFailures(
                f"{tally.failed} of {tally.walked} prompts failed, more than "
                f"limits.max_failures={most:g} allows ({top}); what was done stays in {self.plan.folder}"
            )

    async def walk(self, prompt: Prompt) -> Chain:
        """One prompt's chain, to its end; nothing is stored. TenetError; a bug in one row is a drop of that row."""
        try:
            return await self._walk(prompt)
        except TenetError:
            raise
        except Exception as error:  # one row that we cannot handle must not stop the others
            dropped = Dropped(
                prompt_id=prompt.id, stage="chain", reason="internal error",
                detail=f"{type(error).__name__}: {error}"[:300], retry=True,
            )  # fmt: skip
            ended = Outcome(preferences=0, retry=True)
            return [("prompt", prompt), ("dropped", dropped), ("outcome", ended)]

    async def _walk(self, prompt: Prompt) -> Chain:
        """One prompt's chain."""
        recipe = self.plan.recipe
        tracks = await asyncio.gather(*(self._track(prompt, index) for index in range(recipe.respond.samples)))
        chain: Chain = [("prompt", prompt)]
        candidates = [c for c, _ in tracks if c is not None]
        chain += [("candidate", c) for c in candidates]
        drops = [d for _, d in tracks if d is not None]
        # A reply whose revision failed stays as it was before; no pair may take it for revised.
        whole = [c for c, d in tracks if c is not None and d is None]
        made: list[tuple[str, Comparison]] = []
        unmade = 0
        for i, settings in enumerate(recipe.pairs):
            usable = candidates if settings.kind != "initial_vs_revision" and settings.of == "first" else whole
            if settings.kind != "best_of":
                made += pairs.pairs(prompt, usable, settings, recipe.seed)
                continue
            scored = await self._score(prompt, usable, i)
            chain += [("score", s) for s in scored]
            drops += [_unscored(prompt, s) for s in scored if s.score.value is None]
            values = [s.score.value for s in scored]
            for key, pair in pairs.best_of(prompt, usable, values, settings, recipe.seed):
                if isinstance(pair, Comparison):
                    made.append((key, pair))
                else:
                    drops.append(pair)
                    unmade += 1
        ends = await asyncio.gather(*(self._settle(key, c) for key, c in made))
        kept = 0
        for judged, end in ends:
            if isinstance(end, Preference):
                kept += 1
                chain.append(("preference", end))
            else:
                chain += [("judged", judged)] if judged is not None else []
                drops.append(end)
        chain += [("dropped", d) for d in drops]
        retry = any(d.retry for d in drops)
        if not kept:
            chain.append(("dropped", _why_nothing(prompt, drops)))
        return [*chain, ("outcome", Outcome(preferences=kept, comparisons=len(made) + unmade, retry=retry))]

    async def _score(self, prompt: Prompt, candidates: Sequence[Candidate], which: int) -> list[Scored]:
        """The candidates' scores for the recipe's pairs number `which`."""
        settings, scorer = self.plan.recipe.pairs[which], self._scorers[which]
        key = f"best of {settings.of}"
        scores = await asyncio.gather(*(scorer.score(prompt, pairs.text_of(c, settings), key) for c in candidates))
        return [Scored(key=key, sample=c.response.index, score=s) for c, s in zip(candidates, scores, strict=True)]

    async def _track(self, prompt: Prompt, index: int) -> tuple[Candidate | None, Dropped | None]:
        """One sample with its rounds: what there is of it, and why it stopped short if it did."""
        recipe = self.plan.recipe
        first = await respond.respond(prompt, index, recipe.respond, self._engines, recipe.seed)
        if not isinstance(first, Response):
            return None, first
        messages = respond.conversation(prompt, recipe.respond.system)
        chain = revise.Chain(prompt, messages, first, self.plan.constitution, recipe.revise, recipe.seed)
        failed = await chain.run(self._engines[recipe.revise.model or first.model])
        return Candidate(response=first, revisions=tuple(chain.revisions)), failed

    async def _settle(self, key: str, c: Comparison) -> tuple[Judged | None, Preference | Dropped]:
        """A comparison's end: a preference, or why there is none."""
        keep = self.plan.recipe.keep

        def drop(stage: str, reason: str, detail: str = "", retry: bool = False) -> Dropped:
            detail = f"{key}: {detail}" if detail else key
            return Dropped(
                prompt_id=c.prompt.id, unit="pair", stage=stage, reason=reason,
                detail=detail[:300], retry=retry,
            )  # fmt: skip

        if c.a.split() == c.b.split():
            return None, drop("pairs", "identical replies")
        if filters.too_uneven(c.a, c.b, keep.length_ratio):
            return None, drop("keep", f"length ratio above {keep.length_ratio:g}")
        verdict = await self._judge.judge(c, key)
        judged = Judged(key=key, comparison=c, verdict=verdict)
        if verdict.label in ("invalid", "refused") or verdict.p_a is None:
            passing = any(v.fault and may_pass(v.fault) for v in verdict.votes)
            return judged, drop("judge", f"{verdict.label} verdict", verdict.why, passing)
        if verdict.label == "tie":
            return judged, drop("judge", "tie")
        p = max(verdict.p_a, 1.0 - verdict.p_a)
        if p - 0.5 < keep.margin:
            return judged, drop("keep", f"margin below {keep.margin:g}")
        return judged, Preference(comparison=c, verdict=verdict, chosen=verdict.label, p_chosen=p)


def _unscored(prompt: Prompt, scored: Scored) -> Dropped:
    """A reply that takes no part in pairs by score, since its score cannot be read."""
    score = scored.score
    return Dropped(
        prompt_id=prompt.id, unit="reply", stage="score", reason=f"{score.label} score",
        detail=f"sample {scored.sample}: {score.why}"[:300],
        retry=any(r.fault and may_pass(r.fault) for r in score.ratings),
    )  # fmt: skip


def _why_nothing(prompt: Prompt, drops: list[Dropped]) -> Dropped:
    """Why a prompt gave no preference: the reason of the first of its parts that was dropped."""
    if not drops:
        return Dropped(prompt_id=prompt.id, stage="pairs", reason="too few replies for a pair")
    first = drops[0]
    return Dropped(
        prompt_id=prompt.id, stage=first.stage, reason=first.reason, detail=first.detail,
        retry=first.retry,
    )  # fmt: skip
