"""`tenet constitution preview`: the same prompts under two constitutions, before a run is paid for."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from constitution import diff
from service import preview
from service._preview_figures import measure
from service._shares import share, shift
from service.cli import app
from service.constitution_edits import open_side
from tenet.engines import Engine, Reply, Request
from tenet.engines.scripted import ScriptedEngine
from tenet.errors import DataError, InputError, SettingsError
from tenet.records import Usage

RECIPE = """
prompts: {path: prompts.jsonl}
constitution: ./old.yaml
models:
  m: {kind: scripted}
revise: {rounds: 1}
pairs: [{kind: samples}, {kind: initial_vs_revision}]
judge: {kind: pairwise, principles: all}
"""
OLD = """
name: toy
principles:
- {id: short, critique: Say what is long., revise: "Cut what is long.", choose: Which reply is the shorter one?}
- {id: calm, critique: Say what is loud., revise: "Lower what is loud.", choose: Which reply is calmer?}
"""


def play(request: Request) -> Reply:
    """Replies of one to nine words; the judge measures words, the way the question says."""
    usage = Usage(calls=1, prompt_tokens=10, completion_tokens=5)
    last = request.messages[-1].content
    if request.choices:
        a, b = (len(last.partition(f"<reply_{x}>")[2].partition(f"</reply_{x}>")[0].split()) for x in "ab")
        sign = 1 if "longer" in last else -1 if "shorter" in last else 0
        p = min(max(0.5 + 0.05 * sign * (a - b), 0.05), 0.95)
        return Reply(choice_logprobs=(math.log(p), math.log(1 - p)), usage=usage)
    n = 1 + int(request.key("")[:4], 16) % 9
    if last.startswith("Rewrite"):
        before = next(m.content for m in request.messages if m.role == "assistant").split()
        return Reply(
            text=" ".join(before[:-1] if "Cut" in last and len(before) > 1 else [*before, "quietly"]), usage=usage
        )
    return Reply(text=" ".join(["word"] * n) + ".", usage=usage)


def write(folder: Path, new: str, prompts: int = 30, recipe: str = RECIPE) -> preview.Job:
    rows = [json.dumps({"prompt": f"Question number {i}?"}) for i in range(prompts)]
    (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "recipe.yaml").write_text(recipe)
    (folder / "old.yaml").write_text(OLD)
    (folder / "new.yaml").write_text(new)
    return preview.Job(
        str(folder / "old.yaml"), str(folder / "new.yaml"), recipe=folder / "recipe.yaml", out=folder / "out",
        workspace=folder / "runs",
    )  # fmt: skip


def go(job: preview.Job, script: Any = play) -> tuple[dict[str, Any], ScriptedEngine]:
    plans = preview.open_plans(job)
    engine = ScriptedEngine(script, name="toy")
    engines: dict[str, Engine] = {"m": engine}
    walks, cost = asyncio.run(preview.walk(plans, job.limit, job.workspace, engines))
    return preview.write(job, diff.diff(open_side(job.old), open_side(job.new)), plans, walks, cost), engine


# Intervals.


def test_intervals_of_shares_know_that_a_prompts_pairs_go_together() -> None:
    alone = share([(k, 1) for k in [1] * 20 + [0] * 80])
    assert (round(alone["low"], 3), round(alone["high"], 3)) == (0.133, 0.289)  # Wilson's, 20 of 100
    together = share([(k, 4) for k in [4] * 5 + [0] * 20])  # 20 of 100, but in fours
    assert together["value"] == alone["value"]
    assert together["high"] - together["low"] > 1.8 * (alone["high"] - alone["low"])
    none = share([(0, 4)] * 25)
    assert none["low"] == 0
    assert 0.1 < none["high"] < 0.2  # as of 25 prompts, not of 100 pairs
    assert share([])["value"] is None
    assert share([(0, 0)])["why"]


def test_shifts_have_students_interval_or_a_reason() -> None:
    found = shift([1.0, 2.0, 3.0])
    assert (round(found["low"], 3), round(found["high"], 3)) == (-0.484, 4.484)
    assert shift([0.0, 0.0])["why"] == "low, high: no prompt differs"
    assert shift([2.0])["low"] is None
    assert shift([])["value"] is None


# What a preview finds.


def test_no_edit_changes_nothing(tmp_path: Path) -> None:
    found, _ = go(write(tmp_path, OLD))
    assert found["labels"]["n changed"] == 0
    assert found["verdict"].startswith("This edit changes 0.0% of labels (95% interval 0.0 to ")
    assert found["flips"] == found["revisions"]["texts"] == []
    assert found["asked"] <= found["reused"]


def test_a_question_turned_round_turns_the_labels_and_nothing_else(tmp_path: Path) -> None:
    found, _ = go(write(tmp_path, OLD.replace("shorter", "longer")))
    moves = {(m["old"], m["new"]): m["n"] for m in found["labels"]["moves"]}
    assert set(moves) <= {("A", "B"), ("B", "A"), ("tie", "tie")}
    assert moves["A", "B"] > 5
    assert moves["B", "A"] > 5
    assert found["labels"]["flipped"]["value"] == found["labels"]["changed"]["value"] > 0.8
    assert found["revisions"]["changed"]["value"] == 0
    assert found["revisions"]["words"] is None
    assert found["shifts"]["length"]["shift"]["value"] == 0
    assert found["shifts"]["consistency"]["old"]["value"] == found["shifts"]["consistency"]["new"]["value"] == 1
    short, calm = found["principles"]["short"], found["principles"]["calm"]
    assert short["changed"] > 0.8 * short["both"]
    assert calm["changed"] == 0
    assert all(f["same_texts"] for f in found["flips"])


def test_a_revision_reworded_shows_in_words_and_in_length(tmp_path: Path) -> None:
    found, _ = go(write(tmp_path, OLD.replace("Cut what is long.", "Tell what is long.")))
    r, length = found["revisions"], found["shifts"]["length"]["shift"]
    assert 0.2 < r["changed"]["value"] < 0.8  # the draws of one principle of two
    assert all(t["new"].endswith("quietly") for t in r["texts"])
    assert length["low"] > 0
    assert 0 < r["words"] < 1


def test_first_replies_and_all_that_the_edit_leaves_alone_are_asked_once(tmp_path: Path) -> None:
    job = write(tmp_path, OLD.replace("shorter", "longer"), prompts=20)
    found, engine = go(job)
    seen: dict[str, int] = {}
    assert found["asked"] == engine.calls

    def count(request: Request) -> Reply:
        seen[request.key("")] = seen.get(request.key(""), 0) + 1
        return play(request)

    fresh, _ = go(preview.Job(**{**job.__dict__, "workspace": tmp_path / "other"}), count)
    assert set(seen.values()) == {1}
    assert fresh["flips"] == found["flips"]
    again, engine = go(job)
    assert (again["asked"], engine.calls) == (0, 0)  # a preview that is looked at again costs nothing


def test_what_cannot_be_read_is_a_label_of_its_own(tmp_path: Path) -> None:
    def failing(request: Request) -> Reply:
        if request.choices and "longer" in request.messages[-1].content:
            return Reply(fault="server", detail="500")
        return play(request)

    found, _ = go(write(tmp_path, OLD.replace("shorter", "longer")), failing)
    assert {m["new"] for m in found["labels"]["moves"]} <= {"invalid", "none"}
    assert found["labels"]["flipped"]["value"] == 0
    assert found["principles"]["short"]["new"] == {"invalid": found["principles"]["short"]["both"]}


def test_the_page_shows_texts_as_text_and_every_figure_has_its_rule(tmp_path: Path) -> None:
    def nasty(request: Request) -> Reply:
        said = play(request)
        return said if request.choices else said.model_copy(update={"text": f"<script>alert(1)</script> {said.text}"})

    job = write(tmp_path, OLD.replace("shorter", "longer").replace("Lower", "Soften"))
    found, _ = go(job, nasty)
    html, md = (job.out / "report.html").read_text(), (job.out / "report.md").read_text()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert found["verdict"] in html
    assert "<del>" in html
    assert "<ins>" in html
    assert "Rules" in md
    held = json.loads((job.out / "preview.json").read_text())
    assert held["verdict"] == found["verdict"]
    assert held["edit"]["changes"]


def test_measuring_nothing_is_undefined_and_says_why() -> None:
    assert "says nothing" in measure([])["verdict"]


# Bad input.


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recipe": None}, "no model to ask"),
        ({"recipe": None, "model": "x"}, "no prompts"),
        ({"model": "x"}, "a recipe and a model"),
        ({"old": "harmles"}, "harmless"),
        ({"prompts": Path("gone.jsonl")}, "gone.jsonl"),
        ({"overrides": ("judge.kind=pairwyse",)}, "pairwise"),
    ],
)
def test_bad_input_is_refused_before_the_first_call(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    job = preview.Job(**{**write(tmp_path, OLD).__dict__, **changes})

    def never(_: Request) -> Reply:
        raise AssertionError("asked")

    with pytest.raises(InputError, match=said):
        go(job, never)


def test_a_constitution_without_a_text_that_the_recipe_needs_is_refused(tmp_path: Path) -> None:
    job = write(tmp_path, "name: toy\nprinciples: [{id: short, choose: Which is short?}]\n")
    with pytest.raises(InputError, match="has no 'critique'"):
        preview.open_plans(job)


def test_the_command_takes_a_recipe_and_settings(tmp_path: Path) -> None:
    recipe = RECIPE.replace("{kind: scripted}", "{kind: scripted, script: 'tests.test_preview:play'}")
    job = write(tmp_path, OLD.replace("shorter", "longer"), recipe=recipe)
    command = [
        *("constitution", "preview", "--old", job.old, "--new", job.new, "--recipe", str(job.recipe), "--limit", "5"),
        *("--out", str(job.out), "--workspace", str(job.workspace), "respond.samples=3"),
    ]  # fmt: skip
    said = CliRunner().invoke(app, command, catch_exceptions=False).output
    assert "This edit changes" in said
    assert json.loads((job.out / "preview.json").read_text())["prompts"] == 5


def test_an_empty_file_of_prompts_is_refused(tmp_path: Path) -> None:
    job = write(tmp_path, OLD)
    (tmp_path / "prompts.jsonl").write_text("")
    with pytest.raises((DataError, SettingsError), match="is empty"):
        go(job)
