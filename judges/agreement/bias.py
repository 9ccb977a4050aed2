"""What a judge leans to besides quality: length, slots, its own family; and what trivial judges would reach."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

import re
from typing import Any, NotRequired, TypedDict

from judges.agreement._fields import Share, empty
from judges.agreement.rules import Undefined
from judges.agreement.view import View
from judges.agreement.votes import BA, TIE, A, Array, B

QUARTERS = 4


class SelfFamily(TypedDict):
    """How often the judge, and the people, choose the reply of the judge's own family."""

    family: str
    judge: float | None
    humans: float | None
    n: int | None
    why: NotRequired[str]


def longer_share(view: View) -> dict[str, Any]:
    """Share of A or B verdicts for the longer reply, and the people's on the same items."""
    sign, face = _longer(view), _face(view)
    mine = (face < TIE) & (face >= 0) & (sign != 0)
    if not mine.any():
        raise Undefined("no verdict for A or B on replies of known and different length")
    people, n = _people(view, _longer_label(sign), mine)
    value = float((face[mine] == _longer_label(sign)[mine]).mean())
    return {"value": value, "n": int(mine.sum()), "humans": people, "humans_n": n} | _none(people)


def longer_baseline(view: View) -> Share:
    """What "the longer reply is better" scores on the judge's items (equal lengths: a tie)."""
    import numpy as np

    sign = _longer(view)
    known = _known(view)
    if not (known & view.judged).any():
        raise Undefined("no item has both lengths")
    return _baseline(view, np.where(sign == 0, TIE, _longer_label(sign)), known)


def first_baseline(view: View) -> Share:
    """What "the reply shown first is better" scores, mean over the votes; without an order, A is first."""
    import numpy as np

    if view.votes.graded:
        raise Undefined("graded items have no A and B")
    first = [(B if order == BA else A, order) for order in sorted({int(x) for x in view.votes.order[view.cast]})]
    scores: list[Array] = []
    for label, order in first:
        asked = np.zeros(len(view.votes.items), dtype=bool)
        asked[view.votes.item[view.cast[view.votes.order[view.cast] == order]]] = True
        scores.append(_scores(view, np.full(len(asked), label), asked))
    found = np.concatenate(scores) if scores else np.empty(0)
    if not len(found):
        raise Undefined("no item has both this judge's vote and a gold label")
    return Share(value=float(found.mean()), n=len(found))


def majority_baseline(view: View) -> Share:
    """What always saying the most usual gold label scores on the judge's items."""
    import numpy as np

    total = view.gold[view.judged].sum(axis=0)
    if not total.sum():
        raise Undefined("no item has both this judge's vote and a gold label")
    scores = [_baseline(view, np.full(len(view.judged), k), view.judged) for k in range(len(view.classes))]
    return max(scores, key=lambda s: s["value"] or 0.0)


def by_length_quartile(view: View) -> list[dict[str, Any]]:
    """Accuracy by quarters of the difference in length, the smallest first: ends, accuracy, share for the longer, n."""
    import numpy as np

    apart = np.abs(view.votes.len_a - view.votes.len_b)
    scored = _known(view) & np.isfinite(view.right)
    if not scored.any():
        raise Undefined("no scored item has both lengths")
    ends = np.quantile(apart[scored], [0.25, 0.5, 0.75])
    quarter = np.searchsorted(ends, apart, side="left")
    made: list[dict[str, Any]] = []
    for q in range(QUARTERS):
        held = scored & (quarter == q)
        if held.any():
            share = _longer_of(view, held)
            accuracy = float(view.right[held].mean())
            bounds = {"from": float(apart[held].min()), "to": float(apart[held].max())}
            why = {} if share is not None else {"why": "longer_share: no verdict for A or B on different lengths"}
            made.append({**bounds, "accuracy": accuracy, "longer_share": share, "n": int(held.sum()), **why})
    return made


def same_slot_share(view: View) -> Share:
    """Share of items judged in both orders where the same slot won twice: bias, and no opinion."""
    slots = view.slots[view.among]
    both = slots[(slots >= 0).all(axis=1)]
    if not len(both):
        raise Undefined("no item was judged in both slot orders")
    apart = ((both[:, 0] == A) & (both[:, 1] == B)) | ((both[:, 0] == B) & (both[:, 1] == A))
    return Share(value=float(apart.mean()), n=len(both))


def self_family(view: View) -> SelfFamily:
    """Where slices `model_a` and `model_b` name the writers, and one is of the judge's family (first word)."""
    import numpy as np

    mine = family(view.name)
    written = [view.votes.slices.get(f"model_{side}", {}) for side in "ab"]
    own = np.full(len(view.votes.items), -1)
    for i in written[0].keys() & written[1].keys():
        sides = [family(w[i]) == mine for w in written]
        if sides[0] != sides[1]:
            own[i] = A if sides[0] else B
    face = _face(view)
    chose = (face >= 0) & (face < TIE) & (own >= 0)
    if not chose.any():
        why = "no verdict for A or B where slices model_a and model_b name just one of the judge's family"
        return SelfFamily(family=mine, judge=None, humans=None, n=0, why=why)
    people, _ = _people(view, own, chose)
    judge = float((face[chose] == own[chose]).mean())
    made = SelfFamily(family=mine, judge=judge, humans=people, n=int(chose.sum()))
    if people is None:
        made["why"] = "humans: no gold label for A or B on these items"
    return made


def family(name: str) -> str:
    """The family of a model: the first word of its name, without a maker's folder ("org/Qwen3-8B": qwen)."""
    found = re.match(r"[a-z]+", name.rpartition("/")[2].lower())
    return found.group() if found else name.lower()


def _known(view: View) -> Array:
    import numpy as np

    return np.isfinite(view.votes.len_a) & np.isfinite(view.votes.len_b) & view.among


def _longer(view: View) -> Array:
    """[I] 1 where A is longer, -1 where B is, 0 where neither or unknown."""
    import numpy as np

    if view.votes.graded:
        raise Undefined("graded items have no A and B")
    return np.where(_known(view), np.sign(view.votes.len_a - view.votes.len_b), 0.0)


def _longer_label(sign: Array) -> Array:
    """[I] A or B, whichever is longer."""
    import numpy as np

    return np.where(sign > 0, A, B)


def _face(view: View) -> Array:
    """[I] the judge's one verdict on each item; where the two orders count apart and disagree, -1."""
    import numpy as np

    if view.votes.graded:
        raise Undefined("graded items have no A and B")
    faces = view.faces
    one, two = faces[:, 0], faces[:, -1]
    face = np.where(one == two, one, np.where(one < 0, two, np.where(two < 0, one, -1)))
    return np.where(view.among, face, -1)


def _people(view: View, label: Array, items: Array) -> tuple[float | None, int]:
    """The people's share for a label among their A and B labels on some items, and how many those are."""
    import numpy as np

    counts = view.people.counts
    total = int(counts[items][:, [A, B]].sum())
    hits = counts[np.flatnonzero(items), label[items]].sum()
    return (float(hits / total), total) if total else (None, 0)


def _none(people: float | None) -> dict[str, str]:
    return {} if people is not None else {"why": "humans: no label for A or B on these items"}


def _scores(view: View, label: Array, items: Array) -> Array:
    """Scores of a judge that says `label` [I], on those of the items that have a gold label and this judge's vote."""
    counted = items & view.judged
    gold = view.gold[counted]
    if view.rules.tie == "drop" and not view.votes.graded:
        counted_label = label[counted]
        kept = (gold[:, :TIE].sum(axis=1) > 0) & (counted_label != TIE)
        gold, label_kept = gold[kept][:, :TIE], counted_label[kept]
        return (gold * view.credit.T[label_kept][:, :TIE]).sum(axis=1) / gold.sum(axis=1)
    return (gold * view.credit.T[label[counted]]).sum(axis=1) / gold.sum(axis=1)


def _baseline(view: View, label: Array, items: Array) -> Share:
    scores = _scores(view, label, items)
    if not len(scores):
        return empty(Share, "no item is left to score")
    return Share(value=float(scores.mean()), n=len(scores))


def _longer_of(view: View, items: Array) -> float | None:
    sign, face = _longer(view), _face(view)
    mine = items & (face >= 0) & (face < TIE) & (sign != 0)
    return float((face[mine] == _longer_label(sign)[mine]).mean()) if mine.any() else None
