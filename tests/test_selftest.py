"""The selftest certifies sound judges, and every fault that it claims to find makes the case of its name fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import constitution
import generators.prompts
import judges
from generators import pairs
from judges import _render
from judges.selftest import CASES, Case
from service import export, pipeline, recipe, selftest
from service._workshop import Subject
from service.cli import main
from service.selftest import Certificate, Result
from tenet import kinds
from tenet.engines.openai import OpenAIEngine
from tenet.ledger import Calls
from tenet.records import Message, Prompt

RULES = constitution.load("nano")
BY_NAME = {case.name: case for case in CASES}
QUICK = [case for case in CASES if case.name != "last partial batch"]
CONFIG = """
constitution: nano
models: {m: {kind: scripted}}
judge: {kind: pairwise, principles: 2}
"""


def certify(judge: dict[str, Any], cases: list[Case] = QUICK) -> Certificate:
    return asyncio.run(selftest.certify(Subject(judge, RULES), cases))


@pytest.fixture(scope="module")
def plain() -> Certificate:
    """A plain judge's certificate."""
    return certify(PAIRWISE)


def one(name: str, **judge: Any) -> Result:
    return certify({"kind": "pairwise", **judge}, [BY_NAME[name]]).results[0]


PAIRWISE = {"kind": "pairwise"}
STRICT = {"kind": "pairwise", "persona": "You are strict."}


@pytest.mark.parametrize(
    "judge",
    [
        {**PAIRWISE, "principles": "all", "labels": "hard", "quorum": 0.5},
        {**PAIRWISE, "read": "text"},
        {**PAIRWISE, "cot": True, "clamp": [0.4, 0.6], "samples": 2, "temperature": 1.0},
        {"kind": "panel", "members": [PAIRWISE, STRICT, {"kind": "pairwise", "read": "text"}]},
    ],
    ids=["ensemble", "text", "cot", "panel"],
)
def test_sound_judges_of_pairs_are_certified(judge: dict[str, Any]) -> None:
    sound(certify(judge))


def test_a_sound_judge_with_no_settings_is_certified(plain: Certificate) -> None:
    sound(plain)


def sound(found: Certificate) -> None:
    assert not found.failed, selftest.table(found)
    assert found.verdict == "certified: no label lost, flipped or invented in 29 cases"


@pytest.mark.parametrize(
    "judge",
    [{"kind": "pointwise"}, {"kind": "pointwise", "read": "text"}, {"kind": "reward_model"}],
    ids=["pointwise", "text", "reward model"],
)
def test_sound_judges_of_single_replies_are_certified(judge: dict[str, Any]) -> None:
    found = certify(judge)
    assert not found.failed, selftest.table(found)
    slots = next(r for r in found.results if r.name == "order-biased judge")
    assert slots.why == ("replies are scored one by one: there are no slots",)


def test_a_panel_of_both_sorts_is_certified() -> None:
    members = [PAIRWISE, {"kind": "pointwise"}, {"kind": "reward_model", "model": "reward"}]
    subject = Subject({"kind": "panel", "rule": "mean", "members": members}, RULES, ("text", "reward"))
    found = asyncio.run(selftest.certify(subject, QUICK))
    assert not found.failed, selftest.table(found)


def test_every_fault_found_elsewhere_is_a_named_case(plain: Certificate) -> None:
    named = {
        *("un-shuffling", "failed judgement", "ratings 4, 4", "None rating", "random tie", "last partial batch"),
        *("bad judge id", "fixed candidate order", "prompt cut at a colon", "unparsable is 0.0", "0.0 is missing"),
        *("two unparsed agree", "braces", "cached nulls", "unseeded placement", "429s", "truncation"),
        *("one bad row", "resume", "LoRA on fused experts", "stale weights"),
    }
    assert named <= BY_NAME.keys()
    assert len(BY_NAME) == len(CASES)
    elsewhere = [r for r in plain.results if r.state == "not here"]
    assert {r.name for r in elsewhere} == {"LoRA on fused experts", "stale weights"}
    assert all(r.why for r in elsewhere)


@pytest.mark.parametrize("order", ["given", "swapped", "random"])
def test_one_order_is_certified_only_with_the_words_that_labels_depend_on_slots(order: str) -> None:
    found = certify({"kind": "pairwise", "order": order}, [BY_NAME["clear wins"], BY_NAME["order-biased judge"]])
    assert not found.failed
    assert "labels depend on slots" in found.verdict
    assert "wrong" in found.results[1].got


def test_settings_that_lose_labels_are_not_certified() -> None:
    # Clamped to 0.4-0.6, no vote is further from one half than the tie setting asks.
    found = certify({"kind": "pairwise", "cot": True, "clamp": [0.4, 0.6], "tie": 0.2}, [BY_NAME["clear wins"]])
    assert found.verdict == "NOT certified: 1 of 1 cases failed"
    assert found.results[0].got == "24 tie"


# Judges that are broken on purpose: each is a judge kind of its own, in a folder that `judges` also looks into.
BROKEN = '''"""A judge that is broken on purpose."""
import random
from judges import pairwise

class Settings(pairwise.Settings):
    """As pairwise."""

class Broken:
    scale = ""

    def __init__(self, inner):
        self.inner, self.engines = inner, inner.engines
        self.n = 0

    def asks(self, comparison, key=""):
        return self.inner.asks(comparison, key)

    def split(self, verdict):
        return self.inner.split(verdict)

    async def judge(self, comparison, key=""):
        v = await self.inner.judge(comparison, key)
        self.n += 1
        {body}
        return v

def build(settings, engines, constitution, seed=0):
    plain = pairwise.Settings.model_validate({{**settings.model_dump(), {instead}}})
    return Broken(pairwise.build(plain, engines, constitution, seed))
'''
UNREAD = 'if v.label == "invalid": '
BROKEN_JUDGES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "flips": ("v = v.flip()", "", ("clear wins",)),
    "flips_slots": ("if comparison.a_from == 'sample 1': v = v.flip()", "", ("clear wins", "un-shuffling")),
    "loses": ("if self.n % 5 == 0: v = v.model_copy(update={'label': 'invalid', 'p_a': None})", "", ("clear wins",)),
    "first_candidate": (
        "v = v.model_copy(update={'label': 'A' if comparison.a_from == 'sample 0' else 'B', 'p_a': None if v.p_a is "
        "None else 0.9 if comparison.a_from == 'sample 0' else 0.1})",
        "",
        ("un-shuffling",),
    ),
    "invents": (
        "if v.label == 'tie': v = v.model_copy(update={'label': 'A', 'p_a': 0.6})",
        "",
        ("planted ties", "random tie", "ratings 4, 4"),
    ),
    "zero": (
        UNREAD + "v = v.model_copy(update={'label': 'tie', 'p_a': 0.5})",
        "",
        ("unparsable is 0.0", "no log-probabilities", "unparsable judge"),
    ),
    "guesses": (
        UNREAD + "v = v.model_copy(update={'label': 'A', 'p_a': 0.7})",
        "",
        ("None rating", "half the log-probabilities", "server errors", "time-outs"),
    ),
    "refusal_is_tie": (
        "if v.label == 'refused': v = v.model_copy(update={'label': 'tie', 'p_a': 0.5})",
        "",
        ("refusing judge", "one half refused"),
    ),
    "half_is_enough": (
        "seen = [x for x in v.votes if x.p_a is not None]\n"
        "        if v.p_a is None and seen:\n"
        "            v = v.model_copy(update={'label': seen[0].label, 'p_a': seen[0].p_a})",
        "",
        ("one half refused",),
    ),
    "one_order": ("pass", "'order': 'given'", ("order-biased judge",)),
    "falsy": (
        "if not v.p_a: v = v.model_copy(update={'label': 'invalid', 'p_a': None})",
        "",
        ("0.0 is missing",),
    ),
    "agrees": (UNREAD + "v = v.model_copy(update={'consistent': True})", "", ("two unparsed agree",)),
    "none": (UNREAD + "v = None", "", ("failed judgement", "None rating")),
    "raises": (UNREAD + "raise TypeError('None > 3')", "", ("failed judgement", "None rating")),
    "unseeded": (
        "v = v.model_copy(update={'label': 'A' if (x := random.random()) > 0.5 else 'B', 'p_a': x})",
        "",
        ("unseeded placement",),
    ),
    "cut_unsaid": (UNREAD + "v = v.model_copy(update={'why': 'parse error'})", "'read': 'text'", ("truncation",)),
}


@pytest.mark.parametrize("name", BROKEN_JUDGES)
def test_a_broken_judge_fails_the_case_of_its_fault(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body, instead, cases = BROKEN_JUDGES[name]
    kind = f"broken_{name}"
    (tmp_path / f"{kind}.py").write_text(BROKEN.format(body=body, instead=instead))
    monkeypatch.setattr(judges, "__path__", [*judges.__path__, str(tmp_path)])
    settings = {"kind": kind, "read": "text"} if "text" in instead else {"kind": kind}
    found = certify(settings, [BY_NAME[c] for c in cases])
    assert [r.state for r in found.results] == ["fail"] * len(cases), selftest.table(found)
    assert not any("the run ended" in why for r in found.results for why in r.why)
    assert found.verdict.startswith("NOT certified")


# Faults put into the pipeline itself.


def lose_the_last_batch(m: pytest.MonkeyPatch) -> None:
    flush = export._Writer._flush
    m.setattr(export._Writer, "_flush", lambda w: flush(w) if len(w._waiting) >= export._BATCH else None)


def swap_in_the_export(m: pytest.MonkeyPatch) -> None:
    row = export.preference_row
    swapped = {"chosen": "rejected", "rejected": "chosen"}
    m.setattr(export, "preference_row", lambda *given: (r := row(*given)) | {k: r[v] for k, v in swapped.items()})


def write_one_text_twice(m: pytest.MonkeyPatch) -> None:
    row = export.preference_row
    m.setattr(export, "preference_row", lambda *given: (r := row(*given)) | {"rejected": r["chosen"]})


def never_shuffle(m: pytest.MonkeyPatch) -> None:
    slots = pairs._slots
    m.setattr(pairs, "_slots", lambda prompt, x, y, coin: slots(prompt, x, y, 1))


def format_braces(m: pytest.MonkeyPatch) -> None:
    m.setattr(_render, "fill", lambda template, **values: template.format(**values).format(**values))


def cut_prompts(m: pytest.MonkeyPatch) -> None:
    read_row = generators.prompts.read_row

    def cut(*given: Any) -> Any:
        said = read_row(*given)
        if not isinstance(said, Prompt):
            return said
        last = ": ".join(said.messages[-1].content.split(": ")[:2])
        messages = (*said.messages[:-1], Message(role="user", content=last))
        return Prompt(messages=messages, tags=said.tags, name=said.name)

    m.setattr(generators.prompts, "read_row", cut)


def never_retry(m: pytest.MonkeyPatch) -> None:
    m.setattr(pipeline, "may_pass", lambda fault: False)


def give_up_at_429(m: pytest.MonkeyPatch) -> None:
    m.setattr(OpenAIEngine, "_wait_for_room", lambda *_: False)


def let_rows_crash(m: pytest.MonkeyPatch) -> None:
    m.setattr(pipeline.Pipeline, "walk", pipeline.Pipeline._walk)


def hash_everything(m: pytest.MonkeyPatch) -> None:
    whole = recipe.Plan.identity.fget
    assert whole is not None
    m.setattr(recipe.Plan, "identity", property(lambda p: {**whole(p), "limits": p.recipe.limits.model_dump()}))


def pay_again(m: pytest.MonkeyPatch) -> None:
    async def nothing(self: Calls, keys: list[str]) -> dict[str, Any]:
        return {}

    m.setattr(Calls, "get_many", nothing)


def take_any_judge(m: pytest.MonkeyPatch) -> None:
    load = kinds.load
    m.setattr(kinds, "load", lambda p, kind, where="": load(p, "pairwise" if kind == "no-such-judge" else kind, where))


def mislay_pairs(m: pytest.MonkeyPatch) -> None:
    settle = pipeline.Pipeline._settle

    async def lossy(self: Any, key: str, c: Any) -> Any:
        judged, end = await settle(self, key, c)
        return judged, end.model_copy(update={"stage": "keep", "reason": "mislaid"}) if judged is None else end

    m.setattr(pipeline.Pipeline, "_settle", lossy)


@pytest.mark.parametrize(
    ("fault", "case", "said"),
    [
        (lose_the_last_batch, "last partial batch", "1003 labels were made and 1000 rows exported"),
        (swap_in_the_export, "clear wins", "a reply is said to come from another sample"),
        (write_one_text_twice, "clear wins", "chosen and rejected are not the two planted replies"),
        (never_shuffle, "fixed candidate order", "sample 0 is reply a in 64 of 64 pairs"),
        (format_braces, "braces", "internal error"),
        (cut_prompts, "prompt cut at a colon", "lost"),
        (never_retry, "cached nulls", "is invalid"),
        (give_up_at_429, "429s", "is rate limit"),
        (let_rows_crash, "one bad row", "the run ended with ZeroDivisionError"),
        (hash_everything, "resume", "the run ended with RunFolderError"),
        (pay_again, "resume", "questions were paid twice"),
        (pay_again, "engine that dies", "questions were paid twice"),
        (take_any_judge, "bad judge id", "a run with"),
        (mislay_pairs, "ratings 4, 4", "is mislaid"),
    ],
    ids=lambda x: x if isinstance(x, str) else x.__name__,
)
def test_a_broken_pipeline_fails_the_case_of_its_fault(
    fault: Callable[[pytest.MonkeyPatch], None], case: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as m:
        fault(m)
        found = one(case)
    assert found.state == "fail", found
    assert said in " ".join((found.got, *found.why))


def test_the_rows_of_the_last_partial_batch_are_written() -> None:
    assert one("last partial batch").got == "1003 right"


def test_the_command_prints_a_table_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "judge.yaml").write_text(CONFIG)
    out = tmp_path / "out/certificate.json"
    monkeypatch.setattr("sys.argv", ["tenet", "selftest", "--judge", str(tmp_path / "judge.yaml"), "--json", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "certified: no label lost, flipped or invented in 30 cases" in said
    told = json.loads(out.read_text())
    assert told["certified"] is True
    assert {c["name"] for c in told["cases"]} == BY_NAME.keys()


def test_the_command_ends_with_1_if_a_case_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "judge.yaml").write_text(CONFIG.replace("principles: 2", "cot: true, clamp: [0.4, 0.6], tie: 0.2"))
    monkeypatch.setattr("sys.argv", ["tenet", "selftest", "--judge", str(tmp_path / "judge.yaml")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "NOT certified" in capsys.readouterr().out
