"""`tenet constitution preview`: a few prompts under the old constitution and the new one, before a run is paid for.

Both sides walk the same prompts from the same seeds over one ledger, so first replies and every question that the edit
leaves alone are answered once, for both.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rich.markup import escape

from constitution import diff as by_meaning
from constitution import snapshot
from constitution.diff import Edit
from constitution.loader import packaged
from generators import prompts
from service import _preview_page, run
from service._chains import Walk, is_run, walk_of
from service._memory import rare_collections
from service._preview_figures import Compared, measure
from service.constitution_edits import open_side
from service.pipeline import Pipeline
from service.recipe import Plan, check_recipe
from service.screen import console, tell
from tenet.engines import Engine
from tenet.engines._cache import Budget, CachedEngine
from tenet.errors import DataError, SettingsError
from tenet.ledger import Calls, Rows
from tenet.records import Prompt
from tenet.settings import Document, read

_RECIPE: dict[str, Any] = {
    "revise": {"rounds": 1},
    "pairs": [{"kind": "samples"}, {"kind": "initial_vs_revision", "per_prompt": 2}],
    "judge": {"kind": "pairwise", "order": "both"},
}
"""What is walked where no recipe is named."""


@dataclass(frozen=True)
class Job:
    """What the command was asked for."""

    old: str
    new: str
    prompts: Path | None = None
    """None: the recipe's."""
    limit: int = 50
    recipe: Path | None = None
    model: str = ""
    """In place of a recipe: a model for vLLM, or with `base_url` one of a server's."""
    base_url: str = ""
    overrides: Sequence[str] = ()
    out: Path = Path("runs/preview")
    workspace: Path = Path("runs")


@dataclass
class Cost:
    """What the preview took."""

    asked: int = 0
    reused: int = 0
    tokens: int = 0
    starting: float = 0.0
    """Seconds until the engines were up."""
    walking: float = 0.0
    models: dict[str, str] = field(default_factory=dict[str, str])


def main(job: Job) -> None:
    """Walks, measures, writes the page and says the verdict. Raises InputError before the first call."""
    edit, plans = by_meaning.diff(open_side(job.old), open_side(job.new)), open_plans(job)
    walks, cost = asyncio.run(walk(plans, job.limit, job.workspace))
    show(write(job, edit, plans, walks, cost))
    console.print(f"report: {escape(str(job.out))}/report.html, report.md, preview.json", soft_wrap=True)


def open_plans(job: Job) -> tuple[Plan, Plan]:
    """The recipe under the old constitution and under the new one, checked. Raises InputError."""
    document, base, source = _document(job)
    if job.prompts is not None:
        document = document.override([f"prompts={json.dumps({'path': str(job.prompts.absolute())})}"])
    document = document.override(job.overrides)

    def plan(side: str) -> Plan:
        return check_recipe(document.override([f"constitution={_place(side)}"]), base, "preview", source=source)

    return plan(job.old), plan(job.new)


def _document(job: Job) -> tuple[Document, Path, str]:
    if job.recipe is not None:
        if job.model or job.base_url:
            raise SettingsError("names a recipe and a model", where="--model", fix="models.NAME.model=… with --recipe")
        return read(job.recipe), job.recipe.parent, str(job.recipe)
    if not job.model:
        raise SettingsError("there is no model to ask", where="--model", fix="--recipe FILE, or --model nano:assistant")
    if job.prompts is None:
        raise SettingsError("there are no prompts", where="--prompts", fix="a file of prompts")
    model = {"kind": "openai", "model": job.model, "base_url": job.base_url} if job.base_url else {
        "kind": "vllm", "model": job.model
    }  # fmt: skip
    data = {**_RECIPE, "models": {"model": model}}
    return Document(data, "the command line"), Path(), "the command line"


def _place(side: str) -> str:
    """How a recipe names a side: packaged names as they are, paths from the root."""
    path = Path(side)
    if side in packaged():
        return side
    if path.is_dir() and is_run(path):
        path = path / snapshot.NAME
        if not path.is_file():
            raise DataError("has no snapshot", where=side, fix="name the constitution's file")
    return str(path.absolute()) if "/" in side or path.suffix in (".yaml", ".yml") or path.is_file() else side


async def walk(
    plans: tuple[Plan, Plan], limit: int, workspace: Path, engines: Mapping[str, Engine] | None = None
) -> tuple[list[Compared], Cost]:
    """The first `limit` prompts under both plans.

    `engines` are used as they are and left open; without them the plan's own are built, started and closed. Raises
    InputError before the first call, EngineError and LedgerError on the way.
    """
    recipe, cost = plans[0].recipe, Cost()
    stream = (p for _, p in prompts.stream(recipe.prompts, recipe.seed) if isinstance(p, Prompt))
    chosen = await asyncio.to_thread(lambda: list(islice(stream, limit)))
    if not chosen:
        raise DataError("holds no prompt", where=", ".join(recipe.prompts.paths), fix="a file with at least one")
    built = plans[0].build_engines() if engines is None else dict(engines)
    unique = {id(e): e for e in built.values()}
    try:
        for plan in plans:
            run.check(plan, built)
        begun = time.monotonic()
        tell("starting the engines")
        await asyncio.gather(*(run.start(e) for e in unique.values()))
        cost.starting = time.monotonic() - begun
        with Calls(workspace / "calls.sqlite") as calls, rare_collections():
            limits = recipe.limits
            budget = Budget(max_calls=limits.max_calls, max_tokens=limits.max_tokens)
            wrapped = {i: CachedEngine(e, calls, "preview", budget) for i, e in unique.items()}
            cached: dict[str, Engine] = {name: wrapped[id(e)] for name, e in built.items()}
            begun = time.monotonic()
            tell(f"walking {len(chosen)} prompts under both constitutions")
            walks = await _walk(plans, chosen, cached, limits.in_flight)
            cost.walking = time.monotonic() - begun
            cost.asked, cost.reused = (sum(getattr(e, n) for e in wrapped.values()) for n in ("asked", "reused"))
            cost.tokens = sum(e.usage.prompt_tokens + e.usage.completion_tokens for e in wrapped.values())
            cost.models = {name: e.name for name, e in built.items()}
        return walks, cost
    finally:
        if engines is None:
            for engine in unique.values():
                await engine.close()


async def _walk(
    plans: tuple[Plan, Plan], chosen: Sequence[Prompt], engines: Mapping[str, Engine], in_flight: int
) -> list[Compared]:
    gate = asyncio.Semaphore(in_flight)

    async def one(pipeline: Pipeline, prompt: Prompt) -> Walk:
        async with gate:
            found = walk_of(await pipeline.walk(prompt), pipeline.plan.recipe)
            assert found is not None
            return found

    # A preview keeps replies and no rows.
    with tempfile.TemporaryDirectory() as folder, Rows(Path(folder)) as rows:
        pipelines = [Pipeline(plan, engines, rows) for plan in plans]
        sides = [await asyncio.gather(*(one(pipeline, p) for p in chosen)) for pipeline in pipelines]
    return [Compared(*pair) for pair in zip(*sides, strict=True)]


def write(job: Job, edit: Edit, plans: tuple[Plan, Plan], walks: list[Compared], cost: Cost) -> dict[str, Any]:
    """Writes report.html, report.md and preview.json into the job's folder; returns what the JSON holds."""
    found = measure(walks)
    judge = plans[0].recipe.judge
    about = {
        "old": {"name": job.old, "hash": edit.old_hash}, "new": {"name": job.new, "hash": edit.new_hash},
        "prompts_files": list(plans[0].recipe.prompts.paths), "seed": plans[0].recipe.seed, "judge": judge,
        "models": cost.models, "asked": cost.asked, "reused": cost.reused, "tokens": cost.tokens,
        "seconds": {"starting": round(cost.starting, 2), "walking": round(cost.walking, 2)},
    }  # fmt: skip
    figures = {**about, **found}
    _preview_page.save(job.out, edit, figures)
    text = json.dumps({**figures, "edit": edit.model_dump(mode="json")}, indent=1, ensure_ascii=False, allow_nan=False)
    (job.out / "preview.json").write_text(text + "\n", encoding="utf-8", newline="\n")
    return figures


def show(figures: Mapping[str, Any]) -> None:
    """The verdict and the shifts, on one screen."""
    console.print(f"[bold]{escape(figures['verdict'])}[/]", soft_wrap=True)
    for line in _preview_page.shift_lines(figures):
        console.print(escape(line), soft_wrap=True)
    s = figures["seconds"]
    console.print(
        f"reused {figures['reused']:,} replies, asked {figures['asked']:,} ({figures['tokens']:,} tokens); engines up "
        f"in {s['starting']:.1f} s, both walks in {s['walking']:.1f} s"
    )
