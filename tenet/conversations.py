"""Conversations as data files write them: lists of messages, or text with Human: and Assistant: turns."""

from __future__ import annotations

import re
from typing import Any, cast

from tenet.files import Malformed, check_unicode, kind_of
from tenet.records import Message

# A turn begins at the very start or after an empty line; a body may hold colons and empty lines.
_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_ROLES = ("system", "user", "assistant")


def message(role: Any, text: str) -> Message:
    """One turn; Malformed if the text cannot be encoded."""
    check_unicode(text, "the text")
    return Message(role=role, content=text)


def split_dialogue(text: str) -> tuple[Message, ...]:
    """The turns of an HH dialogue, each body to the letter but for the space after its colon."""
    before, *rest = _TURN.split(text)
    if before.strip() or not rest:
        what = f"{before.strip()[:40]!r} stands where a dialogue begins with '\\n\\nHuman:'"
        raise Malformed("not a dialogue", what, "mark every turn with Human: or Assistant:")
    roles = ("user" if r == "Human" else "assistant" for r in rest[::2])
    return tuple(message(role, body.removeprefix(" ")) for role, body in zip(roles, rest[1::2], strict=True))


def turns(listed: list[Any]) -> tuple[Message, ...]:
    """The messages of a list of {role, content}, at least one; the system speaks only first."""
    messages: list[Message] = []
    for i, turn in enumerate(listed):
        fields = cast(dict[str, Any], turn) if isinstance(turn, dict) else {}
        role, content = fields.get("role"), fields.get("content")
        if not isinstance(content, str):
            what = f"the content of message {i} is {kind_of(content)}, not text"
            raise Malformed("prompt is not text", what, 'messages are {"role": …, "content": text}')
        if role not in _ROLES or (role == "system" and i):
            what = f"message {i} has the role {role!r}"
            fix = "user or assistant; system only first"
            raise Malformed("unknown role", what, fix)
        messages.append(message(role, content))
    if not messages:
        raise Malformed("empty prompt", "the conversation has no messages", "write at least one")
    return tuple(messages)
