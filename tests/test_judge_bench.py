"""judge-bench: a grid becomes variants, each is scored on the same pairs, and only real differences are called real."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest

from judges.agreement.rules import Rules
from nano import pairs as nano_pairs
from nano import world
from service import judge_bench
from service._grid import open_grid
from service.cli import main
from tenet.engines import Engine, Reply, Request
from tenet.engines.scripted import ScriptedEngine
from tenet.errors import DataError, SettingsError
from tenet.records import Usage
from tests import oracle_script

GRID = """
constitution: nano
models: {{m: {{kind: scripted, script: "tests.oracle_script:play"}}}}
judge: {{kind: pairwise}}
{axes}
"""


def grid(folder: Path, axes: str) -> Path:
    (folder / "grid.yaml").write_text(GRID.format(axes=axes))
    return folder / "grid.yaml"


def pairs_file(folder: Path, n: int = 60) -> Path:
    nano_pairs.main(n, folder / "pairs.jsonl", 0)
    return folder / "pairs.jsonl"


def bench(folder: Path, axes: str, engine: Any = None, n: int = 60, fresh: bool = False) -> dict[str, Any]:
    opened = open_grid(grid(folder, axes))
    found = judge_bench.labelled(pairs_file(folder, n), None)
    engine = engine or ScriptedEngine(oracle_script.play, name="oracle")
    judged = asyncio.run(judge_bench.judge_all(opened, found, folder / "runs", fresh, {"m": engine}))
    return judge_bench.measure(opened, found, judged, Rules())


def named(report: dict[str, Any]) -> dict[str, Any]:
    return {v["name"]: v for v in report["variants"]}


def loves_first(request: Request) -> Reply:
    """Knows the better reply a little, and loves the first slot more."""
    said = oracle_script.play(request).choice_logprobs
    knows = 0.2 * ((said[0] or 0) > (said[1] or 0)) - 0.2 * ((said[0] or 0) < (said[1] or 0))
    p = 0.7 + knows
    return Reply(choice_logprobs=(math.log(p), math.log(1 - p)), usage=Usage(calls=1, prompt_tokens=100))


def test_more_principles_agree_more_with_a_label_that_all_rules_decide(tmp_path: Path) -> None:
    report = bench(tmp_path, "grid: {principles: [1, 4, all]}")
    found = named(report)
    shares = [found[f"principles {k}"]["accuracy"]["value"] for k in (1, 4, "all")]
    assert shares[0] < shares[1] < shares[2] == 1.0
    assert found["principles 1"]["states"]["tie"] > 40
    assert found["principles 1"]["without_ties"]["n"] == 60 - found["principles 1"]["states"]["tie"]
    real = {(c["first"], c["second"]): c["real"] for c in report["comparisons"]}
    assert real == {
        ("principles 1", "principles 4"): True,
        ("principles 1", "principles all"): True,
        ("principles 4", "principles all"): True,
    }


def test_both_orders_beat_one_where_a_judge_loves_a_slot(tmp_path: Path) -> None:
    engine = ScriptedEngine(loves_first, name="biased")
    report = bench(tmp_path, "grid: {order: [both, given, swapped], principles: [all]}", engine, 120)
    found = named(report)
    both, given = (found[f"order {o}, principles all"] for o in ("both", "given"))
    assert both["accuracy"]["value"] == 1.0
    assert given["accuracy"]["value"] < 0.7
    assert both["consistency"]["value"] < 0.5
    assert both["calibration"]["brier"] < given["calibration"]["brier"]
    assert given["consistency"] == {"value": None, "n": 0, "why": "no pair was read in both slot orders"}
    by = {frozenset((c["first"], c["second"])): c for c in report["comparisons"]}
    test = by[frozenset(("order both, principles all", "order given, principles all"))]
    assert test["real"]
    assert test["only_second_right"] == 0
    assert test["difference"]["low"] > 0


def test_what_is_the_same_is_not_called_different(tmp_path: Path) -> None:
    report = bench(tmp_path, "grid: {order: [both, given], principles: [all]}")
    assert [(c["p"], c["real"]) for c in report["comparisons"]] == [(None, False)]
    assert report["comparisons"][0]["why"]


def test_p_values_are_corrected_for_how_many_there_are(tmp_path: Path) -> None:
    report = bench(tmp_path, "grid: {principles: [1, 2, 3, 4]}", n=30)
    for c in report["comparisons"]:
        if c["p"] is not None:
            assert c["p"] <= c["p_holm"] <= min(1.0, 6 * c["p"] + 1e-12)
            assert c["real"] == (c["p_holm"] < 0.05)


def test_cost_is_what_the_calls_cost_whoever_paid_and_a_reply_is_paid_once(tmp_path: Path) -> None:
    engine = ScriptedEngine(loves_first, name="biased")
    report = bench(tmp_path, "grid: {order: [both, given], principles: [1, 2]}", engine, 50)
    found = named(report)
    calls = {name: v["per_1000_pairs"]["calls"] for name, v in found.items()}
    assert calls == {
        "order both, principles 1": 2000,
        "order both, principles 2": 4000,
        "order given, principles 1": 1000,
        "order given, principles 2": 2000,
    }
    assert engine.calls == 50 * 4  # the widest variant asks all that the others ask
    assert found["order both, principles 1"]["per_1000_pairs"]["prompt_tokens"] == 200_000
    assert found["order both, principles 1"]["seconds"]["value"] > 0
    assert found["order given, principles 2"]["seconds"]["value"] is None
    assert "--fresh" in found["order given, principles 2"]["seconds"]["why"]


def test_fresh_asks_everything_for_every_variant(tmp_path: Path) -> None:
    engine = ScriptedEngine(loves_first, name="biased")
    report = bench(tmp_path, "grid: {order: [both, given]}", engine, 50, fresh=True)
    assert engine.calls == 50 * 3 + 8 * 2  # eight pairs are judged before the clock starts
    assert all(v["seconds"]["value"] > 0 for v in report["variants"])


def test_money_is_counted_where_the_model_is_priced(tmp_path: Path) -> None:
    text = GRID.format(axes="grid: {order: [both, given]}").replace(
        '{kind: scripted, script: "tests.oracle_script:play"}',
        "{kind: openai, model: x, price_prompt: 10, price_completion: 30}",
    )
    (tmp_path / "grid.yaml").write_text(text)
    opened = open_grid(tmp_path / "grid.yaml")
    found = judge_bench.labelled(pairs_file(tmp_path, 20), None)
    engine: Engine = ScriptedEngine(loves_first, name="biased")
    judged = asyncio.run(judge_bench.judge_all(opened, found, tmp_path, False, {"m": engine}))
    both = judge_bench.measure(opened, found, judged, Rules())["variants"][0]
    # 2,000 calls of 100 prompt tokens, at 10 a million
    assert both["per_1000_pairs"]["money"]["value"] == pytest.approx(2.0)
    unpriced = bench(tmp_path, "grid: {order: [both]}", n=5)["variants"][0]["per_1000_pairs"]["money"]
    assert unpriced == {"value": None, "why": "the model has no price_prompt or price_completion"}


def test_settings_that_contradict_one_another_are_left_out_and_named(tmp_path: Path) -> None:
    opened = open_grid(grid(tmp_path, "grid: {cot: [false, true], clamp: [null, [0.4, 0.6]]}"))
    names = [v.name for v in opened.variants]
    assert names == ["cot false, clamp off", "cot true, clamp off", "cot true, clamp [0.4, 0.6]"]
    assert list(opened.impossible) == ["cot false, clamp [0.4, 0.6]"]
    assert "chain of thought" in opened.impossible["cot false, clamp [0.4, 0.6]"]


def test_named_variants_change_the_base_or_stand_by_themselves(tmp_path: Path) -> None:
    axes = "variants: {strict: {principles: 3}, points: {kind: pointwise}, same: {order: both}}"
    opened = open_grid(grid(tmp_path, axes))
    found = {v.name: v.settings for v in opened.variants}
    assert found == {
        "as configured": {"kind": "pairwise"},
        "strict": {"kind": "pairwise", "principles": 3},
        "points": {"kind": "pointwise"},
    }  # "same" is what was configured, and is not judged twice
    report = bench(tmp_path, axes.replace("points: {kind: pointwise}", "text: {read: text, labels: hard}"), n=10)
    assert {(c["first"], c["second"]) for c in report["comparisons"]} == {
        ("as configured", "strict"),
        ("as configured", "text"),
    }


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ("grid: {ordre: [both]}", "no setting 'ordre'"),
        ("grid: {order: [sideways]}", "sideways"),
        ("grid: {order: []}", "order"),
        ("grid: {order: both}", "order"),
        ("grids: {order: [both]}", "grids"),
        ("variants: {x: {order: sideways}}", "variant 'x'"),
        ("grid: {model: [nobody]}", "nobody"),
        (f"grid: {{tie: [{', '.join(f'0.{i:04d}' for i in range(1, 300))}]}}", "at most 200"),
    ],
)
def test_bad_grids_are_refused(tmp_path: Path, axes: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        open_grid(grid(tmp_path, axes))


def test_pairs_without_labels_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "Hi", "a": "x", "b": "y"}\n')
    with pytest.raises(DataError, match="no pair has a label"):
        judge_bench.labelled(tmp_path / "p.jsonl", None)


def test_nano_pairs_are_labelled_by_all_named_rules(tmp_path: Path) -> None:
    rows = list(nano_pairs.rows(50, 1))
    assert rows == list(nano_pairs.rows(50, 1))
    for row in rows:
        faults = [len(world.faults(row[side], nano_pairs.NAMED)) for side in "ab"]
        assert row["labels"]["oracle"] == ("A" if faults[0] < faults[1] else "B")
    assert {row["labels"]["oracle"] for row in rows} == {"A", "B"}


def test_the_command_prints_one_table_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = grid(tmp_path, "grid: {order: [both, given], clamp: [null, [0.4, 0.6]]}")
    given = [pairs_file(tmp_path), "--grid", made, "--json", tmp_path / "o/b.json", "--workspace", tmp_path]
    given += ["--limit", 40]
    monkeypatch.setattr("sys.argv", ["tenet", "judge-bench", *map(str, given)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "order both, clamp off" in said
    assert "not possible: order both, clamp [0.4, 0.6]; order given, clamp [0.4, 0.6]: judge.clamp" in said
    assert "paired tests on the same pairs (McNemar), 1 of them" in said
    report = json.loads((tmp_path / "o/b.json").read_text())
    assert report["pairs"] == 40
    assert report["rules"]["gold"] == "majority"
