"""`tenet judge` and what stands under it: a verdict for every pair, in order, paid once, whatever a pair does."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from judges import pairs_file
from nano import tasks
from service import judging
from service.cli import app
from tenet.engines import Reply, Request
from tenet.engines.scripted import ScriptedEngine
from tenet.errors import InputError, SettingsError, TooManyFailures
from tests import oracle_script

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
