"""Routes of agreement: the report of `tenet agree` on a label set, as labels come in."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from fastapi.responses import Response
from pydantic import BaseModel

from judges.agreement import report as reports
from judges.agreement import votes as votes_file
from judges.agreement.measure import Agreement, measure
from judges.agreement.rules import Rules
from service.api.context import Name, Reads, Service, The
from service.api.labelling import LabelSets
from service.api.problems import Refusal

router = APIRouter(prefix="/v1/agreement", tags=["agreement"])
# A report is one page with its styles and pictures inside; it runs nothing and reaches nothing.
SANDBOX = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox"
_HELD = 20


class Asked(BaseModel):
    """Under which rules, and whose labels count."""

    rules: Rules
    min_attention: float


class SectionOut(BaseModel):
    """A part of the report."""

    title: str
    blocks: list[dict[str, Any]]
    """`kind` (Text, Heading, Table, Plot, Case, ...) and what it holds, as `tenet.pages` has it."""


class Sections(BaseModel):
    """The report's parts, and the rules under which its figures stand."""

    rules: str
    sections: list[SectionOut]


async def asked_of(
    tie: Literal["three-class", "half", "drop"] = "three-class",
    swap: Literal["both", "mean", "first", "signed-sum"] = "both",
    invalid: Literal["tie", "wrong", "drop"] = "wrong",
    gold: Literal["majority", "each", "leave-one-out"] = "majority",
    epsilon: Annotated[float, Query(ge=0, le=1)] = 0.15,
    resamples: Annotated[int, Query(ge=100, le=5000)] = 1000,
    seed: Annotated[int, Query(ge=0, lt=2**32)] = 0,
    min_attention: Annotated[float, Query(ge=0, le=1, description="Leave out raters below this share")] = 0.0,
) -> Asked:
    """The rules that move every figure, as `tenet agree` takes them."""
    rules = Rules(tie=tie, swap=swap, invalid=invalid, gold=gold, epsilon=epsilon, resamples=resamples, seed=seed)
    return Asked(rules=rules, min_attention=min_attention)


By = Annotated[Asked, Depends(asked_of)]


@router.get("/{name}")
async def figures(name: Name, service: The, by: By, _: Reads) -> dict[str, Any]:
    """Every figure with its rule and its n; what is undefined is null beside a reason."""
    return (await _measured(service, name, by)).figures


@router.get(
    "/{name}/report", response_class=Response,
    responses={200: {"content": {"text/html": {}, "text/markdown": {}}}},
)  # fmt: skip
async def report(
    name: Name, service: The, by: By, _: Reads, form: Literal["html", "markdown"] = "html"
) -> Response:
    """The report as one page."""
    found = await _measured(service, name, by)

    def work() -> bytes:
        folder = service.config.home / "reports" / secrets.token_hex(8)
        try:
            page, text, *_ = reports.write(found, folder, name)
            return (page if form == "html" else text).read_bytes()
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    made = await asyncio.to_thread(work)
    kind = "text/html; charset=utf-8" if form == "html" else "text/markdown; charset=utf-8"
    return Response(made, media_type=kind, headers={"content-security-policy": SANDBOX})


@router.get("/{name}/sections")
async def sections(name: Name, service: The, by: By, _: Reads) -> Sections:
    """The report in parts, for a page that shows it in its own way; texts are texts."""
    found = await _measured(service, name, by)

    def work() -> list[SectionOut]:
        made = reports.sections(found)
        parts = [(s.title, [{"kind": type(b).__name__, **asdict(b)} for b in s.blocks]) for s in made]
        return [SectionOut(title=title, blocks=blocks) for title, blocks in parts]

    return Sections(rules=reports.rules_line(found.figures["rules"]), sections=await asyncio.to_thread(work))


async def _measured(service: Service, name: str, by: Asked) -> Agreement:
    """Measured once for the labels that there are. Refusal 404 without a set, 409 without a label."""
    sets = LabelSets(service.store)
    sets.spec(name)
    key = f"agreement {name} {by.model_dump_json()}"
    version = sets.version(name)
    held: tuple[Any, Agreement] | None = service.cache.get(key)
    if held is not None and held[0] == version:
        return held[1]

    def work() -> Agreement:
        gathered = votes_file.gather()
        people = 0
        for i, vote in enumerate(sets.votes(name, by.min_attention)):
            gathered.add(vote, i)
            people += vote["kind"] == "human"
        if not people:
            raise Refusal(409, f"the label set {name!r} has no label yet")
        return measure(gathered.votes(pairs=sets.comparisons(name)), by.rules)

    # One at a time: each takes a second of a core, and many that ask at once are mostly answered by the first.
    lock: asyncio.Lock = service.cache.setdefault("agreement lock", asyncio.Lock())
    async with lock:
        held = service.cache.get(key)
        if held is None or held[0] != version:
            held = (version, await asyncio.to_thread(work))
            for old in [k for k in service.cache if k.startswith("agreement ") and k != "agreement lock"][:-_HELD]:
                del service.cache[old]
            service.cache[key] = held
    return held[1]
