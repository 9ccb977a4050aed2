"""Renders what judges ask: untrusted text sits in fences that it cannot close."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from tenet.records import Message, Prompt
from tenet.templates import fence_safe, fill, load

PAIRWISE = load("judges", "pairwise.txt")
REASON = load("judges", "pairwise_reason.txt")
ANSWER = load("judges", "pairwise_answer.txt")
POINTWISE = load("judges", "pointwise.txt")
TAGS = frozenset({"conversation", "system", "human", "assistant", "reply", "reply_a", "reply_b"})
_TURN = {"system": "system", "user": "human", "assistant": "assistant"}


@lru_cache(1024)  # a pair's texts are asked about once for each principle and slot order
def _safe(text: str) -> str:
    return fence_safe(text, TAGS)


def conversation(messages: Sequence[Message]) -> str:
    """The turns of a conversation, each in a fence of its own, so that no turn can fake another."""
    return "\n".join(f"<{_TURN[m.role]}>{_safe(m.content)}</{_TURN[m.role]}>" for m in messages)


def pairwise(messages: Sequence[Message], a: str, b: str, question: str, template: str = PAIRWISE) -> str:
    """The question which of two replies is better."""
    return fill(
        template,
        conversation=conversation(messages),
        a=_safe(a),
        b=_safe(b),
        question=_safe(question),
    )


def pointwise(messages: Sequence[Message], reply: str, question: str) -> str:
    """The question how good one reply is, from 1 to 10."""
    return fill(POINTWISE, conversation=conversation(messages), reply=_safe(reply), question=_safe(question))


def shown(prompt: Prompt, *replies: str) -> tuple[str, ...]:
    """The untrusted texts of a question: what repeats them is not the judge's own word."""
    return (*replies, *(m.content for m in prompt.messages))
