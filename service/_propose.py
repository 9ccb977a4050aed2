"""Proposals of principles: a model sees labelled pairs and asks for what the preferred replies have in common."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from judges import _render
from judges.pairs_file import LabelledPair
from tenet.engines import Engine, Request, Sampling
from tenet.records import Frozen, Message, seed_of
from tenet.templates import fence_safe, fill, load

TEMPLATE = load("service", "propose.txt")
PAIR = "<pair>\n{conversation}\n<preferred>\n{preferred}\n</preferred>\n<other>\n{other}\n</other>\n</pair>"
TAGS = _render.TAGS | {"pair", "preferred", "other"}
MOST_WORDS = 40

_BULLET = re.compile(r"""^\s*(?:[-*•]+|\(?\d{1,2}[.):])?\s*["'“]?\s*""")
_QUESTION = re.compile(
    r"^which\s+(?:of the (?:two )?repl(?:y|ies)|reply|response|answer|one)\s+([^?]+)\?", re.IGNORECASE
)
_SELECT = re.compile(
    r"^(?:select|choose|prefer|pick)\s+the\s+(?:reply|response|answer)\s+(?:that|which)\s+([^?]+?)[.?]?$", re.IGNORECASE
)


class Proposals(Frozen):
    """What a model proposed."""

    questions: tuple[str, ...]
    """Each once, those that were proposed most often first."""
    calls: int
    unreadable: int
    """Lines that are no question of the form that was asked for."""
    failed: int
    """Calls that failed, or gave no line at all."""
    example: str = ""
    """The first line that could not be read."""


async def propose(
    engine: Engine, pairs: Sequence[LabelledPair], labels: Sequence[str], calls: int, each: int, shown: int, seed: int
) -> Proposals:
    """Asks `calls` times for at most `each` questions, showing `shown` of the labelled pairs at a time."""
    rng = random.Random(f"propose {seed}")
    requests: list[Request] = []
    for i in range(calls):
        picked = rng.sample(range(len(pairs)), min(shown, len(pairs)))
        text = fill(TEMPLATE, pairs="\n".join(_shown(pairs[k], labels[k]) for k in picked), n=str(each))
        sampling = Sampling(temperature=1.0, max_tokens=60 * each, seed=seed_of(seed, "propose", i))
        requests.append(Request(messages=(Message(role="user", content=text),), sampling=sampling))
    counted: dict[str, int] = {}
    unreadable = failed = 0
    example = ""
    for reply in await engine.generate(requests):
        lines = [line for line in reply.text.splitlines() if line.strip()]
        failed += reply.fault is not None or not lines
        for line in lines[: 4 * each]:
            question = read(line)
            if question is None:
                unreadable += 1
                example = example or line.strip()[:80]
            else:
                counted[question] = counted.get(question, 0) + 1
    ranked = sorted(counted, key=lambda q: (-counted[q], q))
    return Proposals(questions=tuple(ranked), calls=calls, unreadable=unreadable, failed=failed, example=example)


def read(line: str) -> str | None:
    """The pair question of a line; None if it is none."""
    text = " ".join(_BULLET.sub("", line).split()).rstrip("\"'”*")
    found = _QUESTION.match(text) or _SELECT.match(text)
    if found is None or len(found[1].split()) > MOST_WORDS:
        return None
    return f"Which reply {found[1].strip()}?"


def _shown(pair: LabelledPair, label: str) -> str:
    c = pair.comparison
    preferred, other = (c.a, c.b) if label == "A" else (c.b, c.a)
    turns = "\n".join(f"<{_role(m)}>{fence_safe(m.content, TAGS)}</{_role(m)}>" for m in c.prompt.messages)
    return fill(PAIR, conversation=turns, preferred=fence_safe(preferred, TAGS), other=fence_safe(other, TAGS))


def _role(message: Message) -> str:
    return "human" if message.role == "user" else message.role
