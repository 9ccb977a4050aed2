"""What people reach among themselves, and whether a judge may stand in for one of them (the alt-test)."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from itertools import combinations
from typing import Any, NotRequired, TypedDict

from judges.agreement._fields import Share, empty
from judges.agreement._ranks import signed_rank
from judges.agreement.people import MOST_GRADES, People, plurality
from judges.agreement.rules import Rules, Undefined
from judges.agreement.view import View
from judges.agreement.votes import Array, Votes

MOST_RATERS = 50
"""More people than this, and figures for each pair of them are left out."""
FEW_ITEMS = 30
"""Below this many items the alt-test uses Wilcoxon's signed-rank test (Calderon et al. 2025, section 3)."""
LEVEL = 0.05


class Pairs(TypedDict):
    """A figure for every two people, and its mean."""

    mean: float | None
    pairs: list[dict[str, Any]] | None


class OnItems(TypedDict):
    """A figure over n items with so many ratings each."""

    value: float | None
    n: int | None
    ratings: int | None


class Alpha(TypedDict):
    """Krippendorff's alpha, by the distance between classes."""

    nominal: float | None
    ordinal: float | None
    interval: float | None


class Ceiling(TypedDict):
    """Each person against the others: a random one of them, and their majority."""

    random_other: float | None
    majority_of_others: float | None
    per_human: dict[str, Any] | None
    why: NotRequired[str]


class AltTest(TypedDict):
    """The alternative-annotator test."""

    omega: float | None
    rho: float | None
    passed: bool | None
    per_human: dict[str, Any] | None


class Crowd:
    """The people of a set of votes, by pairs, by items and one against the rest."""

    def __init__(self, votes: Votes, people: People) -> None:
        import numpy as np

        self.votes, self.people = votes, people
        self.item, self.rater, self.label = votes.item[people.votes], votes.rater[people.votes], people.label
        self.ratings = np.bincount(self.item, minlength=len(votes.items))
        """[I] how many people labelled each item."""
        order = np.argsort(self.rater, kind="stable")
        raters, start = np.unique(self.rater[order], return_index=True)
        self.raters = [int(r) for r in raters]
        self.said = dict(zip(self.raters, np.split(order, start[1:]), strict=True)) if self.raters else {}
        """Rater -> indices of that person's labels."""
        if len(self.raters) < 2:
            raise Undefined(f"it takes two people; there {'is one' if self.raters else 'are none'}")
        if not (self.ratings > 1).any():
            raise Undefined("no item was labelled by two people")

    def pairwise_agreement(self) -> Pairs:
        """Share of items, labelled by both, on which two people say the same; the mean is over the pairs."""

        def same(x: Array, y: Array) -> float | None:
            return float((x == y).mean())

        return self._pairs(same)

    def cohen(self) -> Pairs:
        """Cohen's kappa of every two people (scikit-learn)."""
        metrics: Any = import_module("sklearn.metrics")

        def kappa(x: Array, y: Array) -> float | None:
            # With one class only, chance agreement is certain, and scikit-learn warns of a division by 0.
            return None if len({*x.tolist(), *y.tolist()}) == 1 else float(metrics.cohen_kappa_score(x, y))

        return self._pairs(kappa)

    def _classes(self) -> None:
        if not self.people.classes:
            raise Undefined(f"scores have more than {MOST_GRADES} values, so they are no classes")

    def _pairs(self, figure: Callable[[Array, Array], float | None]) -> Pairs:
        import numpy as np

        self._classes()
        if len(self.raters) > MOST_RATERS:
            raise Undefined(f"there are more than {MOST_RATERS} people")
        said = np.full((len(self.raters), len(self.votes.items)), -1, dtype=np.int8)
        said[np.searchsorted(self.raters, self.rater), self.item] = self.label
        made: list[dict[str, Any]] = []
        for i, j in combinations(range(len(self.raters)), 2):
            both = (said[i] >= 0) & (said[j] >= 0)
            if both.any():
                value = figure(said[i][both], said[j][both])
                names = [self.votes.raters[self.raters[x]] for x in (i, j)]
                why = {"why": "both only ever say one class"} if value is None else {}
                made.append({"raters": names, "value": value, "n": int(both.sum())} | why)
        known = [x["value"] for x in made if x["value"] is not None]
        if not known:
            raise Undefined("every two people only ever say one class")
        return Pairs(mean=float(np.mean(known)), pairs=made)

    def fleiss_kappa(self) -> OnItems:
        """Fleiss' kappa (statsmodels) on the items with the most usual number of ratings, two or more."""
        import numpy as np

        inter_rater: Any = import_module("statsmodels.stats.inter_rater")
        self._classes()
        numbers = np.bincount(self.ratings)
        numbers[:2] = 0
        usual = int(numbers.argmax())
        table = self.people.counts[self.ratings == usual]
        if (table.sum(axis=0) > 0).sum() == 1:
            raise Undefined("people only ever say one class")
        return OnItems(value=float(inter_rater.fleiss_kappa(table)), n=len(table), ratings=usual)

    def krippendorff_alpha(self) -> Alpha:
        """Krippendorff's alpha (evalica), missing ratings allowed; A < tie < B where it is ordinal or interval."""
        import numpy as np

        evalica: Any = import_module("evalica")
        pandas: Any = import_module("pandas")
        values = self.votes.score[self.people.votes] if self.votes.graded else np.array([0.0, 2.0, 1.0])[self.label]
        kept = self.ratings[self.item] > 1
        if len(np.unique(values[kept])) == 1:
            raise Undefined("people only ever say one class")
        # Who said it does not matter to alpha, so an item's ratings take its first rows, however many people.
        start = np.searchsorted(self.item, self.item)
        row = np.arange(len(self.item)) - start
        columns, at = np.unique(self.item[kept], return_inverse=True)
        ratings = np.full((int(row[kept].max()) + 1, len(columns)), np.nan)
        ratings[row[kept], at] = values[kept]
        frame = pandas.DataFrame(ratings)
        found = [float(evalica.alpha(frame, distance=d).alpha) for d in ("nominal", "ordinal", "interval")]
        return Alpha(nominal=found[0], ordinal=found[1], interval=found[2])

    def gwet_ac1(self) -> float:
        """Gwet's AC1 for several raters and missing ratings (Gwet 2008)."""
        self._classes()
        counts = self.people.counts[:, self.people.counts.sum(axis=0) > 0]
        if counts.shape[1] == 1:
            raise Undefined("people only ever say one class")
        rated = counts[self.ratings > 0]
        share = (rated / rated.sum(axis=1, keepdims=True)).mean(axis=0)
        chance = (share * (1.0 - share)).sum() / (counts.shape[1] - 1)
        shared, r = counts[self.ratings > 1], self.ratings[self.ratings > 1]
        observed = ((shared * (shared - 1)).sum(axis=1) / (r * (r - 1))).mean()
        return float((observed - chance) / (1.0 - chance))

    def leave_one_out_ceiling(self) -> Ceiling:
        """Each person's agreement with a random other (the expected share, nothing is drawn) and with the
        majority of the others, on the items where there is one; the ceiling is the mean over the people."""
        import numpy as np

        self._classes()
        others = self.ratings[self.item] - 1
        alike = self.people.counts[self.item, self.label] - 1
        rest = self.people.counts[self.item]
        rest[np.arange(len(rest)), self.label] -= 1
        top = plurality(rest)
        made: dict[str, Any] = {}
        for r, said in self.said.items():
            mine = said[others[said] > 0]
            if not len(mine):
                continue
            clear = mine[top[mine] >= 0]
            made[self.votes.raters[r]] = {
                "random_other": _share(alike[mine] / others[mine], "no other person"),
                "majority_of_others": _share(top[clear] == self.label[clear], "the others never have a majority"),
            }
        means = [[p[key]["value"] for p in made.values()] for key in ("random_other", "majority_of_others")]
        first, second = ([x for x in values if x is not None] for values in means)
        ceiling = Ceiling(random_other=float(np.mean(first)), majority_of_others=None, per_human=made)
        if second:
            ceiling["majority_of_others"] = float(np.mean(second))
        else:
            ceiling["why"] = "majority_of_others: the others never have a majority"
        return ceiling


def alt_test(view: View, crowd: Crowd, rules: Rules) -> AltTest:
    """The alternative-annotator test (Calderon et al. 2025, arXiv 2501.10970).

    Every person in turn is left out; on each item the judge and that person are scored by their agreement
    with the remaining ones (scores: minus the root mean square difference). rho is the share of items where
    the judge's score is at least the person's, averaged over the people; omega the share of people that the
    judge beats: a one-sided t-test of the difference in advantage against epsilon (Wilcoxon below 30 items),
    Benjamini-Yekutieli at 0.05. Passed: omega >= 0.5. Ties are a class, whatever the tie rule.
    """
    import numpy as np

    multitest: Any = import_module("statsmodels.stats.multitest")
    judge = _agreement(view, crowd)
    person = _own(crowd)
    ahead = (judge >= person).astype(np.float64)
    behind = (person >= judge).astype(np.float64)
    usable = np.isfinite(judge) & np.isfinite(person)
    per_human: dict[str, Any] = {}
    for r, said in crowd.said.items():
        mine = said[usable[said]]
        if len(mine):
            p, test = _test(behind[mine] - ahead[mine], rules.epsilon)
            rho = {"rho": float(ahead[mine].mean()), "rho_human": float(behind[mine].mean())}
            per_human[crowd.votes.raters[r]] = {**rho, "n": len(mine), "p": p, "test": test}
    if not per_human:
        raise Undefined("no item has the judge's verdict and two people's labels")
    beaten = multitest.multipletests([h["p"] for h in per_human.values()], alpha=LEVEL, method="fdr_by")[0]
    for human, won in zip(per_human.values(), beaten, strict=True):
        human["beaten"] = bool(won)
    omega = float(np.mean(beaten))
    rho = float(np.mean([h["rho"] for h in per_human.values()]))
    return AltTest(omega=omega, rho=rho, passed=omega >= 0.5, per_human=per_human)


def _test(difference: Array, epsilon: float) -> tuple[float, str]:
    """p of "the person's advantage over the judge is less than epsilon", and the test's name."""
    import numpy as np

    stats: Any = import_module("scipy.stats")
    shifted = difference - epsilon
    if np.ptp(shifted) == 0.0:
        # All differences alike: the t statistic is infinite, and its sign decides.
        return (0.0 if shifted[0] < 0.0 and len(shifted) > 1 else 1.0), "none: all differences are alike"
    if len(shifted) < FEW_ITEMS:
        return signed_rank(shifted), "Wilcoxon signed-rank"
    return float(stats.ttest_1samp(difference, epsilon, alternative="less").pvalue), "t"


def _own(crowd: Crowd) -> Array:
    """[votes] each person's score against the others on the item; NaN without others."""
    import numpy as np

    others = crowd.ratings[crowd.item] - 1
    with np.errstate(invalid="ignore", divide="ignore"):
        if crowd.votes.graded:
            return _distance(crowd, crowd.votes.score[crowd.people.votes])
        return (crowd.people.counts[crowd.item, crowd.label] - 1) / np.where(others > 0, others, np.nan)


def _agreement(view: View, crowd: Crowd) -> Array:
    """[votes] the judge's score against the people other than the voter, on the voter's item; NaN if unjudged."""
    import numpy as np

    others = crowd.ratings[crowd.item] - 1
    if crowd.votes.graded:
        item, score, size = crowd.votes.item[view.cast], crowd.votes.score[view.cast], len(crowd.votes.items)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.bincount(item, score, size) / np.bincount(item, minlength=size)
        return _distance(crowd, mean[crowd.item])
    faces = view.faces[crowd.item]  # [votes, F]
    padded = np.pad(crowd.people.counts, ((0, 0), (0, 3)))  # invalid, split, and not counted: nobody says that
    same = padded[crowd.item[:, None], faces] - (faces == crowd.label[:, None])
    counted = faces >= 0
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(counted, same, 0).sum(axis=1) / counted.sum(axis=1)
        return np.where(others > 0, mean / others, np.nan)


def _distance(crowd: Crowd, score: Array) -> Array:
    """[votes] minus the root mean square difference of a score from those of the others on the item."""
    import numpy as np

    mine = crowd.votes.score[crowd.people.votes]
    size = len(crowd.votes.items)
    sums, squares = (np.bincount(crowd.item, x, size)[crowd.item] for x in (mine, mine**2))
    others = crowd.ratings[crowd.item] - 1
    with np.errstate(invalid="ignore", divide="ignore"):
        mean, square = (sums - mine) / others, (squares - mine**2) / others
        apart = np.sqrt(np.maximum(0.0, score**2 - 2 * score * mean + square))
    # Rounding must not decide which of two equal distances is the smaller.
    return np.where(others > 0, -np.round(apart, 9), np.nan)


def _share(values: Array, why: str) -> Share:
    if not len(values):
        return empty(Share, why)
    return Share(value=float(values.mean()), n=len(values))
