"""How alike principles are, and which of them pull against one another; by their words alone, without embeddings."""

# scikit-learn ships no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

from constitution._wording import is_negated
from constitution.schema import Principle

ALIKE = 0.6
"""Cosine from which two principles are near-duplicates; the likest two of the bundled ones reach 0.57."""
_ROWS = 512

# Two ends each; a principle that asks for one pulls against a principle that asks for the other.
_SCALES: dict[str, tuple[str, str]] = {
    "length": (
        r"short|shorter|shortest|brief|briefer|briefest|brevity|concise|succinct|few(?:er|est)? words",
        r"long|longer|longest|detailed|thorough|exhaustive|comprehensive|in depth|at length|elaborate",
    ),
    "register": (r"formal|formally|ceremonious", r"informal|informally|casual|casually|colloquial|slang"),
    "certainty": (
        r"confident|confidently|decisive|decisively|assertive|assertively|certainty",
        r"hedged?|hedges|tentative|tentatively|uncertainty|doubts?",
    ),
    "position": (
        r"neutral|impartial|takes no side",
        r"takes a (?:clear )?(?:side|position|stand)|recommendation",
    ),
    "vocabulary": (
        r"simple words|plain words|everyday words|lay(?:man's)? terms",
        r"technical terms|expert terms|jargon",
    ),
    "emotion": (r"warm(?:ly)?|emotional(?:ly)?|heartfelt", r"matter-of-fact|dispassionate(?:ly)?|unemotional(?:ly)?"),
    "humour": (r"humou?r|humorous|funny|jokes?|playful", r"serious|seriously|solemn|earnest"),
    "asking": (
        r"asks (?:back|a (?:clarifying )?question|first)",
        r"answers (?:at once|right away|immediately|without asking)",
    ),
}


class Like(NamedTuple):
    """Two principles that are alike, by their places in the list."""

    first: int
    second: int
    cosine: float


def alike(principles: Sequence[Principle], background: Sequence[Principle] = ()) -> Iterator[Like]:
    """Pairs of principles that ask for nearly the same, by TF-IDF of character 3- to 5-grams within words.

    Both the pair question alone and all texts together are compared. `background` only tells which words are common:
    a frame such as "Which reply …?" says nothing about likeness.
    """
    if len(principles) < 2:
        return
    best: dict[tuple[int, int], float] = {}
    for field in ("choose", "all"):
        texts = [_text(p, field) for p in principles]
        present = [i for i, text in enumerate(texts) if text]
        if len(present) < 2:
            continue
        for i, j, cosine in _cosines([texts[i] for i in present], [_text(p, field) for p in background]):
            key = (present[i], present[j])
            best[key] = max(cosine, best.get(key, 0.0))
    for (i, j), cosine in sorted(best.items()):
        yield Like(i, j, cosine)


def _text(p: Principle, field: str) -> str:
    if field == "choose":
        return p.choose
    return " ".join(t for t in (p.title, p.critique, p.revise, p.choose, p.score) if t)


def _cosines(texts: Sequence[str], background: Sequence[str]) -> Iterator[tuple[int, int, float]]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    weigh = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True)
    try:
        weigh.fit([*texts, *background])
    except ValueError:  # no text has three letters in a row
        return
    table: Any = weigh.transform(texts)
    for start in range(0, len(texts), _ROWS):  # in strips: the whole product of 10,000 principles is 10^8 numbers
        strip = (table[start : start + _ROWS] @ table[start:].T).tocoo()
        near = (strip.data >= ALIKE) & (strip.row < strip.col)
        found = (strip.row[near].tolist(), strip.col[near].tolist(), strip.data[near].tolist())
        for i, j, cosine in zip(*found, strict=True):
            yield start + i, start + j, float(cosine)


def opposed(principles: Sequence[Principle], likes: Sequence[Like]) -> Iterator[tuple[int, int, str]]:
    """(place, place, why) of principles that may ask for opposite things.

    The same thing asked for by one and ruled out by the other; or the two ends of one scale, such as short and long.
    """
    texts = [p.choose or p.revise for p in principles]
    for like in likes:
        if is_negated(texts[like.first]) != is_negated(texts[like.second]):
            yield like.first, like.second, "one asks for what the other rules out"
    for name, (low, high) in _scales().items():
        ends: tuple[list[int], list[int]] = ([], [])
        for i, text in enumerate(texts):
            found = (bool(low.search(text)), bool(high.search(text)))
            if found[0] != found[1] and not is_negated(text):  # "not too long" is no call for length
                ends[found[1]].append(i)
        for i in ends[0]:
            for j in ends[1]:
                yield min(i, j), max(i, j), f"they pull at {name} from opposite ends"


@cache
def _scales() -> dict[str, tuple[re.Pattern[str], re.Pattern[str]]]:
    def words(of: str) -> re.Pattern[str]:
        return re.compile(rf"\b(?:{of})\b", re.IGNORECASE)

    return {name: (words(low), words(high)) for name, (low, high) in _SCALES.items()}
