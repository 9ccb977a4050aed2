"""The same constitution under other judges: agreement overall and by principle, and what the card says of it."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from service import _chains, _executors_card, executors
from service.cli import app
from tenet.engines import Engine, Reply, Request
from tenet.engines.scripted import ScriptedEngine
from tenet.errors import InputError, SettingsError
from tenet.records import Usage
from tests import test_edits
from tests.test_edits import RECIPE, go, write

JUDGE = "constitution: harmless\nmodels: {{j: {{kind: scripted, script: 'tests.test_edits_executors:{play}'}}}}\n"
ODD = {"0", "1", "2", "3"}


def turned(request: Request) -> Reply:
    """Judges as the run's own judge does, except under rules 0 to 3, where it says the opposite."""
    said = test_edits.play(request)
    rule = request.messages[-1].content.partition("keeps rule ")[2].partition("?")[0]
    return said.model_copy(update={"choice_logprobs": said.choice_logprobs[::-1]}) if rule in ODD else said


def even(request: Request) -> Reply:
    return Reply(choice_logprobs=(math.log(0.5),) * 2, usage=Usage(calls=1))


def make(folder: Path, prompts: int = 60, principles: str = "1") -> Path:
    write(folder, prompts, RECIPE + f"judge: {{kind: pairwise, principles: {principles}}}\n")
    go(folder / "recipe.yaml", "one")
    for name in ("turned", "even"):
        judge = f"judge: {{kind: pairwise, principles: {principles}}}\nseed: 7\n"
        (folder / f"{name}.yaml").write_text(JUDGE.format(play=name) + judge)
    return folder / "runs/one"


def compare(folder: Path, *names: str, limit: int | None = None, **engines: Engine) -> dict[str, Any]:
    paths = [folder.parent.parent / f"{n}.yaml" for n in names]
    given = {str(p): {"j": engines[p.stem]} for p in paths if p.stem in engines}
    return asyncio.run(executors.compare(executors.Job(folder, paths, limit), given))


def test_the_same_judge_agrees_with_itself_for_it_sees_the_same_principles(tmp_path: Path) -> None:
    folder = make(tmp_path)
    f = compare(folder, "even", even=ScriptedEngine(test_edits.play, name="hash"))
    (c,) = f["between"]
    # whatever constitution and seed its own config names: the run's are used
    assert c["same"]["value"] == c["kappa"] == 1
    assert c["same"]["n"] == f["pairs"] == 120
    assert f["executors"][1]["asked"] == 0  # and every reply was stored already


def test_disagreement_is_found_where_it_is(tmp_path: Path) -> None:
    f = compare(make(tmp_path), "turned")
    (c,) = f["between"]
    odd = {f"p{n}" for n in ODD}
    by = c["principles"]
    assert all(p["value"] == (0 if id in odd else 1) for id, p in by.items())
    assert sum(p["n"] for p in by.values()) == 120
    assert c["same"]["value"] == pytest.approx(1 - sum(by[id]["n"] for id in by if id in odd) / 120)
    assert c["same"]["low"] < c["same"]["value"] < c["same"]["high"]
    assert c["table"]["A"]["A"] + c["table"]["B"]["B"] + c["table"]["A"]["B"] + c["table"]["B"]["A"] == 120


def test_three_judges_make_a_matrix_and_ties_are_a_label(tmp_path: Path) -> None:
    f = compare(make(tmp_path, 20), "turned", "even")
    assert [(c["a"], c["b"]) for c in f["between"]] == [
        ("one (its own judge)", "turned"), ("one (its own judge)", "even"), ("turned", "even"),
    ]  # fmt: skip
    last = f["between"][2]
    assert last["same"]["value"] == 0
    assert last["chosen"]["value"] is None
    assert last["chosen"]["why"]


def test_what_a_judge_cannot_read_is_left_out_and_counted(tmp_path: Path) -> None:
    broken = ScriptedEngine(lambda _: Reply(fault="server", detail="500"), name="broken")
    f = compare(make(tmp_path, 10), "turned", turned=broken)
    (c,) = f["between"]
    assert (c["unreadable"], c["same"]["n"], c["same"]["value"], c["kappa"]) == (20, 0, None, None)
    assert c["why"] == "kappa: no pair was read by both"
    assert "undefined" not in _executors_card.paragraph(f)


def test_the_card_says_what_was_found_and_says_it_again_after_a_rerun(tmp_path: Path) -> None:
    folder = make(tmp_path)
    card = folder / "README.md"
    assert "have not been judged" in card.read_text()
    command = ["constitution", "executors", str(folder), "--judge", str(tmp_path / "turned.yaml")]
    said = CliRunner().invoke(app, command, catch_exceptions=False).output
    assert "one (its own judge) and turned: same label" in said
    before = card.read_text()
    assert "| one (its own judge) | turned |" in before
    assert "have not been judged" not in before
    assert json.loads((folder / "executors.json").read_text())["pairs"] == 120
    go(tmp_path / "recipe.yaml", "one")
    assert card.read_text() == before
    CliRunner().invoke(app, command, catch_exceptions=False)
    assert card.read_text() == before  # amended twice, said once


def test_what_was_found_under_another_constitution_is_not_said(tmp_path: Path) -> None:
    folder = make(tmp_path, 10)
    held = compare(folder, "turned")
    (folder / "executors.json").write_text(json.dumps({**held, "constitution_hash": "another"}))
    go(tmp_path / "recipe.yaml", "one")
    assert "have not been judged" in (folder / "README.md").read_text()


def test_a_card_of_an_older_version_gets_the_paragraph_at_its_end(tmp_path: Path) -> None:
    folder = make(tmp_path, 10)
    (folder / "README.md").write_text("# An old card\n")
    found = compare(folder, "turned", limit=7)
    assert found["pairs"] == 7
    (folder / "executors.json").write_text(json.dumps(found))
    _executors_card.amend(folder, _chains.constitution_of(folder).hash)
    text = (folder / "README.md").read_text()
    assert text.startswith("# An old card")
    assert "the same 7 pairs" in text


def test_a_judge_that_needs_texts_that_the_run_lacks_is_refused_before_a_call(tmp_path: Path) -> None:
    write(tmp_path, 5, RECIPE)
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nprinciples: [{id: x, critique: Say., revise: Mend., choose: 'Which reply keeps rule 9?'}]\n"
    )
    go(tmp_path / "recipe.yaml", "one")
    (tmp_path / "scores.yaml").write_text(JUDGE.format(play="even") + "judge: {kind: pointwise}\n")
    with pytest.raises(InputError, match="has no 'score'"):
        compare(tmp_path / "runs/one", "scores")
    with pytest.raises(SettingsError, match="no judge to compare"):
        compare(tmp_path / "runs/one")
