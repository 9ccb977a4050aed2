"""Metrics of agreement: every public function here is one key of a judge's object in the JSON.

A metric takes a View and returns a number, or a dict whose numbers may be None beside a "why". It raises
Undefined, with the reason, where it does not exist. To add a metric is to add a function.
"""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from importlib import import_module
from typing import Any, Literal

from judges.agreement._fields import Accuracy, Averages, Corrected, Correlations, Ends, Interval, Share, empty, interval
from judges.agreement.rules import Undefined
from judges.agreement.view import View
from judges.agreement.votes import AB, BA, INVALID, TIE, A, Array, B


def accuracy(view: View) -> Accuracy:
    """Share of items on which the judge is right; percentile interval from resampled items, and Wilson's.

    With tie "half", a tie against A or B is half right.
    """
    proportion: Any = import_module("statsmodels.stats.proportion")
    value = float((view.table * view.credit).sum() / view.table.sum())
    low, high = proportion.proportion_confint(value * view.n, view.n, method="wilson")
    ends = interval(value, lambda: view.interval(lambda t: (t * view.credit).sum((1, 2)) / t.sum((1, 2))))
    return Accuracy(**ends, n=view.n, wilson=Ends(low=float(low), high=float(high)))


def balanced_accuracy(view: View) -> float:
    """Mean recall over the gold classes (scikit-learn)."""
    metrics: Any = import_module("sklearn.metrics")
    gold, verdict, weight = view.rows()
    return float(metrics.recall_score(gold, verdict, sample_weight=weight, average="macro", labels=sorted(set(gold))))


def macro(view: View) -> Averages:
    """Precision, recall and F1, averaged over the classes (scikit-learn)."""
    return _averaged(view, "macro")


def weighted(view: View) -> Averages:
    """Precision, recall and F1, averaged over the classes by their gold frequency (scikit-learn)."""
    return _averaged(view, "weighted")


def confusion(view: View) -> dict[str, dict[str, float]]:
    """Gold class -> verdict -> how many items. "split": the two orders disagree (swap rule "both")."""
    table = [[round(float(x), 6) for x in row] for row in view.table]
    return {gold: dict(zip(view.labels, row, strict=True)) for gold, row in zip(view.classes, table, strict=True)}


def cohen_kappa(view: View) -> Interval:
    """Cohen's kappa (scikit-learn), with a percentile interval from resampled items."""
    metrics: Any = import_module("sklearn.metrics")
    gold, verdict, weight = view.rows()
    if len({*gold, *verdict}) == 1:
        raise Undefined(f"people and judge only ever say {gold[0]}, so agreement by chance is certain")
    value = float(metrics.cohen_kappa_score(gold, verdict, sample_weight=weight))
    return interval(value, lambda: view.interval(_kappas))


def weighted_kappa(view: View) -> float:
    """Cohen's kappa with quadratic weights (scikit-learn), for scores."""
    metrics: Any = import_module("sklearn.metrics")
    if not view.votes.graded:
        raise Undefined("verdicts are not scores")
    gold, verdict, weight = view.rows()
    if len({*gold, *verdict}) == 1:
        raise Undefined(f"people and judge only ever give {gold[0]}")
    if not set(verdict) <= set(view.classes):
        raise Undefined("the judge's two orders gave different scores; choose swap first or mean")
    # By place in the order of the scores in use, as scikit-learn has it.
    place = {name: i for i, name in enumerate(view.classes)}
    ranks = [[place[x] for x in side] for side in (gold, verdict)]
    labels = sorted({*ranks[0], *ranks[1]})
    return float(metrics.cohen_kappa_score(*ranks, sample_weight=weight, weights="quadratic", labels=labels))


def scott_pi(view: View) -> float:
    """Scott's pi (1955): chance agreement from the two sides' mean class shares."""
    observed, share = _shares(view)
    chance = float((share**2).sum())
    if chance == 1.0:
        raise Undefined("people and judge only ever say one class")
    return (observed - chance) / (1.0 - chance)


def gwet_ac1(view: View) -> float:
    """Gwet's AC1 (2008) over the classes that either side uses."""
    observed, share = _shares(view)
    if len(share) == 1:
        raise Undefined("people and judge only ever say one class")
    chance = float((share * (1.0 - share)).sum() / (len(share) - 1))
    return (observed - chance) / (1.0 - chance)


def s2(view: View) -> Share:
    """Share right where neither the gold label nor the verdict is a tie (MT-bench's second setup), and n."""
    if view.votes.graded:
        raise Undefined("scores have no ties")
    table = view.table.copy()
    table[TIE, :] = 0.0
    table[:, TIE] = 0.0
    n = float(table.sum())
    if not n:
        return Share(value=None, n=0, why="on every item the people or the judge say tie")
    return Share(value=float((table[A, A] + table[B, B]) / n), n=round(n))


def consistency(view: View) -> Share:
    """Share of items judged in both orders with one readable verdict in both; two invalid ones do not agree."""
    slots = view.slots[view.among]
    both = slots[(slots >= 0).all(axis=1)]
    if not len(both):
        return Share(value=None, n=0, why="no item was judged in both slot orders")
    same = (both[:, 0] == both[:, 1]) & (view.votes.graded | (both[:, 0] < INVALID))
    return Share(value=float(same.mean()), n=len(both))


def first_slot_share(view: View) -> float:
    """Share of votes for A or B that chose the reply shown first; votes without an order do not count."""
    verdict, order = view.votes.verdict[view.cast], view.votes.order[view.cast]
    first = ((verdict == A) & (order == AB)) | ((verdict == B) & (order == BA))
    known = ((verdict == A) | (verdict == B)) & (order > 0)
    if not known.any():
        raise Undefined("no vote for A or B says which reply was shown first")
    return float(first.sum() / known.sum())


def correlation(view: View) -> Correlations:
    """Pearson, Spearman and Kendall (tau-b) between the judge's scores and the people's mean (scipy)."""
    import numpy as np

    stats: Any = import_module("scipy.stats")
    if not view.votes.graded:
        raise Undefined("verdicts are not scores")
    theirs = _means(view, ~np.array(view.votes.is_judge)[view.votes.rater])
    mine = _means(view, view.votes.rater == view.judge)
    both = np.isfinite(theirs) & np.isfinite(mine) & view.among
    x, y = theirs[both], mine[both]
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        raise Undefined("it takes two items, and scores that differ")
    found = [float(f(x, y).statistic) for f in (stats.pearsonr, stats.spearmanr, stats.kendalltau)]
    return Correlations(n=len(x), pearson=found[0], spearman=found[1], kendall=found[2])


def rogan_gladen(view: View) -> dict[str, Corrected]:
    """Each class's share by the judge, corrected by its sensitivity and specificity (Rogan and Gladen 1978).

    `apparent` counts all items that the judge has a readable verdict on, also those without people's labels.
    """
    faces = view.faces[view.among]
    said = faces[(faces >= 0) & (faces < len(view.classes))]
    return {name: _corrected(view.table, said == k, k) for k, name in enumerate(view.classes)}


def _corrected(table: Array, said: Array, k: int) -> Corrected:
    gold, total = table[k].sum(), table.sum()
    if not len(said) or not gold or gold == total:
        return empty(Corrected, "it takes verdicts, and gold labels both of this class and of others")
    apparent, sensitivity = float(said.mean()), float(table[k, k] / gold)
    specificity = float(1.0 - (table[:, k].sum() - table[k, k]) / (total - gold))
    made = Corrected(apparent=apparent, corrected=None, sensitivity=sensitivity, specificity=specificity)
    if sensitivity + specificity <= 1.0:
        made["why"] = "corrected: the judge tells this class from the others no better than chance"
        return made
    made["corrected"] = min(1.0, max(0.0, (apparent + specificity - 1.0) / (sensitivity + specificity - 1.0)))
    return made


def _averaged(view: View, average: Literal["macro", "weighted"]) -> Averages:
    """scikit-learn's averages over the classes that occur; an unreadable verdict is no class, only wrong."""
    metrics: Any = import_module("sklearn.metrics")
    gold, verdict, weight = view.rows()
    labels = [c for c in view.classes if c in gold or c in verdict]
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        gold, verdict, labels=labels, sample_weight=weight, average=average, zero_division=0.0
    )
    made = Averages(precision=float(precision), recall=float(recall), f1=float(f1))
    why: list[str] = []
    if unsaid := [c for c in labels if c not in verdict]:
        made["precision"] = None
        why.append(f"precision: the judge never says {', '.join(unsaid)}")
    unheld = [c for c in labels if c not in gold]
    if unheld and average == "macro":
        made["recall"] = None
        why.append(f"recall: no gold label is {', '.join(unheld)}")
    if why:
        made["why"] = "; ".join(why)
    return made


def _shares(view: View) -> tuple[float, Array]:
    """Observed agreement, and the mean share of every class that occurs on either side."""
    import numpy as np

    table = view.table / view.table.sum()
    k = len(view.classes)
    gold = np.append(table.sum(axis=1), np.zeros(table.shape[1] - k))
    share = (gold + table.sum(axis=0)) / 2.0
    return float(np.trace(table[:, :k])), share[share > 0]


def _kappas(tables: Array) -> Array:
    """Cohen's kappa of each table [R, K, L]; NaN where chance agreement is certain."""
    total = tables.sum(axis=(1, 2))
    k = tables.shape[1]
    observed = tables[:, range(k), range(k)].sum(axis=1) / total
    chance = (tables.sum(axis=2) * tables.sum(axis=1)[:, :k]).sum(axis=1) / total**2
    return (observed - chance) / (1.0 - chance)


def _means(view: View, votes: Array) -> Array:
    """[I] mean score of some of the votes; NaN where there are none."""
    import numpy as np

    of, size = view.votes.item[votes], len(view.votes.items)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.bincount(of, view.votes.score[votes], size) / np.bincount(of, minlength=size)
