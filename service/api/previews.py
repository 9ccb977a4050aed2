"""Routes of previews: what an edit of a constitution changes on some prompts, worked out by a job."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from fastapi import APIRouter
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, Field

import constitution as constitutions
from constitution import snapshot
from service import recipe as recipes
from service.api.agreement import SANDBOX
from service.api.constitutions import Source, draft_errors, opened
from service.api.context import NAME, Name, Reads, Runs, Service, The
from service.api.events import open_stream
from service.api.jobs import Job
from service.api.policy import DEMO
from service.api.problems import Refusal
from service.api.runs import inline, lines_of
from tenet._complaints import is_map
from tenet.records import Message

router = APIRouter(prefix="/v1/previews", tags=["constitutions"])
_RECIPE: dict[str, Any] = {
    "prompts": {"path": str(DEMO / "prompts.jsonl")},
    "revise": {"rounds": 1},
    "pairs": [{"kind": "samples"}, {"kind": "initial_vs_revision", "per_prompt": 2}],
    "judge": {"kind": "pairwise", "order": "both"},
}
"""What is walked where no recipe is given; its models are the service's own."""


class PreviewIn(BaseModel, extra="forbid"):
    """Two constitutions, and what to walk under both."""

    name: Annotated[str, Field(pattern=NAME)] | None = None
    old: Source
    new: Source
    recipe: str | dict[str, Any] | None = None
    """As for a run; its constitution is replaced by either side. Without one: the service's first model, one round of
    revision, pairs of samples and of revisions."""
    overrides: Annotated[list[str], Field(max_length=100)] = []
    prompts: Annotated[list[str | list[Message]], Field(min_length=1, max_length=1000)] | None = None
    """In place of the recipe's."""
    limit: Annotated[int, Field(ge=1, le=1000)] = 50
    """The first N prompts."""


class PreviewOut(BaseModel):
    """Where a preview stands."""

    name: str
    state: str
    reason: str = ""
    result: dict[str, Any] | None = None
    """As `tenet constitution preview` writes it: the verdict, flips, shifts, both sides' texts."""


@router.post("", status_code=202)
async def create(body: PreviewIn, service: The, caller: Runs) -> PreviewOut:
    """Starts a preview. Replies are stored, so what the edit leaves alone is paid once for both sides."""
    name = body.name or f"preview-{secrets.token_hex(4)}"
    if service.jobs.get(name) or (service.workspace / name).exists():
        raise Refusal(409, f"there is a job or run {name!r} already")
    with draft_errors(service):
        files = await asyncio.to_thread(_files, service, body, name)
    job = service.jobs.submit(name, "preview", {"kind": "preview"}, files, caller.name)
    return _told(service, job)


@router.get("/{name}")
async def look(name: Name, service: The, _: Reads) -> PreviewOut:
    """The preview's state, and its figures once it has ended."""
    return await asyncio.to_thread(_told, service, _job(service, name))


@router.get("/{name}/report", response_class=Response, responses={200: {"content": {"text/html": {}}}})
async def report(name: Name, service: The, _: Reads, form: Literal["html", "markdown"] = "html") -> Response:
    """The preview as one page."""
    file = "report.html" if form == "html" else "report.md"
    path = service.jobs.folder(_job(service, name).name) / "out" / file
    if not path.is_file():
        raise Refusal(404, f"the preview {name!r} has no report yet")
    kind = "text/html; charset=utf-8" if form == "html" else "text/markdown; charset=utf-8"
    text = await asyncio.to_thread(path.read_bytes)
    return Response(text, media_type=kind, headers={"content-security-policy": SANDBOX})


@router.get(
    "/{name}/events", response_class=StreamingResponse, responses={200: {"content": {"text/event-stream": {}}}}
)  # fmt: skip
async def events(name: Name, service: The, _: Reads) -> StreamingResponse:
    """What a preview does, as it does it; ends with the event `end`."""
    return open_stream(service, _job(service, name).name, None)


@router.post("/{name}/cancel", status_code=202)
async def cancel(name: Name, service: The, _: Runs) -> PreviewOut:
    """Stops a preview at once; stored replies stay."""
    job = _job(service, name)
    service.jobs.cancel(job, True)
    return _told(service, job)


def _job(service: Service, name: str) -> Job:
    job = service.jobs.get(name)
    if job is None or job.kind != "preview":
        raise Refusal(404, f"there is no preview {name!r}")
    return job


def _told(service: Service, job: Job) -> PreviewOut:
    status = service.jobs.status(job)
    result = None
    with contextlib.suppress(OSError, ValueError):
        result = json.loads((service.jobs.folder(job.name) / "out/preview.json").read_text(encoding="utf-8"))
    return PreviewOut(name=job.name, state=status.state, reason=status.reason, result=result)


def _files(service: Service, body: PreviewIn, name: str) -> dict[str, str]:
    """The job's files: both constitutions with their parents joined in, the recipe, prompts that came along."""
    files = {"spec.json": json.dumps({"kind": "preview", "limit": body.limit})}
    for side, source in (("old", body.old), ("new", body.new)):
        with opened(service, source) as path:
            files[f"{side}.yaml"] = snapshot.text(constitutions.load(path))
    given = body.recipe if body.recipe is not None else {**_RECIPE, "models": service.config.models}
    own = body.recipe is None
    doc = service.policy.recipe({**given, "constitution": "nano"} if is_map(given) else given, body.overrides, own)
    if body.prompts is not None:
        doc = replace(doc, data=inline(doc.data, service.jobs.folder(name).absolute() / "prompts.jsonl"))
        files["prompts.jsonl"] = lines_of(body.prompts)
    folder = service.config.home / "staging" / secrets.token_hex(8)
    folder.mkdir(parents=True)
    try:  # both sides are checked as a run's recipe is, before the job is made
        for side in ("old", "new"):
            (folder / "side.yaml").write_text(files[f"{side}.yaml"], encoding="utf-8")
            checked = replace(doc, data={**doc.data, "constitution": str((folder / "side.yaml").absolute())})
            recipes.check_recipe(checked, Path.cwd(), name)
    finally:
        (folder / "side.yaml").unlink(missing_ok=True)
        folder.rmdir()
    files["plan.yaml"] = yaml.safe_dump(doc.data, sort_keys=False, allow_unicode=True)
    return files


async def work(folder: Path, spec: dict[str, Any], put: Any) -> dict[str, Any]:
    """The job's process: both walks, then the page and its figures."""
    from constitution import diff as by_meaning
    from service import preview

    folder = folder.absolute()
    out, workspace = folder / "out", folder.parent.parent.parent
    old, new = (str(folder / f"{side}.yaml") for side in ("old", "new"))
    job = preview.Job(
        old=old, new=new, recipe=folder / "plan.yaml", limit=spec["limit"], out=out, workspace=workspace
    )
    edit, plans = by_meaning.diff(by_meaning.open_side(old), by_meaning.open_side(new)), preview.open_plans(job)
    put("stage", stage=f"walking {spec['limit']} prompts under both constitutions")
    walks, cost = await preview.walk(plans, job.limit, job.workspace)
    named = replace(job, old=plans[0].constitution.name, new=plans[1].constitution.name)
    figures = preview.write(named, edit, plans, walks, cost)
    put("stage", stage=figures["verdict"])
    return {"state": "whole", "reason": ""}
