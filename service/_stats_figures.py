"""What each principle did in a run: draws, critiques, revisions, votes, and how the principles stand to one another."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import judges
from judges.pairwise import combine
from service._chains import Pair, RunView, Walk
from service._shares import RULES as INTERVALS
from service._shares import share
from tenet import worddiff
from tenet.records import Comparison, Verdict, Vote

SMALL = 30
"""With fewer pairs than this a cell of the matrix is marked."""
RULES = {
    "drawn": "rounds in which it was drawn for a critique and revision; pairs on which it was asked",
    "found": "critiques whose first sentence does not say, in one of a fixed list of phrasings, that there is no "
    'fault, or behind which a "but" follows; a critique under several principles counts for each',
    "revised": "revisions in its rounds that differ from the reply before; words: 1 - difflib's ratio on words, over "
    "those that differ",
    "votes": "one for each question to the judge: principle, slot order, sample, member",
    "margin": "mean of |p - 0.5|, where p is the mean of its votes on a pair",
    "flips": "pairs asked in both orders on which each order by itself gives another label",
    "others": "pairs on which its label is that of all other principles together, as the judge combines votes; pairs "
    "that no other principle was asked about do not count",
    "people": "the same against the majority of the people's labels; ties are a label",
    "without": "pairs whose label becomes another one if its votes are left out, of those with other principles; sole: "
    "pairs that would be left without any",
    "correlation": "Pearson's, of the probabilities that two principles give to a on the same pairs: 1 where one of "
    "them adds nothing; null under three pairs or where one never changes its mind",
    "conflict": "of the pairs on which both say A or B, the share on which one says A and the other B",
    "panel": "votes are averaged over a panel's members; its own rule is not replayed",
    "share": INTERVALS["share"],
}
_NOTHING = re.compile(
    r"\b(?:no|any) (?:(?:such|real|obvious|clear|serious) )?(?:faults?|problems?|issues?|concerns?|violations?"
    r"|breach(?:es)?|flaws?|objections?|changes? (?:is|are) needed)\b"
    r"|\b(?:find|found|see|saw|there is|there was) nothing\b"
    r"|\bnothing (?:is |was )?(?:wrong|amiss|to (?:fix|mend|change|criti[cs]i[sz]e|improve|point out))\b"
    r"|\b(?:does|do|did) not (?:break|violate|breach)\b",
    re.IGNORECASE,
)
_YET = re.compile(r"\b(?:but|however|except|although|though)\b", re.IGNORECASE)
_SENTENCE = re.compile(r"[.!?](?:\s|$)|\n")


def finds(critique: str) -> bool:
    """Whether a critique names something: not if its first sentence says there is nothing, and no "but" follows."""
    said = critique.replace("’", "'").strip()
    return bool(_YET.search(said)) or not _NOTHING.search(_SENTENCE.split(said, maxsplit=1)[0])


@dataclass
class Principle:
    """What is counted of one principle; lists hold (hits, items) of each prompt."""

    rounds: int = 0
    pairs: int = 0
    votes: Counter[str] = field(default_factory=Counter[str])
    margins: list[float] = field(default_factory=list[float])
    words: list[float] = field(default_factory=list[float])
    shares: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list[tuple[int, int]]))
    sole: int = 0

    def figures(self) -> dict[str, Any]:
        made: dict[str, Any] = {"rounds": self.rounds, "pairs": self.pairs, "votes": dict(self.votes)}
        for name in ("found", "revised", "flips", "others", "people", "without"):
            made[name] = share(self.shares[name])
        return made | {
            "words": _mean(self.words), "margin": _mean(self.margins), "sole": self.sole,
            "why": {k: w for k, v, w in (("words", self.words, "no revision differs"),
                                         ("margin", self.margins, "no readable vote")) if not v},
        }  # fmt: skip


Gold = Mapping[str, str]
"""The people's label by comparison id."""
_Own = dict[str, Verdict]


def measure(run: RunView, gold: Gold | None = None) -> dict[str, Any]:
    """All figures of a run; every undefined one is null beside a reason."""
    tie, quorum = _settings(run)
    found = {p.id: Principle() for p in run.constitution.principles}
    seen: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    sides: dict[tuple[str, str], Counter[str]] = defaultdict(Counter[str])
    n: Counter[str] = Counter()

    def whole(votes: Iterable[Vote]) -> Verdict:
        return combine(tuple(v.model_copy(update={"member": ""}) for v in votes), tie, quorum)

    for walk in run.walks():
        n["prompts"] += 1
        _rounds(walk, found)
        hits: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
        for pair in walk.pairs.values():
            if pair.verdict is None:
                continue
            n["pairs"] += 1
            own = _own(pair, whole)
            people = _people(pair.comparison, gold)
            n["labelled"] += people is not None
            _pair(pair.verdict, own, people, whole, found, hits)
            _together(own, seen, sides)
        for (id, name), (k, of) in hits.items():
            found[id].shares[name].append((k, of))
    principles = {
        p.id: {"title": p.title, "weight": p.weight, **found[p.id].figures()} for p in run.constitution.principles
    }
    return {
        "run": run.folder.name, "constitution": run.constitution.name, "hash": run.constitution.hash,
        "prompts": n["prompts"], "pairs": n["pairs"], "labelled": n["labelled"] if gold is not None else None,
        "principles": principles, "matrix": _matrix(list(found), seen, sides), "rules": RULES,
    }  # fmt: skip


def _settings(run: RunView) -> tuple[float, float]:
    _, settings = judges.read_settings(dict(run.recipe.judge))
    return getattr(settings, "tie", 0.0), getattr(settings, "quorum", 1.0)


def _rounds(walk: Walk, found: Mapping[str, Principle]) -> None:
    """Draws, critiques and revisions of a prompt's rounds."""
    hits: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for candidate in walk.candidates:
        before = candidate.response.text
        for revision in candidate.revisions:
            for id in revision.principles:
                if (mine := found.get(id)) is None:
                    continue
                mine.rounds += 1
                _add(hits[id, "revised"], revision.text != before)
                if revision.text != before:
                    mine.words.append(worddiff.changed(before, revision.text))
                if revision.critique is not None:
                    _add(hits[id, "found"], finds(revision.critique.text))
            before = revision.text
    for (id, name), (k, of) in hits.items():
        found[id].shares[name].append((k, of))


def _own(pair: Pair, whole: Callable[[Iterable[Vote]], Verdict]) -> _Own:
    """Each principle's verdict from its own votes."""
    votes = pair.verdict.votes if pair.verdict else ()
    names = dict.fromkeys(v.principle for v in votes if v.principle)
    return {name: whole(v for v in votes if v.principle == name) for name in names}


def _pair(
    verdict: Verdict, own: _Own, people: str | None, whole: Callable[[Iterable[Vote]], Verdict],
    found: Mapping[str, Principle], hits: Mapping[tuple[str, str], list[int]],
) -> None:  # fmt: skip
    for vote in verdict.votes:
        if vote.principle in found:
            found[vote.principle].votes[vote.label] += 1
    all_of_it = whole(verdict.votes)
    for id, mine in own.items():
        if (held := found.get(id)) is None:
            continue
        held.pairs += 1
        if mine.p_a is not None:
            held.margins.append(abs(mine.p_a - 0.5))
        if mine.consistent is not None:
            _add(hits[id, "flips"], not mine.consistent)
        if people is not None and mine.p_a is not None:
            _add(hits[id, "people"], mine.label == people)
        if len(own) == 1:
            held.sole += 1
            continue
        others = whole(v for v in verdict.votes if v.principle != id)
        if others.p_a is not None and mine.p_a is not None:
            _add(hits[id, "others"], mine.label == others.label)
        _add(hits[id, "without"], others.label != all_of_it.label)


def _together(
    own: _Own, seen: dict[tuple[str, str], list[tuple[float, float]]], sides: dict[tuple[str, str], Counter[str]]
) -> None:
    for a, b in combinations(sorted(own), 2):
        x, y = own[a], own[b]
        if x.p_a is None or y.p_a is None:
            continue
        seen[a, b].append((x.p_a, y.p_a))
        if x.label in ("A", "B") and y.label in ("A", "B"):
            sides[a, b]["both"] += 1
            sides[a, b]["apart"] += x.label != y.label


def _matrix(
    ids: Sequence[str], seen: Mapping[tuple[str, str], list[tuple[float, float]]],
    sides: Mapping[tuple[str, str], Counter[str]],
) -> list[dict[str, Any]]:  # fmt: skip
    """A cell for every two principles that voted on one pair, in the constitution's order."""
    place = {id: i for i, id in enumerate(ids)}
    cells: list[dict[str, Any]] = []
    for (a, b), ps in seen.items():
        if a not in place or b not in place:
            continue
        a, b = sorted((a, b), key=place.__getitem__)
        counts = sides.get((a, b)) or sides.get((b, a)) or Counter[str]()
        value, why = _correlation(ps)
        cell: dict[str, Any] = {"a": a, "b": b, "n": len(ps), "correlation": value, "decided": counts["both"]}
        cell["conflict"] = counts["apart"] / counts["both"] if counts["both"] else None
        cell["small"] = len(ps) < SMALL
        whys = [why] if why else []
        whys += [] if counts["both"] else ["conflict: on no pair do both say A or B"]
        cells.append(cell | ({"why": "; ".join(whys)} if whys else {}))
    return sorted(cells, key=lambda c: (place[c["a"]], place[c["b"]]))


def _correlation(ps: Sequence[tuple[float, float]]) -> tuple[float | None, str]:
    import numpy as np

    if len(ps) < 3:
        return None, "correlation: it takes three pairs"
    x, y = np.array(ps).T
    if np.ptp(x) < 1e-12 or np.ptp(y) < 1e-12:
        return None, "correlation: one of the two says the same of every pair"
    return float(np.corrcoef(x, y)[0, 1]), ""


_TURNED = {"A": "B", "B": "A"}


def _people(c: Comparison | None, gold: Gold | None) -> str | None:
    """The people's label of a comparison, whichever of its replies they were shown as A."""
    if c is None or not gold:
        return None
    if (said := gold.get(c.id)) is not None:
        return said
    turned = gold.get(c.swap().id)
    return None if turned is None else _TURNED.get(turned, turned)


def _add(counted: list[int], hit: bool) -> None:
    counted[0] += hit
    counted[1] += 1


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
