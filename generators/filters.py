"""Gates: what is wrong with a reply or a pair, by name; what follows from it is the recipe's choice."""

from __future__ import annotations

import re
from collections import Counter
from difflib import SequenceMatcher
from typing import Annotated, Literal

from pydantic import Field

from tenet.records import Frozen, Preference

Action = Literal["off", "mark", "drop"]

_CHATTER = re.compile(
    r"^\s*(?:(?:sure|certainly|of course|okay|ok|absolutely|great)[,.!:]*\s*)?"
    # It must speak of a reply being revised: "Here is a new way to brew tea." is content.
    r"(?:(?:here(?:'s| is)|this is|below is)\b[^\n:.!?]{0,40}\b(?:revised|rewritten|updated|new|improved)\s+"
    r"(?:reply|response|answer|version)\b[^\n:.!?]{0,40}[:.!]"
    r"|i(?:'ve| have)? (?:revised|rewritten|rewrote) [^\n:.!?]{0,40}\b(?:reply|response|answer)\b[^\n:.!?]{0,40}[:.!]"
    r"|(?:revised|rewritten|updated|new|improved) (?:reply|response|answer|version)\s*:)\s*",
    re.IGNORECASE,
)
_CRITIQUE = re.compile(
    r"^\W*(?:critique(?: of [^\n:]{0,40})?:|(?:the|your|my) (?:assistant's |last |previous |above |original )*"
    r"(?:reply|response|answer) (?:is|was|does|did|has|had|could|should|fails|contains|breaks)\b"
    r"|i find no fault\b|there (?:is|are) no (?:fault|problem|issue)s?\b)",
    re.IGNORECASE,
)
_EVASIVE = re.compile(
    r"^\W*(?:i(?:'m| am) (?:sorry|unable|not able)\b|sorry,|i (?:can(?:no|')t|won't|will not) "
    r"(?:help|assist|answer|provide|discuss|do)\b|as an ai\b|i(?:'d| would) rather not\b)",
    re.IGNORECASE,
)
_BOILERPLATE = re.compile(
    r"\b(?:you are valid|valued and cared for|as an ai (?:language )?model"
    r"|it(?:'s| is) important to (?:note|remember)|i(?:'m| am) here to (?:help|listen)"
    r"|seek (?:the )?(?:help|advice) of a (?:qualified )?professional)\b",
    re.IGNORECASE,
)


class Gates(Frozen):
    """What to do with a revision that is not what was asked for."""

    critique: Action = "drop"
    """A critique stands where a revision was due."""
    unchanged: Action = "mark"
    """The revision is the reply that it should have revised."""
    evasive: Action = "mark"
    """The reply declines or dodges."""
    boilerplate: Action = "mark"
    """Stock phrases of comfort or disclaimer."""
    cut: Action = "mark"
    """The text ran into max_tokens."""


class Keep(Frozen):
    """Which judged pairs are kept."""

    margin: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Least |p - 0.5|."""
    length_ratio: Annotated[float, Field(gt=1)] | None = None
    """Most that one reply may be longer than the other, in characters."""
    per_principle: Annotated[int, Field(ge=1)] | None = None
    """Most pairs whose label one principle may have decided alone (with `principles: 1`)."""
    exactly: Annotated[int, Field(ge=1)] | None = None
    """Stop when so many pairs are kept; the first ones in the prompts' order are exported."""


def strip_chatter(text: str) -> str:
    """The reply without an opening such as "Sure, here is the revised reply:"."""
    found = _CHATTER.match(text.replace("’", "'"))
    return (text[found.end() :] if found else text).strip() or text.strip()


def faults_of(revision: str, before: str, critique: str, finish: str) -> list[str]:
    """Names of the gates that a revision trips, in the order of Gates' fields."""
    said = revision.replace("’", "'")
    found: list[str] = []
    if _CRITIQUE.match(said) or (critique and _alike(revision, critique)):
        found.append("critique")
    if " ".join(revision.split()) == " ".join(before.split()):
        found.append("unchanged")
    if _EVASIVE.match(said):
        found.append("evasive")
    if _BOILERPLATE.search(said):
        found.append("boilerplate")
    if finish == "length":
        found.append("cut")
    return found


REASONS = {
    "critique": "critique where a revision was due",
    "unchanged": "unchanged revision",
    "evasive": "evasive reply",
    "boilerplate": "boilerplate",
    "cut": "cut at max_tokens",
}


def first_drop(found: list[str], gates: Gates) -> str | None:
    """The reason for which a revision is dropped, if any gate that it trips says so."""
    return next((REASONS[f] for f in found if getattr(gates, f) == "drop"), None)


def marks(found: list[str], gates: Gates) -> list[str]:
    """The flags that a revision carries."""
    return [REASONS[f] for f in found if getattr(gates, f) != "off"]


def too_uneven(a: str, b: str, most: float | None) -> bool:
    """Whether one of two texts is more than `most` times as long as the other."""
    if most is None:
        return False
    short, long = sorted((len(a), len(b)))
    return long > most * max(short, 1)


def _alike(a: str, b: str) -> bool:
    """Whether two texts are nearly the same; long ones are compared by their openings."""
    a, b = " ".join(a.split())[:400], " ".join(b.split())[:400]
    if min(len(a), len(b)) < 0.5 * max(len(a), len(b)):
        return False
    matcher = SequenceMatcher(None, a, b, autojunk=False)
    return matcher.quick_ratio() > 0.9 and matcher.ratio() > 0.9


class Sieve:
    """The limits that need the whole run in view, applied in the prompts' order, so that the order in which
    chains happened to end decides nothing."""

    def __init__(self, keep: Keep) -> None:
        self._keep = keep
        self._by_principle: Counter[str] = Counter()
        self.kept = 0
        self.dropped: Counter[str] = Counter()

    def passes(self, p: Preference) -> bool:
        """Whether a pair is exported; if not, why is counted."""
        names = {v.principle for v in p.verdict.votes if v.principle}
        cap = self._keep.per_principle
        if self._keep.exactly is not None and self.kept >= self._keep.exactly:
            self.dropped["more than keep.exactly asked for"] += 1
            return False
        if cap is not None and len(names) == 1 and self._by_principle[next(iter(names))] >= cap:
            self.dropped[f"more than keep.per_principle={cap} of one principle"] += 1
            return False
        self._by_principle.update(names)
        self.kept += 1
        return True
