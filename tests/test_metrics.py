"""Each metric of agreement by its definition, on a few votes, rule by rule."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from judges.agreement import metrics
from judges.agreement import votes as votes_file
from judges.agreement._ranks import signed_rank
from judges.agreement.people import People
from judges.agreement.rules import Rules, Undefined
from judges.agreement.view import View

GOLD = ["A", "A", "A", "A", "B", "B", "B", "tie", "tie", "A"]
SAID = ["A", "A", "B", "invalid", "B", "A", "B", "tie", "A", "refused"]
N = len(GOLD)


def view_of(rows: list[dict[str, Any]], **rules: Any) -> View:
    gathered = votes_file.gather()
    for number, row in enumerate(rows, 1):
        gathered.add({"kind": "judge" if row["rater"] == "j" else "human", **row}, number)
    votes = gathered.votes()
    return View(votes, People.of(votes), votes.raters.index("j"), Rules(**{"resamples": 100, **rules}))


def judged(gold: list[Any], said: list[Any], **rules: Any) -> View:
    """One person's labels and a judge's; numbers are scores."""

    def rows(rater: str, listed: list[Any]) -> list[dict[str, Any]]:
        key = "verdict" if isinstance(listed[0], str) else "score"
        return [{"item": i, "rater": rater, key: x} for i, x in enumerate(listed) if x is not None]

    return view_of(rows("h", gold) + rows("j", said), **rules)


def both_orders(pairs: list[tuple[Any, Any]], key: str = "verdict", **rules: Any) -> View:
    rows = [{"item": 0, "rater": "h", key: pairs[0][0]}]
    for i, pair in enumerate(pairs):
        rows += [{"item": i, "rater": "j", key: x, "order": o} for x, o in zip(pair, ("ab", "ba"), strict=True) if x]
    return view_of(rows, **rules)


VIEW = judged(GOLD, SAID)


def test_accuracy() -> None:
    found = metrics.accuracy(VIEW)
    assert (found["value"], found["n"]) == (0.5, N)
    assert found["low"] < 0.5 < found["high"]
    z = 1.959963984540054  # Wilson 1927, with p = 1/2
    width = z * math.sqrt(0.25 / N + z * z / (4 * N * N)) / (1 + z * z / N)
    assert (found["wilson"]["low"], found["wilson"]["high"]) == pytest.approx((0.5 - width, 0.5 + width))
    assert metrics.accuracy(judged(GOLD, SAID, tie="half"))["value"] == pytest.approx(0.55)
    assert metrics.accuracy(judged(["A", "B"], ["A", "B"]))["low"] == 1.0


def test_recall_precision_and_f1() -> None:
    recall = (2 / 5, 2 / 3, 1 / 2)
    precision = (2 / 4, 2 / 3, 1 / 1)
    f1 = [2 * p * r / (p + r) for p, r in zip(precision, recall, strict=True)]
    assert metrics.balanced_accuracy(VIEW) == pytest.approx(sum(recall) / 3)
    assert metrics.macro(VIEW) == pytest.approx(
        {"precision": sum(precision) / 3, "recall": sum(recall) / 3, "f1": sum(f1) / 3}
    )
    by_gold = [sum(n * x for n, x in zip((5, 3, 2), xs, strict=True)) / N for xs in (precision, recall, f1)]
    assert metrics.weighted(VIEW) == pytest.approx(dict(zip(("precision", "recall", "f1"), by_gold, strict=True)))


def test_averages_over_classes_that_one_side_lacks() -> None:
    unsaid = metrics.macro(judged(["A", "B", "tie"], ["A", "A", "A"]))
    assert unsaid == pytest.approx(
        {"precision": None, "recall": 1 / 3, "f1": 1 / 6, "why": "precision: the judge never says B, tie"}
    )
    unheld = judged(["A", "B", "A", "B"], ["A", "B", "tie", "tie"])
    found = metrics.macro(unheld)
    assert (found["recall"], found["why"]) == (None, "recall: no gold label is tie")
    assert found["precision"] == pytest.approx(2 / 3)
    weighted = metrics.weighted(unheld)
    assert (weighted["recall"], "why" in weighted) == (0.5, False)
    neither = metrics.macro(judged(["A", "A"], ["B", "B"]))
    assert neither["why"] == "precision: the judge never says A; recall: no gold label is B"
    assert (neither["precision"], neither["recall"], neither["f1"]) == (None, None, 0.0)


def test_confusion_names_invalid_and_split() -> None:
    assert metrics.confusion(VIEW) == {
        "A": {"A": 2, "B": 1, "tie": 0, "invalid": 2, "split": 0},
        "B": {"A": 1, "B": 2, "tie": 0, "invalid": 0, "split": 0},
        "tie": {"A": 1, "B": 0, "tie": 1, "invalid": 0, "split": 0},
    }
    assert metrics.confusion(both_orders([("A", "B")]))["A"]["split"] == 1
    # The two orders' verdicts count half each.
    halves = metrics.confusion(both_orders([("A", "B"), ("A", None)], swap="mean"))["A"]
    assert (halves["A"], halves["B"]) == (0.5, 0.5)


def test_figures_corrected_for_chance() -> None:
    gold, said = {"A": 5, "B": 3, "tie": 2}, {"A": 4, "B": 3, "tie": 1, "invalid": 2}
    chance = sum(gold[c] * said[c] for c in gold) / N**2
    kappa = metrics.cohen_kappa(VIEW)
    assert kappa["value"] == pytest.approx((0.5 - chance) / (1 - chance))
    assert -1 <= kappa["low"] < kappa["value"] < kappa["high"] <= 1
    shares = [(gold.get(c, 0) + n) / (2 * N) for c, n in said.items()]
    chance = sum(s * s for s in shares)
    assert metrics.scott_pi(VIEW) == pytest.approx((0.5 - chance) / (1 - chance))
    chance = sum(s * (1 - s) for s in shares) / 3
    assert metrics.gwet_ac1(VIEW) == pytest.approx((0.5 - chance) / (1 - chance))
    for of in (metrics.cohen_kappa, metrics.scott_pi, metrics.gwet_ac1):
        assert not isinstance(of(judged(["A", "A"], ["A", "B"])), type(None))
        with pytest.raises(Undefined, match="only ever say"):
            of(judged(["A", "A"], ["A", "A"]))


def test_kappa_of_resampled_tables() -> None:
    from sklearn.metrics import cohen_kappa_score

    tables = np.array([[[3, 1, 0], [2, 4, 1]], [[5, 0, 2], [1, 1, 0]], [[4, 0, 0], [0, 0, 0]]], dtype=float)
    found = []
    with np.errstate(invalid="ignore"):
        found = list(metrics._kappas(tables))
    for table, value in zip(tables[:2].astype(int), found, strict=False):
        sides = [(k, v) for k in range(2) for v in range(3) for _ in range(table[k, v])]
        assert value == pytest.approx(cohen_kappa_score(*zip(*sides, strict=True)))
    assert math.isnan(found[2])


def test_weighted_kappa_is_for_scores() -> None:
    from sklearn.metrics import cohen_kappa_score

    gold, said = [1, 2, 9, 9, 2, 1], [1, 9, 9, 2, 2, 2]
    rank = {1: 0, 2: 1, 9: 2}  # by place in the order, not by value
    expected = cohen_kappa_score([rank[x] for x in gold], [rank[x] for x in said], weights="quadratic")
    assert metrics.weighted_kappa(judged(gold, said)) == pytest.approx(expected)
    one_sided = cohen_kappa_score([0, 1, 2], [0, 1, 1], weights="quadratic")  # the judge never says 9
    assert metrics.weighted_kappa(judged([1, 2, 9], [1, 2, 2])) == pytest.approx(one_sided)
    for wrong, why in (
        (VIEW, "not scores"),
        (judged([3, 3], [3, 3]), "only ever give 3"),
        (both_orders([(1, 2), (2, 2)], "score"), "different scores"),
    ):
        with pytest.raises(Undefined, match=why):
            metrics.weighted_kappa(wrong)


def test_without_ties() -> None:
    # A and B on both sides, or unreadable: 8 items, of which 4 are right.
    assert metrics.s2(VIEW) == {"value": 0.5, "n": 8}
    assert metrics.s2(judged(["A", "B", "A"], ["A", "tie", "A"])) == {"value": 1.0, "n": 2}
    none = metrics.s2(judged(["tie", "A"], ["A", "tie"]))
    assert (none["value"], none["n"], none["why"]) == (
        None, 0, "on every item the people or the judge say tie",
    )  # fmt: skip
    with pytest.raises(Undefined, match="no ties"):
        metrics.s2(judged([1, 2], [1, 2]))


def test_consistency() -> None:
    pairs = [("A", "A"), ("A", "B"), ("tie", "tie"), ("invalid", "invalid"), ("refused", "refused"), ("A", None)]
    assert metrics.consistency(both_orders(pairs)) == {"value": 0.4, "n": 5}
    assert metrics.consistency(both_orders([(3, 3), (4, 4), (5, 5), (6, 6), (1, 2)], "score")) == {"value": 0.8, "n": 5}
    alone = metrics.consistency(both_orders([("A", None)]))
    assert (alone["value"], alone["n"], alone["why"]) == (None, 0, "no item was judged in both slot orders")
    part = both_orders(pairs)
    assert metrics.consistency(part.where(np.arange(6) < 2)) == {"value": 0.5, "n": 2}


def test_first_slot_share() -> None:
    # Shown first and chosen: "ab" A, "ba" B.
    assert metrics.first_slot_share(both_orders([("A", "B"), ("A", "A"), ("B", "B"), ("tie", "B")])) == 5 / 7
    assert metrics.first_slot_share(both_orders([("B", "A")])) == 0.0
    assert metrics.first_slot_share(both_orders([("A", "invalid")])) == 1.0
    for nothing in (VIEW, both_orders([("tie", "invalid")])):
        with pytest.raises(Undefined, match="which reply was shown first"):
            metrics.first_slot_share(nothing)


def test_correlation() -> None:
    from scipy import stats

    gold, said = [1.5, 2.5, 4.5, 3.5, None, 2.0], [2.0, 1.0, 4.0, 9.0, 5.0, None]
    view = judged(gold, said)
    x, y = gold[:4], said[:4]
    expected = {"n": 4, "pearson": stats.pearsonr(x, y)[0], "spearman": 0.8, "kendall": stats.kendalltau(x, y)[0]}
    expected["spearman"] = stats.spearmanr(x, y)[0]
    assert metrics.correlation(view) == pytest.approx(expected)
    assert metrics.correlation(view.where(np.arange(6) < 2)) == pytest.approx(
        {"n": 2, "pearson": -1, "spearman": -1, "kendall": -1}
    )
    two = [{"item": i, "rater": r, "score": s} for i in range(3) for r, s in (("h", i), ("g", i + 2), ("j", i * i))]
    assert metrics.correlation(view_of(two))["pearson"] == pytest.approx(stats.pearsonr([1, 2, 3], [0, 1, 4])[0])
    for wrong, why in (
        (VIEW, "not scores"),
        (judged([1], [2]), "two items"),
        (judged([1, 1], [1, 2]), "differ"),
        (judged([1, 2], [1, 1]), "differ"),
    ):
        with pytest.raises(Undefined, match=why):
            metrics.correlation(wrong)


def test_rates_corrected_for_the_judges_errors() -> None:
    found = metrics.rogan_gladen(VIEW)
    a = found["A"]
    assert (a["apparent"], a["sensitivity"], a["specificity"]) == pytest.approx((4 / 8, 2 / 5, 1 - 2 / 5))
    assert (a["corrected"], a["why"]) == (
        None, "corrected: the judge tells this class from the others no better than chance",
    )  # fmt: skip
    b = found["B"]
    assert (b["apparent"], b["sensitivity"], b["specificity"]) == pytest.approx((3 / 8, 2 / 3, 6 / 7))
    assert b["corrected"] == pytest.approx((3 / 8 + 6 / 7 - 1) / (2 / 3 + 6 / 7 - 1))
    assert "why" not in b
    lacking = metrics.rogan_gladen(judged(["A", "A"], ["A", "B"]))
    for name in ("A", "B"):
        assert (lacking[name]["apparent"], lacking[name]["corrected"]) == (None, None)
        assert lacking[name]["why"] == "it takes verdicts, and gold labels both of this class and of others"
    # Seen by people: sensitivity 3/4, specificity 1. On 30 more items the judge says only A, or only B.
    seen = ([*"AAAABBBB", *[None] * 30], "AAABBBBB")
    rates = {x: metrics.rogan_gladen(judged(seen[0], [*seen[1], *x * 30]))["A"]["corrected"] for x in "AB"}
    assert rates == pytest.approx({"A": 1.0, "B": 3 / 38 / 0.75})
    below = judged(seen[0], [*"AAAABBBA", *"B" * 30])
    assert metrics.rogan_gladen(below)["A"]["corrected"] == 0.0


def test_signed_ranks() -> None:
    from scipy.stats import wilcoxon

    # Wilcoxon 1945: of 5 differences only the smallest is above 0, so 2 of 32 choices of signs lie as low.
    assert signed_rank(np.array([1.0, -2, -3, -4, -5])) == 2 / 32
    assert signed_rank(np.array([1.0, -2, 0, -3, -4, 0, -5])) == 2 / 32
    assert signed_rank(np.array([-1.0, -1, 1])) == 4 / 8  # ranks 2, 2, 2: none or one of them above 0
    assert signed_rank(np.array([3.0])) == 1.0
    # Ranks 3/2, 3/2, 3: the two small ones weigh as much as the large one.
    assert signed_rank(np.array([1.0, 1, -2])) == 5 / 8
    # Ranks 3/2, 3/2, 3, 4: of 16 choices 6 lie at 4 or below, and two more at 9/2.
    assert signed_rank(np.array([-1.0, -1, -2, 3])) == 6 / 16
    thirteen = np.array([-1.0] * 12 + [1.0])
    assert signed_rank(thirteen) == 14 / 2**13
    fourteen = np.array([-1.0] * 13 + [1.0])
    assert signed_rank(fourteen) == wilcoxon(fourteen, alternative="less").pvalue  # from 14 on it is scipy's own
