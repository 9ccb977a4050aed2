"""Routes of label sets: make one from a run or pairs, the next blind pair, submit, undo, progress, votes."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import Response
from pydantic import BaseModel, Field, model_validator

import judges
from judges import pairs_file
from service import _chains
from service.api import reader, states
from service.api.context import NAME, Labels, Name, Reads, Runs, Service, The
from service.api.judging import PairIn, pair_of
from service.api.keys import Caller
from service.api.label_plan import Item, plan
from service.api.labelling import LabelSets
from service.api.problems import Refusal
from tenet.engines import Engine
from tenet.engines._unasked import Unasked
from tenet.errors import TenetError
from tenet.records import Comparison, Message, Verdict

router = APIRouter(prefix="/v1/labels", tags=["labels"])
_MOST = 20_000
Rater = Annotated[
    str, Query(pattern=rf"^$|{NAME}", description="Who labels; only where the service has no keys: else the key's name")
]


class SetIn(BaseModel, extra="forbid"):
    """A set of pairs for people."""

    name: Annotated[str, Field(pattern=NAME)]
    run: Annotated[str, Field(pattern=NAME)] | None = None
    """Judged pairs of this run, with what its judge said."""
    file: Annotated[str, Field(max_length=500)] | None = None
    """Or a pairs file in the service's data folders."""
    pairs: Annotated[list[PairIn], Field(min_length=1, max_length=_MOST)] | None = None
    """Or these."""
    n: Annotated[int, Field(ge=1, le=_MOST)] = 100
    """At most so many, drawn from all."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Draws the pairs, their order, and which of them several people see."""
    overlap: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of pairs that several people label: what a human ceiling is measured on."""
    raters: Annotated[int, Field(ge=1, le=100)] = 3
    """How many people label those."""
    attention: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """Attention checks for every rater, as a share of what they label."""
    instructions: Annotated[str, Field(max_length=20_000)] = ""
    """What raters are told."""
    reveal: bool = False
    """Whether raters see what the judge said, once nothing is left for them to label."""

    @model_validator(mode="after")
    def _one(self) -> SetIn:
        if sum(x is not None for x in (self.run, self.file, self.pairs)) != 1:
            raise ValueError("give one of run, file and pairs")
        return self


class RaterOut(BaseModel):
    rater: str
    labels: int
    checks: int
    passed: int
    seconds: float | None
    """Mean time for a pair, as the page measured it."""


class ProgressOut(BaseModel):
    """How far a set is."""

    set: str
    run: str
    instructions: str
    pairs: int
    done: int
    """Pairs that have as many labels as are wanted."""
    wanted: int
    """Labels wanted in all."""
    labels: int
    raters: list[RaterOut]


class SetList(BaseModel):
    sets: list[str]


class PairOut(BaseModel):
    """A pair as one rater sees it: texts, and which side they stand on."""

    item: str
    prompt: list[Message]
    left: str
    right: str


class NextOut(BaseModel):
    """What to label now."""

    pair: PairOut | None
    """Null if nothing is left for this rater."""
    given: int
    """Labels that this rater has given."""
    left: int
    """Pairs that may still come."""
    instructions: str


class LabelIn(BaseModel, extra="forbid"):
    """What a rater says."""

    item: Annotated[str, Field(max_length=200)]
    label: Literal["left", "right", "tie"]
    seconds: Annotated[float, Field(ge=0, le=86_400)] | None = None


class Submitted(BaseModel):
    stored: bool
    replaced: bool
    """Whether it took the place of another label of this rater on this pair."""


class MineOut(PairOut):
    """A pair that a rater has labelled."""

    number: int
    label: Literal["left", "right", "tie"]
    given: str
    judge: Literal["left", "right", "tie"] | None = None
    """What the judge said, if the set tells it and nothing is left to label."""


class MineList(BaseModel):
    labels: list[MineOut]
    next: int | None
    """The `after` of the next page."""


@router.post("", status_code=201)
async def create(body: SetIn, service: The, _: Runs) -> ProgressOut:
    """Makes a set. Pairs are drawn, ordered and shared out by the seed alone."""
    sets = LabelSets(service.store)
    if body.name in sets.names():
        raise Refusal(409, f"there is a label set {body.name!r} already")
    items = await asyncio.to_thread(_items, service, body)
    if not items:
        raise Refusal(422, "there is no pair to label")
    rows = plan(items, body.seed, body.overlap, body.raters, body.attention)
    await asyncio.to_thread(sets.create, body.name, body.model_dump(exclude={"name", "pairs"}), rows)
    return ProgressOut.model_validate(sets.progress(body.name))


@router.get("")
async def listed(service: The, caller: Labels) -> SetList:
    """Names of the sets, the newest first."""
    return SetList(sets=LabelSets(service.store).names())


@router.get("/{name}/progress")
async def progress(name: Name, service: The, _: Reads) -> ProgressOut:
    """Counts of the set and of every rater, with their attention checks."""
    return ProgressOut.model_validate(await asyncio.to_thread(LabelSets(service.store).progress, name))


@router.post("/{name}/next")
async def following(name: Name, service: The, caller: Labels, rater: Rater = "") -> NextOut:
    """The pair to label now; asked again, the same one until it is labelled. Others do not get it meanwhile."""
    who, sets = _rater(caller, rater), LabelSets(service.store)

    def work() -> NextOut:
        found = sets.next(name, who)
        given, left = sets.left(name, who)
        pair = PairOut.model_validate(found) if found else None
        return NextOut(pair=pair, given=given, left=left, instructions=sets.spec(name).get("instructions", ""))

    return await asyncio.to_thread(work)


@router.post("/{name}/labels")
async def submit(name: Name, body: LabelIn, service: The, caller: Labels, rater: Rater = "") -> Submitted:
    """Stores a label; it is on disk when this answers. The same again changes nothing, another one replaces it."""
    sets = LabelSets(service.store)
    replaced = sets.submit(name, _rater(caller, rater), body.item, body.label, body.seconds)
    return Submitted(stored=True, replaced=replaced)


@router.post("/{name}/undo")
async def undo(name: Name, service: The, caller: Labels, rater: Rater = "") -> PairOut:
    """Takes back this rater's last label; its pair is the next one again."""
    return PairOut.model_validate(LabelSets(service.store).undo(name, _rater(caller, rater)))


@router.get("/{name}/mine")
async def mine(
    name: Name, service: The, caller: Labels, rater: Rater = "", after: Annotated[int, Query(ge=0, lt=2**53)] = 0,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> MineList:  # fmt: skip
    """This rater's labels, to look at again and to change."""
    who, sets = _rater(caller, rater), LabelSets(service.store)
    found = sets.mine(name, who, after, limit + 1)
    more = found[limit - 1]["number"] if len(found) > limit else None
    if sets.spec(name)["reveal"] and sets.left(name, who)[1] == 0:
        for one in found:
            one["judge"] = sets.judge_side(name, who, one["item"])
    return MineList(labels=[MineOut.model_validate(f) for f in found[:limit]], next=more)


@router.get("/{name}/votes", response_class=Response, responses={200: {"content": {"application/jsonl": {}}}})
async def votes(
    name: Name, service: The, _: Reads,
    min_attention: Annotated[float, Query(ge=0, le=1, description="Leave out raters below this share")] = 0.0,
) -> Response:  # fmt: skip
    """People's and the judge's votes, a line of JSON each, as `tenet agree` reads them."""

    def work() -> str:
        found = LabelSets(service.store).votes(name, min_attention)
        return "".join(json.dumps(v, ensure_ascii=False) + "\n" for v in found)

    headers = {"content-disposition": f'attachment; filename="{name}.votes.jsonl"'}
    return Response(await asyncio.to_thread(work), media_type="application/jsonl", headers=headers)


def _rater(caller: Caller, given: str) -> str:
    """Who labels: the key's name. Refusal 403 for another one's, 422 where nobody is named."""
    if caller.name:
        if given and given != caller.name:
            raise Refusal(403, f"the key {caller.name!r} labels under its own name")
        return caller.name
    if not given:
        raise Refusal(422, "without keys, the query says who labels: ?rater=NAME")
    return given


def _items(service: Service, body: SetIn) -> list[Item]:
    if body.run is not None:
        return _of_run(service, body.run, body.n, body.seed)
    if body.file is not None:
        path = service.policy.file(body.file, "file")
        every = [Item(p.id, p.comparison, _machine(p), tuple(p.slices.items())) for p in pairs_file.read(path)]
    else:
        every = [Item(p.id, p.comparison) for p in (pair_of(x, i) for i, x in enumerate(body.pairs or []))]
    return random.Random(body.seed).sample(every, min(body.n, len(every)))


def _machine(pair: pairs_file.LabelledPair) -> tuple[dict[str, Any], ...]:
    return tuple({"rater": r, "kind": "judge", "verdict": label} for r, label in pair.machine.items())


def _of_run(service: Service, name: str, n: int, seed: int) -> list[Item]:
    """Pairs of a run that its judge has looked at, each with the judge's vote in either slot order."""
    folder = states.folder_of(service, name)
    view = _chains.open_run(folder)
    unasked: dict[str, Engine] = {model: Unasked() for model in view.recipe.models}
    judge = judges.open_judge(dict(view.recipe.judge), unasked, view.constitution, view.recipe.seed)

    def item(record: dict[str, Any]) -> Item:
        comparison, verdict = Comparison.model_validate(record["comparison"]), Verdict.model_validate(record["verdict"])
        try:
            orders = judge.split(verdict)
        except TenetError:
            orders = {"": verdict}
        votes: list[dict[str, Any]] = []
        for order, said in orders.items():
            vote: dict[str, Any] = {"rater": f"judge of {name}", "kind": "judge", "verdict": said.label}
            vote |= {"order": order} if order else {}
            votes.append(vote | ({"p_a": said.p_a} if said.p_a is not None else {}))
        return Item(comparison.id, comparison, tuple(votes))

    found = {i.id: i for i in map(item, _drawn(folder, n, seed))}
    return list(found.values())


def _drawn(folder: Path, n: int, seed: int) -> Iterator[dict[str, Any]]:
    """n judged records of a run in random order; only places are held in memory."""
    with reader.reading(folder / "rows.sqlite", "rows") as db:
        if db is None:
            return
        places = [r[0] for r in db.execute("SELECT rowid FROM rows WHERE stage IN ('preference', 'judged') ORDER BY 1")]
        for place in random.Random(seed).sample(places, min(n, len(places))):
            yield json.loads(db.execute("SELECT record FROM rows WHERE rowid = ?", (place,)).fetchone()[0])
