"""`tenet judge` and what stands under it: a verdict for every pair, in order, paid once, whatever a pair does."""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from judges import pairs_file
from nano import tasks, world
from service import judging, run
from service import plan as plans
from service import recipe as recipes
from service.cli import app
from service.pipeline import Window
from tenet.engines import Engine, Reply, Request
from tenet.engines.scripted import ScriptedEngine
from tenet.errors import InputError, SettingsError, TooManyFailures
from tenet.ledger import Rows
from tests import oracle_script

ROOT = Path(__file__).parent.parent
CONFIG = """
constitution: nano
models:
  m: {kind: scripted, script: "tests.oracle_script:play"}
judge: {kind: pairwise, principles: 4}
"""


def write(folder: Path, n: int = 30, config: str = CONFIG) -> tuple[Path, Path]:
    rng = random.Random(3)
    rows: list[dict[str, Any]] = []
    for i in range(n):
        asked, a, b, right = tasks.pair(rng, rng.choice(tasks.KEYS))
        rows.append({"id": f"p{i}", "prompt": asked, "a": a.text, "b": b.text, "label": right})
    pairs = folder / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "judge.yaml").write_text(config)
    return pairs, folder / "judge.yaml"


def judge_all(pairs: Path, config: Path, script: Any = oracle_script.play, **settings: Any) -> list[judging.Judged]:
    plan = judging.open_config(config, [f"{k.replace('__', '.')}={v}" for k, v in settings.items()])

    async def run() -> list[judging.Judged]:
        engine = ScriptedEngine(script, name="oracle")
        async with judging.opened(plan, pairs.parent / "runs", "test", {"m": engine}) as session:
            limits = plan.config.limits
            given = pairs_file.read(pairs)
            return [j async for j in judging.judge_pairs(session.judge, given, limits.in_flight, limits.max_failures)]

    return asyncio.run(run())


def run_command(folder: Path, *more: str) -> tuple[str, list[dict[str, Any]]]:
    command = ["judge", str(folder / "pairs.jsonl"), "--judge", str(folder / "judge.yaml"), *more]
    ended = CliRunner().invoke(app, [*command, "--workspace", str(folder / "runs")], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    lines = (folder / "runs/judged/pairs.jsonl").read_text().splitlines()
    return " ".join(ended.output.split()), [json.loads(line) for line in lines]


def test_every_pair_has_a_verdict_in_the_order_of_the_file(tmp_path: Path) -> None:
    write(tmp_path)
    said, rows = run_command(tmp_path)
    assert [r["id"] for r in rows] == [f"p{i}" for i in range(30)]
    assert "30 pairs" in said
    for row in rows:
        assert row["verdict"] in ("A", "B", "tie")
        assert {(v["principle"], v["order"]) for v in row["votes"]}
        assert len(row["votes"]) == 8
        assert row["usage"]["calls"] == 8


def test_the_same_command_again_pays_nothing_and_writes_the_same(tmp_path: Path) -> None:
    write(tmp_path)
    first, rows = run_command(tmp_path)
    assert "228 calls (12 reused)" in first  # two pairs of this draw ask the same
    again, same = run_command(tmp_path)
    assert "0 calls (240 reused)" in again
    assert same == rows


def test_a_recipe_is_a_judges_config(tmp_path: Path) -> None:
    write(tmp_path, config="prompts: {path: gone.jsonl}\nrevise: {rounds: 2}\n" + CONFIG)
    _, rows = run_command(tmp_path, "judge.order=given")
    assert all(len(r["votes"]) == 4 for r in rows)


def test_one_bad_pair_stops_nothing_and_says_why(tmp_path: Path) -> None:
    pairs, config = write(tmp_path)
    bad = json.loads(pairs.read_text().splitlines()[7])["a"]

    def broken(request: Request) -> Reply:
        if bad in request.messages[-1].content:
            raise ZeroDivisionError("oops")
        return oracle_script.play(request)

    judged = judge_all(pairs, config, broken)
    assert [j.pair.id for j in judged if j.verdict.label == "invalid"] == ["p7"]
    assert "oops" in judged[7].verdict.why


def test_too_many_engine_faults_stop_the_run(tmp_path: Path) -> None:
    pairs, config = write(tmp_path)
    with pytest.raises(TooManyFailures, match="max_failures"):
        judge_all(pairs, config, lambda _: Reply(fault="server", detail="down"))
    refused = judge_all(pairs, config, lambda _: Reply(fault="server", detail="down"), limits__max_failures="1.0")
    assert {j.verdict.label for j in refused} == {"invalid"}


def test_votes_rows_name_the_pairs_own_a_and_b_for_each_order(tmp_path: Path) -> None:
    pairs, config = write(tmp_path)

    def loves_slot_a(_: Request) -> Reply:
        return Reply(choice_logprobs=(-0.1, -2.4))

    rows = [row for j in judge_all(pairs, config, loves_slot_a) for row in judging.votes_of(j, "j")]
    machine = [r for r in rows if r["kind"] == "judge"]
    assert len(machine) == 60
    assert all(r["verdict"] == {"ab": "A", "ba": "B"}[r["order"]] for r in machine)
    assert all(0 <= r["p_a"] <= 1 for r in machine)
    human = [r for r in rows if r["kind"] == "human"]
    assert [r["item"] for r in human] == [f"p{i}" for i in range(30)]


def test_a_swapped_file_gives_the_same_verdicts_swapped(tmp_path: Path) -> None:
    pairs, config = write(tmp_path)
    first = judge_all(pairs, config, judge__principles="1")
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    swapped = [{**r, "a": r["b"], "b": r["a"], "label": {"A": "B", "B": "A"}[r["label"]]} for r in rows]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in swapped))
    second = judge_all(pairs, config, judge__principles="1")
    for x, y in zip(first, second, strict=True):
        assert x.verdict.label == y.verdict.flip().label
        assert {v.principle for v in x.verdict.votes} == {v.principle for v in y.verdict.votes}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("judge.model=x", "line 5, judge.model: there is no model 'x'"),
        ("judge.kind=pairwyse", "pairwise"),
        ("judge.ordre=both", "order"),
        ("constitution=nowhere", "nowhere"),
        ("judge.clamp=[0.4, 0.6]", "chain of thought"),
        ("nonsense=1", "nonsense"),
    ],
)
def test_a_wrong_config_is_refused_with_its_place(tmp_path: Path, override: str, said: str) -> None:
    _, config = write(tmp_path)
    if override == "judge.model=x":
        config.write_text(config.read_text().replace("kind: pairwise", "kind: pairwise, model: x"))
        override = "seed=1"
    with pytest.raises(InputError, match=said):
        judging.open_config(config, [override])


def test_an_engine_that_cannot_serve_the_judge_is_refused_before_it_starts(tmp_path: Path) -> None:
    pairs, config = write(tmp_path)
    plan = judging.open_config(config)

    async def run() -> None:
        async with judging.opened(plan, tmp_path, "test", {"m": ScriptedEngine(oracle_script.play, choices=False)}):
            pass

    with pytest.raises(SettingsError, match="read: text"):
        asyncio.run(run())
    assert pairs.exists()
    assert not (tmp_path / "calls.sqlite").exists()


# -- each kind in `tenet generate` -------------------------------------------------------------------

RECIPE = """
prompts: {path: prompts.jsonl}
constitution: nano
models:
  m: {kind: scripted, script: "tests.oracle_script:play"}
  rm: {kind: scripted, script: "tests.oracle_script:play", scores: true}
revise: {rounds: 0}
"""


def plays(request: Request) -> Reply | str:
    """The oracle, which also scores single replies: ten for no fault, one less for each."""
    last = request.messages[-1]
    if last.role == "assistant":
        return repr(-float(len(world.faults(last.content, set(world.AVOID)))))
    if len(request.choices) == 10:
        reply = last.content.split("<reply>\n")[1].split("\n</reply>")[0]
        faults = len(world.faults(reply, set(world.AVOID)))
        return Reply(choice_logprobs=tuple(0.0 if i == 10 - faults else -math.inf for i in range(1, 11)))
    if last.content.endswith("First say what you see in each reply."):
        return "There are two replies."
    if last.content.startswith("Options: A or B."):  # the choice behind a rationale: look at the question before it
        return oracle_script.play(request.model_copy(update={"messages": request.messages[:-2]}))
    return oracle_script.play(request)


def generate(folder: Path, script: Any = plays, dry: bool = False, out: str = "run", **settings: Any) -> Any:
    lines = (ROOT / "service/demo_files/prompts.jsonl").read_text().splitlines()[:20]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    settings = {"respond": {"samples": 4}, "limits": {"max_failures": 1.0}, **settings}
    (folder / "recipe.yaml").write_text(RECIPE + "".join(f"{k}: {json.dumps(v)}\n" for k, v in settings.items()))
    plan = recipes.open_recipe(folder / "recipe.yaml", [], str(folder / "runs" / out))
    if dry:
        return plans.describe(plan, Window())
    engines: dict[str, Engine] = {
        "m": ScriptedEngine(script, name="m"), "rm": ScriptedEngine(script, name="rm", scores=True, family="other"),
    }  # fmt: skip
    return asyncio.run(run.execute(plan, engines=engines))


KINDS: dict[str, dict[str, Any]] = {
    "pairwise": {"kind": "pairwise", "principles": 2},
    "chain of thought": {"kind": "pairwise", "cot": True},
    "pointwise": {"kind": "pointwise", "principles": 2},
    "panel": {"kind": "panel", "members": [{"kind": "pairwise"}, {"kind": "reward_model", "model": "rm"}]},
    "reward model": {"kind": "reward_model", "model": "rm"},
}


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_judges_in_generate_and_the_plan_counts_its_calls(tmp_path: Path, name: str) -> None:
    described = generate(tmp_path, dry=True, judge=KINDS[name])
    expected = sum(s.calls for s in described.stages)
    manifest = generate(tmp_path, judge=KINDS[name])
    assert manifest["state"] == "whole"
    assert manifest["pairs"]["exported"] > 0
    judged = manifest["asked"] + manifest["reused"]
    # Identical replies make no pair, and a judge that asks for a rationale of a fault gets none.
    assert 0.7 * expected <= judged <= expected
    rows = (tmp_path / "runs/run/data/preference.jsonl").read_text().splitlines()
    assert all(json.loads(row)["p_chosen"] > 0.5 for row in rows)


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_judges_a_file_of_pairs(tmp_path: Path, name: str) -> None:
    models = 'models:\n  m: {kind: scripted, script: "tests.test_judging:plays"}\n'
    models += '  rm: {kind: scripted, script: "tests.test_judging:plays", scores: true}\n'
    write(tmp_path, config="constitution: nano\n" + models + f"judge: {json.dumps(KINDS[name])}\n")
    _, rows = run_command(tmp_path)
    assert len(rows) == 30
    assert {r["verdict"] for r in rows} <= {"A", "B", "tie"}


def test_the_card_flags_a_judge_of_the_writers_own_family(tmp_path: Path) -> None:
    own = generate(tmp_path, judge=KINDS["panel"])
    assert [(e["name"], e["writes_too"]) for e in own["judge_engines"]] == [("m", True), ("rm", False)]
    assert "of a writer's family** (scripted)" in (tmp_path / "runs/run/README.md").read_text()
    other = generate(tmp_path, out="other", judge=KINDS["reward model"])
    assert [e["writes_too"] for e in other["judge_engines"]] == [False]
    assert "writer's family" not in (tmp_path / "runs/other/README.md").read_text()


def test_a_reward_model_writes_no_replies(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="'rm' is a reward model and writes nothing"):
        generate(tmp_path, judge=KINDS["pairwise"], respond={"samples": 4, "model": "rm"})
    with pytest.raises(SettingsError, match="is a reward model"):
        generate(tmp_path, judge={"kind": "pairwise", "model": "rm"})


# -- pairs by score ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scorer", [{}, {"kind": "reward_model", "model": "rm"}], ids=["the judge", "its own scorer"])
def test_best_of_compares_the_best_and_the_worst(tmp_path: Path, scorer: dict[str, Any]) -> None:
    pairs = [{"kind": "best_of", "scorer": scorer}]
    manifest = generate(tmp_path, judge=KINDS["pointwise"], pairs=pairs)
    made = manifest["drops"]["pair"]["pairs"]["equal best and worst scores"] + manifest["pairs"]["preferences"]
    assert made == 20 == manifest["pairs"]["made"]
    with Rows(tmp_path / "runs/run", readonly=True) as rows:
        said: dict[int, list[int]] = {}
        for r in rows.iterate("candidate"):
            text = json.loads(r.record)["response"]["text"]
            said.setdefault(r.ordinal, []).append(len(world.faults(text, set(world.AVOID))))
        kept = {r.ordinal: json.loads(r.record) for r in rows.iterate("preference")}
    for ordinal, record in kept.items():
        c = record["comparison"]
        found = sorted(len(world.faults(c[side], set(world.AVOID))) for side in "ab")
        assert found == [min(said[ordinal]), max(said[ordinal])]
    assert {o for o, counts in said.items() if min(counts) < max(counts)} == set(kept)


def test_a_reply_without_a_score_takes_no_part_and_is_counted(tmp_path: Path) -> None:
    n = 0

    def patchy(request: Request) -> Reply | str:
        nonlocal n
        n += len(request.choices) == 10
        if len(request.choices) == 10 and n % 2:
            return Reply(choice_logprobs=(math.nan,) * 10)
        return plays(request)

    scorer = {"kind": "pointwise", "model": "m"}
    pairs, one = [{"kind": "best_of", "scorer": scorer}], {"in_flight": 1, "max_failures": 1.0}
    manifest = generate(tmp_path, patchy, judge=KINDS["reward model"], pairs=pairs, limits=one)
    assert manifest["drops"]["reply"]["score"] == {"invalid score": 40}
    (tmp_path / "deaf").mkdir()  # a workspace of its own, without the stored replies
    refuses = {"judge": KINDS["reward model"], "pairs": pairs}
    deaf = generate(tmp_path / "deaf", lambda r: Reply(fault="refused") if r.choices else plays(r), **refuses)
    assert deaf["drops"]["reply"]["score"] == {"refused score": 80}
    assert deaf["drops"]["pair"]["pairs"] == {"too few scored replies": 20}
    assert deaf["pairs"]["exported"] == 0


def test_the_plan_counts_the_calls_of_a_scorer(tmp_path: Path) -> None:
    pairs = [{"kind": "best_of", "scorer": {"kind": "pointwise", "principles": 3}}]
    described = generate(tmp_path, dry=True, pairs=pairs, judge=KINDS["pairwise"])
    calls = {s.name: s.calls for s in described.stages}
    assert calls == {"respond": 80, "score": 20 * 4 * 3, "judge": 20 * 2 * 2}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pairs": [{"kind": "best_of"}]}, r"pairs\.0\.kind: best_of: a judge of kind 'pairwise' gives no scores"),
        ({"pairs": [{"kind": "best_of", "scorer": {"kind": "pairwise"}}]}, r"scorer"),
        ({"pairs": [{"kind": "best_of", "scorer": {"kind": "pointwise", "model": "x"}}]}, "no model 'x'"),
        ({"pairs": [{"kind": "samples", "scorer": {"kind": "pointwise"}}]}, "leave scorer out"),
        ({"pairs": [{"kind": "best_of", "scorer": {"kind": "pointwise"}}], "respond": {"samples": 1}}, "two samples"),
    ],
)
def test_best_of_without_scores_is_refused_before_the_first_call(tmp_path: Path, settings: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        generate(tmp_path, dry=True, **{"judge": {"kind": "pairwise"}, **settings})


def test_the_configs_in_the_docs_are_right(tmp_path: Path) -> None:
    text = (ROOT / "docs/judges.md").read_text()
    found = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(found) >= 3
    for config in found:
        (tmp_path / "judge.yaml").write_text(config)
        assert judging.open_config(tmp_path / "judge.yaml").models


def test_stopped_or_killed_the_same_command_goes_on(tmp_path: Path) -> None:
    _, config = write(tmp_path, 60, CONFIG.replace('play"}', 'play", delay: 0.1}') + "limits: {in_flight: 4}\n")
    command = [
        sys.executable, "-m", "service", "judge", str(tmp_path / "pairs.jsonl"), "--judge", str(config),
        "--workspace", str(tmp_path / "runs"),
    ]  # fmt: skip
    begin = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    counts: list[int] = []
    for end in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen(command, **begin)  # type: ignore[call-overload]
        deadline = time.monotonic() + 60
        while stored(tmp_path) < 40 * (len(counts) + 1) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(end)
        _, said = process.communicate(timeout=60)
        assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130}[end]
        assert ("Stopped" in said) == (end == signal.SIGINT)
        counts.append(stored(tmp_path))
        assert not (tmp_path / "runs/judged/pairs.jsonl").exists()  # it appears when it is whole
    config.write_text(CONFIG)
    said, rows = run_command(tmp_path)
    assert int(re.search(r"\((\d+) reused\)", said)[1]) >= counts[-1] > counts[0]  # type: ignore[index]
    (tmp_path / "calm").mkdir()
    write(tmp_path / "calm", 60)
    assert run_command(tmp_path / "calm")[1] == rows


def stored(folder: Path) -> int:
    """How many replies the workspace's ledger holds."""
    if not (folder / "runs/calls.sqlite").exists():
        return 0
    with closing(sqlite3.connect(folder / "runs/calls.sqlite", timeout=30)) as db:
        try:
            return int(db.execute("SELECT count(*) FROM calls").fetchone()[0])
        except sqlite3.OperationalError:  # the file is there, its tables are not yet
            return 0
