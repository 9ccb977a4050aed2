"""What the people said of each item, and which of it is gold."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from judges.agreement.votes import INVALID, TIE, VERDICTS, Array, Votes

MOST_GRADES = 12
"""Scores with more distinct values than this are no classes."""


@dataclass(frozen=True)
class People:
    """What the people said: label counts [I, K] by item and class, invalid labels left out."""

    classes: tuple[str, ...]
    counts: Array
    votes: Array
    """Indices of the people's usable votes."""
    label: Array
    """Their classes, [len(votes)]."""
    _gold: dict[str, tuple[Array, Array]] = field(default_factory=dict[str, tuple[Array, Array]])

    @classmethod
    def of(cls, votes: Votes) -> People:
        """Counts the people's labels; the classes are A, B and tie, or the scores in use if they are few."""
        import numpy as np

        judge = np.array(votes.is_judge, dtype=bool)
        codes, classes = coded(votes)
        usable = np.flatnonzero(~judge[votes.rater] & (codes < max(1, len(classes))))
        shape = (len(votes.items), len(classes))
        held = usable if classes else usable[:0]
        flat = np.bincount(votes.item[held] * np.int64(shape[1]) + codes[held], minlength=shape[0] * shape[1])
        return cls(classes, flat.reshape(shape), usable, codes[usable])

    @cached_property
    def majority(self) -> Array:
        """[I] the class that most people gave, -1 where there is none or two are as frequent."""
        return plurality(self.counts)

    def gold(self, rule: str) -> tuple[Array, Array]:
        """[I, K] weight of each class as an item's gold label, by the gold rule; [I] number of that row's kind."""
        import numpy as np

        if rule not in self._gold:
            gold = self._weights(rule)
            self._gold[rule] = gold, np.unique(gold, axis=0, return_inverse=True)[1].reshape(-1)
        return self._gold[rule]

    def _weights(self, rule: str) -> Array:
        import numpy as np

        if rule == "each":
            return self.counts.astype(np.float64)
        eye = np.eye(len(self.classes) + 1)[:, :-1]  # index -1 is a row of zeros
        if rule == "majority":
            return eye[self.majority]
        gold = np.zeros(self.counts.shape)
        for c in range(len(self.classes)):
            there = self.counts[:, c] > 0
            others = self.counts - np.eye(len(self.classes), dtype=np.int64)[c]
            gold += self.counts[:, [c]] * eye[np.where(there, plurality(others), -1)]
        return gold


def plurality(counts: Array) -> Array:
    """[I] index of the only largest count of each row [I, K]; -1 if it is shared, or 0."""
    import numpy as np

    top = counts.max(axis=1, initial=0)
    alone = (counts == top[:, None]).sum(axis=1) == 1
    return np.where(alone & (top > 0), counts.argmax(axis=1) if counts.shape[1] else 0, -1)


def coded(votes: Votes) -> tuple[Array, tuple[str, ...]]:
    """Every vote's class (invalid: K, -1 if scores are no classes), and the classes' names."""
    import numpy as np

    if not votes.graded:
        return np.minimum(votes.verdict, INVALID), VERDICTS[: TIE + 1]
    values = np.unique(votes.score)
    if len(values) > MOST_GRADES:
        return np.full(len(votes.score), -1), ()
    return np.searchsorted(values, votes.score), tuple(f"{v:g}" for v in values)
