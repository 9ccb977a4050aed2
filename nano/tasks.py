"""Exercises in nano's skills, as conversations in the same templates that the pipeline sends."""

from __future__ import annotations

import random
from collections.abc import Callable

from generators.revise import critique_request, revise_request
from judges import _render as judge
from nano import world
from nano.lexicon import BY_KEY, CONCEPTS
from nano.world import Answer, Rule
from tenet.records import Message

Dialogue = list[tuple[str, str]]
"""(role, text) turns; the model is trained on the assistant's turns."""
KEYS = tuple(c.key for c in CONCEPTS)
NOTHING = "I find no fault."


def critique_text(answer: Answer, rules: tuple[Rule, ...]) -> str:
    """The critique that is right: every broken rule's fault by name, quoted."""
    said: list[str] = []
    for rule in rules:
        concept = BY_KEY[rule.concept]
        if concept.must and not answer.has(concept.key):
            said.append(f"There is no {concept.name}.")
        elif not concept.must:
            said += [f"There is {concept.name}: “{s.text}”" for s in answer.sentences if s.concept == concept.key]
    return " ".join(said) or NOTHING


def revised(rng: random.Random, answer: Answer, rules: tuple[Rule, ...]) -> Answer:
    """The reply without the faults that the rules name and with the parts that they ask for."""
    named = {r.concept for r in rules}
    kept = tuple(s for s in answer.sentences if s.concept not in named or BY_KEY[s.concept].must)
    new = (r.concept for r in rules if BY_KEY[r.concept].must and not answer.has(r.concept))
    return Answer(kept + tuple(world.Sentence(world.sentence(rng, BY_KEY[k]), k) for k in new))


def draw_rules(rng: random.Random, most: int = 5) -> tuple[Rule, ...]:
    """One to `most` rules about different concepts; some wordings are two in one."""
    keys = rng.sample(KEYS, rng.choice((1, 1, 1, 2, 3, rng.randint(1, most))))
    return tuple(_mixed(rng, k) for k in keys)


def _mixed(rng: random.Random, key: str) -> Rule:
    rule = world.rule(rng, key)
    if rng.random() < 0.4:
        other = world.rule(rng, key).wording
        return Rule(key, f"{rule.wording} {rng.choice(('or', 'and'))} {other}", rule.frame)
    return rule


def start(rng: random.Random) -> tuple[int, str]:
    return world.question(rng)


def answering(rng: random.Random) -> Dialogue:
    """A question and a reply with the assistant's usual faults."""
    topic, asked = start(rng)
    return [("user", asked), ("assistant", world.spoiled(rng, topic).text)]


def revising(rng: random.Random) -> Dialogue:
    """A critique and a revision (or a direct revision) under some rules."""
    topic, asked = start(rng)
    rules = draw_rules(rng)
    reply = world.spoiled(rng, topic, tuple(r.concept for r in rules))
    turns: Dialogue = [("user", asked), ("given", reply.text)]
    if rng.random() < 0.8:
        ask = critique_request(tuple(r.text("critique") for r in rules))
        turns += [("user", ask), ("assistant", critique_text(reply, rules))]
    ask = revise_request(tuple(r.text("revise") for r in rules))
    return [*turns, ("user", ask), ("assistant", revised(rng, reply, rules).text)]


def pair(rng: random.Random, key: str) -> tuple[str, Answer, Answer, str]:
    """A question, two replies, and which of them ("A" or "B") the rule about `key` prefers; at random if neither."""
    topic, asked = start(rng)
    focus = (key,) if rng.random() < 0.9 else ()
    a, b = world.spoiled(rng, topic, focus), world.spoiled(rng, topic, focus)
    if rng.random() < 0.25:  # the two differ by little, as a reply and its revision do
        b = revised(rng, a, (world.rule(rng, key), world.rule(rng, rng.choice(KEYS))))
        a, b = (a, b) if rng.random() < 0.5 else (b, a)
    if a.breaks(key) == b.breaks(key) and rng.random() < 0.8:
        return pair(rng, key)
    return asked, a, b, preferred(rng, a, b, key)


def preferred(rng: random.Random, a: Answer, b: Answer, key: str) -> str:
    if a.breaks(key) == b.breaks(key):
        return rng.choice("AB")
    return "B" if a.breaks(key) else "A"


def judging(rng: random.Random) -> Dialogue:
    """Which of two replies a rule prefers; then the same pair under other rules, so that one text teaches more."""
    rule = _mixed(rng, rng.choice(KEYS))
    asked, a, b, right = pair(rng, rule.concept)
    messages = (Message(role="user", content=asked),)
    turns: Dialogue = [("user", judge.pairwise(messages, a.text, b.text, rule.text("choose"))), ("assistant", right)]
    others = [k for k in KEYS if a.breaks(k) != b.breaks(k) and k != rule.concept]
    for key in rng.sample(others, min(len(others), 4)):
        again = _mixed(rng, key)
        turns += [("user", f"{again.text('choose')}\n{judge.ANSWER}"), ("assistant", preferred(rng, a, b, key))]
    return turns


def reasoning(rng: random.Random) -> Dialogue:
    """The same in two steps: what each reply does, then the choice."""
    rule = _mixed(rng, rng.choice(KEYS))
    asked, a, b, right = pair(rng, rule.concept)
    messages = (Message(role="user", content=asked),)
    seen = f"Reply A: {critique_text(a, (rule,))} Reply B: {critique_text(b, (rule,))}"
    first = judge.pairwise(messages, a.text, b.text, rule.text("choose"), judge.REASON)
    return [("user", first), ("assistant", seen), ("user", judge.ANSWER), ("assistant", right)]


def scoring(rng: random.Random) -> Dialogue:
    """A score from 1 to 10: high if the rule is kept, low if it is broken."""
    rule = _mixed(rng, rng.choice(KEYS))
    topic, asked = start(rng)
    reply = world.spoiled(rng, topic, (rule.concept,))
    score = rng.choice(("1", "2", "3")) if reply.breaks(rule.concept) else rng.choice(("8", "9", "10"))
    ask = judge.pointwise((Message(role="user", content=asked),), reply.text, rule.text("score"))
    return [("user", ask), ("assistant", score)]


SKILLS: tuple[tuple[Callable[[random.Random], Dialogue], float], ...] = (
    (answering, 0.10), (revising, 0.40), (judging, 0.32), (reasoning, 0.10), (scoring, 0.08),
)  # fmt: skip


def exercise(rng: random.Random) -> Dialogue:
    """One conversation in a skill drawn by SKILLS' weights."""
    skill = rng.choices([s for s, _ in SKILLS], [w for _, w in SKILLS])[0]
    return skill(rng)


def plain(rng: random.Random) -> str:
    """A passage for pretraining: questions with answers, what sentences mean, texts with a sentence taken out."""
    form = rng.random()
    topic, asked = start(rng)
    reply = world.spoiled(rng, topic)
    if form < 0.3:
        return f"{asked}\n{reply.text}"
    if form < 0.7:
        return "\n".join(_lesson(rng) for _ in range(4))
    if form < 0.85:
        key = rng.choice(KEYS)
        rule = _mixed(rng, key)
        reply = world.spoiled(rng, topic, (key,))
        return f"{reply.text}\n{rule.text('critique')} {critique_text(reply, (rule,))}"
    gone = rng.choice(reply.sentences)
    rest = " ".join(s.text for s in reply.sentences if s is not gone)
    return f"{reply.text}\nWithout “{gone.text}” it reads: {rest}"


def _lesson(rng: random.Random) -> str:
    concept = rng.choice(CONCEPTS)
    rule = _mixed(rng, concept.key)
    said = world.sentence(rng, concept)
    if rng.random() < 0.5:
        return f"“{said}” This {rule.wording}. It is {concept.name}."
    other = rng.choice(CONCEPTS)
    wording = _mixed(rng, other.key).wording
    return f"“{said}” Is it one that {wording}? {'Yes' if other is concept else 'No'}, it is {concept.name}."
