"""Verdicts under every principle by itself: the same pairs, one judge, as many principles as are to be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from constitution import Constitution, Principle
from judges.pairs_file import LabelledPair
from judges.pairwise import combine
from service import judging
from service.judging import JudgePlan
from tenet.engines import Engine
from tenet.errors import SettingsError
from tenet.records import Comparison, Usage, Verdict

Table = list[dict[str, Verdict]]
"""For every pair: principle id -> the verdict under that principle alone."""


def check(plan: JudgePlan) -> None:
    """SettingsError unless the judge asks one principle's question at a time."""
    kind = plan.config.judge.get("kind")
    if kind != "pairwise":
        what = f"a judge of kind {kind!r} is not asked question by question"
        raise SettingsError(what, where=plan.source, fix="kind: pairwise")


def asking(plan: JudgePlan, principles: Sequence[Principle]) -> JudgePlan:
    """The plan with these principles in place of the constitution's, all of them asked on every pair.

    Tags are left out, since pairs files have none: a principle is asked whatever the prompt.
    """
    check(plan)
    rules = Constitution(
        name=plan.constitution.name,
        preamble=plan.constitution.preamble,
        language=plan.constitution.language,
        principles=tuple(Principle(id=p.id, choose=p.choose, exemplars=p.exemplars) for p in principles),
    )
    config = plan.config.model_copy(update={"judge": {**plan.config.judge, "principles": "all"}})
    return replace(plan, constitution=rules, config=config)


async def judge(
    plan: JudgePlan,
    groups: Sequence[tuple[Sequence[Principle], Sequence[Comparison]]],
    workspace: Path,
    run: str,
    engines: Mapping[str, Engine] | None = None,
    watch: Callable[[int], None] = lambda _: None,
) -> tuple[list[Table], Usage]:
    """For each group, what the judge says of its pairs under each of its principles; and what was paid for it.

    Replies are stored in the workspace, so that asking again is free. `engines` are left open. `watch` hears how many
    pairs are done.
    """
    built = plan.build_engines() if engines is None else dict(engines)
    made: list[Table] = []
    usage = Usage()
    done = 0
    try:
        for principles, comparisons in groups:
            own = asking(plan, principles)
            pairs = [LabelledPair(id=f"{i} {c.id}", comparison=c, row=i) for i, c in enumerate(comparisons)]
            limits = own.config.limits
            async with judging.opened(own, workspace, run, built) as session:
                table: Table = []
                async for judged in judging.judge_pairs(session.judge, pairs, limits.in_flight, limits.max_failures):
                    table.append(_split(judged.verdict, plan.config.judge, principles))
                    done += 1
                    watch(done)
                usage += session.usage
            made.append(table)
    finally:
        if engines is None:
            for engine in {id(e): e for e in built.values()}.values():
                await engine.close()
    return made, usage


def _split(verdict: Verdict, settings: Mapping[str, Any], principles: Sequence[Principle]) -> dict[str, Verdict]:
    tie, quorum = float(settings.get("tie", 0.0)), float(settings.get("quorum", 1.0))
    votes = {p.id: tuple(v for v in verdict.votes if v.principle == p.id) for p in principles}
    return {
        id: combine(own, tie, quorum) if own else Verdict(label="invalid", why=verdict.why or "no vote")
        for id, own in votes.items()
    }


def wilson(k: int, n: int) -> tuple[float | None, float | None]:
    """The 95% Wilson interval of a share k of n; (None, None) if n is 0."""
    if not n:
        return None, None
    proportion: Any = import_module("statsmodels.stats.proportion")
    low, high = proportion.proportion_confint(k, n, method="wilson")
    return float(low), float(high)
