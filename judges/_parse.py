"""Reads verdicts out of what a judge says: the last well-formed answer counts, or none does."""

from __future__ import annotations

import re
from typing import Literal

from tenet.records import Label

_ANSWER = re.compile(
    r"(?:^|\n|\b(?:answer|verdict|choice|option|better|prefer(?:red)?)\b[^\n.]{0,40}?[:\s])"
    r"[\s*\"'“(\[]*(?P<letter>[AB]|tie|neither|both)[\s*\"'”)\].!]*(?=$|\n)",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"^\W*(?:i(?:'m| am) (?:sorry|unable|not able)|i (?:can(?:no|')t|won't|will not|must decline)|"
    r"sorry,|as an ai\b)",
    re.IGNORECASE,
)


def is_refusal(text: str) -> bool:
    """Whether a text opens as a refusal does."""
    return bool(_REFUSAL.search(text.strip().replace("’", "'")[:200]))


def verdict(text: str) -> Label:
    """The label that a judge's text states: of the first slot (A), the second (B), or a tie.

    Only a line that is nothing but an answer, or ends in one after "answer:", "verdict:" and the
    like, counts; the last such line wins. Otherwise `refused` if the text opens as a refusal,
    else `invalid`. Two different answers on the last lines are not reconciled: the last wins.
    """
    found = [m["letter"] for m in _ANSWER.finditer(text.strip())]
    if not found:
        return "refused" if is_refusal(text) else "invalid"
    last = found[-1]
    slots: dict[str, Literal["A", "B", "tie"]] = {"A": "A", "B": "B"}
    return slots.get(last.upper(), "tie")
