"""Constitutions: what loads, what is refused and how, and draws that edits do not reshuffle."""

import math
import time
from collections import Counter
from pathlib import Path

import pytest

from constitution import Constitution, Principle, load
from constitution.draw import draw
from constitution.loader import packaged, require
from generators.revise import critique_request, revise_request
from judges import open_judge
from tenet.engines.scripted import ScriptedEngine
from tenet.errors import ConstitutionError
from tenet.records import Comparison, Message, Prompt

BASE = """\
name: base
version: "1"
serves: everyone
preamble: Be good.
exemplars:
  - {prompt: q, reply: r, critique: c, revision: v, principle: kind}
  - {prompt: q, a: x, b: y, answer: B, principle: brief}
principles:
  - {id: kind, critique: Say where., revise: Be kind., choose: Which is kinder?, score: How kind?}
  - {id: brief, critique: Quote it., revise: Cut it., choose: Which is shorter?, weight: 2}
"""


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(files))}.yaml"


def refused(path: Path | str) -> str:
    with pytest.raises(ConstitutionError) as caught:
        load(path)
    return str(caught.value)


def toys(n: int = 16, **weights: float) -> list[Principle]:
    return [
        Principle(id=f"p{i}", choose="Which?", weight=weights.get(f"p{i}", 1.0)) for i in range(n)
    ]


@pytest.mark.parametrize(
    ("name", "at_least"),
    [("harmless", 16), ("helpful", 8), ("house-style", 20), ("honest", 8), ("non-evasive", 8)],
)
def test_packaged_constitutions_have_every_text_and_say_whom_they_serve(
    name: str, at_least: int
) -> None:
    c = load(name)
    assert name in packaged()
    assert c.name == name
    assert len(c.principles) >= at_least
    assert len(c.serves) > 20
    require(c, ["critique", "revise", "choose", "score"])
    for p in c.principles:
        assert p.title
        assert p.tags
        assert p.choose.endswith("?")
        assert p.score.endswith("?")
        words = set(f"{p.choose} {p.revise}".lower().replace(",", " ").split())
        assert not words & {"not", "never", "avoid", "don't", "without", "no"}, p.id


def test_house_style_extends_two_parents() -> None:
    style, harmless, helpful = load("house-style"), load("harmless"), load("helpful")
    assert style.extends == ("harmless", "helpful")
    assert len(style.principles) == len(harmless.principles) + len(helpful.principles) - 1 + 2
    assert "runnable-code" not in style.by_id
    assert style.by_id["child-safety"].weight == 3
    assert style.by_id["child-safety"].choose == harmless.by_id["child-safety"].choose
    assert style.by_id["fitting-length"].choose != helpful.by_id["fitting-length"].choose
    assert style.by_id["fitting-length"].revise == helpful.by_id["fitting-length"].revise


def test_a_child_overrides_reweights_removes_and_adds(tmp_path: Path) -> None:
    child = """\
name: child
extends: base.yaml
remove: [brief]
principles:
  - {id: kind, weight: 0.5}
  - {id: new, critique: Say where., applies_when: [code]}
"""
    path = write(tmp_path, child=child, base=BASE)
    base, c = load(tmp_path / "base.yaml"), load(str(path))
    assert [p.id for p in c.principles] == ["kind", "new"]
    assert (c.by_id["kind"].weight, c.by_id["kind"].choose) == (0.5, "Which is kinder?")
    assert (c.preamble, c.language) == ("Be good.", "en")
    assert [e.principle for e in c.dialogues] == ["kind"]
    assert c.choices == (), "the exemplar of a removed principle goes with it"
    assert base.choices[0].answer == "B"
    assert c.by_id["kind"].hash != base.by_id["kind"].hash


def test_hashes_follow_the_content_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path, base=BASE)
    before = load(path)
    path.write_text("# a comment\n" + BASE.replace("Be kind.", "'Be kind.'"))
    assert load(path).hash == before.hash
    path.write_text(BASE.replace("Be kind.", "Be very kind."))
    after = load(path)
    assert after.hash != before.hash
    assert after.by_id["kind"].hash != before.by_id["kind"].hash
    assert after.by_id["brief"].hash == before.by_id["brief"].hash
    path.write_text(BASE.replace("Be good.", "Be better."))
    assert load(path).hash != before.hash


def test_texts_are_taken_as_text(tmp_path: Path) -> None:
    text = """\
name: odd
principles:
  - id: marks
    critique: "{reply} {{x}} %s </reply_a> <|im_end|> ```"
    revise: no
    choose: 1_000
    score: |
      {question}
        - kept: yes
    since: "2026-01-02"
"""
    p = load(write(tmp_path, odd=text)).principles[0]
    assert p.critique == "{reply} {{x}} %s </reply_a> <|im_end|> ```"
    assert (p.revise, p.choose, p.since) == ("no", "1_000", "2026-01-02")
    assert p.score == "{question}\n  - kept: yes"


def test_marks_and_fences_in_a_principle_are_only_text() -> None:
    nasty = "{question} {{x}} {% if %} %s ``` </reply_b> <reply_a>A</reply_a> </conversation>"
    p = Principle(id="odd", critique=nasty, revise=nasty, choose=nasty, score=nasty)
    rules = Constitution(name="odd", principles=(p,))
    prompt = Prompt(messages=(Message(role="user", content="Why?"),))
    pair = Comparison(prompt=prompt, a="One.", b="Two.")
    plain = Constitution(name="odd", principles=(Principle(id="odd", choose="Which?", score="How?"),))
    for kind, fence in (("pairwise", "<reply_a>"), ("pointwise", "<reply>")):
        asked, usual = (
            open_judge({"kind": kind}, ScriptedEngine(lambda _: "A"), c).asks(pair)[0].request.messages
            for c in (rules, plain)
        )
        text = asked[-1].content
        assert "{question} {{x}} {% if %} %s ```" in text
        assert text.replace("\u200b", "").count(nasty) == 1
        assert text.count(fence) == usual[-1].content.count(fence) == 1
        assert text.count("</conversation>") == 1
        assert len(asked) == len(usual)
    assert nasty in critique_request([p.critique])
    assert nasty in revise_request([p.revise])


def test_shared_parents_are_fine_and_read_once(tmp_path: Path) -> None:
    write(tmp_path, l0=BASE.replace("name: base", "name: l0"))
    for i in range(1, 25):
        twins = {f"{side}{i}": f"name: {side}{i}\nextends: [l{i - 1}.yaml]\n" for side in "ab"}
        write(tmp_path, **twins)
        write(tmp_path, **{f"l{i}": f"name: l{i}\nextends: [a{i}.yaml, b{i}.yaml]\n"})
    assert len(load(tmp_path / "l10.yaml").principles) == 2
    assert "32 files deep" in refused(tmp_path / "l24.yaml")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("id: brief", "id: kind", ["line 10", "principles.1.id", "'kind' is already taken", "9"]),
        ("weight: 2", "weight: 0", ["line 10", "principles.1.weight", "0 should be greater than"]),
        ("weight: 2", "weight: -1", ["principles.1.weight", "-1 should be greater than 0"]),
        ("weight: 2", "weight: .nan", ["principles.1.weight", "nan should be"]),
        ("weight: 2", "weight: .inf", ["principles.1.weight", "inf should be a finite"]),
        ("weight: 2", "weight: heavy", ["principles.1.weight: 'heavy' should be a number"]),
        ("weight: 2", "wieght: 2", ["unknown key 'wieght'", "did you mean 'weight'?"]),
        ("id: brief", "id: 'a b'", ["line 10", "principles.1.id", "'a b'"]),
        ("Quote it.", "3", ["principles.1.critique: 3 should be text", "quotes"]),
        ("weight: 2", "tags: code", ["principles.1.tags: 'code' should be a list"]),
        ("weight: 2", "weight: 2, weight: 3", ["line 10", "'weight' is given twice"]),
        ('version: "1"', "version: 1", ["line 2", "version: 1 should be text", "quotes"]),
        ("serves: everyone", "serves: *all", ["line 3", "alias"]),
        ("serves: everyone", "serves: !!str x", ["line 3", "tag"]),
        ("serves: everyone", "serves:\n\t- x", ["line 4", "a tab is used for indentation"]),
        ("answer: B", "answer: C", ["line 7", "exemplars.1.answer", "'C' should be one of A, B"]),
        (", revision: v", "", ["line 6", "exemplars.0", "lacks revision"]),
        ("answer: B", "reply: z", ["exemplars.1", "half a dialogue and half a choice"]),
        ("principle: brief}", "principle: breif}", ["line 7", "'breif'", "mean 'brief'?"]),
        ("name: base\n", "", ["the key 'name' is required"]),
        ("principles:", "principals:", ["line 8", "did you mean 'principles'?"]),
    ],
)
def test_a_wrong_file_is_refused_with_line_field_and_remedy(
    tmp_path: Path, old: str, new: str, words: list[str]
) -> None:
    assert old in BASE
    message = refused(write(tmp_path, mine=BASE.replace(old, new)))
    for word in ["mine.yaml", *words]:
        assert word in message


def test_files_that_hold_no_constitution_are_refused(tmp_path: Path) -> None:
    assert "has no principles (write at least one)" in refused(write(tmp_path, a="name: a"))
    assert "has no principles" in refused(write(tmp_path, a="name: a\nprinciples: []"))
    assert "has no text" in refused(write(tmp_path, a="name: a\nprinciples: [{id: x}]"))
    assert "is empty" in refused(write(tmp_path, a=""))
    assert "no such file" in refused(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"name: b\nserves: caf\xe9")
    assert "line 2: byte 0xe9 is not UTF-8" in refused(tmp_path / "b.yaml")
    assert "did you mean 'harmless'?" in refused("harmles")
    assert "./mine.yaml" in refused("mine")


def test_circular_extends_show_the_cycle(tmp_path: Path) -> None:
    files = {a: f"name: {a}\nextends: {b}.yaml\n" for a, b in ("ab", "bc", "ca")}
    assert "a.yaml -> b.yaml -> c.yaml -> a.yaml" in refused(write(tmp_path, **files))
    itself = write(tmp_path, me="name: me\nextends: ../" + tmp_path.name + "/me.yaml")
    assert "me.yaml -> me.yaml" in refused(itself)


@pytest.mark.parametrize(
    ("child", "words"),
    [
        ("extends: [harmles]", ["line 2", "extends", "'harmles'", "did you mean 'harmless'?"]),
        ("extends: none.yaml", ["line 2", "extends", "there is no file", "none.yaml"]),
        ("extends: base.yaml\nremove: [knd]", ["line 3", "remove.0", "'knd'", "mean 'kind'?"]),
        ("remove: [x]", ["remove.0", "extends nothing"]),
        ("extends: base.yaml\nremove: [kind, brief]", ["has no principles"]),
        (
            "extends: base.yaml\nprinciples:\n- {id: knd, weight: 3}",
            ["line 4", "principles.0", "'knd' has no text", "did you mean 'kind'?"],
        ),
        ("extends: [base.yaml, other.yaml]", ["line 2", "differ in the principle 'kind'"]),
    ],
)
def test_wrong_inheritance_is_refused(tmp_path: Path, child: str, words: list[str]) -> None:
    other = BASE.replace("name: base", "name: other").replace("Be kind.", "Be kinder.")
    message = refused(write(tmp_path, child=f"name: child\n{child}\n", base=BASE, other=other))
    for word in ["child.yaml", *words]:
        assert word in message


def test_a_file_settles_where_its_parents_differ(tmp_path: Path) -> None:
    other = BASE.replace("name: base", "name: other").replace("Be kind.", "Be kinder.")
    child = "name: child\nextends: [base.yaml, other.yaml]\nprinciples: [{id: kind, weight: 3}]\n"
    c = load(write(tmp_path, child=child, base=BASE, other=other))
    assert (c.by_id["kind"].revise, c.by_id["kind"].weight) == ("Be kinder.", 3)


def test_a_stage_needs_its_text(tmp_path: Path) -> None:
    c = load(write(tmp_path, base=BASE))
    require(c, ["critique", "revise", "choose"])
    with pytest.raises(ConstitutionError) as caught:
        require(c, ["critique", "score"])
    assert "principle 'brief' has no 'score'" in str(caught.value)
    assert "constitution 'base'" in str(caught.value)
    big = Constitution(name="big", principles=tuple(toys(1000)))
    with pytest.raises(ConstitutionError, match=r"'p4' has no 'critique'; and 995 more"):
        require(big, ["critique"])


def test_ten_thousand_principles_load_quickly(tmp_path: Path) -> None:
    one = "- id: p{i}\n  critique: Say where.\n  choose: >\n    Which is\n    it?\n  tags: [a, b]\n"
    text = "name: big\nprinciples:\n" + "".join(one.format(i=i) for i in range(10_000))
    path = write(tmp_path, big=text)
    start = time.process_time()
    c = load(path)
    assert time.process_time() - start < 2.0
    assert len(c.principles) == 10_000
    assert c.by_id["p9999"].choose == "Which is it?"


def test_draws_follow_the_weights() -> None:
    principles = toys(5, p1=2.0, p2=3.0, p3=0.5)
    n = 20_000
    counts = Counter(draw(principles, 1, 7, f"prompt{i}", 0)[0].id for i in range(n))
    total = sum(p.weight for p in principles)
    chi2 = sum(
        (counts[p.id] - n * p.weight / total) ** 2 / (n * p.weight / total) for p in principles
    )
    assert chi2 < 18.5, "chi-square with 4 degrees of freedom at p = 0.001"


def test_draws_of_several_are_without_replacement_and_repeatable() -> None:
    principles = toys()
    drawn = draw(principles, 3, 1, "prompt", 2)
    assert len({p.id for p in drawn}) == 3
    assert drawn == draw(list(reversed(principles)), 3, 1, "prompt", 2)
    assert drawn[:1] == draw(principles, 1, 1, "prompt", 2)
    others = [draw(principles, 1, seed, "prompt", r)[0].id for seed in range(8) for r in range(4)]
    assert len(set(others)) > 8, "every seed and every round draws anew"
    assert len(draw(principles, 99, 1)) == 16
    with pytest.raises(ValueError, match="at least 1"):
        draw(principles, 0, 1)


def test_edits_never_reshuffle_other_principles() -> None:
    keys = [(3, f"prompt{i}", 0) for i in range(2_000)]
    old = toys(16)
    before = [draw(old, 1, *k)[0].id for k in keys]
    reworded = [p if p.id != "p3" else Principle(id="p3", choose="New?") for p in old]
    assert [draw(reworded, 1, *k)[0].id for k in keys] == before
    without = [draw([p for p in old if p.id != "p3"], 1, *k)[0].id for k in keys]
    assert all(a == b for a, b in zip(before, without, strict=True) if a != "p3")
    grown = [draw([*old, Principle(id="z", choose="?")], 1, *k)[0].id for k in keys]
    assert all(a == b for a, b in zip(before, grown, strict=True) if b != "z")
    assert math.isclose(grown.count("z") / len(keys), 1 / 17, abs_tol=0.02)
    heavier = [draw(toys(16, p3=2.0), 1, *k)[0].id for k in keys]
    assert all(b == "p3" for a, b in zip(before, heavier, strict=True) if a != b)


def test_applies_when_is_respected() -> None:
    code = Principle(id="code", choose="?", applies_when=("code", "sql"), weight=1e6)
    principles = [*toys(2), code]
    assert all(draw(principles, 1, i)[0].id != "code" for i in range(200))
    assert draw(principles, 1, 0, tags=("sql", "x"))[0].id == "code"
    assert draw([code], 1, 0) == ()
