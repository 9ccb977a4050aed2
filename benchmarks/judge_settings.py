"""What the settings of judges do on nano, against its oracle: right labels, ties, calls, tokens, seconds; JSON.

    python benchmarks/judge_settings.py [PAIRS]          # 500 pairs of each sort by default
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from constitution import Constitution, Principle, load
from judges import open_judge
from nano import tasks, world
from nano.check import interval
from nano.constitution import principle
from nano.world import Rule
from tenet.engines.vllm import Settings, build
from tenet.records import Comparison, Message, Prompt, Usage

PAIR: dict[str, Any] = {"kind": "pairwise"}
COT = {**PAIR, "cot": True}
POINT = {"kind": "pointwise"}
SINGLE = {
    "pairwise, both": PAIR,
    "pairwise, both, tie 0.1": {**PAIR, "tie": 0.1},
    "pairwise, given": {**PAIR, "order": "given"},
    "pairwise, text": {**PAIR, "read": "text"},
    "chain of thought": COT,
    "chain of thought, tie 0.1": {**COT, "tie": 0.1},
    "chain of thought, 5 samples": {**COT, "samples": 5, "temperature": 1.0},
    "pointwise": POINT,
    "pointwise, tie 0.1": {**POINT, "tie": 0.1},
    "pointwise, text": {**POINT, "read": "text"},
    "panel": {"kind": "panel", "members": [PAIR, COT, POINT]},
}
ENSEMBLES = {
    f"{k} principles, {order}": {**PAIR, "principles": k, "order": order}
    for k in (1, 4, 8, "all")
    for order in ("both", "given")
}
Item = tuple[Constitution, Comparison, str]


def _comparison(asked: str, a: str, b: str) -> Comparison:
    return Comparison(prompt=Prompt(messages=(Message(role="user", content=asked),)), a=a, b=b)


def one_rule(n: int, sort: str) -> list[Item]:
    """Pairs under one rule, which one reply breaks ("known", "new" wordings), or as many as the other ("even")."""
    rng, found = random.Random(sort), list[Item]()
    while len(found) < n:
        rule = Rule(key := rng.choice(tasks.KEYS), world.rule(rng, key, sort == "new").wording)
        topic, asked = world.question(rng)
        a, b = world.spoiled(rng, topic, (key,)), world.spoiled(rng, topic, (key,))
        even = a.breaks(key) == b.breaks(key)
        if even != (sort == "even") or a.text == b.text:
            continue
        rules = Constitution(name="one", principles=(Principle.model_validate(principle(rule)),))
        right = "tie" if even else "B" if a.breaks(key) else "A"
        found.append((rules, _comparison(asked, a.text, b.text), right))
    return found


def many_rules(n: int) -> list[Item]:
    """Pairs under nano's whole constitution; right is the reply that keeps more of its rules."""
    rng, rules, found = random.Random("many"), load("nano"), list[Item]()
    while len(found) < n:
        topic, asked = world.question(rng)
        a, b = world.spoiled(rng, topic), world.spoiled(rng, topic)
        edge = sum(int(b.breaks(p.id)) - int(a.breaks(p.id)) for p in rules.principles)
        if edge:
            found.append((rules, _comparison(asked, a.text, b.text), "A" if edge > 0 else "B"))
    return found


async def measure(engine: Any, settings: dict[str, Any], items: list[Item]) -> dict[str, Any]:
    """One judge on one set of pairs, 200 at once."""
    gate = asyncio.Semaphore(200)

    async def one(rules: Constitution, pair: Comparison) -> Any:
        async with gate:
            return await open_judge(settings, engine, rules).judge(pair)

    begun = time.perf_counter()
    said = await asyncio.gather(*(one(rules, pair) for rules, pair, _ in items))
    seconds = time.perf_counter() - begun
    usage = sum((v.usage for v in said), Usage())
    right = sum(v.label == r for v, (_, _, r) in zip(said, items, strict=True))
    asked_both = [v.consistent for v in said if v.consistent is not None]
    return {
        "right": interval(right, len(items)),
        "labels": dict(Counter(v.label for v in said)),
        "consistent": sum(asked_both) / len(asked_both) if asked_both else None,
        "brier": sum((v.p_a - {"A": 1.0, "B": 0.0, "tie": 0.5}[r]) ** 2
                     for v, (_, _, r) in zip(said, items, strict=True) if v.p_a is not None) / len(items),
        "calls": usage.calls / len(items), "tokens_out": usage.completion_tokens / len(items),
        "seconds": round(seconds, 2),
    }  # fmt: skip


async def main(n: int) -> dict[str, Any]:
    engine = build(Settings(model="nano:assistant"))
    await engine.start()
    try:
        found: dict[str, Any] = {"pairs": n}
        for sort in ("known", "new", "even"):
            items = one_rule(n, sort)
            found[sort] = {name: await measure(engine, settings, items) for name, settings in SINGLE.items()}
        items = many_rules(n)
        found["many rules"] = {name: await measure(engine, settings, items) for name, settings in ENSEMBLES.items()}
        return found
    finally:
        await engine.close()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)), indent=1))
