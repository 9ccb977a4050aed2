"""Probes of nano's judging: other wordings of a rule of its small world, and pairs that differ in it."""

from __future__ import annotations

import random
from functools import cache

from constitution import Principle
from nano import tasks
from nano.constitution import principle
from nano.lexicon import CONCEPTS, FRAMES
from nano.world import Rule
from tenet.records import Comparison, Message, Prompt


@cache
def _questions() -> dict[str, Rule]:
    rules = (
        Rule(c.key, wording, frame)
        for c in CONCEPTS
        for wording in c.wordings
        for frame in range(len(FRAMES[c.must]["choose"]))
    )
    return {rule.text("choose"): rule for rule in rules}


def concept_of(question: str) -> str | None:
    """The concept that a pair question of nano's asks about; None if nano knows no such question."""
    rule = _questions().get(question)
    return rule.concept if rule else None


def paraphrases(question: str, n: int = 4, seed: int = 0) -> list[str]:
    """Up to n other questions about the same concept, in wordings that nano was trained on; none if it knows it not."""
    rule = _questions().get(question)
    if rule is None:
        return []
    known = next(c.known for c in CONCEPTS if c.key == rule.concept)
    others = [q for q, r in _questions().items() if r.concept == rule.concept and r.wording in known and q != question]
    return random.Random(f"paraphrases {seed} {question}").sample(others, min(n, len(others)))


def pairs(concept: str, n: int, seed: int = 0) -> list[Comparison]:
    """n pairs of replies of which mostly one breaks the rule about the concept."""
    rng = random.Random(f"probes {seed} {concept}")
    made: list[Comparison] = []
    while len(made) < n:
        asked, a, b, _ = tasks.pair(rng, concept)
        if a.text != b.text:
            made.append(Comparison(prompt=Prompt(messages=(Message(role="user", content=asked),)), a=a.text, b=b.text))
    return made


def rules(wordings: int = 3) -> list[Principle]:
    """Every rule of the small world, those that the constitution `nano` leaves out too, in so many trained wordings."""
    return [
        Principle.model_validate({**principle(Rule(c.key, wording)), "id": f"{c.key}.{i}"})
        for c in CONCEPTS
        for i, wording in enumerate(c.known[:wordings], 1)
    ]
