"""`tenet constitution stats`: what each principle of a run did, on a judge whose every vote is known."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from service import _chains, run, stats
from service import recipe as recipes
from service._stats_figures import finds, measure
from service.cli import app
from tenet.engines import Reply, Request
from tenet.engines.scripted import ScriptedEngine
from tenet.errors import DataError, RunFolderError
from tenet.ledger import Rows
from tenet.records import Usage

RECIPE = """
prompts: {path: prompts.jsonl}
constitution: ./mine.yaml
models:
  m: {kind: scripted}
revise: {rounds: 1}
judge: {kind: pairwise, principles: all}
"""
RULES = """
name: toy
principles:
- {id: short, critique: Say what is long., revise: Cut it., choose: Which reply is shorter?}
- {id: brief, critique: Say what drags on., revise: Cut it., choose: Which reply is shorter to read?}
- {id: long, critique: Say what is missing., revise: Add to it., choose: Which reply is longer?}
- {id: first, critique: Say what comes first., revise: Add to it., choose: Which reply stands first?}
- {id: never, critique: Say nothing., revise: Nothing., choose: Which reply is never asked about?, applies_when: [x]}
"""


def play(request: Request) -> Reply:
    """short and brief want fewer words, long wants more (and weighs less), first takes slot A in either order."""
    usage, last = Usage(calls=1), request.messages[-1].content
    if request.choices:
        a, b = (len(last.partition(f"<reply_{x}>")[2].partition(f"</reply_{x}>")[0].split()) for x in "ab")
        sign = 0.03 if "shorter" in last else -0.02 if "longer" in last else 0
        p = 0.9 if "stands first" in last else min(max(0.5 + sign * (b - a), 0.05), 0.95)
        return Reply(choice_logprobs=(math.log(p), math.log(1 - p)), usage=usage)
    if last.startswith("Critique"):
        return Reply(text="I find no fault." if "missing" in last else "It drags on.", usage=usage)
    said = next((m.content for m in request.messages if m.role == "assistant"), "")
    if last.startswith("Rewrite"):
        return Reply(text=said if "Cut it" in last else f"{said} More of it.", usage=usage)
    return Reply(text=" ".join(["word"] * (1 + int(request.key("")[:4], 16) % 9)), usage=usage)


def make(folder: Path, prompts: int = 40, recipe: str = RECIPE, script: Any = play) -> _chains.RunView:
    rows = [json.dumps({"prompt": f"Question number {i}?"}) for i in range(prompts)]
    (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "mine.yaml").write_text(RULES)
    (folder / "recipe.yaml").write_text(recipe)
    plan = recipes.open_recipe(folder / "recipe.yaml", [], str(folder / "runs/one"))
    asyncio.run(run.execute(plan, engines={"m": ScriptedEngine(script, name="toy")}))
    return _chains.open_run(folder / "runs/one")


def test_every_figure_of_a_judge_whose_votes_are_known(tmp_path: Path) -> None:
    view = make(tmp_path)
    f = measure(view)
    p, n = f["principles"], f["pairs"]
    assert 25 < n <= 40
    assert sum(x["rounds"] for x in p.values()) == 80  # two samples, one round, one principle each
    assert (p["long"]["found"]["value"], p["short"]["found"]["value"]) == (0, 1)
    assert (p["short"]["revised"]["value"], p["long"]["revised"]["value"]) == (0, 1)
    assert p["short"]["words"] is None
    assert p["short"]["why"] == {"words": "no revision differs"}
    assert p["long"]["words"] > 0
    for id in ("short", "brief", "long", "first"):
        assert p[id]["pairs"] == n
        assert sum(p[id]["votes"].values()) == 2 * n
    assert p["first"]["flips"]["value"] == 1  # it takes slot A, whichever reply stands there
    assert p["short"]["flips"]["value"] == 0
    assert p["first"]["margin"] == pytest.approx(0)
    assert p["short"]["margin"] > p["long"]["margin"] > 0
    # long is outvoted on every pair of unlike lengths; without it nothing changes
    assert p["long"]["without"]["value"] == p["first"]["without"]["value"] == 0
    assert p["short"]["others"]["value"] > 0.9 > 0.1 > p["long"]["others"]["value"]
    assert p["short"]["people"]["value"] is None
    assert p["short"]["people"]["why"]
    assert p["never"]["pairs"] == p["never"]["rounds"] == 0
    assert p["never"]["margin"] is None


def test_principles_that_say_the_same_and_the_opposite_are_found(tmp_path: Path) -> None:
    cells = {(c["a"], c["b"]): c for c in measure(make(tmp_path))["matrix"]}
    assert cells["short", "brief"]["correlation"] == pytest.approx(1)
    assert cells["short", "brief"]["conflict"] == 0
    assert cells["short", "long"]["correlation"] == pytest.approx(-1)
    assert cells["short", "long"]["conflict"] == 1
    assert cells["short", "first"]["correlation"] is None
    assert "says the same of every pair" in cells["short", "first"]["why"]
    assert ("short", "never") not in cells


def test_one_principle_a_pair_has_no_others_and_is_the_sole_voter(tmp_path: Path) -> None:
    f = measure(make(tmp_path, 30, RECIPE.replace("principles: all", "principles: 1")))
    asked = [p for p in f["principles"].values() if p["pairs"]]
    assert all(p["sole"] == p["pairs"] for p in asked)
    assert all(p["others"]["value"] is None and p["without"]["value"] is None for p in asked)
    assert f["matrix"] == []


def test_votes_that_cannot_be_read_are_counted_and_guess_nothing(tmp_path: Path) -> None:
    def failing(request: Request) -> Reply:
        if request.choices and "longer" in request.messages[-1].content:
            return Reply(fault="server", detail="500")
        return play(request)

    recipe = RECIPE.replace("principles: all", "principles: all, quorum: 0.5")
    p = measure(make(tmp_path, 20, recipe, failing))["principles"]
    assert p["long"]["votes"] == {"invalid": 2 * p["long"]["pairs"]}
    assert p["long"]["margin"] is None
    assert p["long"]["others"]["value"] is None
    assert p["short"]["votes"].get("invalid") is None


@pytest.mark.parametrize("shape", ["votes", "pairs", "turned"])
def test_people_are_held_against_each_principle(tmp_path: Path, shape: str) -> None:
    view = make(tmp_path, 30)
    rows: list[dict[str, Any]] = []
    for walk in view.walks():
        for pair in walk.pairs.values():
            if (c := pair.comparison) is None or pair.verdict is None or len(c.a.split()) == len(c.b.split()):
                continue
            c = c.swap() if shape == "turned" else c
            label = "A" if len(c.a.split()) < len(c.b.split()) else "B"  # the people like it short
            if shape == "votes":
                rows.append({"item": c.id, "rater": "ann", "kind": "human", "verdict": label})
            else:
                rows.append({"prompt": c.prompt.messages[0].content, "a": c.a, "b": c.b, "label": label})
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    f = measure(view, stats.people_of(view, tmp_path / "labels.jsonl"))
    assert f["labelled"] == len(rows)
    assert f["principles"]["short"]["people"]["value"] == 1
    assert f["principles"]["long"]["people"]["value"] == 0
    assert f["principles"]["first"]["people"]["value"] == 0


def test_labels_of_other_pairs_are_refused(tmp_path: Path) -> None:
    view = make(tmp_path, 5)
    vote = {"item": "x", "rater": "ann", "kind": "human", "verdict": "A"}
    (tmp_path / "labels.jsonl").write_text(json.dumps(vote) + "\n")
    with pytest.raises(DataError, match="labels no pair of this run"):
        stats.people_of(view, tmp_path / "labels.jsonl")
    with pytest.raises(RunFolderError, match="no run here"):
        _chains.open_run(tmp_path)


@pytest.mark.parametrize(
    ("critique", "found"),
    [
        ("I find no fault.", False),
        ("There is no caveat.", True),
        ("There is an insult: “You fool.”", True),
        ("There are no issues with this reply. It is polite.", False),
        ("The reply has no problems, but it is long.", True),
        ("I see nothing to fix.", False),
        ("The reply does not break the rule.", False),
        ("No source is named for the claim.", True),
    ],
)
def test_what_a_critique_finds(critique: str, found: bool) -> None:
    assert finds(critique) is found


def test_the_command_shows_a_table_a_page_and_a_matrix(tmp_path: Path) -> None:
    view = make(tmp_path, 40)
    out, held = tmp_path / "out", tmp_path / "stats.json"
    command = ["constitution", "stats", str(view.folder), "--out", str(out), "--json", str(held)]
    said = CliRunner().invoke(app, command, catch_exceptions=False).output
    assert "alike: short and brief" in said
    assert "in conflict: short and long" in said
    assert json.loads(held.read_text())["matrix"]
    assert "<svg" in (out / "plots/matrix.svg").read_text()
    assert "data:image/svg+xml" in (out / "report.html").read_text()
    again = stats.matrix(["short", "brief", "long", "first", "never"], json.loads(held.read_text())["matrix"])
    assert again == (out / "plots/matrix.svg").read_text()


def test_stats_only_read_the_run(tmp_path: Path) -> None:
    view = make(tmp_path, 5)
    before = (view.folder / "rows.sqlite").read_bytes()
    measure(view)
    with Rows(view.folder, readonly=True) as rows:
        assert rows.counts().prompts == 5
    assert (view.folder / "rows.sqlite").read_bytes() == before
