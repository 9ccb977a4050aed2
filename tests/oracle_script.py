"""A scripted engine that plays nano with the oracle's knowledge: faultless skills, planted faults, any seed."""

from __future__ import annotations

import math
import random
import re

from nano import tasks, world
from nano.lexicon import CONCEPTS, FRAMES
from nano.world import Rule
from tenet.engines import Reply, Request
from tenet.records import Usage

_RULES = {
    Rule(c.key, wording, frame).text(stage): Rule(c.key, wording, frame)
    for c in CONCEPTS
    for wording in c.wordings
    for stage in ("critique", "revise", "choose")
    for frame in range(len(FRAMES[c.must][stage]))
}


def rules_in(text: str) -> tuple[Rule, ...]:
    """The rules whose texts stand in a request."""
    found = [(text.index(said), rule) for said, rule in _RULES.items() if said in text]
    return tuple(rule for _, rule in sorted(found, key=lambda x: x[0]))


def play(request: Request) -> Reply:
    """Answers as a perfect nano would."""
    last = request.messages[-1].content
    usage = Usage(calls=1, prompt_tokens=len(last.split()), completion_tokens=1)
    if request.choices:
        p = _p_first(last)
        return Reply(choice_logprobs=(math.log(p), math.log(1 - p)), usage=usage)
    text = _text(request, last)
    return Reply(text=text, usage=usage.model_copy(update={"completion_tokens": len(text.split())}))


def _p_first(asked: str) -> float:
    a, b = (
        world.read(re.search(f"<reply_{x}>\n(.*?)\n</reply_{x}>", asked, re.DOTALL)[1])  # type: ignore[index]
        for x in "ab"
    )
    rule = rules_in(asked)[0]
    return 0.5 + 0.4 * (b.breaks(rule.concept) - a.breaks(rule.concept))


def _text(request: Request, last: str) -> str:
    rng = random.Random(request.key(""))
    if last.startswith("Critique your last reply."):
        return tasks.critique_text(world.read(request.messages[-2].content), rules_in(last))
    if last.startswith("Rewrite your last reply."):
        said = [m.content for m in request.messages if m.role == "assistant"]
        before = said[-2] if "Critique your" in request.messages[-3].content else said[-1]
        return tasks.revised(rng, world.read(before), rules_in(last)).text
    topic = world.topic_of(last)
    return world.spoiled(rng, 0 if topic is None else topic).text
