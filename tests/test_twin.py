"""The flat teaching twin in `docs/` gives what the real pipeline gives."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from service import recipe as recipes
from service import run
from tenet.engines.scripted import ScriptedEngine

TWIN = Path(__file__).parent.parent / "docs/twin.py"


def twin() -> Any:
    spec = importlib.util.spec_from_file_location("twin", TWIN)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_twin_is_short_and_its_pairs_are_the_pipelines(tmp_path: Path) -> None:
    flat = twin()
    assert len(TWIN.read_text().splitlines()) <= 120
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": p}) for p in flat.ASKED))
    (tmp_path / "recipe.yaml").write_text(
        f"""
prompts: {{path: prompts.jsonl}}
constitution: harmless
models: {{m: {{kind: scripted}}}}
respond: {{samples: {flat.SAMPLES}}}
revise: {{rounds: {flat.ROUNDS}}}
pairs: [{{kind: samples, of: last}}]
judge: {{kind: pairwise}}
seed: {flat.SEED}
"""
    )
    plan = recipes.open_recipe(tmp_path / "recipe.yaml", [], str(tmp_path / "run"))
    asyncio.run(run.execute(plan, engines={"m": ScriptedEngine(flat.script)}))
    rows = [json.loads(line) for line in (tmp_path / "run/data/preference.jsonl").read_text().splitlines()]
    real = [(r["prompt"][-1]["content"], r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in rows]
    taught = asyncio.run(flat.pairs(ScriptedEngine(flat.script)))
    assert [pair[:3] for pair in taught] == real
    assert [pair[3] for pair in taught] == pytest.approx([r["p_chosen"] for r in rows])
    assert len(real) >= 4
