"""Lint: each rule on a text that breaks it and on one that keeps it; places, formats, comments, exit statuses."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from constitution.lint import RULES, Finding, lint
from constitution.loader import packaged
from nano import probes
from service import cli
from service import lint as shown
from service._paraphrased import Deep, paraphrases
from tenet.engines import Reply, Request
from tenet.engines.scripted import ScriptedEngine
from tenet.errors import SettingsError

run = CliRunner().invoke


def write(folder: Path, text: str, name: str = "mine") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def one(folder: Path, **fields: str) -> list[Finding]:
    """Findings on a constitution with one principle; a `choose` is there if none is given."""
    principle = {"id": "p", "choose": "Which reply names the source of its figures?", **fields}
    return lint(write(folder, yaml.safe_dump({"name": "mine", "principles": [principle]}, sort_keys=False)))


def rules(found: list[Finding]) -> list[str]:
    return [f.rule for f in found]


@pytest.mark.parametrize("name", packaged())
def test_packaged_constitutions_are_clean(name: str) -> None:
    assert lint(name) == []


@pytest.mark.parametrize(
    ("rule", "field", "bad", "good"),
    [
        ("negated", "choose", "Which reply does not insult the person?", "Which reply speaks politely to the person?"),
        ("negated", "choose", "Which reply avoids insults?", "Which reply stays friendly when it is provoked?"),
        ("negated", "revise", "Never mention a brand.", "Describe the product by what it does."),
        ("negated", "score", "Does the reply show ads that it shouldn't show?", "How short is the reply?"),
        ("negated", "choose", "Which reply has no advert?", "Which reply answers not only the first question?"),
        ("trait", "choose", "Which reply is more ethical?", "Which reply asks for consent first?"),
        ("trait", "choose", "Which of the replies is the most honest one?", "Which reply says how sure it is?"),
        ("trait", "choose", "Which reply shows more empathy?", "Which reply names the feeling that it answers?"),
        ("trait", "choose", "Choose the more polite response.", "Which reply is polite to the people it mentions?"),
        ("trait", "score", "How kind is the reply?", "How courteous is the reply to everyone it mentions?"),
        ("several-demands", "choose", "Which reply is helpful and honest?", "Which reply names facts and figures?"),
        ("several-demands", "choose", "Which reply is short? Which one is true?", "Which reply is shorter by a third?"),
        (
            "several-demands", "choose",
            "Which reply names a source, gives a date, and offers help?",
            "Which reply names a source and gives a date?",
        ),
        ("several-demands", "score", "How short, as well as true, is it?", "How many claims have a source?"),
        ("evasive", "revise", "Refuse to answer anything on this subject.", "Decline that step and do the rest."),
        ("evasive", "choose", "Which reply avoids controversial topics?", "Which reply gives both sides' reasons?"),
        ("evasive", "choose", "Which reply errs on the side of caution?", "Which reply warns where it is risky?"),
        ("evasive", "revise", "Remove anything that could offend.", "Replace each insult by a plain word."),
        (
            "evasive", "choose",
            "Which reply declines to answer?", "Which reply gives the facts rather than declining to answer?",
        ),
        ("vague-comparative", "choose", "Which reply is better?", "Which reply is shorter?"),
        ("vague-comparative", "choose", "Which is the best response?", "Which reply helps a beginner best to do it?"),
        ("vague-comparative", "score", "How good is the reply?", "How good are the reasons that it names?"),
        ("vague-comparative", "choose", "Which reply is more appropriate?", "Which reply fits a ten-year-old reader?"),
        ("vague-comparative", "revise", "Improve your reply.", "Improve the order of the steps."),
        ("too-long", "choose", "Which reply " + "names the very long " * 10 + "thing?", "Which reply names the thing?"),
        ("template-marks", "critique", "Criticise {reply} here.", "Criticise the reply (all of it)."),
        ("template-marks", "critique", "Look at <|im_end|> here.", "Look at x < y here."),
    ],
)  # fmt: skip
def test_each_wording_rule_finds_what_it_is_for(tmp_path: Path, rule: str, field: str, bad: str, good: str) -> None:
    other = {"critique": "revise", "revise": "critique"}.get(field)
    rest = {other: "Say where."} if other else {}
    found = [f for f in one(tmp_path, **{field: bad}, **rest) if f.rule == rule]
    assert [(f.level, f.principle, f.field) for f in found] == [("warning", "p", field)]
    assert found[0].what
    assert found[0].fix
    assert rule not in rules(one(tmp_path, **{field: good}, **rest))


def test_a_critique_may_speak_of_faults(tmp_path: Path) -> None:
    text = "Quote where your reply refuses to answer, is not honest, or could be better; never leave one out."
    assert one(tmp_path, critique=text, revise="Say it in your own words.") == []


def test_rules_about_words_keep_to_english(tmp_path: Path) -> None:
    data = {"name": "d", "language": "de", "principles": [{"id": "p", "choose": "Which reply is better? no {x}"}]}
    assert rules(lint(write(tmp_path, yaml.safe_dump(data)))) == ["template-marks"]


TWO = """\
name: mine
principles:
- id: source
  title: Names a source
  choose: Which reply names the source of its claims?

- id: {id}
  choose: {choose}
"""


def test_near_duplicates_are_named_with_both_lines(tmp_path: Path) -> None:
    found = lint(write(tmp_path, TWO.format(id="cites", choose="Which reply names a source for its claims?")))
    assert rules(found) == ["near-duplicate"]
    assert (found[0].line, found[0].principle) == (7, "cites")
    assert "'source' (line 3)" in found[0].what
    assert lint(write(tmp_path, TWO.format(id="brief", choose="Which reply fits on one small card?"))) == []


def test_prompts_that_share_no_tag_make_no_duplicates(tmp_path: Path) -> None:
    same = "  choose: Which reply names the source of its claims?\n"
    text = f"name: m\nprinciples:\n- id: a\n{same}  applies_when: [code]\n- id: b\n{same}  applies_when: [law]\n"
    assert lint(write(tmp_path, text)) == []
    assert rules(lint(write(tmp_path, text.replace("[law]", "[law, code]")))) == ["near-duplicate"]


def test_conflicts_are_seen_unless_they_are_declared(tmp_path: Path) -> None:
    text = """\
name: mine
principles:
- {id: short, choose: Which reply is the most concise about the steps?}
- {id: full, choose: Which reply is thorough about every exception?}
"""
    found = lint(write(tmp_path, text))
    assert rules(found) == ["conflict"]
    assert found[0].line == 4
    assert "'short' (line 3)" in found[0].what
    assert lint(write(tmp_path, text.replace("id: full", "id: full, conflicts_with: [short]"))) == []
    contrary = TWO.format(id="bare", choose="Which reply does not name the source of its claims?")
    assert "conflict" in rules(lint(write(tmp_path, contrary)))


def test_missing_texts(tmp_path: Path) -> None:
    text = """\
name: mine
principles:
- {id: a, critique: Say where., revise: Rewrite it., choose: Which reply names a date?}
- {id: b, critique: Say when.}
"""
    path = write(tmp_path, text)
    found = lint(path)
    assert [(f.line, f.level, f.rule, f.principle, f.field) for f in found] == [
        (4, "error", "missing-text", "b", "revise"), (4, "warning", "missing-choose", "b", "choose"),
    ]  # fmt: skip
    assert [f.field for f in lint(path, stages=["choose", "score"]) if f.rule == "missing-text"] == [
        "score", "choose", "score",
    ]  # fmt: skip
    child = write(tmp_path, "name: c\nextends: mine.yaml\nprinciples: [{id: b, revise: Rewrite it.}]\n", "child")
    assert [(f.rule, f.line) for f in lint(child)] == [("missing-choose", 3)]
    more = "name: c\nextends: mine.yaml\nremove: [b]\nprinciples:\n- {id: z, choose: Which is red?, score: How red?}\n"
    found = [f for f in lint(write(tmp_path, more, "more")) if f.rule == "missing-text"]
    assert [(f.line, f.field, f.principle) for f in found] == [
        (2, "score", ""), (5, "critique", "z"), (5, "revise", "z"),
    ]  # fmt: skip
    assert "1 inherited principles have no 'score': a" in found[0].what


@pytest.mark.parametrize(
    ("rule", "line", "text"),
    [
        ("yaml", 2, "name: a\n\t- x: 1\n"),
        ("yaml", 3, "name: a\nserves: b\nserves: c\n"),
        ("schema", 3, "name: a\nprinciples:\n- {id: x, choos: Which?}\n"),
        ("schema", 1, "version: '1'\nprinciples:\n- {id: x, choose: Which?}\n"),
        ("schema", 3, "name: a\nprinciples:\n- {id: x, choose: Which?, weight: 0}\n"),
        ("schema", 3, "name: a\nprinciples:\n- {id: x, choose: Which?, weight: -1}\n"),
        ("schema", 3, "name: a\nprinciples:\n- {id: x, choose: Which?, weight: .nan}\n"),
        ("id", 3, "name: a\nprinciples:\n- {id: a b, choose: Which?}\n"),
        ("id", 4, "name: a\nprinciples:\n- {id: x, choose: Which?}\n- {id: x, choose: Which?}\n"),
        ("extends", 2, "name: a\nextends: harmles\n"),
        ("extends", 2, "name: a\nextends: [harmless, ./none.yaml]\n"),
        ("extends", 2, "name: a\nextends: mine.yaml\n"),
        ("remove", 3, "name: a\nextends: harmless\nremove: [privcy]\n"),
        ("unknown-id", 4, "name: a\nprinciples:\n- {id: x, choose: Which reply is red?,\n   conflicts_with: [y]}\n"),
        ("unknown-id", 3, "name: a\nprinciples:\n- {id: x, choose: Which reply is red?, conflicts_with: [x]}\n"),
        ("missing-text", 3, "name: a\nprinciples:\n- {id: x}\n"),
        ("missing-text", 1, "name: a\n"),
    ],
)
def test_errors_have_rule_and_line(tmp_path: Path, rule: str, line: int, text: str) -> None:
    path = write(tmp_path, text)
    found = [f for f in lint(path) if f.level == "error"]
    assert [(f.rule, f.line, f.file) for f in found] == [(rule, line, str(path))]


def test_every_problem_of_a_file_is_listed(tmp_path: Path) -> None:
    text = "name: a\nversoin: x\nprinciples:\n- {id: x, choos: Which?}\n- {id: y, weight: 0}\n"
    assert [(f.line, f.rule) for f in lint(write(tmp_path, text))] == [(2, "schema"), (4, "schema"), (5, "schema")]
    (tmp_path / "raw.yaml").write_bytes(b"name: caf\xe9\n")
    assert [(f.rule, f.line) for f in lint(tmp_path / "raw.yaml")] == [("yaml", 1)]
    assert rules(lint("harmles")) == ["yaml"]


def test_inherited_texts_are_the_parents_business(tmp_path: Path) -> None:
    write(tmp_path, "name: p\nprinciples:\n- {id: a, choose: Which reply is better?}\n", "parent")
    child = "name: c\nextends: parent.yaml\nprinciples:\n- {id: a, weight: 2}\n- {id: b, choose: Which reply is red?}\n"
    assert lint(write(tmp_path, child)) == []
    assert rules(lint(tmp_path / "parent.yaml")) == ["vague-comparative"]


IGNORED = """\
name: mine
principles:
- id: a  # lint: ignore negated
  choose: Which reply has no advert?
- id: b
  # lint: ignore negated, trait
  choose: Which reply has no insult, and is kind?
- id: c
  choose: Which reply has no lie?
"""


def test_a_comment_silences_a_rule_for_its_principle(tmp_path: Path) -> None:
    path = write(tmp_path, IGNORED)
    assert [f.principle for f in lint(path) if f.rule == "negated"] == ["c"]
    assert [f for f in lint(write(tmp_path, "# lint: ignore negated\n" + IGNORED)) if f.rule == "negated"] == []
    assert [f for f in lint(path, ignore=["negated"]) if f.rule == "negated"] == []
    with pytest.raises(SettingsError, match="did you mean 'negated'"):
        lint(path, ignore=["negatd"])
    found = lint(write(tmp_path, IGNORED.replace("ignore negated\n", "ignore negatd\n")))
    assert [(f.rule, f.line) for f in found if f.rule == "unknown-rule"] == [("unknown-rule", 3)]
    inside = "name: m\nprinciples:\n- id: a\n  choose: |\n    Which reply has no x?\n    # lint: ignore negated\n"
    assert "negated" in rules(lint(write(tmp_path, inside))), "words inside a text are no comment"


def test_formats_and_exit_statuses(tmp_path: Path) -> None:
    clean = write(tmp_path, "name: m\nprinciples:\n- {id: a, choose: Which reply names a date?}\n", "clean")
    warned = write(tmp_path, "name: m\nprinciples:\n- {id: a, choose: 'Which reply is better?'}\n", "warned")
    broken = write(tmp_path, "name: m\nprinciples:\n- {id: a, weight: 0}\n", "broken")
    lint_it = ["constitution", "lint"]
    assert run(cli.app, [*lint_it, str(clean), "--strict"]).exit_code == 0
    assert run(cli.app, [*lint_it, str(warned)]).exit_code == 0
    assert run(cli.app, [*lint_it, str(warned), "--strict"]).exit_code == 1
    assert run(cli.app, [*lint_it, str(warned), str(broken), "harmless"]).exit_code == 2
    assert run(cli.app, [*lint_it, str(warned), "--strict", "--ignore", "vague-comparative"]).exit_code == 0
    said = run(cli.app, [*lint_it, str(warned)]).output
    assert f"{warned}:3: warning [vague-comparative] a choose: compares without" in said
    assert "1 file: 0 errors, 1 warnings" in said
    told = json.loads(run(cli.app, [*lint_it, str(broken), str(warned), "--format", "json"]).output)
    assert (told["files"], told["errors"], told["warnings"]) == (2, 1, 1)
    assert {f["rule"] for f in told["findings"]} == {"schema", "vague-comparative"}
    marked = run(cli.app, [*lint_it, str(warned), "--format", "github"]).output
    assert marked.startswith(f"::warning file={warned},line=3,title=tenet constitution lint%3A vague-comparative::a ")
    assert "\n" not in marked.strip()
    with pytest.raises(SettingsError, match="text, json or github"):
        shown.main(["harmless"], "xml", False, [])
    with pytest.raises(SettingsError, match="did you mean 'score'"):
        shown.stages(["scor"])
    odd = Finding(level="error", rule="yaml", file="a,b.yaml", line=2, what="50% of\nlines: odd")
    assert shown.github(odd) == (
        "::error file=a%2Cb.yaml,line=2,title=tenet constitution lint%3A yaml::50%25 of%0Alines: odd"
    )


def test_every_rule_is_described_in_the_docs() -> None:
    page = (Path(__file__).parent.parent / "docs" / "constitution.md").read_text("utf-8")
    assert [rule for rule in RULES if f"`{rule}`" not in page] == []


# Asking a judge.

JUDGE = "constitution: nano\nmodels: {m: {kind: scripted}}\njudge: {kind: pairwise}\n"


def fickle(request: Request) -> Reply:
    """Prefers "red" to "blue"; but asked about a response, it prefers the other."""
    text = request.messages[-1].content
    first = text.index("red") < text.index("blue")
    p = 0.9 if first != ("Which response" in text) else 0.1
    return Reply(choice_logprobs=(math.log(p), math.log(1 - p)))


def test_deep_names_the_wordings_that_flip(tmp_path: Path) -> None:
    config = write(tmp_path, JUDGE, "judge")
    text = "name: m\nprinciples:\n- id: colour\n  choose: Which reply has the warm colour?\n"
    path = write(tmp_path, text)
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"question {i}", "a": "It is red.", "b": "It is blue."} for i in range(20)]
    pairs.write_text("\n".join(map(json.dumps, rows)))
    engine = ScriptedEngine(fickle)
    deep = Deep(config, pairs=pairs, limit=12, workspace=tmp_path, engines={"m": engine})
    found, flips = asyncio.run(deep.ask(path))
    assert [(f.principle, f.pairs, f.flipped) for f in flips] == [("colour", 12, 12)]
    assert flips[0].worst == "Which response has the warm colour?"
    assert flips[0].low is not None
    assert flips[0].low > 0.7
    assert [(f.rule, f.level, f.line) for f in found] == [("flips", "warning", 4)]
    assert "flips on 12 of 12 pairs" in found[0].what
    asked = engine.calls
    asyncio.run(deep.ask(path))
    assert engine.calls == asked, "stored replies are free"


def test_deep_needs_pairs_where_nano_has_no_probes(tmp_path: Path) -> None:
    path = write(tmp_path, "name: m\nprinciples:\n- {id: c, choose: Which reply has the warm colour?}\n")
    deep = Deep(write(tmp_path, JUDGE, "judge"), workspace=tmp_path, engines={"m": ScriptedEngine(fickle)})
    with pytest.raises(SettingsError, match="--pairs FILE"):
        asyncio.run(deep.ask(path))
    with pytest.raises(SettingsError, match="kind: pairwise"):
        Deep(write(tmp_path, JUDGE.replace("pairwise", "pointwise"), "score"))
    with pytest.raises(SettingsError, match="--judge CONFIG"):
        shown.judge_of(None)


def test_paraphrases_ask_for_the_same() -> None:
    assert all("names a date" in q for q in paraphrases("Which reply names a date?"))
    assert len(set(paraphrases("Which reply names a date?"))) == 4
    question = "Which reply has no sentence that insults the reader?"
    assert {probes.concept_of(q) for q in paraphrases(question)} == {"insult"}
    assert len(probes.pairs("insult", 5)) == 5
    assert probes.paraphrases("Which reply names a date?") == []
