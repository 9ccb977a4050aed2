"""What an edit of a constitution changes: by meaning, in a run that was paid for, and in the rerun."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import constitution
from constitution import diff, snapshot
from constitution.draw import draw
from constitution.loader import packaged
from service import _chains, _replay, run, runs
from service import constitution_edits as edits
from service import recipe as recipes
from service.cli import app
from service.pipeline import Window
from tenet.engines import Reply, Request
from tenet.engines.scripted import ScriptedEngine
from tenet.errors import ConstitutionError, RunFolderError
from tenet.ledger import Rows
from tenet.records import Usage
from tenet.worddiff import marked, pieces

RECIPE = """
prompts: {path: prompts.jsonl}
constitution: ./mine.yaml
models:
  m: {kind: scripted}
revise: {rounds: 2}
pairs: [{kind: samples}, {kind: initial_vs_revision}]
"""
SIXTEEN = "name: mine\nversion: '1'\nprinciples:\n" + "".join(
    f"- id: p{i}\n  critique: Say where rule {i} is broken.\n  revise: Mend what breaks rule {i}.\n"
    f"  choose: Which reply keeps rule {i}?\n  score: How well is rule {i} kept?\n"
    for i in range(16)
)


def play(request: Request) -> Reply:
    """Every question has an answer of its own, so a chain behind a changed question changes to its end."""
    key = request.key("")
    usage = Usage(calls=1, prompt_tokens=sum(len(m.content.split()) for m in request.messages), completion_tokens=8)
    if request.choices:
        p = 0.02 + 0.96 * int(key[:6], 16) / 0xFFFFFF
        return Reply(choice_logprobs=(math.log(p), math.log(1 - p)), usage=usage)
    long = hashlib.sha512(key.encode()).hexdigest()
    return Reply(text=" ".join(long[i : i + 4] for i in range(0, 128, 4)), usage=usage)


def write(folder: Path, prompts: int = 60, recipe: str = RECIPE, rules: str = SIXTEEN) -> Path:
    rows = [json.dumps({"prompt": f"Question number {i}?"}) for i in range(prompts)]
    (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "mine.yaml").write_text(rules)
    (folder / "recipe.yaml").write_text(recipe)
    return folder / "recipe.yaml"


def go(recipe: Path, out: str, script: Any = play, limit: int | None = None, **settings: str) -> dict[str, Any]:
    overrides = [f"{k.replace('__', '.')}={v}" for k, v in settings.items()]
    plan = recipes.open_recipe(recipe, overrides, str(recipe.parent / "runs" / out))
    return asyncio.run(run.execute(plan, Window(limit), engines={"m": ScriptedEngine(script, name="hash")}))


def stored(folder: Path) -> list[tuple[Any, ...]]:
    with Rows(folder, readonly=True) as rows:
        return [tuple(r) for r in rows.iterate()]


def sides(folder: Path, **files: str) -> list[diff.Side]:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return [diff.open_side(folder / f"{name}.yaml") for name in ("old", "new")]


# Words.


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("Keep it short.", "Keep it very short.", "Keep it {+very+} short."),
        ("tea, then milk", "tea then milk", "[-tea,-] {+tea+} then milk"),
        ("", "new words", "{+new words+}"),
        ("a  b", "a b", "[-a-] {+a+} b"),
    ],
)
def test_words_that_went_and_came_are_marked(old: str, new: str, said: str) -> None:
    found = pieces(old, new)
    assert "".join(p.text for p in found if p.op != "in") == old
    assert "".join(p.text for p in found if p.op != "out") == new
    assert marked(old, new) == said


# By meaning.


def test_every_kind_of_edit_is_told_by_what_it_means(tmp_path: Path) -> None:
    old, new = sides(
        tmp_path,
        old=SIXTEEN,
        new=SIXTEEN.replace("Say where rule 3 is broken.", "Say clearly where rule 3 is broken.")
        .replace("- id: p5\n", "- id: p5\n  weight: 2\n")
        .replace("- id: p7\n", "- id: p7\n  tags: [tone]\n  applies_when: [chat]\n")
        .replace("- id: p9\n", "- id: nine\n")
        .replace(SIXTEEN[SIXTEEN.index("- id: p15") :], "- id: fresh\n  choose: Which is fresh?\n")
        .replace("- id: p11\n", "- id: p11\n  title: Eleven\n")
        .replace("version: '1'", "version: '2'\npreamble: Serve the reader."),
    )
    edit = diff.diff(old, new)
    assert edit.kinds == {
        "added": 1, "removed": 1, "renamed": 1, "reworded": 1, "re-weighted": 1, "re-tagged": 1, "annotated": 1
    }  # fmt: skip
    by_kind = {c.kind: c for c in edit.changes}
    assert (by_kind["renamed"].id, by_kind["renamed"].became) == ("p9", "nine")
    assert by_kind["reworded"].stages == ("critique", "revise")
    assert by_kind["re-weighted"].fields[0].new == 2.0
    assert {f.name for f in edit.around} == {"version", "preamble"}
    assert edits.values(by_kind["reworded"].fields[0]) == "Say {+clearly+} where rule 3 is broken."


def test_the_same_file_and_another_order_of_its_lines(tmp_path: Path) -> None:
    old, new = sides(tmp_path, old=SIXTEEN, new="# remarks are no difference\n" + SIXTEEN)
    assert not diff.diff(old, new).changes
    at = SIXTEEN.index("- id: p1\n")
    head, rest = SIXTEEN[:at], SIXTEEN[at:]
    later = rest.index("- id: p2\n")
    old, new = sides(tmp_path, old=SIXTEEN, new=head + rest[later:] + rest[:later])
    edit = diff.diff(old, new)
    assert [(c.kind, c.id) for c in edit.changes] == [("moved", "p1")]
    assert edit.old_hash != edit.new_hash


def test_a_change_in_a_parent_is_named_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    child = "name: child\nextends: ./base.yaml\nprinciples:\n- {id: p2, weight: 3}\n- {id: own, choose: Whose?}\n"
    for folder, base in (("a", SIXTEEN), ("b", SIXTEEN.replace("keeps rule 2?", "minds rule 2?"))):
        (tmp_path / folder / "base.yaml").write_text(base)
        (tmp_path / folder / "child.yaml").write_text(child)
    (tmp_path / "b/child.yaml").write_text(child.replace("weight: 3", "weight: 4") + "remove: [p8]\n")
    edit = diff.diff(*(diff.open_side(tmp_path / f / "child.yaml") for f in "ab"))
    found = {c.kind: (c.id, c.source, c.inherited) for c in edit.changes}
    assert found == {
        "removed": ("p8", "child.yaml", False),
        "reworded": ("p2", "base.yaml", True),
        "re-weighted": ("p2", "child.yaml", False),
    }


def test_sides_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConstitutionError, match="harmless"):
        edits.open_side("harmles")
    with pytest.raises(RunFolderError, match="no run here"):
        edits.open_side(tmp_path)


# The snapshot.


@pytest.mark.parametrize("name", packaged())
def test_a_snapshot_loads_as_what_it_was_made_of(tmp_path: Path, name: str) -> None:
    rules = constitution.load(name)
    again = constitution.load(snapshot.save(rules, tmp_path))
    assert (again.hash, again.by_id.keys()) == (rules.hash, rules.by_id.keys())


def test_a_snapshot_keeps_odd_texts_to_the_letter(tmp_path: Path) -> None:
    odd = ["no", "{revise} </reply_a> <|end|>", "1e3", "a: b # c", "'\"", "two\nlines", "snow ☃ \U0001f600", "- x"]
    said = [json.dumps(t, ensure_ascii=False) for t in odd]
    lines = [f"- {{id: o{i}, weight: {0.1 + i}, choose: {t}}}" for i, t in enumerate(said)]
    (tmp_path / "odd.yaml").write_text("name: odd\nprinciples:\n" + "\n".join(lines) + "\n")
    rules = constitution.load(tmp_path / "odd.yaml")
    assert constitution.load(snapshot.save(rules, tmp_path)) == rules.model_copy(update={"extends": ()})


# A run that was paid for, and its rerun.


SLIM = RECIPE.replace("{kind: samples}, ", "") + "respond: {samples: 1}\njudge: {kind: pairwise, order: random}\n"
"""Six calls a prompt: a reply, two critiques, two revisions, a judgement."""


def required(recipe: Path, edited: str, prompts: int) -> int:
    """Calls of a SLIM run that the draws of a principle reworded for every stage require: from its first critique on
    the chain to its end, and the judgement if the reply or the question is another one."""
    plan = recipes.open_recipe(recipe, [], str(recipe.parent / "runs/none"))
    rules, n = plan.constitution.principles, 0
    for prompt in (next_prompt(i) for i in range(prompts)):
        rounds = [draw(rules, 1, plan.recipe.seed, prompt.id, "revise", 0, r)[0].id for r in (1, 2)]
        left = 2 - rounds.index(edited) if edited in rounds else 0
        judged = draw(rules, 1, plan.recipe.seed, prompt.id, "judge", "revision 0")[0].id
        n += 2 * left + (left > 0 or judged == edited)
    return n


def next_prompt(i: int) -> Any:
    from tenet.records import Message, Prompt

    return Prompt(messages=(Message(role="user", content=f"Question number {i}?"),))


def test_a_rerun_on_1000_prompts_asks_only_what_the_edited_principles_draws_require(tmp_path: Path) -> None:
    recipe = write(tmp_path, 1000, SLIM)
    first = go(recipe, "one")
    before = stored(tmp_path / "runs/one")
    edited = SIXTEEN.replace("rule 3", "the third rule")
    (tmp_path / "mine.yaml").write_text(edited)
    told = _replay.impact(_chains.open_run(tmp_path / "runs/one"), constitution.load(tmp_path / "mine.yaml"))
    again = go(recipe, "two")
    need = required(recipe, "p3", 1000)
    assert first["asked"] == 6_000
    assert need <= again["asked"] <= 1.05 * need
    assert again["asked"] + again["reused"] == 6_000
    assert (told.most, told.stored) == (again["asked"], again["reused"])  # as `diff --run` had said beforehand
    touched = runs.compare(*(_chains.open_run(tmp_path / "runs" / n) for n in ("one", "two"))).prompts["touched"]
    assert told.prompts_touched == touched > 0
    assert stored(tmp_path / "runs/one") == before  # the old run stays as it was


def test_a_rerun_gives_the_rows_and_exports_of_a_run_from_nothing(tmp_path: Path) -> None:
    recipe = write(tmp_path, 100)
    whole = go(recipe, "one")["asked"]
    (tmp_path / "mine.yaml").write_text(SIXTEEN.replace("rule 3", "the third rule"))
    assert 0 < go(recipe, "two")["asked"] < whole / 5
    from_nothing = go(recipe, "elsewhere/two")  # a workspace of its own, without stored replies
    assert (from_nothing["asked"], from_nothing["reused"]) == (whole, 0)
    assert stored(tmp_path / "runs/elsewhere/two") == stored(tmp_path / "runs/two")
    assert hashes(tmp_path / "runs/elsewhere/two") == hashes(tmp_path / "runs/two")


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((folder / "data").iterdir())}


@pytest.mark.parametrize(
    ("edit", "judge"),
    [
        (("- id: p15\n", "- id: fifteen\n"), "{kind: pairwise}"),
        (("- id: p4\n", "- id: p4\n  weight: 5\n"), "{kind: pairwise, principles: 3, order: random}"),
        (("Mend what breaks rule 2.", "Mend rule 2."), "{kind: pointwise, principles: 2}"),
        (("keeps rule 6?", "minds rule 6?"), "{kind: pairwise, cot: true, principles: all}"),
        (("name: mine\n", "name: mine\npreamble: You serve.\n"), "{kind: pairwise}"),
        (("Which", "Which"), "{kind: pairwise}"),
    ],
)  # fmt: skip
def test_what_an_edit_costs_is_known_before_it_is_paid(tmp_path: Path, edit: tuple[str, str], judge: str) -> None:
    def script(request: Request) -> Reply:
        if len(request.choices) == 10:
            ps = [1 + int(request.key("")[i], 16) for i in range(10)]
            return Reply(choice_logprobs=tuple(math.log(p / sum(ps)) for p in ps), usage=Usage(calls=1))
        return play(request)

    recipe = write(tmp_path, 12, RECIPE + f"judge: {judge}\n")
    go(recipe, "one", script)
    (tmp_path / "mine.yaml").write_text(SIXTEEN.replace(*edit, 1))
    view, new = _chains.open_run(tmp_path / "runs/one"), constitution.load(tmp_path / "mine.yaml")
    told = _replay.impact(view, new)
    again = go(recipe, "two", script)
    assert told.most == again["asked"]
    assert told.certain <= told.most
    assert _replay.impact(view, new).most == 0  # now it is paid


def test_a_reply_that_comes_back_to_the_letter_ends_what_an_edit_touches(tmp_path: Path) -> None:
    def stubborn(request: Request) -> Reply:
        return play(request) if request.choices else Reply(text=request.messages[0].content, usage=Usage(calls=1))

    recipe = write(tmp_path, 30)
    go(recipe, "one", stubborn)
    (tmp_path / "mine.yaml").write_text(SIXTEEN.replace("Say where rule 3", "Tell where rule 3"))
    told = _replay.impact(_chains.open_run(tmp_path / "runs/one"), constitution.load(tmp_path / "mine.yaml"))
    asked = go(recipe, "two", stubborn)["asked"]
    assert 0 < told.certain <= asked < told.most


def test_labels_that_the_ledger_knows_already_are_told(tmp_path: Path) -> None:
    recipe = write(tmp_path)
    go(recipe, "one")
    (tmp_path / "mine.yaml").write_text(SIXTEEN.replace("rule 3", "the third rule"))
    go(recipe, "two")
    told = _replay.impact(_chains.open_run(tmp_path / "runs/one"), constitution.load(tmp_path / "mine.yaml"))
    assert told.labels == 120
    assert sum(told.labels_known.values()) == told.labels_touched > 0
    assert told.labels_known["changed"] > 0


def test_diff_with_a_run_says_what_it_cannot_know(tmp_path: Path) -> None:
    recipe = write(tmp_path, 20)
    go(recipe, "one", limit=10)
    (tmp_path / "runs/calls.sqlite").rename(tmp_path / "gone.sqlite")
    rules = constitution.load(tmp_path / "mine.yaml")
    told = _replay.impact(_chains.open_run(tmp_path / "runs/one"), rules)
    assert (told.prompts, told.prompts_touched, told.stored) == (10, 0, 0)
    assert "no calls.sqlite" in told.notes[0]


def test_the_command_tells_it_in_three_formats(tmp_path: Path) -> None:
    recipe = write(tmp_path)
    go(recipe, "one")
    (tmp_path / "new.yaml").write_text(SIXTEEN.replace("keeps rule 3?", "keeps [the] *third* rule?"))
    run_folder = str(tmp_path / "runs/one")
    # the run's own snapshot stands for what it used, whatever became of the file
    (tmp_path / "mine.yaml").write_text("name: other\nprinciples: [{id: x, choose: Which?}]\n")
    command = ["constitution", "diff", run_folder, str(tmp_path / "new.yaml"), "--run", run_folder]
    said = CliRunner().invoke(app, command, catch_exceptions=False).output
    assert "1 reworded" in said
    assert "Which reply keeps [-rule 3-]{+[the] *third* rule+}?" in said
    assert "A rerun reuses" in said
    told = json.loads(CliRunner().invoke(app, [*command, "--format", "json"], catch_exceptions=False).output)
    assert told["kinds"] == {"reworded": 1}
    assert told["run"]["ask"]["most"] == sum(s["certain"] + s["follow"] for s in told["run"]["steps"].values()) > 0
    assert told["run"]["steps"]["critique"]["certain"] == 0
    md = CliRunner().invoke(app, [*command, "--format", "md"], catch_exceptions=False).output
    assert md.startswith("# What the edit changes")
    assert "{+[the] *third* rule+}" in md
    wrong = CliRunner().invoke(app, [*command, "--format", "xml"])
    assert wrong.exit_code
    assert "no format 'xml'" in str(wrong.exception)


# While a run is going.


def test_a_constitution_edited_while_a_run_is_going_changes_nothing_and_the_run_says_so(tmp_path: Path) -> None:
    recipe, n = write(tmp_path), 0

    def editing(request: Request) -> Reply:
        nonlocal n
        n += 1
        if n == 100:
            (tmp_path / "mine.yaml").write_text(SIXTEEN.replace("rule 3", "the third rule"))
        return play(request)

    m = go(recipe, "one", editing)
    assert "says something else now" in m["constitution_edited"]
    assert "third rule" not in (tmp_path / "runs/one/constitution.yaml").read_text()
    assert constitution.load(tmp_path / "runs/one/constitution.yaml").hash == m["constitution"]["hash"]
    (tmp_path / "mine.yaml").write_text(SIXTEEN)
    calm = go(recipe, "two")
    assert calm["constitution_edited"] == ""
    assert stored(tmp_path / "runs/one") == stored(tmp_path / "runs/two")
    (tmp_path / "mine.yaml").write_text(SIXTEEN.replace("rule 3", "the third rule"))
    with pytest.raises(RunFolderError, match="one-2 makes a run beside it"):
        go(recipe, "one")


def test_a_constitution_that_is_broken_or_gone_at_the_end_is_told_too(tmp_path: Path) -> None:
    recipe, n = write(tmp_path, 10), 0

    def breaking(request: Request) -> Reply:
        nonlocal n
        n += 1
        if n == 20:
            (tmp_path / "mine.yaml").write_text("name: [")
        return play(request)

    m = go(recipe, "one", breaking)
    assert m["state"] == "whole"
    assert "cannot be read any more" in m["constitution_edited"]


def test_generate_says_how_many_replies_it_reused_and_that_the_file_was_edited(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from service import screen

    recipe = write(tmp_path, 10)
    go(recipe, "one")
    (tmp_path / "mine.yaml").write_text(SIXTEEN.replace("rule 3", "the third rule"))
    m = go(recipe, "two")
    plan = recipes.open_recipe(recipe, [], str(tmp_path / "runs/two"))
    screen.show_summary(plan, {**m, "constitution_edited": "it says something else now (hash 0)"})
    said = " ".join(capsys.readouterr().out.split())
    assert f"reused {m['reused']:,} stored replies, asked {m['asked']:,}" in said
    assert "The constitution was edited while this run was going" in said


def test_a_note_on_a_principle_touches_no_label_and_costs_no_call(tmp_path: Path) -> None:
    recipe = write(tmp_path, 20)
    go(recipe, "one")
    (tmp_path / "mine.yaml").write_text(SIXTEEN.replace("- id: p3\n", "- id: p3\n  title: Three\n  source: us\n"))
    view, new = _chains.open_run(tmp_path / "runs/one"), constitution.load(tmp_path / "mine.yaml")
    told = _replay.impact(view, new)
    assert (told.prompts_touched, told.labels_touched, told.most) == (0, 0, 0)
    assert go(recipe, "two")["asked"] == 0


def test_an_edit_that_leaves_the_recipe_without_a_text_is_refused(tmp_path: Path) -> None:
    recipe = write(tmp_path, 3)
    go(recipe, "one")
    (tmp_path / "mine.yaml").write_text(SIXTEEN.replace("  revise: Mend what breaks rule 3.\n", ""))
    with pytest.raises(ConstitutionError, match="'p3' has no 'revise'"):
        _replay.impact(_chains.open_run(tmp_path / "runs/one"), constitution.load(tmp_path / "mine.yaml"))


def test_long_replies_cost_no_less_than_short_ones(tmp_path: Path) -> None:
    def long(request: Request) -> Reply:
        said = play(request)
        parts = (hashlib.sha512(f"{said.text}{i}".encode()).hexdigest() for i in range(6))
        return said if request.choices else said.model_copy(update={"text": " ".join(parts)})

    recipe = write(tmp_path, 10, RECIPE + "keep: {length_ratio: 1.5}\n")
    go(recipe, "one", long)
    (tmp_path / "mine.yaml").write_text(SIXTEEN.replace("Say where rule", "Tell where rule"))
    told = _replay.impact(_chains.open_run(tmp_path / "runs/one"), constitution.load(tmp_path / "mine.yaml"))
    assert told.most == go(recipe, "two", long)["asked"] == 10 * (8 + 2)


def test_a_packaged_name_means_the_constitution_whatever_folder_lies_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nano").mkdir()
    monkeypatch.chdir(tmp_path)
    assert edits.open_side("nano").constitution.name == "nano"
