"""Routes of runs: check and create from a recipe, list, look, cancel, resume."""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import sqlite3
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import yaml
from fastapi import APIRouter, Header, Query
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from service import plan as plans
from service import recipe as recipes
from service.api import states
from service.api.context import NAME, Name, Reads, Runs, Service, The, valid_name
from service.api.jobs import Job
from service.api.problems import Fault, Refusal
from service.api.states import RunDetail, RunSummary
from service.pipeline import Window
from service.recipe import Plan
from tenet._complaints import is_map
from tenet.errors import InputError
from tenet.records import Message, digest
from tenet.settings import Document

router = APIRouter(prefix="/v1", tags=["runs"])


class RecipeIn(BaseModel, extra="forbid"):
    """A recipe, and what of it to run."""

    recipe: str | dict[str, Any]
    """The recipe as YAML text, or as the object that the YAML would be."""
    overrides: Annotated[list[str], Field(max_length=100)] = []
    """Settings that replace the recipe's, as `key=value`."""
    prompts: Annotated[list[str | list[Message]], Field(min_length=1, max_length=10_000)] | None = None
    """Prompts that come along, in place of a file; texts or conversations."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Only the first N rows."""
    shard: Annotated[str, Field(pattern=r"^\d{1,6}/\d{1,6}$")] = "0/1"
    """i/N: every N-th row, from the i-th (0-based)."""


class RunIn(RecipeIn):
    """A run to make."""

    name: Annotated[str, Field(pattern=NAME)] | None = None
    """The run's folder in the workspace; unset: made up from the time."""


class StageOut(BaseModel):
    """What a stage would cost; tokens by a rule of thumb."""

    name: str
    model: str
    calls: int
    tokens_in: int
    tokens_out: int


class PlanOut(BaseModel):
    """What a run would do."""

    constitution: str
    lines: list[str]
    stages: list[StageOut]
    examples: list[dict[str, str]]
    """The questions of the first prompts: `title` and `text`."""


class Checked(BaseModel):
    """Whether a recipe can be used, as the command line would say it."""

    valid: bool
    errors: list[Fault] = []
    plan: PlanOut | None = None


class RunList(BaseModel):
    """A page of runs."""

    runs: list[RunSummary]
    next: str | None
    """The `after` of the next page."""


@router.post("/recipes/check")
async def check(body: RecipeIn, service: The, _: Runs) -> Checked:
    """Checks a recipe as `tenet generate --dry-run` does; nothing is called and nothing is kept."""
    try:
        made = await asyncio.to_thread(_describe, service, body, "unnamed")
    except InputError as error:
        return Checked(valid=False, errors=[Fault(where=error.where, what=error.what, fix=error.fix)])
    return Checked(valid=True, plan=made)


@router.post("/runs", status_code=201)
async def create(
    body: RunIn, service: The, caller: Runs,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$")] = None,
) -> RunDetail:  # fmt: skip
    """Makes a run. Given again with the same `Idempotency-Key`, the same request gives the same run."""
    asked = digest("run", body.model_dump(mode="json"), caller.name)
    key = f"{caller.name}:{idempotency_key}" if idempotency_key else ""
    if key and (before := service.jobs.repeated(key, asked)):
        return await states.detail(service, before.name)
    name = body.name or time.strftime("run-%Y%m%d-%H%M%S-", time.gmtime()) + secrets.token_hex(2)
    if service.jobs.get(name) or (service.workspace / name).exists():
        raise Refusal(409, f"there is a run {name!r} already: choose another name")
    estimate = await asyncio.to_thread(_describe, service, body, name)
    try:
        job = _submit(service, body, name, estimate, caller.name, key, asked)
    except sqlite3.IntegrityError:  # the same key came twice at once
        if key and (before := service.jobs.repeated(key, asked)):
            return await states.detail(service, before.name)
        raise Refusal(409, f"there is a run {name!r} already: choose another name") from None
    return await states.detail(service, job.name)


@router.get("/runs")
async def listed(
    service: The, _: Reads, limit: Annotated[int, Query(ge=1, le=200)] = 50,
    after: Annotated[str, Query(max_length=64)] = "", state: Annotated[str, Query(max_length=20)] = "",
) -> RunList:  # fmt: skip
    """Runs, the newest first: those of this service, and those that the command line made in its workspace."""
    names = await asyncio.to_thread(states.names, service)
    start = names.index(after) + 1 if after in names else 0
    page: list[RunSummary] = []
    for i, name in enumerate(names[start:], start):
        summary = await asyncio.to_thread(states.summary, service, name)
        if summary is not None and state in ("", summary.state):
            page.append(summary)
        if len(page) == limit:
            return RunList(runs=page, next=name if i + 1 < len(names) else None)
    return RunList(runs=page, next=None)


@router.get("/runs/{name}")
async def look(name: Name, service: The, _: Reads) -> RunDetail:
    """A run: state, counts by stage, drops by reason, usage, estimate, recipe, figures."""
    return await states.detail(service, name)


@router.get("/runs/{name}/manifest")
async def manifest(name: Name, service: The, _: Reads) -> dict[str, Any]:
    """The manifest of a run that has ended."""
    found = states.manifest_of(service, states.folder_of(service, name))
    if found is None:
        raise Refusal(404, f"the run {name!r} has no manifest yet")
    return found


@router.post("/runs/{name}/cancel", status_code=202)
async def cancel(
    name: Name, service: The, _: Runs, now: Annotated[bool, Query(description="Do not wait for what runs")] = False
) -> RunDetail:
    """Stops a run: after what is in flight has ended, or at once. What is stored stays; `resume` goes on."""
    service.jobs.cancel(_job(service, name), now)
    return await states.detail(service, name)


@router.post("/runs/{name}/resume", status_code=202)
async def resume(name: Name, service: The, _: Runs) -> RunDetail:
    """Goes on with a run that was stopped, failed or crashed; nothing is paid twice."""
    service.jobs.resume(_job(service, name))
    return await states.detail(service, name)


@router.get("/runs/{name}/compare/{other}")
async def compare(name: Name, other: Name, service: The, _: Reads) -> JSONResponse:
    """What differs between two runs: recipe, constitution, and what became of the same prompts."""
    from service.api import comparing

    folders = [states.folder_of(service, n) for n in (name, other)]
    return JSONResponse(await asyncio.to_thread(comparing.compare, *folders))


def _job(service: Service, name: str) -> Job:
    job = service.jobs.get(name)
    if job is None or job.kind != "run":
        states.folder_of(service, name)
        raise Refusal(409, f"the run {name!r} was made by the command line, which also goes on with it")
    return job


def _plan(service: Service, body: RecipeIn, name: str, prompts: Path) -> tuple[Plan, Document]:
    """The checked plan, and the recipe with absolute paths."""
    given: Any = body.recipe
    doc = service.policy.recipe(given, body.overrides)
    if body.prompts is not None:
        doc = replace(doc, data=inline(doc.data, prompts))
    return recipes.check_recipe(doc, Path.cwd(), name, str(service.workspace / name)), doc


def inline(data: dict[str, Any], prompts: Path) -> dict[str, Any]:
    """The recipe with prompts that came along in place of its own."""
    said = data.get("prompts")
    return {**data, "prompts": {**(said if is_map(said) else {}), "path": str(prompts), "kind": "jsonl"}}


def _describe(service: Service, body: RecipeIn, name: str) -> PlanOut:
    _window(body)
    staging = service.config.home / "staging" / secrets.token_hex(8)
    staging.mkdir(parents=True)
    try:
        if body.prompts is not None:
            (staging / "prompts.jsonl").write_text(lines_of(body.prompts), encoding="utf-8")
        plan, _ = _plan(service, body, name, staging / "prompts.jsonl")
        d = plans.describe(plan, _window(body))
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return PlanOut(
        constitution=d.constitution, lines=d.lines, stages=[StageOut(**asdict(s)) for s in d.stages],
        examples=[{"title": title, "text": text} for title, text in d.examples],
    )  # fmt: skip


def _submit(
    service: Service, body: RunIn, name: str, estimate: PlanOut, owner: str, key: str, asked: str
) -> Job:
    valid_name(name, "a run")
    folder = service.jobs.folder(name).absolute()
    given: Any = body.recipe
    doc = service.policy.recipe(given, body.overrides)
    data = doc.data if body.prompts is None else inline(doc.data, folder / "prompts.jsonl")
    window = _window(body)
    spec = {
        "kind": "run", "out": str((service.workspace / name).absolute()), "limit": window.limit,
        "shard": list(window.shard), "estimate": estimate.model_dump(exclude={"examples"}),
    }  # fmt: skip
    text = body.recipe if isinstance(body.recipe, str) else yaml.safe_dump(body.recipe, sort_keys=False)
    files = {
        "spec.json": json.dumps(spec), "recipe.yaml": text,
        "plan.yaml": yaml.safe_dump(data, sort_keys=False, allow_unicode=True),
    }  # fmt: skip
    if body.prompts is not None:
        files["prompts.jsonl"] = lines_of(body.prompts)
    return service.jobs.submit(name, "run", spec, files, owner, key, asked)


def _window(body: RecipeIn) -> Window:
    i, n = map(int, body.shard.split("/"))
    if i >= n:
        raise Refusal(422, f"shard {body.shard!r} is not i/N with i from 0 to N-1")
    return Window(body.limit, (i, n))


def lines_of(prompts: list[str | list[Message]]) -> str:
    """Prompts as a JSONL file."""
    rows = [
        {"prompt": p} if isinstance(p, str) else {"messages": [m.model_dump() for m in p]} for p in prompts
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)
