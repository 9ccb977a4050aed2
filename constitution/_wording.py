"""What the words of a principle give away: patterns for English, each with the advice that goes with it.

The advice follows what was measured elsewhere: positively worded, behaviour-based principles match people better
(C3AI, arXiv 2502.15861), and principles worded for harmlessness alone teach evasion (Bai et al. 2022, section 4.3).
A pattern fires on words that are hardly ever meant otherwise; what it misses, people find.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

MOST_WORDS = {"choose": 40, "score": 40, "critique": 90, "revise": 90, "title": 12}
"""Longest texts, in words: what a judge is asked has to be held in mind beside two replies."""


class Remark(NamedTuple):
    """What is to be said of one text."""

    rule: str
    what: str
    fix: str


_I = re.IGNORECASE
_TRAIT = (
    "helpful|harmless|honest|ethical|moral|kind|nice|good|wise|friendly|polite|respectful|truthful|fair|trustworthy|"
    "responsible|caring|empathetic|empathic|compassionate|thoughtful|virtuous|considerate|sensitive|professional|"
    "decent|humble|patient|warm|engaging|safe|harmful|toxic|rude|unethical|immoral|biased|offensive|intelligent|"
    "smart|conscientious|amiable|pleasant|cordial|peaceful|accurate|clear|concise|creative|natural|reliable"
)
_NOUN = (
    "kindness|empathy|wisdom|integrity|virtue|honesty|compassion|respect|humility|helpfulness|harmlessness|"
    "friendliness|ethics|morality|fairness|professionalism|awareness|good judgement"
)
_REPLY = "reply|response|answer|one|option|completion|assistant"
_LISTED = rf"(?:{_TRAIT})(?:(?:\s*,\s*(?:and\s+|or\s+)?|\s+and\s+|\s+or\s+|/)(?:more\s+|most\s+|less\s+)?[\w-]+)*"
_IS = "is|are|be|was|sounds?|seems?|appears?|feels?|looks?"
_DEGREE = "more|most|less|least|very|truly|as|so|overall"
_TRAITS = (
    re.compile(
        rf"\b(?:{_IS})\s+(?:the\s+)?(?:(?:{_DEGREE})\s+)?{_LISTED}(?:\s+(?:overall|{_REPLY}|as possible))*\s*[?.]?$", _I
    ),
    re.compile(rf"^how\s+{_LISTED}\s+(?:is|are|was|does|do)\s+(?:the|this|each)\s+(?:{_REPLY})[^,;]{{0,12}}\?$", _I),
    re.compile(rf"\b(?:more|most|less|least)\s+{_LISTED}\s+(?:{_REPLY}|manner|way)\s*[?.]?$", _I),
    re.compile(
        rf"\b(?:shows?|has|have|embod(?:y|ies)|demonstrates?|displays?|exhibits?)\s+(?:the\s+)?"
        rf"(?:more\s+|most\s+|greater\s+)?(?:{_NOUN})(?:\s+and\s+\w+)?\s*[?.]?$",
        _I,
    ),
)
_PAIR_OF_TRAITS = re.compile(
    rf"\b(?:{_TRAIT})(?:\s*,\s*(?:and\s+|or\s+)?|\s+and\s+|\s*/\s*)(?:more\s+|most\s+)?(?:{_TRAIT})\b", _I
)
_NEGATED = re.compile(
    r"\b(?:not|never|nor|neither|none|without|cannot|avoid(?:s|ing)?|refrain(?:s|ing)?|no)\b|n't\b", _I
)
_NEGATION_ONLY_IN_FORM = re.compile(r"\b(?:not only|whether or not|no matter|no later than|no longer than)\b", _I)
_VAGUE = (
    re.compile(
        rf"\b(?:{_IS})\s+(?:the\s+)?(?:much\s+|clearly\s+|overall\s+)?(?:better|best|superior|preferable|nicer|worse)"
        rf"(?:\s+(?:{_REPLY}|overall))*\s*[?.]?$",
        _I,
    ),
    re.compile(rf"\b(?:better|best|superior|preferable|worse|worst)\s+(?:{_REPLY})\b", _I),
    re.compile(rf"^how\s+(?:good|well done)\b[^,;]*\b(?:{_REPLY})\b[^,;]{{0,10}}\?$", _I),
    re.compile(
        r"\b(?:more|most|less|least|as)\s+(?:appropriate|suitable|acceptable|desirable|reasonable|adequate|satisfactory|"
        r"fitting|ideal|high-quality)\b(?!\s+(?:to|for|in)\s+(?:a|an|the)\s+\w+)",
        _I,
    ),
    re.compile(r"\b(?:of\s+)?(?:higher|highest|better|best)\s+quality\b", _I),
    re.compile(rf"^(?:please\s+)?(?:improve|enhance|better)\s+(?:it|(?:the|your)\s+(?:{_REPLY}))\s*[.?]?$", _I),
    re.compile(r"\bmake\s+(?:it|(?:the|your)\s+(?:reply|response|answer))\s+(?:better|nicer|good)\s*[.?]?$", _I),
)
_EVASIVE = re.compile(
    r"\b(?:"
    r"refus(?:e|es|ing) (?:to (?:answer|discuss|engage|respond|comment|say)|the (?:question|request)|any|all)"
    r"|declin(?:e|es|ing) (?:to (?:answer|discuss|engage|respond|comment)|any|all|every)"
    r"|(?:avoid|avoids|avoiding|stays? away from|steers? clear of) "
    r"(?:the|any|all|every|such|this|controversial|sensitive|difficult|political) "
    r"(?:\w+ )?(?:topics?|subjects?|questions?|requests?|issues?|matters?)"
    r"|errs? on the side of caution|plays? it safe"
    r"|(?:when|if|where) (?:in doubt|unsure|uncertain),? "
    r"(?:refuse|decline|say nothing|leave it out|do not answer|don't answer)"
    r"|as (?:cautious|careful|harmless|safe|inoffensive|neutral) as possible"
    r"|(?:changes?|changing) the subject|says? (?:nothing|as little as possible)"
    r"|gives? no (?:opinion|answer|advice)|(?:does|do) not (?:answer|engage|respond|discuss)"
    r"|least likely to (?:offend|upset|be objected to)"
    r"|(?:anything|everything|any (?:part|content|sentence)|all content) that (?:could|might|may) "
    r"(?:possibly |conceivably )?(?:offend|upset|be (?:seen as |considered |interpreted as )?"
    r"(?:harmful|offensive|controversial|sensitive|objectionable))"
    r")\b",
    _I,
)
_RATHER = re.compile(r"\b(?:rather than|instead of|where it need not|unlike one that)\s+(?:\w+\s+){0,2}$", _I)
_ALSO = re.compile(
    r"\b(?:as well as|and also|in addition|furthermore|moreover|at the same time|above all)\b|\(2\)|(?<!\w)2[.)]\s", _I
)
_VERB_AFTER_AND = re.compile(
    r"(?:,\s*|\band\s+|,\s*and\s+|;\s*)(?:(?:then|also|still|\w+ly)\s+)?"
    r"(is|has|does|gives?|names?|says?|tells?|keeps?|uses?|shows?|offers?|answers?|explains?|cites?|avoids?|asks?|points?|"
    r"leaves?|states?|makes?|puts?|takes?|helps?|respects?|protects?|includes?|contains?|treats?|speaks?|provides?|"
    r"corrects?|warns?|refuses?|declines?|encourages?|supports?|lists?|describes?|reads?|sounds?|stays?|refers?|"
    r"apologi[sz]es?|acknowledges?|greets?|thanks?|follows?|starts?|ends?)\b",
    _I,
)
_MARKS = re.compile(r"\{\{?\s*\w[^{}\n]{0,30}\}?\}|\{%.*?%\}|<\|\w+\|>|%\(\w+\)s")


def remarks(stage: str, text: str) -> Iterator[Remark]:
    """What there is to say of one English text of a principle (critique, revise, choose or score)."""
    said = " ".join(text.split())
    judged = stage in ("choose", "score")
    if judged or stage == "revise":
        yield from _negated(said)
        yield from _vague(said)
        yield from _evasive(said)
    if judged:
        yield from _trait(said)
        yield from _several(said)


def too_long(stage: str, text: str) -> Iterator[Remark]:
    """A text of more words than its stage should have; said in any language that puts spaces between words."""
    n = len(text.split())
    if n > MOST_WORDS.get(stage, n):
        what = f"is {n} words long, more than {MOST_WORDS[stage]}"
        yield Remark("too-long", what, "keep the one demand that decides, and move the rest to another principle")


def marks(text: str) -> Iterator[Remark]:
    """Marks of templates, which are taken as text."""
    if (found := _MARKS.search(text)) is not None:
        what = f"holds {found[0]!r}, which is sent as it stands: nothing is filled in"
        yield Remark("template-marks", what, "write what is meant in words")


def is_negated(text: str) -> bool:
    """Whether a text says what ought not to be."""
    return _NEGATED.search(_NEGATION_ONLY_IN_FORM.sub(" ", text)) is not None


def _negated(text: str) -> Iterator[Remark]:
    found = _NEGATED.search(_NEGATION_ONLY_IN_FORM.sub(" ", text))
    if found:
        what = f"says what ought not to be ({found[0].lower()!r})"
        yield Remark("negated", what, "say what a good reply does; people and judges agree more on that")


def _trait(text: str) -> Iterator[Remark]:
    if any(p.search(text) for p in _TRAITS):
        what = "asks for a trait of character, which every judge reads in its own way"
        yield Remark("trait", what, "name what can be seen in the reply: what it says, quotes, offers or leaves out")


def _vague(text: str) -> Iterator[Remark]:
    found = next((m for p in _VAGUE if (m := p.search(text))), None)
    if found:
        what = f"compares without saying by what ({found[0].strip(' ?.')!r})"
        yield Remark("vague-comparative", what, "name the quality that decides")


def _evasive(text: str) -> Iterator[Remark]:
    for found in _EVASIVE.finditer(text):
        if not _RATHER.search(text[: found.start()]):
            what = f"rewards a reply that steps aside ({found[0]!r})"
            fix = "say which part is to be declined, and what help the reply gives all the same"
            yield Remark("evasive", what, fix)
            return


def _several(text: str) -> Iterator[Remark]:
    fix = "make a principle of each, so that every one has votes of its own"
    traits = _PAIR_OF_TRAITS.search(text)
    also = _ALSO.search(text)
    demands = 1 + len(_VERB_AFTER_AND.findall(text))
    if text.count("?") > 1:
        yield Remark("several-demands", f"asks {text.count('?')} questions at once", fix)
    elif traits:
        yield Remark("several-demands", f"asks for several things at once ({traits[0]!r})", fix)
    elif also:
        yield Remark("several-demands", f"asks for several things at once ({also[0].strip()!r})", fix)
    elif demands > 2:
        yield Remark("several-demands", f"asks for {demands} things at once", fix)
