"""The pipeline on the scripted engine: nothing lost, nothing paid twice, the same rows after any kill."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from generators import filters
from service import plan as plans
from service import recipe as recipes
from service import run
from service.pipeline import Window
from tenet.engines import Engine, Reply, Request
from tenet.engines.scripted import ScriptedEngine
from tenet.errors import EngineRefused, InputError, LedgerError, RunFolderError, TooManyFailures
from tenet.ledger import Rows
from tests import oracle_script

ROOT = Path(__file__).parent.parent
RECIPE = """
prompts: {path: prompts.jsonl, dedup: exact}
constitution: nano
models:
  m: {kind: scripted, script: "tests.oracle_script:play"}
revise: {rounds: 2, principles: 4}
pairs: [{kind: samples}, {kind: initial_vs_revision, per_prompt: 2}]
judge: {kind: pairwise, principles: 4}
"""


def write(folder: Path, prompts: int = 40, recipe: str = RECIPE) -> Path:
    lines = (ROOT / "service/demo_files/prompts.jsonl").read_text().splitlines()[:prompts]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "recipe.yaml").write_text(recipe)
    return folder / "recipe.yaml"


def go(
    recipe: Path, script: Any = None, out: str = "run", limit: int | None = None, **settings: str
) -> dict[str, Any]:
    overrides = [f"{k.replace('__', '.')}={v}" for k, v in settings.items()]
    plan = recipes.open_recipe(recipe, overrides, str(recipe.parent / "runs" / out))
    engine: Engine = ScriptedEngine(script or oracle_script.play, name="oracle")
    return asyncio.run(run.execute(plan, Window(limit), engines={"m": engine}))


def stored(folder: Path) -> list[tuple[Any, ...]]:
    with Rows(folder, readonly=True) as rows:
        return [tuple(r) for r in rows.iterate()]


def test_every_prompt_ends_as_a_preference_or_is_dropped_with_a_reason(tmp_path: Path) -> None:
    recipe = write(tmp_path)
    file = tmp_path / "prompts.jsonl"
    file.write_text(file.read_text() + '{"prompt": "Why?"}\n{"prompt": "Why?"}\n')
    m = go(recipe)
    assert m["state"] == "whole"
    assert m["prompts"]["rows"] == 42 == m["prompts"]["kept"] + m["prompts"]["dropped"]
    by_prompt = m["drops"]["prompt"]
    assert by_prompt["prompts"] == {"exact duplicate": 1}
    assert sum(n for stage in by_prompt.values() for n in stage.values()) == m["prompts"]["dropped"]
    dropped_pairs = sum(n for stage in m["drops"]["pair"].values() for n in stage.values())
    assert m["pairs"]["made"] == m["pairs"]["preferences"] + dropped_pairs


def test_a_rerun_asks_nothing_and_gives_the_same_rows(tmp_path: Path) -> None:
    recipe = write(tmp_path)
    first = go(recipe)
    before = stored(tmp_path / "runs/run")
    again = go(recipe)
    assert (again["asked"], stored(tmp_path / "runs/run")) == (0, before)
    fresh = go(recipe, out="other")
    assert (fresh["asked"], stored(tmp_path / "runs/other")) == (0, before)
    assert fresh["files"] == first["files"]


def test_an_edited_principle_asks_only_what_it_touched(tmp_path: Path) -> None:
    recipe = write(tmp_path)
    whole = go(recipe)["asked"]
    text = (ROOT / "constitution/files/nano.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("insults the reader", "is rude to the reader"))
    edited = go(recipe, out="edited", constitution="./mine.yaml")
    assert 0 < edited["asked"] < 0.75 * whole
    assert edited["reused"] > 0


def test_a_limit_is_a_stop_on_the_way_not_another_run(tmp_path: Path) -> None:
    recipe = write(tmp_path)
    assert go(recipe, limit=10)["prompts"]["rows"] == 10
    assert go(recipe)["prompts"]["rows"] == 40
    rows = stored(tmp_path / "runs/run")
    go(recipe, out="other")
    assert stored(tmp_path / "runs/other") == rows


def test_a_folder_of_another_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    recipe = write(tmp_path)
    go(recipe)
    with pytest.raises(RunFolderError, match=r"revise.rounds: 2 -> 1"):
        go(recipe, revise__rounds="1")
    assert go(recipe, limits__in_flight="3")["state"] == "whole"


def test_faults_are_dropped_with_their_reason_and_tried_again_next_time(tmp_path: Path) -> None:
    recipe = write(tmp_path)

    def flaky(request: Request) -> Reply:
        if "lake" in str(request.messages[0].content) and not request.choices:
            return Reply(fault="server", detail="500")
        return oracle_script.play(request)

    m = go(recipe, flaky)
    assert m["drops"]["prompt"]["respond"]["server"] > 0
    assert m["prompts"]["kept"] + m["prompts"]["dropped"] == 40
    healed = go(recipe)
    assert "respond" not in healed["drops"].get("prompt", {})
    go(recipe, out="other")
    assert stored(tmp_path / "runs/run") == stored(tmp_path / "runs/other")


def test_too_many_failures_stop_the_run_and_what_was_done_stays(tmp_path: Path) -> None:
    recipe = write(tmp_path)
    n = 0

    def dying(request: Request) -> Reply:
        nonlocal n
        n += 1
        return oracle_script.play(request) if n < 400 else Reply(fault="server", detail="down")

    with pytest.raises(TooManyFailures, match="max_failures"):
        go(recipe, dying, limits__in_flight="2")
    assert stored(tmp_path / "runs/run")
    assert go(recipe)["state"] == "whole"


def test_a_bug_in_one_row_does_not_stop_the_others(tmp_path: Path) -> None:
    recipe = write(tmp_path)

    def broken(request: Request) -> Reply:
        if "lake" in request.messages[0].content:
            raise ZeroDivisionError("oops")
        return oracle_script.play(request)

    m = go(recipe, broken, limits__max_failures="0.5")
    assert m["drops"]["prompt"]["chain"]["internal error"] > 0
    assert m["prompts"]["rows"] == 40


def test_a_refusing_engine_ends_the_run_with_its_own_words(tmp_path: Path) -> None:
    def refuse(_: Request) -> Reply:
        raise EngineRefused("401: wrong key")

    with pytest.raises(EngineRefused, match="wrong key"):
        go(write(tmp_path), refuse)


@pytest.mark.parametrize(
    ("say", "reason"),
    [
        ("Critique: the reply is rude.", "critique where a revision was due"),
        ("", "empty revision"),
    ],
)
def test_gates_drop_what_is_no_revision(tmp_path: Path, say: str, reason: str) -> None:
    def play(request: Request) -> Reply | str:
        if request.messages[-1].content.startswith("Rewrite"):
            return say
        return oracle_script.play(request)

    m = go(write(tmp_path, 10), play)
    assert m["drops"]["reply"]["revise"] == {reason: 20}


def test_unchanged_and_chatty_revisions_are_marked_and_cleaned(tmp_path: Path) -> None:
    def play(request: Request) -> Reply | str:
        said = oracle_script.play(request)
        if request.messages[-1].content.startswith("Rewrite"):
            return "Sure, here is the revised reply: " + said.text
        return said

    go(write(tmp_path, 10), play)
    lines = (tmp_path / "runs/run/data/sft.jsonl").read_text().splitlines()
    flags = [set(json.loads(line)["flags"]) for line in lines]
    assert all("chatter stripped" in f for f in flags)
    assert any("unchanged revision" in f for f in flags)
    assert not any("Sure, here" in line for line in lines)


def test_exactly_and_caps_hold_in_the_prompts_order(tmp_path: Path) -> None:
    recipe = write(tmp_path)
    m = go(recipe, keep__exactly="12", limits__in_flight="4")
    assert (m["pairs"]["exported"], m["state"]) == (12, "whole")
    all_pairs = go(recipe, out="all")
    exact = (tmp_path / "runs/run/data/preference.jsonl").read_text().splitlines()
    whole = (tmp_path / "runs/all/data/preference.jsonl").read_text().splitlines()
    assert exact == whole[:12]
    assert all_pairs["pairs"]["exported"] > 12
    capped = go(recipe, out="cap", judge__principles="1", keep__per_principle="2")
    assert capped["pairs"]["exported"] <= 2 * 16
    assert sum(capped["drops"]["pair"]["export"].values()) > 0


def test_a_spent_budget_stops_and_says_so(tmp_path: Path) -> None:
    m = go(write(tmp_path), limits__max_calls="300", limits__in_flight="2")
    assert m["state"].startswith("budget spent")
    assert m["asked"] <= 300


def test_an_engines_own_budget_stops_the_run_and_drops_nothing(tmp_path: Path) -> None:
    n = 0

    def poor(request: Request) -> Reply:
        nonlocal n
        n += 1
        return oracle_script.play(request) if n < 400 else Reply(fault="budget", detail="2 dollars are spent")

    recipe = write(tmp_path)
    m = go(recipe, poor, limits__in_flight="2")
    assert m["state"] == "budget spent: oracle: 2 dollars are spent"
    assert "respond" not in m["drops"].get("prompt", {})
    go(recipe)
    go(recipe, out="other")
    assert stored(tmp_path / "runs/run") == stored(tmp_path / "runs/other")


def test_caps_and_exactly_together_go_on_until_enough_pass_the_caps(tmp_path: Path) -> None:
    recipe = write(tmp_path)
    settings = {"judge__principles": "1", "keep__per_principle": "1", "limits__in_flight": "1"}
    assert go(recipe, keep__exactly="8", **settings)["pairs"]["exported"] == 8
    short = go(recipe, out="short", keep__exactly="17", **settings)
    assert short["state"] == "short of keep.exactly=17"  # there are only 16 principles
    assert short["prompts"]["rows"] == 40


def test_a_passing_fault_of_one_pair_is_tried_again_even_if_another_pair_was_kept(tmp_path: Path) -> None:
    recipe = write(tmp_path)
    n = 0

    def flaky(request: Request) -> Reply:
        nonlocal n
        n += bool(request.choices)
        if request.choices and n % 40 == 0:
            return Reply(fault="bad_reply", detail="half a JSON")
        return oracle_script.play(request)

    assert go(recipe, flaky, limits__max_failures="1")["drops"]["pair"]["judge"]["invalid verdict"] > 0
    healed = go(recipe)
    assert "invalid verdict" not in healed["drops"]["pair"]["judge"]
    go(recipe, out="other")
    assert stored(tmp_path / "runs/run") == stored(tmp_path / "runs/other")


def test_a_crash_leaves_no_manifest_of_an_earlier_start(tmp_path: Path) -> None:
    recipe = write(tmp_path)
    go(recipe, limit=5)

    def refuse(_: Request) -> Reply:
        raise EngineRefused("401: wrong key")

    with pytest.raises(EngineRefused):
        go(recipe, refuse)
    assert not (tmp_path / "runs/run/manifest.json").exists()


def test_a_certain_judge_survives_storage_and_export(tmp_path: Path) -> None:
    def sure(request: Request) -> Reply:
        said = oracle_script.play(request)
        if not request.choices:
            return said
        a, b = said.choice_logprobs
        return Reply(choice_logprobs=(0.0, -math.inf) if a > b else (-math.inf, 0.0) if b > a else (a, b))

    m = go(write(tmp_path), sure, judge__principles="1")
    assert m["pairs"]["exported"] > 0
    for line in (tmp_path / "runs/run/data/preference.jsonl").read_text().splitlines():
        row = json.loads(line, parse_constant=lambda x: pytest.fail(f"{x} is not JSON"))
        assert row["p_chosen"] == 1.0
        assert {v["p_a"] for v in row["votes"]} <= {0.0, 1.0}


def test_the_preamble_and_a_system_message_come_first_and_as_one(tmp_path: Path) -> None:
    recipe = write(tmp_path, 2)
    (tmp_path / "mine.yaml").write_text(
        """
name: mine
extends: nano
preamble: You serve the reader.
exemplars:
  - {prompt: Hi, reply: Go away., critique: It is rude., revision: Hello!, principle: insult}
"""
    )
    seen: list[Request] = []

    def look(request: Request) -> Reply:
        seen.append(request)
        return oracle_script.play(request)

    go(recipe, look, constitution="./mine.yaml", respond__system="Be brief.", revise__exemplars="1")
    asked = [r for r in seen if r.messages[-1].content.startswith(("Critique", "Rewrite"))]
    assert asked
    for request in asked:
        assert request.messages[0].content == "You serve the reader.\n\nBe brief."
        assert [m.role for m in request.messages].count("system") == 1
        assert request.messages[1].content == "Hi"
    judged = [r for r in seen if r.choices]
    assert all(r.messages[0].content == "You serve the reader." for r in judged)


def test_a_weighted_pool_draws_by_weight_and_the_same_again(tmp_path: Path) -> None:
    text = RECIPE.replace("models:\n", "models:\n  n: {kind: scripted, script: 'tests.oracle_script:play'}\n")
    recipe = write(tmp_path, 120, text)
    plan = recipes.open_recipe(recipe, ["respond.pool={m: 3, n: 1}"], str(tmp_path / "runs/run"))
    engines: dict[str, Engine] = {k: ScriptedEngine(oracle_script.play, name=k) for k in ("m", "n")}
    asyncio.run(run.execute(plan, engines=engines))
    with Rows(tmp_path / "runs/run", readonly=True) as rows:
        used = [json.loads(r.record)["response"]["model"] for r in rows.iterate("candidate")]
    assert 0.65 < used.count("m") / len(used) < 0.85


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(tmp_path: Path) -> None:
    recipe = write(tmp_path, 200, RECIPE.replace('play"}', 'play", delay: 0.2}'))
    command = [sys.executable, "-m", "service", "generate", str(recipe), "limits.in_flight=2"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "runs/run")], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tmp_path / "runs/run/rows.sqlite").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "To go on: tenet generate" in said
    done = json.loads((tmp_path / "runs/run/manifest.json").read_text())
    assert done["state"] == "stopped"
    assert 0 < done["prompts"]["rows"] < 200


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Sure, here is the revised reply: Use less water.", "Use less water."),
        ("Revised response:\nUse less water.", "Use less water."),
        ("I’ve rewritten the reply to be kinder. Don’t worry.", "Don’t worry."),
        ("Here is a new way to brew tea. Use less water.", "Here is a new way to brew tea. Use less water."),
        ("Sure, bring a coat.", "Sure, bring a coat."),
        ("I will update the schedule. Then rest.", "I will update the schedule. Then rest."),
        ("Here is the new schedule: run, rest.", "Here is the new schedule: run, rest."),
    ],
)
def test_only_chatter_is_stripped(text: str, left: str) -> None:
    assert filters.strip_chatter(text) == left


def test_dry_run_renders_prompts_and_calls_nothing(tmp_path: Path) -> None:
    plan = recipes.open_recipe(write(tmp_path), [], str(tmp_path / "runs/run"))
    described = plans.describe(plan, Window())
    calls = {s.name: s.calls for s in described.stages}
    assert calls == {"respond": 80, "critique": 160, "revise": 160, "judge": 40 * 3 * 4 * 2}
    assert any("<reply_a>" in text for _, text in described.examples)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("judge.ordre=both", "order"),
        ("judge.kind=pairwyse", "pairwise"),
        ("models.m.kind=vlm", "vllm"),
        ("respond.model=x", "no model 'x'"),
        ("revise.rounds=9", "rounds"),
        ("pairs.0.kind=best_of", "best_of"),
        ("respond.samples=1", "two samples"),
        ("prompts.path=gone.jsonl", "gone.jsonl"),
    ],
)
def test_bad_settings_are_refused_before_the_first_call(tmp_path: Path, override: str, said: str) -> None:
    recipe = write(tmp_path)
    asked: list[Request] = []

    def attempt() -> None:
        plan = recipes.open_recipe(recipe, [override], str(tmp_path / "runs/run"))
        engine = ScriptedEngine(lambda r: asked.append(r) or "x", name="never")
        asyncio.run(run.execute(plan, engines={"m": engine}))

    with pytest.raises(InputError, match=said):
        attempt()
    assert not asked


def test_killed_at_random_moments_the_same_command_gives_the_same_rows(tmp_path: Path) -> None:
    recipe = write(tmp_path, 120)
    whole = go(recipe, out="calm/run")
    rng = random.Random(5)
    command = [sys.executable, "-m", "service", "generate", str(recipe), "--out", str(tmp_path / "wild/run")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for _ in range(20):
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(rng.uniform(0.5, 1.6))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    assert stored(tmp_path / "wild/run") == stored(tmp_path / "runs/calm/run")
    manifest = json.loads((tmp_path / "wild/run/manifest.json").read_text())
    calls = sum(u["calls"] for u in manifest["usage"].values())
    assert calls == sum(u["calls"] for u in whole["usage"].values())  # each stored answer was paid once
    assert {k: v["sha256"] for k, v in manifest["files"].items()} == {
        k: v["sha256"] for k, v in whole["files"].items()
    }


@pytest.mark.parametrize("kilobytes", [40, 150, 400])
def test_a_full_disk_stops_the_run_in_plain_words_and_the_same_command_goes_on(tmp_path: Path, kilobytes: int) -> None:
    recipe = write(tmp_path)
    calm = go(recipe, out="calm/run")
    code = (
        "import resource, signal, sys; from service.cli import main; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({kilobytes * 1024},) * 2); main()"
    )
    command = [sys.executable, "-c", code, "generate", str(recipe), "--out", str(tmp_path / "wild/run")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    stopped = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert stopped.returncode == 3, stopped.stderr
    assert "the disk is full" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert not (tmp_path / "wild/run/manifest.json").exists()
    room = [sys.executable, "-m", "service", *command[3:]]
    subprocess.run(room, cwd=ROOT, env=environment, check=True, capture_output=True)
    assert stored(tmp_path / "wild/run") == stored(tmp_path / "runs/calm/run")
    files = json.loads((tmp_path / "wild/run/manifest.json").read_text())["files"]
    assert {k: v["sha256"] for k, v in files.items()} == {k: v["sha256"] for k, v in calm["files"].items()}


def test_a_full_disk_at_the_exports_loses_no_row(tmp_path: Path) -> None:
    recipe = write(tmp_path)
    calm = go(recipe, out="calm/run")
    data = tmp_path / "runs/run/data"
    data.mkdir(parents=True)
    (data / "sft.jsonl").symlink_to("/dev/full")
    with pytest.raises(LedgerError, match="the disk is full"):
        go(recipe)
    assert not (tmp_path / "runs/run/manifest.json").exists()
    (data / "sft.jsonl").unlink()
    again = go(recipe)
    assert (again["asked"], again["files"]) == (0, calm["files"])


def test_hh_conversations_run_through_and_are_all_accounted_for(tmp_path: Path) -> None:
    source = ROOT.parent / "shared/data/hh-rlhf/harmless-base-test.jsonl.gz"
    if not source.exists():
        pytest.skip("the HH file is not here")
    text = RECIPE.replace("path: prompts.jsonl", f"path: {source}, kind: hh").replace("rounds: 2", "rounds: 1")
    m = go(write(tmp_path, 1, text), judge__principles="1")
    assert m["prompts"]["rows"] == 2312 == m["prompts"]["kept"] + m["prompts"]["dropped"]


def test_a_changed_prompts_file_is_noticed(tmp_path: Path) -> None:
    recipe = write(tmp_path)
    go(recipe, limit=5)
    lines = (tmp_path / "prompts.jsonl").read_text().splitlines()
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines[1:]) + "\n")
    with pytest.raises(RunFolderError, match="another prompt"):
        go(recipe)
