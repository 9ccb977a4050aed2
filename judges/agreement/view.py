"""One judge beside the people, under the rules: a table of gold by verdict, and its resamples.

Items whose people and judge said the same are one cell. To resample items with replacement is to draw the
cells' counts from a multinomial, exactly; so a thousand resamples of a million items cost as much as of a
hundred.
"""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from judges.agreement.people import MOST_GRADES, People, coded
from judges.agreement.rules import Rules, Undefined
from judges.agreement.votes import AB, BA, INVALID, NO_ORDER, REFUSED, TIE, VERDICTS, Array, Votes

_AT_ONCE = 4_000_000
"""Counts drawn at a time, so that many cells do not take much memory."""


class View:
    """One judge against the people. Table columns are the classes, then "invalid" and "split" (orders disagree)."""

    def __init__(self, votes: Votes, people: People, judge: int, rules: Rules, items: Array | None = None) -> None:
        import numpy as np

        self.votes, self.people, self.judge, self.rules = votes, people, judge, rules
        self.name = votes.raters[judge]
        self.classes = people.classes
        self.among = np.ones(len(votes.items), dtype=bool) if items is None else items
        """[I] the items that count."""
        self.cast = np.flatnonzero((votes.rater == judge) & self.among[votes.item])
        """Indices of the judge's votes."""

    def where(self, items: Array) -> View:
        """The same judge on some of the items, given as a mask [I]."""
        return View(self.votes, self.people, self.judge, self.rules, self.among & items)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the table's columns."""
        return (*self.classes, "invalid", "split")

    @cached_property
    def slots(self) -> Array:
        """[I, 2] raw verdicts (index into VERDICTS, or class) with A shown first (or no order) and last; -1: none."""
        import numpy as np

        codes, classes = coded(self.votes)
        if self.votes.graded and not classes:
            raise Undefined(f"scores have more than {MOST_GRADES} values, so they are no classes")
        raw = codes if self.votes.graded else self.votes.verdict
        slots = np.full((len(self.votes.items), 2), -1, dtype=np.int64)
        for column, orders in enumerate(((NO_ORDER, AB), (BA,))):
            mine = self.cast[np.isin(self.votes.order[self.cast], orders)]
            slots[self.votes.item[mine], column] = raw[mine]
        return slots

    @cached_property
    def faces(self) -> Array:
        """[I, F] the column of the table that the judge chose, by the swap and invalid rules; -1: not counted.

        F is 2 under "mean" where both orders occur, else 1.
        """
        return self._faces(self.slots)

    def _faces(self, slots: Array) -> Array:
        import numpy as np

        rule, invalid, split = self.rules, len(self.classes), len(self.classes) + 1
        there = slots >= 0
        read = slots
        if not self.votes.graded:
            as_invalid = {"tie": TIE, "wrong": invalid, "drop": -1}[rule.invalid]
            read = np.where(np.isin(slots, (INVALID, REFUSED)), as_invalid, slots)
        one, two = read[:, 0], read[:, 1]
        alone = np.where(there[:, 0], one, two)
        both = there.all(axis=1)
        if rule.swap == "mean" and there[:, 0].any() and there[:, 1].any():
            return read
        if rule.swap in ("first", "mean"):
            return alone[:, None]
        if rule.swap == "both" or self.votes.graded:
            # An order left out leaves the item out: to be right in both orders takes two.
            unread = (one == invalid) | (two == invalid)
            agreed = np.where(one == two, one, np.where(unread, invalid, split))
            return np.where(both, np.where((read < 0).any(axis=1), -1, agreed), alone)[:, None]
        return _signed(read, invalid, split)[:, None]

    @cached_property
    def gold(self) -> Array:
        """[I, K] weights of the gold labels."""
        return self.people.gold(self.rules.gold)[0]

    @cached_property
    def judged(self) -> Array:
        """[I] whether the judge voted on the item and people gave it a gold label."""
        return (self.slots >= 0).any(axis=1) & (self.gold.sum(axis=1) > 0) & self.among

    @cached_property
    def _cells(self) -> tuple[Array, Array]:
        """(index of an example item [C], how many items are like it [C]), the most frequent first."""
        import numpy as np

        items = np.flatnonzero(self.judged)
        if not len(items):
            raise Undefined("no item has both this judge's vote and a gold label")
        kind = self.people.gold(self.rules.gold)[1][items]
        width = len(VERDICTS) + MOST_GRADES
        key = (kind * width + self.slots[items, 0] + 1) * width + self.slots[items, 1] + 1
        _, first, count = np.unique(key, return_index=True, return_counts=True)
        # By frequency, then by the first item: an order that neither swapped slots nor renamed raters change.
        order = np.lexsort((first, -count))
        return items[first[order]], count[order]

    @cached_property
    def _tables(self) -> Array:
        """[C, F, K, L] what one item of each cell adds to the table of each face."""
        import numpy as np

        example, _ = self._cells
        faces = self.faces[example]
        chosen = np.eye(len(self.labels) + 1)[:, :-1][faces]  # [C, F, L]; -1 is a row of zeros
        tables = self.gold[example][:, None, :, None] * chosen[:, :, None, :]
        if self.rules.tie == "drop" and not self.votes.graded:
            tables[:, :, TIE, :] = 0.0
            tables[:, :, :, TIE] = 0.0
        return tables

    @cached_property
    def table(self) -> Array:
        """[K, L] weight of every gold class (rows) and verdict (columns); Undefined if nothing is scored."""
        import numpy as np

        _, count = self._cells
        table = _joined(np.einsum("c,cfkl->fkl", count, self._tables)[None])[0]
        if not table.sum() > 0:
            raise Undefined("the rules leave no item out of which to score")
        return table

    @property
    def n(self) -> int:
        """How many items are scored."""
        try:
            _, count = self._cells
            return int(count[self._tables.sum(axis=(1, 2, 3)) > 0].sum())
        except Undefined:
            return 0

    def rows(self) -> tuple[list[str], list[str], list[float]]:
        """(gold, verdict, weight) of the table's cells that hold something, as scikit-learn takes them."""
        held = [(k, v, w) for k, row in enumerate(self.table.tolist()) for v, w in enumerate(row) if w > 0]
        return [self.classes[k] for k, _, _ in held], [self.labels[v] for _, v, _ in held], [w for _, _, w in held]

    def interval(self, statistic: Callable[[Array], Array]) -> tuple[float, float]:
        """The middle 95% of a statistic over resamples of the items; it maps tables [R, K, L] to [R]."""
        import numpy as np

        example, count = self._cells
        total = int(count.sum())
        if self.n < 2:
            raise Undefined("an interval takes two items")
        # RandomState: its stream is frozen (NEP 19), so a printed interval stays what it was.
        draw = np.random.RandomState(self.rules.seed)
        adds = self._tables.reshape(len(example), -1)
        values, left = np.empty(0), self.rules.resamples
        while left:
            size = min(left, max(1, _AT_ONCE // len(count)))
            flat = draw.multinomial(total, count / total, size=size) @ adds
            with np.errstate(invalid="ignore", divide="ignore"):
                values = np.append(values, statistic(_joined(flat.reshape(-1, *self._tables.shape[1:]))))
            left -= size
        values = values[np.isfinite(values)]
        if len(values) < self.rules.resamples / 2:
            raise Undefined("most resamples leave it undefined")
        low, high = np.percentile(values, [2.5, 97.5])
        return float(low), float(high)

    @cached_property
    def credit(self) -> Array:
        """[K, L] how right a verdict is: 1 on the gold class; with tie "half", 0.5 between a tie and A or B."""
        import numpy as np

        credit = np.eye(len(self.classes), len(self.labels))
        if self.rules.tie == "half" and not self.votes.graded:
            credit[TIE, :TIE] = credit[:TIE, TIE] = 0.5
        return credit

    @cached_property
    def right(self) -> Array:
        """[I] how right the judge is on each item, 0 to 1; NaN where it is not scored."""
        import numpy as np

        gold, faces = self.gold.copy(), self.faces
        counted = (faces >= 0) & self.judged[:, None]
        if self.rules.tie == "drop" and not self.votes.graded:
            gold[:, TIE] = 0.0
            counted &= faces != TIE
        mass = gold.sum(axis=1)
        score = (gold[:, None, :] * self.credit.T[faces]).sum(axis=2)  # [I, F]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(counted, score, 0.0).sum(axis=1) / (mass * counted.sum(axis=1))


def _joined(tables: Array) -> Array:
    """[R, F, K, L] -> [R, K, L]: two orders count alike, however many items each was asked on."""
    import numpy as np

    if tables.shape[1] == 1:
        return tables[:, 0]
    sums = tables.sum(axis=(2, 3), keepdims=True)
    there = (sums > 0).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.where(sums > 0, tables / sums, 0.0).sum(axis=1) / there
    return shares * sums.mean(axis=1)


def _signed(read: Array, invalid: int, split: int) -> Array:
    """The verdict that +1 for A, -1 for B and 0 for a tie or none add up to; A against B is right for nobody."""
    import numpy as np

    a, b, tie = ((read == c).sum(axis=1) for c in range(3))
    label = np.where(tie > 0, TIE, np.where((read == invalid).any(axis=1), invalid, -1))
    label = np.where(a > 0, 0, label)
    return np.where((a > 0) & (b > 0), split, np.where((b > 0) & (a == 0), 1, label))
