"""Measures nano's skills on fresh items, through the pipeline's own templates and a real engine."""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from constitution import Constitution, Principle
from generators import revise
from judges import open_judge
from nano import tasks, world
from nano.constitution import principle
from nano.lexicon import BY_KEY
from nano.world import Answer, Rule
from tenet.engines import Engine, Request, Sampling
from tenet.records import Comparison, Message, Prompt, Response


def _principle(rule: Rule) -> Principle:
    return Principle.model_validate(principle(rule))


def _prompt(text: str) -> Prompt:
    return Prompt(messages=(Message(role="user", content=text),))


def interval(right: int, n: int) -> dict[str, float | int]:
    """A share with its 95% Wilson interval."""
    from statsmodels.stats.proportion import proportion_confint

    bounds: Any = proportion_confint(right, n, method="wilson")
    return {"value": right / n, "low": float(bounds[0]), "high": float(bounds[1]), "n": n}


async def judging(engine: Engine, n: int, seed: int, held_out: bool) -> dict[str, Any]:
    """Accuracy on pairs of which exactly one reply breaks the rule, both slot orders averaged."""
    rng = random.Random(f"judge {seed} {held_out}")

    async def one() -> tuple[bool, bool]:
        rule = Rule(key := rng.choice(tasks.KEYS), world.rule(rng, key, held_out).wording)
        asked, a, b, right = tasks.pair(rng, key)
        while a.breaks(key) == b.breaks(key):
            asked, a, b, right = tasks.pair(rng, key)
        judge = open_judge({"kind": "pairwise"}, engine, Constitution(name="one", principles=(_principle(rule),)))
        verdict = await judge.judge(Comparison(prompt=_prompt(asked), a=a.text, b=b.text))
        return verdict.label == right, bool(verdict.consistent)

    ended = await asyncio.gather(*(one() for _ in range(n)))
    return {
        **interval(sum(right for right, _ in ended), n),
        "consistent": sum(same for _, same in ended) / n,
    }


def kept_rest(before: Answer, after: Answer, rules: Sequence[Rule]) -> bool:
    """Whether a revision has no fault that the rules name, has the parts they ask for, and is otherwise the
    reply as it was, sentence by sentence."""
    added = {r.concept for r in rules if BY_KEY[r.concept].must and not before.has(r.concept)}
    gone = {r.concept for r in rules if not BY_KEY[r.concept].must}
    expected = [s.text for s in before.sentences if s.concept not in gone]
    rest = [s.text for s in after.sentences if s.concept not in added]
    return rest == expected and not any(after.breaks(r.concept) for r in rules)


async def revising(engine: Engine, n: int, seed: int, held_out: bool, rules_each: int = 1) -> dict[str, Any]:
    """Shares of critiques and of revisions that are right; the revision follows the model's own critique."""
    rng = random.Random(f"revise {seed} {held_out} {rules_each}")

    async def one() -> tuple[bool, bool]:
        keys = rng.sample(tasks.KEYS, rules_each)
        rules = [Rule(k, world.rule(rng, k, held_out).wording) for k in keys]
        topic, asked = world.question(rng)
        reply = world.spoiled(rng, topic, tuple(keys))
        principles = tuple(_principle(r) for r in rules)
        chain = revise.Chain(
            prompt := _prompt(asked), prompt.messages,
            Response(prompt_id=prompt.id, index=0, text=reply.text, model=""),
            Constitution(name="some", principles=principles),
            revise.Settings(principles=rules_each, sampling=revise.Draw(temperature=0.0, max_tokens=200)),
            seed,
        )  # fmt: skip
        drawn = chain.principles(1)
        order = tuple(next(r for r in rules if r.concept == p.id) for p in drawn)
        critique = (await engine.generate([chain.critique_ask(1, drawn)]))[0].text.strip()
        text = (await engine.generate([chain.revise_ask(1, drawn, critique)]))[0].text
        named = set(split_critique(critique)) == set(split_critique(tasks.critique_text(reply, order)))
        return named, kept_rest(reply, world.read(text), order)

    ended = await asyncio.gather(*(one() for _ in range(n)))
    return {
        "critique": interval(sum(named for named, _ in ended), n),
        "revision": interval(sum(kept for _, kept in ended), n),
    }


def split_critique(text: str) -> list[str]:
    """The statements of a critique: each names a fault and quotes it, or says what is missing."""
    return [s.strip() for s in text.replace(" There is ", "\nThere is ").split("\n")]


async def answering(engine: Engine, n: int, seed: int) -> dict[str, Any]:
    """How many first replies carry at least one planted fault, and how much of the rest is useful."""
    rng = random.Random(f"answer {seed}")
    asked = [world.question(rng) for _ in range(n)]
    replies = await engine.generate(
        [
            Request(messages=_prompt(q).messages, sampling=Sampling(max_tokens=200, seed=seed + i))
            for i, (_, q) in enumerate(asked)
        ]
    )
    texts = [r.text for r in replies]
    faulty = sum(bool(world.faults(t, set(world.AVOID))) for t in texts)
    plain = [(topic, s.text) for (topic, _), t in zip(asked, texts, strict=True)
             for s in world.read(t).sentences if s.concept is None]  # fmt: skip
    good = sum(world.is_useful(s, topic) for topic, s in plain)
    return {"faulty": interval(faulty, n), "useful": interval(good, max(len(plain), 1))}


async def measure(engine: Engine, n: int, seed: int) -> dict[str, Any]:
    """All skills, n items each, with known and with held-out wordings."""
    result: dict[str, Any] = {"items": n, "seed": seed, "answer": await answering(engine, n, seed)}
    for held_out in (False, True):
        result["held-out" if held_out else "known"] = {
            "judge": await judging(engine, n, seed, held_out),
            **await revising(engine, n, seed, held_out),
            "four rules": await revising(engine, n, seed, held_out, 4),
        }
    return result


def main(model: str, items: int, seed: int, json_out: Path | None) -> None:
    """Prints the table; exit status is 0 whatever the figures are."""
    from tenet.engines.vllm import Settings, build

    async def run() -> dict[str, Any]:
        engine = build(Settings.model_validate({"model": model}))
        try:
            return {"model": model, **await measure(engine, items, seed)}
        finally:
            await engine.close()

    found = asyncio.run(run())
    if json_out:
        json_out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(table(found))


_TARGETS = (
    ("judge", ("judge",), 0.95, 0.88),
    ("critique", ("critique",), 0.92, 0.80),
    ("revision", ("revision",), 0.92, 0.80),
    ("critique, 4 rules at once", ("four rules", "critique"), None, None),
    ("revision, 4 rules at once", ("four rules", "revision"), None, None),
)


def table(found: dict[str, Any]) -> str:
    """The skills as text: share, 95% interval, and the target."""
    lines = [f"{found.get('model', '')}: {found['items']} fresh items a skill (95% Wilson intervals)"]
    for name, path, *targets in _TARGETS:
        for wording, target in zip(("known", "held-out"), targets, strict=True):
            at = found[wording]
            for key in path:
                at = at[key]
            aim = "" if target is None else f"   target {target:.2f} {'met' if at['value'] >= target else 'MISSED'}"
            lines.append(f"  {name:26} {wording:9} {_shown(at)}{aim}")
    faulty, useful = found["answer"]["faulty"], found["answer"]["useful"]
    met = "met" if 0.4 <= faulty["value"] <= 0.8 else "MISSED"
    lines.append(f"  {'first replies with a fault':36} {_shown(faulty)}   target 0.40-0.80 {met}")
    lines.append(f"  {'other sentences that are useful':36} {_shown(useful)}")
    return "\n".join(lines)


def _shown(at: dict[str, Any]) -> str:
    return f"{at['value']:.3f} ({at['low']:.3f}-{at['high']:.3f})"
