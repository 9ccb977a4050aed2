"""Every kind of judge on a real model that knows the task, against the oracle: fresh pairs, known and new wordings."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import openai
import pytest

from constitution import Constitution, Principle, diff
from judges import open_judge, open_scorer
from nano import tasks, world
from nano.constitution import principle
from nano.lexicon import UNNAMED
from nano.world import Rule
from service import preview
from service.constitution_edits import open_side
from tenet.engines import Request, _model
from tenet.records import Comparison, Label, Message, Prompt
from tests.api_server import serving

ROOT = Path(__file__).parent.parent
PAIRWISE = {"kind": "pairwise"}
COT = {"kind": "pairwise", "cot": True}
POINTWISE = {"kind": "pointwise"}
KINDS: dict[str, dict[str, Any]] = {
    "pairwise": PAIRWISE,
    "in words": {**PAIRWISE, "read": "text"},
    "chain of thought": COT,
    "three samples, clamped": {**COT, "samples": 3, "temperature": 1.0, "clamp": [0.4, 0.6]},
    "pointwise": POINTWISE,
    "pointwise in words": {**POINTWISE, "read": "text"},
    "panel": {"kind": "panel", "members": [PAIRWISE, COT, POINTWISE]},
}
Item = tuple[Constitution, Comparison, Label]


def items(n: int) -> list[Item]:
    """Pairs of which exactly one reply breaks the one rule; every other rule is in a wording never trained on."""
    rng = random.Random("judges on nano")
    found: list[Item] = []
    while len(found) < n:
        rule = Rule(key := rng.choice(tasks.KEYS), world.rule(rng, key, bool(len(found) % 2)).wording)
        asked, a, b, right = tasks.pair(rng, key)
        if a.breaks(key) == b.breaks(key):
            continue
        rules = Constitution(name="one", principles=(Principle.model_validate(principle(rule)),))
        prompt = Prompt(messages=(Message(role="user", content=asked),))
        found.append((rules, Comparison(prompt=prompt, a=a.text, b=b.text), "A" if right == "A" else "B"))
    return found


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_finds_the_reply_that_keeps_the_rule(nano_engine: Any, name: str) -> None:
    async def judge_all() -> list[bool]:
        said = [open_judge(KINDS[name], nano_engine, rules).judge(pair) for rules, pair, _ in items(60)]
        return [v.label == right for v, (_, _, right) in zip(await asyncio.gather(*said), items(60), strict=True)]

    right = asyncio.run(judge_all())
    assert sum(right) >= 0.95 * len(right)


@pytest.mark.skipif(not _model.slow_bf16(), reason="this machine computes fast in bfloat16, so the engine does too")
def test_where_bfloat16_is_slow_the_engine_computes_in_float32(nano_engine: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = ROOT / "nano/models/assistant"
    tok = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    turns = [{"role": "user", "content": "Which reply is kinder, A or B?"}]
    given = tok.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        row = model(**given).logits[0, -1].log_softmax(-1)
    expected = [float(row[tok.encode(x, add_special_tokens=False)[0]]) for x in "AB"]
    asked = Request(messages=(Message(**turns[0]),), choices=("A", "B"))
    [reply] = asyncio.run(nano_engine.generate([asked]))
    assert reply.choice_logprobs == pytest.approx(expected, abs=2e-4)  # bfloat16 is off by 0.01 and more


def test_rationales_say_what_each_reply_does_and_are_kept(nano_engine: Any) -> None:
    rules, pair, _ = items(1)[0]
    verdict = asyncio.run(open_judge(COT, nano_engine, rules).judge(pair))
    for vote in verdict.votes:
        assert vote.rationale.startswith("Reply A:")
        assert "Reply B:" in vote.rationale
        assert vote.why == ""


def test_scores_of_single_replies_tell_kept_rules_from_broken_ones(nano_engine: Any) -> None:
    async def score_all() -> list[tuple[float, float]]:
        scorers = [(open_scorer(POINTWISE, nano_engine, rules), pair, right) for rules, pair, right in items(30)]
        sides = [(pair.a, pair.b) if right == "A" else (pair.b, pair.a) for _, pair, right in scorers]
        said = await asyncio.gather(
            *(s.score(pair.prompt, t) for (s, pair, _), texts in zip(scorers, sides, strict=True) for t in texts)
        )
        values = [s.value for s in said]
        assert all(v is not None and -1 <= v <= 1 for v in values)
        return list(zip(values[::2], values[1::2], strict=True))  # type: ignore[arg-type]

    pairs = asyncio.run(score_all())
    assert sum(kept > 0 > broken for kept, broken in pairs) >= 27


def test_a_preview_on_nano_finds_that_a_removed_rule_asks_nothing_any_more(nano_engine: Any, tmp_path: Path) -> None:
    rules = (ROOT / "constitution/files/nano.yaml").read_text()
    at, end = rules.index("- id: advert"), rules.index("- id: shouting")
    (tmp_path / "without.yaml").write_text(rules[:at] + rules[end:])
    (tmp_path / "recipe.yaml").write_text(
        (ROOT / "service/demo_files/recipe.yaml")
        .read_text()
        .replace("prompts.jsonl", f"{ROOT}/service/demo_files/prompts.jsonl")
    )
    job = preview.Job(
        "nano", str(tmp_path / "without.yaml"), recipe=tmp_path / "recipe.yaml", limit=8, out=tmp_path / "out",
        workspace=tmp_path / "runs",
    )  # fmt: skip
    plans = preview.open_plans(job)
    walks, cost = asyncio.run(preview.walk(plans, job.limit, job.workspace, {"nano": nano_engine}))
    found = preview.write(job, diff.diff(open_side(job.old), open_side(job.new)), plans, walks, cost)
    assert found["principles"]["advert"]["old"]
    assert not found["principles"]["advert"]["new"]
    assert cost.reused > cost.asked / 4
    for w in walks:
        assert [c.response for c in w.old.candidates] == [c.response for c in w.new.candidates]


def test_chat_under_a_constitution_takes_out_what_the_constitution_names(nano_engine: Any, tmp_path: Path) -> None:
    """Through `openai`'s own client, from a service on loopback, at once, as users ask."""
    rng, named = random.Random("chat on nano"), frozenset(world.AVOID) - UNNAMED
    asked = [world.question(rng)[1] for _ in range(24)]
    revise = {"rounds": 2, "principles": 5, "sampling": {"temperature": 0.3}}

    async def ask_all(base_url: str) -> list[Any]:
        async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=120) as client:
            return await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model="assistant@nano", messages=[{"role": "user", "content": q}], max_tokens=200, seed=i,
                        extra_body={"tenet": {"critiques": True}},
                    )
                    for i, q in enumerate(asked)
                )
            )  # fmt: skip

    asyncio.run(nano_engine.start())
    with serving(tmp_path, {"assistant": nano_engine}, judges={}, chat={"revise": revise}) as client:
        answers = [a.choices[0] for a in asyncio.run(ask_all(f"{client.base_url}/v1"))]
    first = sum(bool(world.faults(a.tenet["first"], named)) for a in answers)
    last = sum(bool(world.faults(a.message.content, named)) for a in answers)
    assert first >= 8
    assert last <= 0.75 * first
    assert all(len(a.tenet["rounds"]) == 2 for a in answers)
