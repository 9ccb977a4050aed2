"""What there is to say of a run, read off its job, its events, its ledger and its manifest."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from service.api import lockfile, reader
from service.api.context import Service
from service.api.jobs import Job
from service.api.problems import Refusal

_TAIL = 16_384


class Progress(BaseModel):
    """How far a run is."""

    done: int
    """Prompts that have ended, those of earlier starts included."""
    total: int
    resumed: int
    kept: int
    """Preferences so far."""
    failed: int
    drops: dict[str, int]
    """Prompts without a preference, by reason."""
    rate: float
    """Prompts a second in this start."""
    eta_s: float | None
    """Seconds to go at that rate."""


class RunSummary(BaseModel):
    """A run in a list."""

    name: str
    state: str
    """queued, running, stopping; whole, stopped, short, failed, crashed; interrupted (of the command line)."""
    reason: str = ""
    created: str = ""
    owner: str = ""
    """The key that made it."""
    by: str = "service"
    """Whether the service or the command line made it."""
    constitution: str = ""
    constitution_hash: str = ""
    stage: str = ""
    progress: Progress | None = None


class RunDetail(RunSummary):
    """A run with its counts."""

    attempts: int = 0
    records: dict[str, int] = {}
    """Stored records by stage."""
    drops: dict[str, dict[str, dict[str, int]]] = {}
    """What was dropped: unit, stage, reason, n."""
    usage: dict[str, dict[str, int]] = {}
    """Calls and tokens paid, by engine."""
    estimate: dict[str, Any] | None = None
    """What it was expected to cost."""
    recipe: str = ""
    """As it was given."""
    pairs: dict[str, int] = {}
    agreement: dict[str, int] = {}
    files: dict[str, dict[str, Any]] = {}
    """Exports: rows and SHA-256."""
    seconds: float | None = None


def names(service: Service) -> list[str]:
    """All runs, the newest first."""
    jobs = [j.name for j in service.jobs.listed() if j.kind == "run"]
    known = set(jobs)
    others: list[tuple[float, str]] = []
    if service.workspace.is_dir():
        for entry in os.scandir(service.workspace):
            file = Path(entry.path) / "rows.sqlite"
            if entry.name not in known and not entry.name.startswith(".") and file.is_file():
                others.append((file.stat().st_mtime, entry.name))
    return [*jobs, *(name for _, name in sorted(others, reverse=True))]


def folder_of(service: Service, name: str) -> Path:
    """A run's folder. Refusal 404 if there is no such run."""
    folder = service.workspace / name
    job = service.jobs.get(name)
    if not (folder / "rows.sqlite").is_file() and (job is None or job.kind != "run"):
        raise Refusal(404, f"there is no run {name!r}")
    return folder


def summary(service: Service, name: str) -> RunSummary | None:
    """The run's line in a list; None if it vanished."""
    job = service.jobs.get(name)
    folder = service.workspace / name
    if job is not None and job.kind == "run":
        status, (stage, progress) = service.jobs.status(job), _events(service.jobs.folder(name))
        found = RunSummary(
            name=name, state=status.state, reason=status.reason, created=job.created, owner=job.owner,
            stage=stage if status.state in ("running", "stopping") else "", progress=progress,
        )  # fmt: skip
    elif (folder / "rows.sqlite").is_file():
        found = RunSummary(name=name, state=_state_of(service, folder), by="command line")
    else:
        return None
    manifest = manifest_of(service, folder)
    if manifest:
        rules = manifest["constitution"]
        found.constitution, found.constitution_hash = rules["name"], rules["hash"]
    return found


async def detail(service: Service, name: str) -> RunDetail:
    """All about a run. Refusal 404 if there is none."""
    folder = folder_of(service, name)
    short = await asyncio.to_thread(summary, service, name)
    assert short is not None
    found = RunDetail(**short.model_dump())
    job = service.jobs.get(name)
    if job is not None:
        found.attempts, found.estimate = job.attempt, job.spec.get("estimate")
        found.recipe = await asyncio.to_thread((service.jobs.folder(name) / "recipe.yaml").read_text, "utf-8")
    found.usage = await asyncio.to_thread(reader.usage, service.workspace, name)
    if (folder / "rows.sqlite").is_file():
        counted = await counts(service, name, job)
        found.records = dict(sorted(counted.stages.items()))
        found.drops = nested(counted.drops)
    manifest = manifest_of(service, folder)
    if manifest:
        found.pairs, found.agreement, found.files = manifest["pairs"], manifest["agreement"], manifest["files"]
        found.drops, found.seconds = manifest["drops"], manifest["seconds"]
    return found


async def counts(service: Service, name: str, job: Job | None) -> reader.Counted:
    """The run's rows counted; only what came since the last time is read."""
    folder = service.workspace / name
    key = f"count {name}"
    generation = f"{job.attempt}" if job else f"{_mtime(folder / 'run.lock')}"
    before: reader.Counted | None = service.cache.get(key)
    made = await asyncio.to_thread(reader.Reader(folder).count, before, generation)
    service.cache[key] = made
    return made


def nested(drops: Counter[tuple[str, str, str]]) -> dict[str, dict[str, dict[str, int]]]:
    """Drops by unit, stage and reason, as the manifest has them."""
    made: dict[str, dict[str, dict[str, int]]] = {}
    for (unit, stage, reason), n in sorted(drops.items()):
        made.setdefault(unit, {}).setdefault(stage, {})[reason] = n
    return made


def manifest_of(service: Service, folder: Path) -> dict[str, Any] | None:
    """The run's manifest, which exists only while the run has ended."""
    path = folder / "manifest.json"
    changed = _mtime(path)
    if changed is None:
        return None
    key = f"manifest {path}"
    held = service.cache.get(key)
    if held is None or held[0] != changed:
        try:
            held = (changed, json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None
        service.cache[key] = held
    return held[1]


def _mtime(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _state_of(service: Service, folder: Path) -> str:
    """The state of a run that the command line made."""
    lock = folder / "run.lock"
    try:
        pid = int(lock.read_text().strip())
        # The lock is tried only if its process lives, so that a run that starts now is never in our way.
        if Path(f"/proc/{pid}").exists() and lockfile.holder(lock) is not None:
            return "running"
    except (OSError, ValueError):
        pass
    manifest = manifest_of(service, folder)
    if manifest is None:
        return "interrupted"
    return manifest["state"] if manifest["state"] in ("whole", "stopped") else "short"


def _events(folder: Path) -> tuple[str, Progress | None]:
    """The last stage and progress that a job told of."""
    stage, progress = "", None
    for event in reversed(last_events(folder)):
        if event["event"] == "start":
            break
        if event["event"] == "stage" and not stage:
            stage = event["stage"]
        if event["event"] == "progress" and progress is None:
            progress = Progress.model_validate({k: v for k, v in event.items() if k in Progress.model_fields})
        if stage and progress:
            break
    return stage, progress


def last_events(folder: Path) -> list[dict[str, Any]]:
    """The events in the last kilobytes of a job's file."""
    try:
        with (folder / "events.jsonl").open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            lines = file.read().splitlines()
    except OSError:
        return []
    found: list[dict[str, Any]] = []
    for raw in lines:
        try:
            found.append(json.loads(raw))
        except ValueError:  # the first, cut line
            continue
    return [e for e in found if "event" in e]
