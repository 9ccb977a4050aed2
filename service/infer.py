"""`tenet constitution infer`: from labelled pairs to principles that explain them, and what each of them is worth."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

from pydantic import Field

from constitution import Constitution, Principle, load, writer
from constitution._likeness import alike
from constitution._wording import is_negated
from judges import pairs_file
from judges.pairs_file import LabelledPair
from nano import probes
from service import _by_principle, judging
from service._induction import Found, Score, select, together
from service._propose import Proposals, propose
from service.judging import JudgePlan
from service.screen import columns, tell
from tenet.engines import Engine
from tenet.errors import ConstitutionError, DataError, SettingsError
from tenet.records import Frozen, Usage, seed_of
from tenet.settings import closest

NANO = "nano:rules"
"""The name of the pool that holds every rule of nano's small world, in several wordings."""
FEWEST = 40
"""Labelled pairs that are needed at least."""
SAME = 0.8
"""Cosine from which two questions are one before anything is asked: higher than lint's, since nobody looks."""


class Options(Frozen):
    """How to infer."""

    propose: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Calls that propose principles."""
    each: Annotated[int, Field(ge=1, le=20)] = 3
    """Questions that a call may propose."""
    shown: Annotated[int, Field(ge=1, le=50)] = 5
    """Labelled pairs that a proposing call shows."""
    model: str = ""
    """Which of the config's models proposes; empty: the first."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the pairs that candidates are tested on and had no part in proposing or choosing."""
    min_coverage: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Share of pairs that a candidate must decide."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides the parts, and what is shown and drawn."""


class Inferred(Frozen):
    """What came of it."""

    pairs: int
    left_out: int
    """Pairs without a label, or on which people are divided or see a tie."""
    proposals: Proposals | None
    merged: dict[str, str]
    """Candidates that were not asked about, since their words are nearly those of another: id -> that one's id."""
    found: tuple[Found, ...]
    together: Score
    """The kept principles' majority on the held-out pairs."""
    usage: Usage

    @property
    def kept(self) -> list[Found]:
        return [f for f in self.found if f.kept]


@dataclass(frozen=True)
class Job:
    """What the command was asked for."""

    pairs: Path
    judge: Path
    out: Path
    candidates: Sequence[str]
    options: Options
    limit: int | None
    json_out: Path | None
    force: bool
    workspace: Path


def main(job: Job) -> int:
    """Infers, writes the files and shows what was kept; 1 if nothing was. InputError before the first call."""
    plan = judging.open_config(job.judge)
    _by_principle.check(plan)
    if job.out.exists() and not job.force:
        raise DataError("is there already", where=str(job.out), fix="another name, or --force")
    pool = [c for name in job.candidates for c in read_pool(name)]
    pairs = list(islice(pairs_file.read(job.pairs), job.limit))
    options = job.options if pool or job.options.propose else job.options.model_copy(update={"propose": 20})
    came = asyncio.run(infer(plan, pairs, pool, options, job.workspace))
    if job.json_out:
        job.json_out.parent.mkdir(parents=True, exist_ok=True)
        job.json_out.write_text(came.model_dump_json(indent=1), encoding="utf-8")
    show(came)
    if not came.kept:
        print("no candidate predicts the held-out labels; nothing is written")
        return 1
    rules, notes = constitution_of(came, job.out.stem)
    head = (
        f"Inferred by `tenet constitution infer` from {came.pairs} labelled pairs of {job.pairs.name}.\n"
        f"Together the principles are right on {_said(came.together)}."
    )
    writer.write(job.out, rules, head, notes, job.force)
    print(f"files: {job.out}" + (f", {job.json_out}" if job.json_out else ""))
    return 0


def read_pool(name: str) -> list[tuple[Principle, str]]:
    """Candidates by name: a constitution's principles that have a pair question, or NANO."""
    if name == NANO:
        return [(p, NANO) for p in probes.rules()]
    found = [(p, name) for p in load(Path(name) if Path(name).is_file() else name).principles if p.choose]
    if not found:
        raise ConstitutionError("no principle has a pair question", where=name, fix="write choose: Which reply …?")
    return found


async def infer(
    plan: JudgePlan,
    pairs: Sequence[LabelledPair],
    pool: Sequence[tuple[Principle, str]],
    options: Options,
    workspace: Path,
    engines: Mapping[str, Engine] | None = None,
) -> Inferred:
    """Propose, merge, vote, select. `engines` are left open. DataError if there are too few labelled pairs."""
    labelled = [(p, label) for p in pairs if (label := majority(p)) is not None]
    if len(labelled) < FEWEST:
        what = f"{len(labelled)} of {len(pairs)} pairs have a label A or B that most people share"
        raise DataError(what, where="the pairs", fix=f"at least {FEWEST} are needed")
    ranked = sorted(labelled, key=lambda x: seed_of(options.seed, "part", x[0].id))
    cut = len(ranked) - max(1, min(len(ranked) - 1, round(options.held_out * len(ranked))))
    parts = (ranked[:cut], ranked[cut:])
    built = plan.build_engines() if engines is None else dict(engines)
    try:
        proposals = await _proposals(plan, parts[0], options, workspace, built)
        candidates = [*pool, *_drafted(proposals)]
        asked, merged = merge(candidates)
        if not asked:
            example = f"; the first line reads {proposals.example!r}" if proposals and proposals.example else ""
            what = f"no candidate: {proposals.calls if proposals else 0} calls gave no readable question{example}"
            raise DataError(what, where="--propose", fix=f"a model that writes freely, or --candidates FILE or {NANO}")
        tell(f"asking {len(asked)} candidates about {len(ranked)} pairs")
        principles = [p for p, _ in asked]
        groups = [(principles, [p.comparison for p, _ in part]) for part in parts]
        tables, usage = await _by_principle.judge(plan, groups, workspace, "infer", built)
    finally:
        if engines is None:
            for engine in {id(e): e for e in built.values()}.values():
                await engine.close()
    labels = [[label for _, label in part] for part in parts]
    found = select(asked, (tables[0], labels[0]), (tables[1], labels[1]), options.min_coverage)
    return Inferred(
        pairs=len(ranked), left_out=len(pairs) - len(ranked), proposals=proposals, merged=merged, found=tuple(found),
        together=together(found, tables[1], labels[1]), usage=usage,
    )  # fmt: skip


def majority(pair: LabelledPair) -> str | None:
    """A or B if most of the people who labelled the pair say so; else None."""
    counts = Counter(h.label for h in pair.labels)
    label, n = counts.most_common(1)[0] if counts else ("", 0)
    return label if label in ("A", "B") and 2 * n > len(pair.labels) else None


async def _proposals(
    plan: JudgePlan,
    part: Sequence[tuple[LabelledPair, str]],
    options: Options,
    workspace: Path,
    built: Mapping[str, Engine],
) -> Proposals | None:
    if not options.propose:
        return None
    model = options.model or next(iter(built))
    if model not in built:
        raise SettingsError(f"there is no model {model!r}", where="--model", fix=closest(model, built))
    start = getattr(built[model], "start", None)
    if start is not None:
        await start()
    tell(f"{options.propose} calls propose principles")
    async with judging.opened(plan, workspace, "infer", built) as session:
        pairs, labels = [p for p, _ in part], [label for _, label in part]
        o = options
        return await propose(session.engines[model], pairs, labels, o.propose, o.each, o.shown, o.seed)


def _drafted(proposals: Proposals | None) -> list[tuple[Principle, str]]:
    """Principles from proposed questions; their other texts are frames around the question, for a person to reword."""
    return [
        (
            Principle(
                id=f"proposed-{i}",
                critique=f"Hold your reply against this question, and quote what speaks against it: {question}",
                revise=f"Put your reply so that it is the answer to this question: {question}",
                choose=question,
                score=f"How far would the reply be the answer to this question? {question}",
                source="proposed by a model, from labelled pairs",
            ),
            "proposed",
        )
        for i, question in enumerate(proposals.questions if proposals else (), 1)
    ]


def merge(
    candidates: Sequence[tuple[Principle, str]],
) -> tuple[list[tuple[Principle, str]], dict[str, str]]:
    """The candidates less those whose words are nearly an earlier one's, ids made unique; and who stands for whom."""
    unique: list[tuple[Principle, str]] = []
    for p, origin in candidates:
        ids = {q.id for q, _ in unique}
        id = next(x for x in (p.id, *(f"{p.id[:56]}-{n}" for n in range(2, len(candidates) + 2))) if x not in ids)
        unique.append((Principle.model_validate({**dict(p), "id": id}), origin))
    principles = [p for p, _ in unique]
    stands: dict[int, int] = {}
    for like in alike([Principle(id=p.id, choose=p.choose) for p in principles]):
        opposite = is_negated(principles[like.first].choose) != is_negated(principles[like.second].choose)
        if like.cosine >= SAME and not opposite and like.first not in stands:
            stands.setdefault(like.second, like.first)
    merged = {principles[i].id: principles[j].id for i, j in stands.items()}
    return [c for i, c in enumerate(unique) if i not in stands], merged


def constitution_of(came: Inferred, name: str) -> tuple[Constitution, list[str]]:
    """The kept principles as a constitution, and a note for each with its figures."""
    rules = Constitution(
        name="".join(c if c.isalnum() and c.isascii() else "-" for c in name).strip("-")[:60] or "inferred",
        version="1",
        principles=tuple(f.principle for f in came.kept),
    )
    return rules, [f"right on {_said(f.held_out)}" for f in came.kept]


def _said(s: Score) -> str:
    if s.share is None:
        return f"none of {s.pairs} held-out pairs, as it decides none"
    return (
        f"{s.share:.1%} (95% interval {s.low:.1%} to {s.high:.1%}) of the {s.decided} held-out pairs that are decided, "
        f"which are {s.coverage:.0%} of {s.pairs}"
    )


def show(came: Inferred) -> None:
    """What was found, on one screen."""
    print(f"{came.pairs} labelled pairs ({came.left_out} left out: no label, or no majority for A or B)")
    if came.proposals:
        p = came.proposals
        unread = f"{p.unreadable} lines unreadable, {p.failed} calls failed"
        print(f"{p.calls} calls proposed {len(p.questions)} questions ({unread})")
    print(f"{len(came.merged)} candidates merged by their words; {len(came.found)} asked about, {len(came.kept)} kept")
    rows = [["held-out: right", "95% interval", "decided", "p", "principle"]]
    for f in came.kept:
        s = f.held_out
        interval, decided = f"{s.low:.1%}-{s.high:.1%}", f"{s.decided} of {s.pairs}"
        rows.append([f"{s.share:.1%}", interval, decided, f"{f.p:.1g}", f.principle.choose])
    print("\n".join(columns(rows)))
    why = Counter(f.why.partition(":")[0].partition(" pairs")[0] for f in came.found if not f.kept)
    reasons = Counter("decides as another does" if w.startswith("decides as") else w for w in why.elements())
    for reason, n in reasons.most_common(6):
        print(f"not kept: {reason}: {n}")
    print(f"together right on {_said(came.together)}")
    print(f"{came.usage.calls:,} calls, {came.usage.prompt_tokens:,} tokens in; stored replies are free")
