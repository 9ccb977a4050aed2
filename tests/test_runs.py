"""`tenet runs`: the runs of a workspace, and what differs between two of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service import _chains, runs
from service.cli import app
from tenet.errors import RunFolderError
from tenet.ledger import Rows
from tests.test_edits import SIXTEEN, go, stored, write


def said(*command: str) -> str:
    return " ".join(CliRunner().invoke(app, ["runs", *command], catch_exceptions=False).output.split())


def test_runs_are_listed_with_their_constitutions(tmp_path: Path) -> None:
    recipe = write(tmp_path, 12)
    first = go(recipe, "one")
    (tmp_path / "mine.yaml").write_text(SIXTEEN.replace("version: '1'", "version: '2'").replace("rule 3", "rule three"))
    second = go(recipe, "two", limit=6)
    (tmp_path / "runs/notes").mkdir()
    found = {s.run: s for s in runs.listed(tmp_path / "runs")}
    assert list(found) == ["one", "two"]
    one, two = found["one"], found["two"]
    assert (one.constitution, one.version, one.hash) == ("mine", "1", first["constitution"]["hash"])
    assert (two.version, two.prompts, two.state) == ("2", 6, "whole")
    assert (one.reused, one.asked, two.reused, two.asked) == (
        first["reused"], first["asked"], second["reused"], second["asked"]
    )  # fmt: skip
    shown = said("--workspace", str(tmp_path / "runs"))
    assert f"one mine 1 {one.hash[:8]} 12" in shown
    told = json.loads(
        CliRunner().invoke(app, ["runs", "--workspace", str(tmp_path / "runs"), "--format", "json"]).output
    )
    assert [r["version"] for r in told] == ["1", "2"]


def test_a_run_that_is_going_interrupted_or_damaged_is_listed_as_what_it_is(tmp_path: Path) -> None:
    recipe = write(tmp_path, 5)
    go(recipe, "one")
    (tmp_path / "runs/one/manifest.json").unlink()
    state = {s.run: s for s in runs.listed(tmp_path / "runs")}
    assert (state["one"].state, state["one"].prompts, state["one"].version) == ("interrupted", 5, "1")
    with Rows(tmp_path / "runs/one"):
        assert runs.listed(tmp_path / "runs")[0].state == "going"
    go(recipe, "two")
    (tmp_path / "runs/two/manifest.json").write_text("{half")
    state = {s.run: s for s in runs.listed(tmp_path / "runs")}
    assert state["two"].state.startswith("cannot be read")
    assert state["one"].state == "interrupted"


def test_a_run_of_an_older_version_without_a_snapshot_is_read_from_its_manifest(tmp_path: Path) -> None:
    recipe = write(tmp_path, 5)
    m = go(recipe, "one")
    (tmp_path / "runs/one/constitution.yaml").unlink()
    assert _chains.constitution_of(tmp_path / "runs/one").hash == m["constitution"]["hash"]
    assert runs.listed(tmp_path / "runs")[0].version == "1"


def test_labels_and_rows_that_differ_between_two_runs(tmp_path: Path) -> None:
    recipe = write(tmp_path)
    go(recipe, "one")
    (tmp_path / "mine.yaml").write_text(SIXTEEN.replace("keeps rule 3?", "minds rule 3?"))
    go(recipe, "two")
    one, two = (_chains.open_run(tmp_path / "runs" / n) for n in ("one", "two"))
    d = runs.compare(one, two)
    # that a record is from a new wording of the principle is no change of what it says
    stamp = re.compile(r'"(?:hashes":\[[^]]*\]|principle_hash":"[^"]*"),?')
    records = [{(r[0], r[1]): stamp.sub("", r[4]) for r in stored(tmp_path / "runs" / n)} for n in ("one", "two")]
    differ = {k for k in records[0] if records[0][k] != records[1][k]}
    assert d.prompts == {"both": 60, "touched": len({ordinal for ordinal, _ in differ})}
    assert d.rows["candidate"]["changed"] == 0  # only a question to the judge changed
    assert sum(n["changed"] for n in d.rows.values()) == len(differ) > 0
    assert d.labels["pairs"] == 120
    assert len(d.changes) == d.labels["changed"] > 0
    assert all({c.before, c.after} == {"A", "B"} for c in d.changes)
    shown = said("diff", str(one.folder), str(two.folder), "--limit", "1")
    assert "constitution: 1 reworded" in shown
    assert f"of which {len(d.changes)} changed" in shown
    same = runs.compare(one, one)
    assert (same.prompts["touched"], same.labels["changed"], same.changes) == (0, 0, [])


def test_runs_over_other_prompts_in_another_order_meet_where_they_can(tmp_path: Path) -> None:
    recipe = write(tmp_path, 20)
    go(recipe, "one")
    lines = (tmp_path / "prompts.jsonl").read_text().splitlines()
    more = [json.dumps({"prompt": f"Another {i}?"}) for i in range(3)]
    (tmp_path / "prompts.jsonl").write_text("\n".join([*more, *reversed(lines[5:])]) + "\n")
    go(recipe, "two")
    one, two = (_chains.open_run(tmp_path / "runs" / n) for n in ("one", "two"))
    d = runs.compare(one, two)
    assert d.prompts == {"both": 15, "touched": 0, "first only": 5, "second only": 3}
    assert d.rows["prompt"] == {"same": 15, "restamped": 0, "changed": 0, "first only": 5, "second only": 3}


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no run here"):
        runs.show_difference(tmp_path, tmp_path, "text")
    with pytest.raises(RunFolderError, match="no such folder"):
        runs.listed(tmp_path / "gone")
    assert "no runs in" in said("--workspace", str(tmp_path))
