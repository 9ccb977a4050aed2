"""What an edit changes on a handful of prompts, in figures: labels, votes, revisions, shifts, with intervals."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from generators import filters
from service._chains import Pair, Walk
from service._shares import RULES as INTERVALS
from service._shares import share, shift
from tenet import worddiff
from tenet.records import Vote

RULES = {
    "label": "A, B, tie, invalid or refused; none where the pair was not judged, as two identical replies are not; "
    "places where both sides have none do not count",
    "changed": "the label at a place (such as first 0-1, or revision 0) is another one; where the edit changed a "
    "reply, the label is of another pair of texts, and its place is what it has in common",
    "flipped": "of those, from A to B or from B to A",
    "refusal": "the reply opens as one that declines or dodges (the gate `evasive`)",
    "boilerplate": "stock phrases of comfort or disclaimer (the gate `boilerplate`)",
    "consistency": "each slot order by itself gives the same label; pairs judged in both orders",
    "words": "1 - difflib's ratio on words, from 0 (the same) to 1 (nothing in common), where the text changed",
    **INTERVALS,
}


@dataclass(frozen=True)
class Compared:
    """One prompt's chain under both constitutions."""

    old: Walk
    new: Walk

    def places(self) -> list[tuple[str, Pair | None, Pair | None]]:
        """(place, old pair, new pair) of every place where either has a label."""
        keys = dict.fromkeys((*self.old.pairs, *self.new.pairs))
        found = [(k, self.old.pairs.get(k), self.new.pairs.get(k)) for k in keys]
        return [x for x in found if any(p and p.label != "none" for p in x[1:])]


def label(pair: Pair | None) -> str:
    return pair.label if pair else "none"


def measure(walks: Sequence[Compared]) -> dict[str, Any]:
    """Every figure of the preview, as its JSON holds them."""
    labels = _labels(walks)
    return {
        "rules": RULES,
        "prompts": len(walks),
        "verdict": verdict(labels, len(walks)),
        "labels": labels,
        "flips": flips(walks),
        "revisions": _revisions(walks),
        "shifts": _shifts(walks),
        "principles": _principles(walks),
    }


def verdict(labels: dict[str, Any], prompts: int) -> str:
    """The one line."""
    c = labels["changed"]
    if c["value"] is None:
        return f"No pair of {prompts} prompts has a label: this preview says nothing."
    ends = f"95% interval {100 * c['low']:.1f} to {100 * c['high']:.1f}%"
    counts = f"{labels['n changed']} of {c['n']} pairs, {c['prompts']} prompts"
    return f"This edit changes {100 * c['value']:.1f}% of labels ({ends}; {counts})."


def _labels(walks: Sequence[Compared]) -> dict[str, Any]:
    changed, flipped, moves = list[tuple[int, int]](), list[tuple[int, int]](), Counter[tuple[str, str]]()
    for w in walks:
        ends = [(label(a), label(b)) for _, a, b in w.places()]
        moves.update(ends)
        changed.append((sum(a != b for a, b in ends), len(ends)))
        flipped.append((sum({a, b} == {"A", "B"} for a, b in ends), len(ends)))
    return {
        "changed": share(changed), "flipped": share(flipped), "n changed": sum(k for k, _ in changed),
        "moves": [{"old": a, "new": b, "n": n} for (a, b), n in sorted(moves.items())],
    }  # fmt: skip


def flips(walks: Sequence[Compared]) -> list[dict[str, Any]]:
    """Every changed label with its texts, the surest first."""
    found: list[dict[str, Any]] = []
    for w in walks:
        for place, a, b in w.places():
            if label(a) == label(b):
                continue
            found.append(
                {
                    "prompt": w.old.prompt.messages[-1].content, "place": place, "old": _side(a), "new": _side(b),
                    "same_texts": bool(a and b and a.comparison and a.comparison == b.comparison),
                }
            )  # fmt: skip
    return sorted(found, key=lambda f: -_distance(f))


def _distance(flip: dict[str, Any]) -> float:
    a, b = flip["old"]["p_a"], flip["new"]["p_a"]
    return abs(a - b) if a is not None and b is not None else -1.0


def _side(pair: Pair | None) -> dict[str, Any]:
    c, v = (pair.comparison, pair.verdict) if pair else (None, None)
    votes = [{"principle": x.principle, "order": x.order, "label": x.label, "p_a": x.p_a} for x in v.votes] if v else []
    why = (pair.why or (v.why if v else "")) if pair else "no such pair"
    texts: dict[str, str | None] = {name: getattr(c, name, None) for name in ("a", "b", "a_from", "b_from")}
    return {"label": label(pair), "p_a": v.p_a if v else None, **texts, "votes": votes, "why": why}


def _revisions(walks: Sequence[Compared]) -> dict[str, Any]:
    """How many replies end otherwise, and the words of each."""
    clusters, changed = list[tuple[int, int]](), list[dict[str, Any]]()
    for w in walks:
        ends = _ends(w)
        clusters.append((sum(a != b for _, a, b in ends), len(ends)))
        for index, a, b in ends:
            if a != b:
                amount = worddiff.changed(a, b)
                prompt = w.old.prompt.messages[-1].content
                changed.append({"prompt": prompt, "sample": index, "old": a, "new": b, "words": amount})
    mean = sum(c["words"] for c in changed) / len(changed) if changed else None
    why = {} if changed else {"why": "words: no reply ends otherwise"}
    return {"changed": share(clusters), "words": mean, "texts": sorted(changed, key=lambda c: -c["words"]), **why}


def _ends(w: Compared) -> list[tuple[int, str, str]]:
    """(sample, old text, new text) of every reply that both sides have, as it stands after its rounds."""
    new = {c.response.index: c.last for c in w.new.candidates}
    return [(c.response.index, c.last, new[c.response.index]) for c in w.old.candidates if c.response.index in new]


def _shifts(walks: Sequence[Compared]) -> dict[str, Any]:
    """Length, refusal, boilerplate of the replies as they end; both-order consistency of the pairs."""
    size, refusal, stock = _of(len), _of(_gate("evasive")), _of(_gate("boilerplate"))
    lengths = [[x for c in (w.old, w.new) for x in [_mean(size(c))]] for w in walks]
    known = [(a, b) for a, b in lengths if a is not None and b is not None]
    length = {
        "old": _mean([a for a, _ in known]), "new": _mean([b for _, b in known]),
        "shift": shift([b - a for a, b in known]),
    }  # fmt: skip
    return {
        "length": length, "refusal": _pair_of(walks, refusal), "boilerplate": _pair_of(walks, stock),
        "consistency": _pair_of(walks, _consistent),
    }  # fmt: skip


def _of(f: Callable[[str], float]) -> Callable[[Walk], list[float]]:
    return lambda walk: [float(f(c.last)) for c in walk.candidates]


def _gate(name: str) -> Callable[[str], bool]:
    return lambda text: name in filters.faults_of(text, "", "", "stop")


def _consistent(walk: Walk) -> list[float]:
    said = (p.verdict.consistent for p in walk.pairs.values() if p.verdict)
    return [float(c) for c in said if c is not None]


def _pair_of(walks: Sequence[Compared], values: Callable[[Walk], list[float]]) -> dict[str, Any]:
    """A share under both, and by how much it shifts on the prompts that have it under both."""
    both = [(values(w.old), values(w.new)) for w in walks]
    shares = [share([(round(sum(v[i])), len(v[i])) for v in both]) for i in (0, 1)]
    apart = [sum(b) / len(b) - sum(a) / len(a) for a, b in both if a and b]
    return {"old": shares[0], "new": shares[1], "shift": shift(apart)}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _principles(walks: Sequence[Compared]) -> dict[str, dict[str, Any]]:
    """Every principle's votes under both, and what became of those that it cast under both."""
    found: dict[str, dict[str, Any]] = defaultdict(
        lambda: {"old": Counter(), "new": Counter(), "both": 0, "changed": 0, "apart": []}
    )
    for w in walks:
        for _, *pair in w.places():
            votes = [_votes(p) for p in pair]
            for side, of in zip(("old", "new"), votes, strict=True):
                for vote in of.values():
                    found[vote.principle][side][vote.label] += 1
            for place in votes[0].keys() & votes[1].keys():
                a, b = votes[0][place], votes[1][place]
                mine = found[a.principle]
                mine["both"] += 1
                mine["changed"] += a.label != b.label
                if a.p_a is not None and b.p_a is not None:
                    mine["apart"].append(abs(a.p_a - b.p_a))
    return {
        name: {
            "old": dict(f["old"]), "new": dict(f["new"]), "both": f["both"], "changed": f["changed"],
            "mean_change_of_p": _mean(f["apart"]),
        }
        for name, f in sorted(found.items())
    }  # fmt: skip


def _votes(pair: Pair | None) -> dict[tuple[Any, ...], Vote]:
    votes = pair.verdict.votes if pair and pair.verdict else ()
    return {(v.principle, v.order, v.sample, v.member): v for v in votes}
