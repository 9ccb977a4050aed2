"""`tenet constitution executors`: a run's pairs judged again by other judges, under the run's own constitution.

A label comes from a constitution and from the judge that reads it. This says how much of it is the judge.
"""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import combinations, islice
from pathlib import Path
from typing import Any

from rich.markup import escape

from judges import Judge
from judges.pairwise import combine
from service import _chains, _executors_card, judging
from service._chains import Pair, RunView
from service._shares import RULES, percent, share
from service.judging import JudgePlan
from service.screen import columns, console, tell
from tenet.engines import Engine
from tenet.errors import DataError, SettingsError, TenetError
from tenet.records import Usage, Verdict

_LABELS = ("A", "B", "tie")


@dataclass(frozen=True)
class Job:
    """What the command was asked for."""

    run: Path
    judges: Sequence[Path]
    """Configs of judges, or recipes; the constitution that they name is left aside."""
    limit: int | None = None
    """Only the first pairs."""
    card: bool = True
    """Whether the run's card is to say what was found."""


@dataclass(frozen=True)
class Executor:
    """One judge with its verdict on every pair."""

    name: str
    verdicts: tuple[Verdict, ...]
    usage: Usage
    asked: int


def main(job: Job) -> None:
    """Judges, compares, writes executors.json into the run's folder, and amends its card. Raises InputError."""
    figures = asyncio.run(compare(job))
    show(figures)
    path = job.run / _executors_card.NAME
    text = json.dumps(figures, indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")
    console.print(f"JSON: {escape(str(path))}", soft_wrap=True)
    if job.card and (card := _executors_card.amend(job.run, figures["constitution_hash"])):
        console.print(f"card: {escape(str(card))} says so now", soft_wrap=True)


async def compare(job: Job, engines: Mapping[str, Mapping[str, Engine]] | None = None) -> dict[str, Any]:
    """The figures. `engines`, by the config's path, are used as they are and left open.

    Raises InputError before the first call, EngineError and LedgerError on the way.
    """
    run = _chains.open_run(job.run)
    if not job.judges:
        raise SettingsError("there is no judge to compare with", where="--judge", fix="a judge's config, or a recipe")
    plans = [under(run, judging.open_config(path)) for path in job.judges]
    judged = list(islice(((w.prompt.id, p) for w in run.walks() for p in w.pairs.values() if p.verdict), job.limit))
    if not judged:
        raise DataError("has no judged pair", where=str(job.run), fix="a run that made pairs")
    pairs = [p for _, p in judged]
    said = [Executor(f"{run.folder.name} (its own judge)", tuple(p.verdict for p in pairs if p.verdict), Usage(), 0)]
    for path, plan, name in zip(job.judges, plans, _names(job.judges), strict=True):
        tell(f"judging {len(pairs):,} pairs with {name}")
        said.append(await _judge(run, plan, name, pairs, (engines or {}).get(str(path))))
    return measure(run, [prompt for prompt, _ in judged], said)


def under(run: RunView, plan: JudgePlan) -> JudgePlan:
    """The judge under the run's constitution and seed, so that a pair is asked about under the principles it had."""
    config = plan.config.model_copy(update={"seed": run.recipe.seed})
    return replace(plan, config=config, constitution=run.constitution)


def _names(paths: Sequence[Path]) -> list[str]:
    stems = [p.stem for p in paths]
    return stems if len(set(stems)) == len(stems) else [str(p) for p in paths]


async def _judge(
    run: RunView, plan: JudgePlan, name: str, pairs: Sequence[Pair], engines: Mapping[str, Engine] | None
) -> Executor:
    gate = asyncio.Semaphore(plan.config.limits.in_flight)

    async def one(judge: Judge, pair: Pair) -> Verdict:
        assert pair.comparison is not None
        async with gate:
            try:
                return await judge.judge(pair.comparison, pair.key)
            except TenetError:
                raise
            except Exception as error:  # one pair that we cannot handle must not stop the others
                return Verdict(label="invalid", why=f"internal error: {type(error).__name__}: {error}"[:300])

    async with judging.opened(plan, run.folder.parent, f"executor:{name}", engines) as session:
        verdicts = await asyncio.gather(*(one(session.judge, p) for p in pairs))
        return Executor(name, tuple(verdicts), session.usage, session.asked)


# Counting.


def measure(run: RunView, prompts: Sequence[str], said: Sequence[Executor]) -> dict[str, Any]:
    """Agreement of every two executors, overall and by principle; undefined figures are null beside a reason."""
    return {
        "run": run.folder.name,
        "constitution": run.constitution.name,
        "version": run.constitution.version,
        "constitution_hash": run.constitution.hash,
        "pairs": len(prompts),
        "prompts": len(set(prompts)),
        "executors": [
            {"name": e.name, "labels": dict(Counter(v.label for v in e.verdicts)), "asked": e.asked,
             "usage": e.usage.model_dump()}
            for e in said
        ],
        "between": [_between(prompts, a, b) for a, b in combinations(said, 2)],
        "rules": {
            "same": "A, B and tie are labels; pairs that either left unreadable do not count",
            "chosen": "the same on pairs on which both say A or B",
            "principles": "each principle's own verdict, from its own votes, compared in the same way",
            "kappa": "Cohen's, on the labels (scikit-learn)",
            "share": RULES["share"],
        },
    }  # fmt: skip


def _between(prompts: Sequence[str], a: Executor, b: Executor) -> dict[str, Any]:
    pairs = list(zip(prompts, a.verdicts, b.verdicts, strict=True))
    known = [(p, x.label, y.label) for p, x, y in pairs if x.label in _LABELS and y.label in _LABELS]
    own: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for prompt, x, y in pairs:
        mine, theirs = _own(x), _own(y)
        for id in mine.keys() & theirs.keys():
            own[id].append((prompt, mine[id], theirs[id]))
    kappa, why = _kappa([x for _, x, _ in known], [y for _, _, y in known])
    return {
        "a": a.name, "b": b.name, "same": _same(known),
        "chosen": _same([k for k in known if "tie" not in k[1:]]), "kappa": kappa,
        "unreadable": len(pairs) - len(known),
        "table": {x: {y: sum(k[1:] == (x, y) for k in known) for y in _LABELS} for x in _LABELS},
        "principles": {id: _same(own[id]) for id in sorted(own)},
        **({"why": f"kappa: {why}"} if why else {}),
    }  # fmt: skip


def _own(verdict: Verdict) -> dict[str, str]:
    """Each principle's label, where it has one."""
    names = dict.fromkeys(v.principle for v in verdict.votes if v.principle)
    said = {n: combine(tuple(v for v in verdict.votes if v.principle == n)) for n in names}
    return {n: v.label for n, v in said.items() if v.label in _LABELS}


def _same(labels: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    by_prompt: dict[str, list[bool]] = defaultdict(list)
    for prompt, x, y in labels:
        by_prompt[prompt].append(x == y)
    return share([(sum(hits), len(hits)) for hits in by_prompt.values()])


def _kappa(x: Sequence[str], y: Sequence[str]) -> tuple[float | None, str]:
    if len({*x, *y}) < 2:
        return None, "both judges only ever say one label" if x else "no pair was read by both"
    metrics: Any = import_module("sklearn.metrics")
    return float(metrics.cohen_kappa_score(x, y)), ""


def show(f: dict[str, Any]) -> None:
    """The matrix, and each principle's agreement."""
    console.print(
        f"[bold]{escape(f['run'])}[/]: constitution {escape(f['constitution'])} {escape(f['version'])} "
        f"({f['constitution_hash'][:8]}), {f['pairs']:,} pairs of {f['prompts']:,} prompts",
        soft_wrap=True,
    )
    for e in f["executors"]:
        labels = ", ".join(f"{k} {n}" for k, n in sorted(e["labels"].items()))
        console.print(escape(f"  {e['name']}: {labels}; {e['asked']:,} calls"), soft_wrap=True)
    for c in f["between"]:
        kappa = "–" if c["kappa"] is None else f"{c['kappa']:.2f}"
        console.print(
            escape(
                f"{c['a']} and {c['b']}: same label {percent(c['same'])}; where both choose {percent(c['chosen'])}; "
                f"kappa {kappa}; unreadable {c['unreadable']}"
            ),
            soft_wrap=True,
        )
        rows = [[f"  {id}", percent(p)] for id, p in sorted(c["principles"].items(), key=lambda x: x[1]["value"] or 0)]
        for line in columns(rows) if rows else []:
            console.print(escape(line), soft_wrap=True)
