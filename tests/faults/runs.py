"""What the fault tests share: a small recipe, a run of it, what it leaves, and a process that runs it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from service import recipe as recipes
from service import run
from tenet.engines import Engine
from tenet.engines.scripted import Script, ScriptedEngine
from tenet.ledger import Rows
from tests import oracle_script

ROOT = Path(__file__).parent.parent.parent
RECIPE = """
prompts: {path: prompts.jsonl, dedup: exact}
constitution: nano
models:
  m: {MODEL}
respond: {sampling: {max_tokens: 48}}
revise: {rounds: 1, principles: 2, sampling: {max_tokens: 64}}
judge: {kind: pairwise, principles: 3}
"""
SCRIPTED = '{kind: scripted, script: "tests.oracle_script:play"}'


def write(folder: Path, prompts: int = 24, model: str = SCRIPTED) -> Path:
    """A recipe and its prompts."""
    lines = (ROOT / "service/demo_files/prompts.jsonl").read_text().splitlines()[:prompts]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "recipe.yaml").write_text(RECIPE.replace("{MODEL}", model))
    return folder / "recipe.yaml"


def go(recipe: Path, out: str, script: Script = oracle_script.play, **settings: str) -> dict[str, Any]:
    """The manifest of a run with a script for a model."""
    plan = recipes.open_recipe(recipe, [f"{k}={v}" for k, v in settings.items()], str(recipe.parent / out))
    engine: Engine = ScriptedEngine(script, name="oracle")
    return asyncio.run(run.execute(plan, engines={"m": engine}))


def stored(folder: Path) -> list[tuple[Any, ...]]:
    """Every row of a run."""
    with Rows(folder, readonly=True) as rows:
        return [tuple(r) for r in rows.iterate()]


def outcomes(folder: Path) -> list[tuple[Any, ...]]:
    """Every row of a run, less what it cost: an answer that cannot be read is paid for, and asked for again."""
    return [(*row[:-1], re.sub(r'"usage":{[^}]*}', "", row[-1])) for row in stored(folder)]


def accounts(manifest: dict[str, Any], prompts: int) -> None:
    """Every prompt gave pairs or was dropped, every pair was kept or dropped, each for a reason."""
    told = manifest["prompts"]
    assert told["rows"] == prompts == told["kept"] + told["dropped"]
    drops = manifest["drops"]
    assert sum(n for stage in drops.get("prompt", {}).values() for n in stage.values()) == told["dropped"]
    dropped_pairs = sum(n for stage in drops.get("pair", {}).values() for n in stage.values())
    held_back = sum(drops.get("pair", {}).get("export", {}).values())
    pairs = manifest["pairs"]
    assert pairs["made"] == pairs["preferences"] + dropped_pairs - held_back


def files(manifest: dict[str, Any]) -> dict[str, str]:
    """The hashes of the exports."""
    return {name: file["sha256"] for name, file in manifest["files"].items()}


def command(recipe: Path, out: Path, *overrides: str) -> list[str]:
    """`tenet generate`, as a process of its own."""
    return [sys.executable, "-m", "service", "generate", str(recipe), *overrides, "--out", str(out)]


def environment(**more: str) -> dict[str, str]:
    """Of a process that finds tenet and these tests."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def start(given: list[str], **more: str) -> subprocess.Popen[str]:
    """The process, its words in one pipe."""
    return subprocess.Popen(
        given, cwd=ROOT, env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def manifest_of(folder: Path) -> dict[str, Any]:
    """What a run says of itself."""
    return json.loads((folder / "manifest.json").read_text())
