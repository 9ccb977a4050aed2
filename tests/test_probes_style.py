"""The style probe finds planted sameness and leaves varied replies alone; the report gathers a run on one page."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from service.cli import app
from tenet.errors import DataError
from trainers.probes import style
from trainers.probes.style import Reply

NOUNS = ["river", "lamp", "stone", "garden", "letter", "window", "bridge", "apple", "engine", "paper", "winter", "salt"]


def varied(n: int, seed: int = 0) -> list[Reply]:
    draw = random.Random(seed)
    return [Reply(text=" ".join(draw.choices(NOUNS, k=20)) + ".", prompt=f"q{i}") for i in range(n)]


def test_varied_replies_give_no_warning() -> None:
    f = style.measure(varied(200))
    assert f["warnings"] == []
    assert f["openings"]["evenness"] > 0.95
    assert f["boilerplate"]["share"] == 0
    assert f["length"]["mean"] == 21


def test_planted_openings_and_boilerplate_are_named() -> None:
    said = "You are valid and cared for."
    replies = [r.model_copy(update={"text": f"Great question! {r.text} {said}"}) for r in varied(100)]
    f = style.measure([*replies, *varied(50, 1)], earlier=varied(150))
    assert f["openings"]["top"][0] == {"opening": "great question !", "n": 100, "share": 100 / 150}
    top = {s["sentence"]: s["prompts"] for s in f["boilerplate"]["top"]}
    assert top["you are valid and cared for ."] == 100
    assert f["boilerplate"]["share"] == pytest.approx((3 + 7) * 100 / (31 * 100 + 21 * 50))
    warned = " | ".join(f["warnings"])
    assert "one opening begins 67% of the replies: 'great question !' 67%" in warned
    assert f["length"]["drift"]["value"] == pytest.approx((31 * 100 + 21 * 50) / (21 * 150))


def test_figures_by_hand() -> None:
    f = style.measure([Reply(text="a b c d a b c d"), Reply(text="a b c d")])
    assert f["repeated"]["within"] == 0.5
    assert f["distinct"]["1"] == {"value": 4 / 12, "n": 12}
    assert (f["openings"]["different"], f["openings"]["bits"]) == (1, 0)
    assert f["few"]
    assert f["warnings"] == [], "two replies are no ground for a warning"
    same = style.measure([Reply(text="salt river")] * 3)["self_similarity"]["value"]
    other = style.measure([Reply(text="salt"), Reply(text="river")])["self_similarity"]["value"]
    assert (same, other) == (pytest.approx(1), pytest.approx(0))
    one = style.measure([Reply(text="salt")])
    assert one["openings"]["evenness"] is None
    assert one["self_similarity"]["value"] is None
    with pytest.raises(DataError, match="none of the replies has a word"):
        style.measure([Reply(text=" ")])


def sft(path: Path, replies: list[Reply]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps({"prompt": r.prompt, "completion": f"Of course! {r.text}"}) + "\n" for r in replies)
    )
    return path


def test_the_command_warns_of_an_sft_file(tmp_path: Path) -> None:
    sft(tmp_path / "run" / "data" / "sft.jsonl", varied(60))
    command = ["inspect", "style", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    said = " ".join(shown.output.split())
    assert "one opening begins 100% of the replies: 'of course !' 100%" in said
    assert "entropy 0.00 of the highest possible" in said
    assert CliRunner().invoke(app, [*command, "--strict"]).exit_code == 1
    gated = CliRunner().invoke(app, [*command, "--gate", "openings.top_share<=0.2"])
    assert (gated.exit_code, "openings.top_share <= 0.2 failed, measured 1" in gated.output) == (1, True)
    missing = CliRunner().invoke(app, ["inspect", "style", str(tmp_path / "nothing.jsonl")])
    assert isinstance(missing.exception, DataError)


def test_rows_are_looked_at_before_a_training_as_it_sees_them() -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "As asked, salt."}]
    rows: list[dict[str, Any]] = [
        {"messages": turns * 2}, {"prompt": "q", "completion": "As asked, river."},
        {"prompt": turns[:1], "completion": [{"role": "assistant", "content": "As asked, a lamp."}]},
    ]  # fmt: skip
    (opening,) = (w for w in style.foreseen(rows * 10) if "begins" in w)
    assert opening == "one opening begins 100% of the replies: 'as asked ,' 100%"
    assert style.foreseen(rows) == [], "four replies are no ground for a warning"
    few = style.Settings(sample=40)
    mixed = [{"prompt": r.prompt, "completion": r.text} for r in varied(300)] + rows * 100
    found = float(next(w for w in style.foreseen(mixed, few) if "begins" in w).split("begins ")[1].split("%")[0])
    assert 30 < found < 85, "a draw from all of the rows, of which 400 in 700 begin alike"


MANIFEST: dict[str, Any] = {
    "run": "run", "state": "whole", "prompts": {"rows": 3, "kept": 2, "dropped": 1, "in_file": 3},
    "pairs": {"made": 4, "preferences": 3, "exported": 3}, "drops": {"prompt": {"keep": {"margin": 1}}},
    "agreement": {"both_orders": 4, "consistent": 3, "readable_votes": 8, "first_slot": 4, "uneven": 2,
                  "longer_chosen": 1},
    "files": {"sft.parquet": {"rows": 3, "sha256": "0"}}, "recipe": {"judge": {"kind": "pairwise"}},
    "constitution": {"hash": "abc", "name": "kind", "principles": [{"id": "p<i>", "title": "", "choose": "Which?"}]},
    "judge_engines": [{"name": "toy", "family": "", "writes_too": False}], "finished": "2026-01-01T00:00:00Z",
}  # fmt: skip


def test_a_report_holds_data_training_probes_examples_and_wins(tmp_path: Path) -> None:
    run, trained = tmp_path / "run", tmp_path / "sft"
    run.mkdir()
    trained.mkdir()
    (run / "manifest.json").write_text(json.dumps(MANIFEST))
    data = {"files": {str(run / "data" / "sft.jsonl"): {"rows": 3}}, "kept": 3}
    facts = {"kind": "sft", "data": data, "settings": {"model": "m", "lr": 0.001}, "steps": 2, "figures": {"loss": 1.5}}
    (trained / "manifest.json").write_text(json.dumps(facts))
    (trained / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"step"')
    probe = {"probe": "style", "parts": {"sft": style.measure(varied(40))}}
    (run / "style.json").write_text(json.dumps(probe))
    pairs, verdicts = tmp_path / "pairs.jsonl", tmp_path / "verdicts.jsonl"
    rows = [
        {"id": str(i), "prompt": "<script>q</script>", "a": "x" * (5 + i % 4), "b": "y" * (3 + i % 3),
         "slices": {"after": "A" if i % 2 else "B"}}
        for i in range(12)
    ]  # fmt: skip
    pairs.write_text("".join(json.dumps(r) + "\n" for r in rows))
    said = [{"id": str(i), "verdict": ("A", "B", "tie", "invalid")[i % 4]} for i in range(12)]
    verdicts.write_text("".join(json.dumps(v) + "\n" for v in said))
    command = ["report", str(run), "--pairs", str(pairs), "--verdicts", str(verdicts)]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, (shown.output, shown.exception)
    html = (run / "report" / "report.html").read_text()
    assert "<script>" not in html
    assert "p<i>" not in html
    parts = ("Data", "Judge", "Training", "Style", "Before and after", "Win rates")
    for part in (*parts, "sft (sft)", "length-controlled", "Unreadable verdicts: 3"):
        assert part in html, part
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0
    assert (run / "report" / "report.html").read_text() == html
    verdicts.write_text('{"id": "99", "verdict": "A"}\n')
    stray = CliRunner().invoke(app, command)
    assert "verdicts.jsonl, line 1: is a verdict on '99', which is none of the pairs" in str(stray.exception)


def test_a_report_finds_the_trainings_that_stand_on_the_run(tmp_path: Path) -> None:
    def put(name: str, **manifest: Any) -> None:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))

    def training(kind: str, sha: str, **settings: Any) -> dict[str, Any]:
        files = {"elsewhere/rows.parquet": {"rows": 3, "sha256": sha}}
        told = {"settings": settings, "steps": 2, "tokens": 55888.0, "figures": {"num_tokens": 55888.0}}
        return {"kind": kind, "data": {"files": files, "kept": 3}, **told}

    put("run", **{**MANIFEST, "files": {"sft.parquet": {"rows": 3, "sha256": "mine"}}})
    put("train/sft", **training("sft", "mine", model="m"))
    put("train/ppo", **training("ppo", "prompts", model=str(tmp_path / "train/sft")))
    put("train/after", **training("dpo", "others", model=str(tmp_path / "train/ppo")))
    put("stranger", **training("sft", "others", model="m"))
    assert CliRunner().invoke(app, ["report", str(tmp_path / "run")]).exit_code == 0
    text = (tmp_path / "run" / "report" / "report.md").read_text()
    assert "run: 3 trainings" in text
    assert all(f"| {name} | {kind} |" in text for name, kind in (("sft", "sft"), ("ppo", "ppo"), ("after", "dpo")))
    assert "stranger" not in text
    assert "| 55,888 |" in text
    assert "55888" not in text


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert CliRunner().invoke(app, ["report", str(tmp_path / "run")]).exit_code == 0
    text = (tmp_path / "run" / "report" / "report.md").read_text()
    assert "holds no manifest of tenet generate" in text
    assert isinstance(CliRunner().invoke(app, ["report", str(tmp_path / "absent")]).exception, DataError)
