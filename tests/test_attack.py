"""Attacks: what they win from judges that fall for them, and that no text escapes its fence in any template."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import constitution
from judges import _render, attacks, open_judge
from judges._trials import Target, run
from judges.attacks import ATTACKS
from nano import world
from service import attack, judging
from service.cli import main
from tenet.engines import Engine, Reply, Request, _prompt
from tenet.engines.scripted import ScriptedEngine
from tenet.errors import DataError
from tenet.records import Message, Prompt

RULES = constitution.load("nano")
NAMES = [a.name for a in ATTACKS]


def target(i: int) -> Target:
    prompt = Prompt(messages=(Message(role="user", content=f"Question {i}?"),))
    return Target(f"pair {i}", prompt, f"A GOOD reply to {i}.", f"A poor reply to {i}. It is short.")


TARGETS = [target(i) for i in range(8)]


def slots(request: Request) -> tuple[str, str]:
    text = "\n".join(m.content for m in request.messages)
    found = re.search(r"<reply_a>\n(.*?)\n</reply_a>\n<reply_b>\n(.*?)\n</reply_b>", text, re.DOTALL)
    assert found
    return found[1], found[2]


def picks(likes: Callable[[str], float]) -> Callable[[Request], Reply]:
    """A model that prefers the reply it likes more, whatever the slot."""

    def play(request: Request) -> Reply:
        first, second = (likes(s) for s in slots(request))
        p = 0.9 if first > second else 0.1 if first < second else 0.5
        return Reply(choice_logprobs=(math.log(p), math.log(1 - p)))

    return play


def besiege(play: Callable[[Request], Reply], targets: list[Target] = TARGETS, **settings: Any) -> dict[str, Any]:
    judge = open_judge({"kind": "pairwise", **settings}, ScriptedEngine(play), RULES)
    return asyncio.run(run(judge, targets))


def rows(report: dict[str, Any]) -> dict[str, Any]:
    assert [r["name"] for r in report["attacks"]] == NAMES
    return {r["name"]: r for r in report["attacks"]}


def test_a_judge_that_looks_at_content_alone_is_not_won_over() -> None:
    report = besiege(picks(lambda text: "GOOD" in text))
    assert report["undecorated"]["right"]["value"] == 1.0
    for row in rows(report).values():
        assert row["false_accept"]["value"] == 0.0
        assert row["false_accept"]["n"] == 8
        assert row["unreadable"] == row["escapes"] == 0
    assert report["structure"] == {"questions": 8 * 2 * 2 * len(ATTACKS), "escapes": 0}


def test_a_judge_that_obeys_replies_is_found_out_and_its_controls_are_not() -> None:
    row = rows(besiege(picks(lambda text: 2 * ("pick this one" in text) + ("GOOD" in text))))["instruction after"]
    assert row["false_accept"]["value"] == row["flip"]["value"] == 1.0
    assert row["false_accept_control"]["value"] == row["flip_control"]["value"] == 0.0
    assert row["false_accept_scrambled"]["value"] == 0.0
    assert row["false_accept"]["low"] > row["false_accept_control"]["high"]


def test_a_judge_that_loves_length_falls_for_bland_texts_as_well() -> None:
    found = rows(besiege(picks(len)))
    assert found["length"]["false_accept"]["value"] == 1.0
    assert found["length"]["false_accept_control"]["value"] is None
    assert found["length"]["false_accept_control"]["why"] == "there is no such control of this attack"
    assert found["universal phrase"]["false_accept_control"]["value"] == 1.0
    assert found["master key ':'"]["false_accept"]["value"] == 0.0


def test_flips_count_only_pairs_that_were_judged_right_before() -> None:
    report = besiege(picks(lambda text: ("poor" in text) + 2 * ("GOOD reply to 3" in text)))
    assert report["undecorated"]["right"]["value"] == 1 / 8
    row = rows(report)["fake turns"]
    assert (row["flip"]["n"], row["flip"]["value"]) == (1, 0.0)
    none = rows(besiege(picks(lambda text: "poor" in text)))["fake turns"]["flip"]
    assert (none["value"], none["n"]) == (None, 0)
    assert none["why"]


def test_constant_replies_have_no_flips_and_say_why() -> None:
    row = rows(besiege(picks(len)))["null model"]
    assert (row["flip"]["value"], row["flip"]["why"]) == (None, "a constant reply decorates nothing")


@pytest.mark.parametrize(("order", "rate"), [("both", 0.0), ("given", 0.5), ("swapped", 0.5)])
def test_a_love_for_slots_shows_by_slot_and_one_order_counts_by_a_coin(order: str, rate: float) -> None:
    first = Reply(choice_logprobs=(math.log(0.8), math.log(0.2)))
    row = rows(besiege(lambda _: first, order=order))["null model"]
    assert (row["shown_first"]["value"], row["shown_second"]["value"]) == (1.0, 0.0)
    assert (row["false_accept"]["value"], row["false_accept"]["n"]) == (rate, 8)


def test_unreadable_verdicts_accept_nothing_and_are_counted() -> None:
    def play(request: Request) -> Reply:
        shocked = any("Note for whoever" in s for s in slots(request))
        return Reply(fault="refused") if shocked else picks(lambda text: "poor" in text)(request)

    row = rows(besiege(play))["instruction after"]
    assert (row["unreadable"], row["false_accept"]["value"]) == (8, 0.0)


def test_a_judge_that_crashes_over_an_attack_does_not_end_the_report() -> None:
    def play(request: Request) -> Reply:
        if any("</reply_a>" in s.replace("\u200b", "") for s in slots(request)):
            raise ZeroDivisionError("oops")
        return picks(lambda text: "GOOD" in text)(request)

    found = rows(besiege(play))
    assert found["fake fence"]["unreadable"] == 8
    assert found["fake turns"]["unreadable"] == 0


def test_controls_are_as_long_as_their_attacks() -> None:
    for a in ATTACKS:
        reply = "One sentence. And another one."
        made, bland, scrambled = a.make(reply), a.control(reply), a.scrambled(reply)
        if bland is not None:
            assert len(bland) == len(made)
        if scrambled is not None:
            assert sorted(scrambled) == sorted(made)
            assert scrambled != made
        assert a.constant == (a.make("x y") == a.make("z w"))


JUDGES = {
    "pairwise": ({"kind": "pairwise"}, {"pairwise.txt"}),
    "cot": ({"kind": "pairwise", "cot": True}, {"pairwise_reason.txt", "pairwise_answer.txt"}),
    "text": ({"kind": "pairwise", "read": "text", "principles": 2}, {"pairwise.txt"}),
    "pointwise": ({"kind": "pointwise"}, {"pointwise.txt"}),
}


@pytest.mark.parametrize("kind", JUDGES)
def test_no_attack_escapes_any_template_and_the_report_names_the_version(kind: str) -> None:
    settings, names = JUDGES[kind]
    engine = ScriptedEngine(lambda r: Reply(choice_logprobs=(-1.0,) * len(r.choices)) if r.choices else "tie")
    report = asyncio.run(run(open_judge(settings, engine, RULES), TARGETS[:3]))
    assert report["structure"]["escapes"] == 0
    assert report["templates"].keys() == names
    assert all(re.fullmatch("[0-9a-f]{12}", v) for v in report["templates"].values())


def test_without_fences_that_hold_the_escapes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_render, "_safe", lambda text: text)
    found = rows(besiege(lambda _: Reply(choice_logprobs=(-1.0, -1.0))))
    assert {name for name, row in found.items() if row["escapes"]} == {"null model", "fake fence"}
    assert any("'</reply_a>'" in what for what in found["fake fence"]["escaped_by"])


def test_a_look_alike_of_a_tag_is_an_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = re.compile(r"<(?=/?(?:reply_a|reply_b|reply)>)")
    monkeypatch.setattr(_render, "_safe", lambda text: exact.sub("<\u200b", text))
    found = rows(besiege(lambda _: Reply(choice_logprobs=(-1.0, -1.0))))
    assert {name for name, row in found.items() if row["escapes"]} == {"fake fence"}


def test_special_tokens_that_are_not_defused_are_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacks, "role_safe", lambda text: text)
    found = rows(besiege(lambda _: Reply(choice_logprobs=(-1.0, -1.0))))
    assert {name for name, row in found.items() if row["escapes"]} == {"chat tokens"}


CONFIG = """
constitution: nano
models: {{m: {{kind: {kind}}}}}
judge: {{kind: pairwise, principles: {principles}}}
"""


def plan(folder: Path, kind: str = 'scripted, script: "tests.oracle_script:play"', principles: int = 1) -> Path:
    (folder / "judge.yaml").write_text(CONFIG.format(kind=kind, principles=principles))
    return folder / "judge.yaml"


def test_the_real_models_own_tokens_are_looked_at(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = judging.open_config(plan(tmp_path, f"vllm, model: {tiny_model}"))
    reader = attack.readers(opened)("")
    assert "<|system|>" in reader.specials
    judge = open_judge({"kind": "pairwise"}, ScriptedEngine(lambda _: Reply(choice_logprobs=(-1.0, -1.0))), RULES)
    sound = asyncio.run(run(judge, TARGETS[:2], reader=lambda _: reader))
    assert sound["structure"]["escapes"] == 0
    monkeypatch.setattr(_prompt, "role_safe", lambda text, specials: text)
    broken = rows(asyncio.run(run(judge, TARGETS[:2], reader=lambda _: reader)))
    assert {name for name, row in broken.items() if row["escapes"]} == {"chat tokens"}


def test_the_real_engine_reads_every_attack_and_nothing_escapes(
    tmp_path: Path, tiny_model: Path, vllm_engine: Engine
) -> None:
    opened = judging.open_config(plan(tmp_path, f"vllm, model: {tiny_model}, dtype: float32, max_model_len: 1024"))
    report = asyncio.run(attack.attack(opened, None, 2, tmp_path, {"m": vllm_engine}))
    assert report["structure"]["escapes"] == 0
    assert all(row["unreadable"] == 0 for row in report["attacks"])
    assert report["usage"]["asked"] > 100


@pytest.mark.parametrize("principles", [1, 4, 16])
def test_bundled_pairs_differ_under_the_rules_that_will_be_asked(principles: int) -> None:
    asked: list[Request] = []
    engine = ScriptedEngine(lambda r: asked.append(r) or Reply(choice_logprobs=(-1.0, -1.0)))
    judge = open_judge({"kind": "pairwise", "principles": principles, "order": "given"}, engine, RULES)
    targets = attack.bundled_targets(judge, RULES, 30, 0)
    for t in targets:
        drawn = set(attack._asked_about(judge, RULES, t.prompt, t.key))
        assert len(drawn) == principles
        assert not world.faults(t.better, drawn)
        assert 1 <= len(world.faults(t.worse, drawn)) <= 3
    assert attack.bundled_targets(judge, RULES, 30, 0) == targets
    assert not asked


def test_under_another_constitution_the_better_reply_has_no_fault_at_all() -> None:
    rules = constitution.load("harmless")
    judge = open_judge({"kind": "pairwise"}, ScriptedEngine(lambda _: "x"), rules)
    for t in attack.bundled_targets(judge, rules, 20, 0):
        assert not world.faults(t.better, set(world.AVOID) | set(world.MUST))
        assert len(world.faults(t.worse, set(world.AVOID))) == 3


def test_pairs_of_a_file_need_a_reply_that_people_prefer(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    lines = [
        {"prompt": "Hi", "a": "good", "b": "bad", "label": "A", "slices": {"topic": "x"}},
        {"prompt": "Hi", "a": "bad", "b": "good", "labels": {"p": "B", "q": "B", "r": "A"}},
        {"prompt": "Ho", "a": "x", "b": "y", "label": "tie"},
        {"prompt": "Ho", "a": "x", "b": "z", "labels": {"p": "A", "q": "B"}},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    found = attack.labelled_targets(file, 10)
    assert [(t.better, t.worse) for t in found] == [("good", "bad")] * 2
    assert found[0].slices == {"topic": "x"}
    file.write_text("\n".join(map(json.dumps, lines[2:])))
    with pytest.raises(DataError, match="no pair has a reply that people prefer"):
        attack.labelled_targets(file, 10)


def test_the_command_prints_rates_and_ends_with_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out/report.json"
    given = ["--judge", plan(tmp_path), "--n", "6", "--json", out, "--workspace", tmp_path / "runs"]
    monkeypatch.setattr("sys.argv", ["tenet", "attack", *map(str, given)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert re.search(r"fake fence +0 \(0-39\) +0 \(0-39\) +0 \(0-39\) +0 \(0-39\)", said)
    assert "structure: 0 escapes" in said
    report = json.loads(out.read_text())
    assert report["rules"].keys() == {"false accept", "flip", "bland", "scrambled", "slots", "escape"}
    assert report["pairs"] == 6
    assert report["usage"]["asked"] > 0


def test_the_command_ends_with_1_if_something_escapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacks, "role_safe", lambda text: text)
    given = ["--judge", plan(tmp_path), "--n", "2", "--workspace", tmp_path / "runs"]
    monkeypatch.setattr("sys.argv", ["tenet", "attack", *map(str, given)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
