"""Panels: a strict majority or a mean, every member's word kept, no failed member forgotten."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from constitution import Constitution, Principle
from judges import open_judge, open_scorer
from tenet.engines import Reply, Request
from tenet.engines.scripted import ScriptedEngine
from tenet.errors import SettingsError
from tenet.records import Comparison, Message, Prompt, Verdict

KIND = Principle(id="kind", choose="Which is kinder?", score="How kind is the reply?")
RULES = Constitution(name="one", preamble="You are fair.", principles=(KIND,))
PAIR = Comparison(prompt=Prompt(messages=(Message(role="user", content="Hi"),)), a="GOOD", b="BAD")


def prefers(p: float) -> ScriptedEngine:
    """A judge that holds the good reply better with probability p, from either slot."""

    def script(request: Request) -> Reply:
        if len(request.choices) == 10:
            return Reply(choice_logprobs=tuple(0.0 if i == round(10 * p) else -math.inf for i in range(1, 11)))
        first = request.messages[-1].content.index("GOOD") < request.messages[-1].content.index("BAD")
        x = p if first else 1 - p
        return Reply(choice_logprobs=(math.log(x), math.log(1 - x)))

    return ScriptedEngine(script, name=f"p={p}", family=f"family {p}")


def slot_lover() -> ScriptedEngine:
    return ScriptedEngine(lambda _: Reply(choice_logprobs=(math.log(0.9), math.log(0.1))))


def broken(fault: str = "server") -> ScriptedEngine:
    return ScriptedEngine(lambda _: Reply(fault=fault, detail="gone"))  # type: ignore[arg-type]


def panel(*engines: ScriptedEngine, pair: Comparison = PAIR, weights: Any = None, **settings: Any) -> Verdict:
    named = {f"m{i}": e for i, e in enumerate(engines)}
    members = [{"kind": "pairwise", "model": name, "name": f"judge {name}"} for name in named]
    for member, weight in zip(members, weights or [], strict=bool(weights)):
        member["weight"] = weight
    judge = open_judge({"kind": "panel", "members": members, **settings}, named, RULES)
    return asyncio.run(judge.judge(pair))


def test_a_strict_majority_wins_and_the_minority_is_kept() -> None:
    verdict = panel(prefers(0.9), prefers(0.8), prefers(0.3))
    assert (verdict.label, verdict.p_a) == ("A", pytest.approx(2 / 3))
    assert [(m.name, m.label, m.family) for m in verdict.members] == [
        ("judge m0", "A", "family 0.9"), ("judge m1", "A", "family 0.8"), ("judge m2", "B", "family 0.3"),
    ]  # fmt: skip
    assert {v.member for v in verdict.votes} == {"judge m0", "judge m1", "judge m2"}
    assert verdict.consistent is True
    assert verdict.usage.calls == 0


def test_half_of_the_seats_is_no_majority() -> None:
    assert panel(prefers(0.9), prefers(0.2)).label == "tie"
    assert panel(prefers(0.9), prefers(0.5), prefers(0.5)).label == "tie"


def test_the_mean_is_weighted_and_soft() -> None:
    assert panel(prefers(0.9), prefers(0.4), rule="mean").p_a == pytest.approx(0.65)
    assert panel(prefers(0.9), prefers(0.4), rule="mean", weights=[1.0, 3.0]).p_a == pytest.approx(0.525)
    assert panel(prefers(0.9), prefers(0.4), rule="mean", weights=[1.0, 3.0], tie=0.03).label == "tie"


@pytest.mark.parametrize("rule", ["majority", "mean"])
def test_a_failed_member_makes_the_verdict_invalid_unless_the_quorum_allows_it(rule: str) -> None:
    verdict = panel(prefers(0.9), prefers(0.8), broken(), rule=rule)
    assert (verdict.label, verdict.p_a) == ("invalid", None)
    assert "1 of 3 members unreadable: judge m2: server: gone" in verdict.why
    verdict = panel(prefers(0.9), prefers(0.8), broken(), rule=rule, quorum=0.6)
    assert verdict.label == "A"
    assert "1 of 3 members unreadable" in verdict.why
    assert verdict.members[2].label == "invalid"
    assert panel(prefers(0.9), prefers(0.8), broken("refused"), rule=rule).label == "refused"


def test_a_failed_member_keeps_its_seat() -> None:
    # One of three is no majority, and the two that failed could have made one.
    verdict = panel(prefers(0.9), broken(), broken(), quorum=0.3)
    assert (verdict.label, verdict.p_a) == ("invalid", None)
    assert "no majority without the unreadable" in verdict.why
    # Here the failed one could not have made a majority for either side.
    verdict = panel(prefers(0.9), prefers(0.5), prefers(0.5), prefers(0.5), broken(), quorum=0.3)
    assert verdict.label == "tie"


def test_a_panel_of_the_failed_is_invalid() -> None:
    assert panel(broken(), broken(), quorum=0.01).label == "invalid"


def test_consistency_is_the_panels_own() -> None:
    assert panel(slot_lover()).consistent is False
    one_of_three = panel(prefers(0.9), prefers(0.9), slot_lover())
    assert one_of_three.members[2].consistent is False
    assert one_of_three.consistent is True  # the other two outvote it in either order


def test_the_swapped_pair_gives_the_flipped_verdict() -> None:
    there = panel(prefers(0.9), prefers(0.3), prefers(0.8))
    back = panel(prefers(0.9), prefers(0.3), prefers(0.8), pair=PAIR.swap()).flip()
    assert (back.label, back.p_a) == (there.label, pytest.approx(there.p_a))
    assert [(m.name, m.label) for m in back.members] == [(m.name, m.label) for m in there.members]


def test_personas_speak_before_the_preamble() -> None:
    seen: list[str] = []

    def look(request: Request) -> Reply:
        seen.append(request.messages[0].content)
        return Reply(choice_logprobs=(-1.0, -2.0))

    members = [{"kind": "pairwise", "persona": "You are a nurse."}, {"kind": "pairwise", "order": "given"}]
    judge = open_judge({"kind": "panel", "members": members}, ScriptedEngine(look), RULES)
    verdict = asyncio.run(judge.judge(PAIR))
    assert set(seen) == {"You are a nurse.\n\nYou are fair.", "You are fair."}
    assert [m.name for m in verdict.members] == ["pairwise 1", "pairwise 2"]


def test_members_of_different_kinds_sit_together() -> None:
    model = ScriptedEngine(lambda r: "2.0" if r.messages[-1].content == "GOOD" else "-1", scores=True)
    engines = {"m": prefers(0.9), "rm": model}
    members = [{"kind": "pairwise"}, {"kind": "pointwise", "model": "m"}, {"kind": "reward_model", "model": "rm"}]
    judge = open_judge({"kind": "panel", "rule": "mean", "members": members}, engines, RULES)
    verdict = asyncio.run(judge.judge(PAIR))
    parts = [0.9, 0.5, 1 / (1 + math.exp(-3))]
    assert [m.p_a for m in verdict.members] == pytest.approx(parts)
    assert verdict.p_a == pytest.approx(sum(parts) / 3)
    assert verdict.consistent is True
    assert len(judge.asks(PAIR)) == 2 + 2 + 2


def test_a_panel_of_pointwise_judges_scores_replies() -> None:
    engines = {"x": prefers(0.9), "y": prefers(0.2), "z": broken()}
    members = [{"kind": "pointwise", "model": name} for name in "xy"]
    scorer = open_scorer({"kind": "panel", "members": members}, engines, RULES)
    score = asyncio.run(scorer.score(PAIR.prompt, "GOOD"))
    assert score.value == pytest.approx(((9 - 5.5) / 4.5 + (2 - 5.5) / 4.5) / 2)
    assert [r.member for r in score.ratings] == ["pointwise 1", "pointwise 2"]
    members.append({"kind": "pointwise", "model": "z"})
    scorer = open_scorer({"kind": "panel", "members": members}, engines, RULES)
    score = asyncio.run(scorer.score(PAIR.prompt, "GOOD"))
    assert (score.label, score.value) == ("invalid", None)
    assert "pointwise 3: server: gone" in score.why


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([], "members"),
        ([{"kind": "pairwise", "ordre": "both"}], r"members\.0, ordre|members\.0\.ordre"),
        ([{"kind": "pairwise"}, {"kind": "pairwyse"}], r"members\.1\.kind"),
        ([{"kind": "pairwise", "weight": 0}], r"weight"),
        ([{"kind": "pairwise", "model": "x"}], r"judge\.members\.0\.model: there is no model 'x'"),
        ([{"kind": "panel", "members": [{"kind": "pairwise"}]}], "cannot sit on a panel"),
        ([{"kind": "pairwise", "name": "x"}, {"kind": "pointwise", "name": "x"}], "two members are called 'x'"),
        ([{"kind": "pairwise", "clamp": [0.4, 0.6]}], r"judge\.members\.0\.clamp"),
        ([{"kind": "reward_model"}], "no reward model"),
    ],
)
def test_a_wrong_member_is_refused_with_its_place(members: Any, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        open_judge({"kind": "panel", "members": members}, {"m": prefers(0.9)}, RULES)


def test_scores_without_a_common_scale_are_refused() -> None:
    engines = {"m": prefers(0.9), "rm": ScriptedEngine(lambda _: "1.0", scores=True)}
    members = [{"kind": "pointwise"}, {"kind": "reward_model", "model": "rm"}]
    with pytest.raises(SettingsError, match="one scale"):
        open_scorer({"kind": "panel", "members": members}, engines, RULES)
