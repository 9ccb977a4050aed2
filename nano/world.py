"""Nano's small world: questions, replies with planted faults, and the oracle that knows which faults a text carries.

The oracle is ground truth by construction, since each fault's sentences show a marker that no other sentence has.
It is not a person, and nothing in tenet calls it one.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from nano.lexicon import BY_KEY, CONCEPTS, EXTRAS, FRAMES, QUESTIONS, SLOTS, TOPICS, USEFUL, Concept

_SLOT = re.compile(r"\{(\w+)\}")
_MARKERS = {c.key: re.compile(c.marker) for c in CONCEPTS}
_USEFUL = tuple(re.compile(re.escape(u).replace(r"\{x\}", "(?P<x>.+)").replace(r"\{y\}", "(?P<y>.+)")) for u in USEFUL)
MUST = tuple(c.key for c in CONCEPTS if c.must)
AVOID = tuple(c.key for c in CONCEPTS if not c.must)


@dataclass(frozen=True)
class Sentence:
    """One sentence of a reply and the concept it carries, if any."""

    text: str
    concept: str | None = None


@dataclass(frozen=True)
class Answer:
    """A reply whose every sentence is known."""

    sentences: tuple[Sentence, ...]

    @property
    def text(self) -> str:
        return " ".join(s.text for s in self.sentences)

    def has(self, key: str) -> bool:
        return any(s.concept == key for s in self.sentences)

    def breaks(self, key: str) -> bool:
        """Whether the reply breaks the rule about a concept: it carries a fault, or lacks a part it must have."""
        return self.has(key) != BY_KEY[key].must


@dataclass(frozen=True)
class Rule:
    """A concept, one of its wordings, and which frame turns it into a principle's texts."""

    concept: str
    wording: str
    frame: int = 0

    def text(self, stage: str) -> str:
        """The principle's text for a stage: critique, revise, choose or score."""
        frames = FRAMES[BY_KEY[self.concept].must][stage]
        return frames[self.frame % len(frames)].replace("{w}", self.wording)


def question(rng: random.Random, topic: int | None = None) -> tuple[int, str]:
    """A topic's index and a question about it."""
    topic = rng.randrange(len(TOPICS)) if topic is None else topic
    extra = rng.choice(EXTRAS)
    return topic, rng.choice(QUESTIONS).format(task=TOPICS[topic][0], extra=extra)


def useful(rng: random.Random, topic: int) -> str:
    """A useful sentence about a topic."""
    x, y = rng.sample(TOPICS[topic][1], 2)
    return rng.choice(USEFUL).format(x=x, y=y)


def sentence(rng: random.Random, concept: Concept) -> str:
    """A sentence that carries a concept."""
    template = rng.choice(concept.sentences)
    return _SLOT.sub(lambda m: rng.choice(SLOTS[m[1]]), template)


def answer(rng: random.Random, topic: int, faults: tuple[str, ...], parts: tuple[str, ...] = ()) -> Answer:
    """Two or three useful sentences about a topic, with the given faults and must-have parts at random places."""
    texts: list[str] = []
    for _ in range(rng.choice((2, 2, 3))):
        texts.append(next(t for t in iter(lambda: useful(rng, topic), "") if t not in texts))
    said = [Sentence(t) for t in texts]
    for key in (*faults, *parts):
        said.insert(rng.randint(0, len(said)), Sentence(sentence(rng, BY_KEY[key]), key))
    return Answer(tuple(said))


def spoiled(rng: random.Random, topic: int, focus: tuple[str, ...] = ()) -> Answer:
    """A reply as the assistant gives it: 60% have planted faults; each must-have part is there by 35%.

    Concepts in `focus` are made likelier (one in two), for exercises about them.
    """
    faults = set(rng.sample(AVOID, rng.choices((0, 1, 2), (40, 38, 22))[0]))
    parts = {k for k in MUST if rng.random() < 0.35}
    for key in focus:
        group = parts if BY_KEY[key].must else faults
        (group.add if rng.random() < 0.5 else group.discard)(key)
    order = sorted(faults | parts)
    rng.shuffle(order)
    return answer(rng, topic, tuple(k for k in order if k in faults), tuple(k for k in order if k in parts))


def rule(rng: random.Random, key: str, held_out: bool = False) -> Rule:
    """A rule about a concept in one of its trained (or held-out) wordings."""
    concept = BY_KEY[key]
    return Rule(key, rng.choice(concept.held_out if held_out else concept.known), rng.randrange(3))


def read(text: str) -> Answer:
    """The oracle: a text split into sentences, each with the concept that its marker shows."""
    return Answer(tuple(Sentence(s, _concept(s)) for s in split(text)))


def split(text: str) -> list[str]:
    """The sentences of a text."""
    return [s for s in re.split(r"(?<=[.!?])\s+", text.strip()) if s]


def _concept(text: str) -> str | None:
    return next((key for key, marker in _MARKERS.items() if marker.search(text)), None)


def faults(text: str, named: frozenset[str] | set[str]) -> set[str]:
    """Which of the named concepts a text breaks."""
    seen = read(text)
    return {key for key in named if seen.breaks(key)}


def is_useful(text: str, topic: int) -> bool:
    """Whether a sentence is a useful one about the topic."""
    things = set(TOPICS[topic][1])
    return any(m and set(m.groups()) <= things for m in (p.fullmatch(text) for p in _USEFUL))


def topic_of(text: str) -> int | None:
    """The topic that a question is about; None if it is about none."""
    return next((i for i, (task, _) in enumerate(TOPICS) if task in text), None)
