"""`tenet agree`: published figures to the last digit, definitions, symmetries, degenerate sets."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from judges.agreement import metrics
from judges.agreement import votes as votes_file
from judges.agreement.measure import known_metrics, measure
from judges.agreement.rules import Rules
from judges.agreement.view import View

PANDALM = Path(__file__).parent.parent / "../shared/data/pandalm"
DOC = Path(__file__).parent.parent / "docs/agreement.md"


def figures(rows: Iterable[dict[str, Any]], by: tuple[str, ...] = (), **rules: Any) -> dict[str, Any]:
    """All figures of votes given as rows."""
    gathered = votes_file.gather(rules.get("duplicates", "refuse"))
    for number, row in enumerate(rows, 1):
        gathered.add(row, number)
    return measure(gathered.votes(), Rules(**rules), by=by).figures


def vote(item: Any, rater: str, verdict: str, **more: Any) -> dict[str, Any]:
    kind = "judge" if rater.startswith("j") else "human"
    return {"item": str(item), "rater": rater, "kind": kind, "verdict": verdict, **more}


def made(seed: int = 0, items: int = 60, orders: bool = True) -> list[dict[str, Any]]:
    """Three people, of whom the third skips some items, and two judges that were asked in both orders."""
    draw = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for i in range(items):
        true = draw.choice("AB")
        facts = {"len_a": draw.randrange(200), "len_b": draw.randrange(200)}
        facts["slices"] = {"topic": f"t{i % 3}", "model_a": "jay-1", "model_b": draw.choice(["kay-1", "jay-2"])}
        for k in range(3):
            if k < 2 or draw.random() < 0.7:
                label = true if draw.random() < 0.75 else draw.choice(["A", "B", "tie"])
                rows.append(vote(i, f"h{k}", label, **facts))
        for k in range(2):
            for order in ("ab", "ba") if orders else ("ab",):
                p = min(1.0, max(0.0, draw.gauss(0.7 if true == "A" else 0.3, 0.25)))
                said = draw.choice(["invalid", "refused", "tie"]) if draw.random() < 0.1 else "A" if p > 0.5 else "B"
                rows.append(vote(i, f"jay{k}", said, order=order, p_a=round(p, 3), **facts))
    return rows


# Published figures.


def pandalm() -> list[dict[str, Any]]:
    """The votes that the conversion script in docs/agreement.md writes."""
    (script,) = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)
    space: dict[str, Any] = {}
    exec(compile(script, "docs/agreement.md", "exec"), space)
    return list(space["votes"](PANDALM))


@pytest.mark.skipif(not PANDALM.exists(), reason="the data set is not here")
def test_pandalm_to_every_printed_digit(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in pandalm()))
    votes = votes_file.read(str(path))
    f = measure(votes, Rules(invalid="tie")).figures
    people, gpt, panda = f["humans"], f["judges"]["gpt-3.5-turbo"], f["judges"]["pandalm-7b"]
    assert people["majority"] == {"tie": 105, "A": 422, "B": 472}
    assert [f"{p['value']:.4f}" for p in people["cohen"]["pairs"]] == ["0.8520", "0.8789", "0.8617"]
    assert f"{people['fleiss_kappa']['value']:.6f}" == "0.864175"
    assert f"{people['krippendorff_alpha']['nominal']:.6f}" == "0.864221"
    assert f"{people['gwet_ac1']:.5f}" == "0.88644"
    others = [h["random_other"]["value"] for h in people["leave_one_out_ceiling"]["per_human"].values()]
    assert [f"{x:.4f}" for x in others] == ["0.9209", "0.9154", "0.9234"]

    def percent(judge: dict[str, Any]) -> list[str]:
        values = (judge["accuracy"]["value"], *(judge["macro"][k] for k in ("precision", "recall", "f1")))
        return [f"{100 * x:.2f}" for x in values]

    assert percent(gpt) == ["71.07", "58.79", "57.36", "57.55"]
    assert percent(panda) == ["66.77", "57.38", "57.50", "57.43"]
    assert f"{gpt['cohen_kappa']['value']:.6f}" == "0.495784"
    assert f"{gpt['gwet_ac1']:.4f}" == "0.5946"
    assert [f"{gpt['accuracy'][k]:.4f}" for k in ("low", "high")] == ["0.6817", "0.7397"]
    assert (f"{gpt['s2']['value']:.4f}", gpt["s2"]["n"]) == ("0.8151", 849)
    by_rule = {k: f"{100 * v:.2f}" for k, v in gpt["by_rule"]["invalid"].items()}
    assert by_rule == {"tie": "71.07", "wrong": "69.77", "drop": "71.56"}
    assert gpt["states"] == {"A": 460, "B": 476, "tie": 38, "invalid": 25, "refused": 0}


# Definitions, each against another way to compute it.


def test_agreement_is_what_the_libraries_say_of_the_plain_labels() -> None:
    from sklearn import metrics as sk

    draw = random.Random(3)
    gold = [draw.choice(["A", "B", "tie"]) for _ in range(200)]
    said = [g if draw.random() < 0.6 else draw.choice(["A", "B", "tie"]) for g in gold]
    rows = [vote(i, "h", g) for i, g in enumerate(gold)] + [vote(i, "j", s) for i, s in enumerate(said)]
    j = figures(rows)["judges"]["j"]
    assert j["accuracy"]["value"] == pytest.approx(sk.accuracy_score(gold, said))
    assert j["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(gold, said))
    assert j["cohen_kappa"]["value"] == pytest.approx(sk.cohen_kappa_score(gold, said))
    for average in ("macro", "weighted"):
        expected = sk.precision_recall_fscore_support(gold, said, average=average)[:3]
        assert [j[average][k] for k in ("precision", "recall", "f1")] == pytest.approx(expected)
    table = sk.confusion_matrix(gold, said, labels=["A", "B", "tie"]).tolist()
    assert [[row[c] for c in ("A", "B", "tie")] for row in j["confusion"].values()] == table
    assert j["cohen_kappa"]["low"] < j["cohen_kappa"]["value"] < j["cohen_kappa"]["high"]


def test_chance_corrected_figures_by_hand() -> None:
    # 40 items: both A 20, both B 10, judge B against gold A 10. Shares of A: people 30/40, judge 20/40.
    rows = [vote(i, "h", "A" if i < 30 else "B") for i in range(40)]
    rows += [vote(i, "j", "A" if i < 20 else "B") for i in range(40)]
    j = figures(rows)["judges"]["j"]
    assert j["cohen_kappa"]["value"] == pytest.approx((0.75 - 0.5) / 0.5)
    assert j["scott_pi"] == pytest.approx((0.75 - (0.625**2 + 0.375**2)) / (1 - (0.625**2 + 0.375**2)))
    assert j["gwet_ac1"] == pytest.approx((0.75 - 2 * 0.625 * 0.375) / (1 - 2 * 0.625 * 0.375))
    a = j["rogan_gladen"]["A"]
    assert (a["apparent"], a["sensitivity"], a["specificity"]) == pytest.approx((0.5, 2 / 3, 1.0))
    assert a["corrected"] == pytest.approx(0.75)


def test_rogan_gladen_corrects_the_rate_on_items_that_people_never_saw() -> None:
    rows = [vote(i, "h", "A" if i < 50 else "B") for i in range(100)]
    rows += [vote(i, "j", "A" if i < 40 or i >= 90 else "B") for i in range(100)]  # sensitivity 0.8, specificity 0.8
    rows += [vote(100 + i, "j", "A" if i < 68 else "B") for i in range(100)]
    a = figures(rows)["judges"]["j"]["rogan_gladen"]["A"]
    assert (a["sensitivity"], a["specificity"], a["apparent"]) == pytest.approx((0.8, 0.8, 118 / 200))
    assert a["corrected"] == pytest.approx((118 / 200 + 0.8 - 1) / 0.6)


def test_wilson_as_published() -> None:
    rows = [vote(i, "h", "A") for i in range(100)] + [vote(i, "j", "A" if i < 80 else "B") for i in range(100)]
    wilson = figures(rows)["judges"]["j"]["accuracy"]["wilson"]
    assert (round(wilson["low"], 3), round(wilson["high"], 3)) == (0.711, 0.867)


def test_people_with_missing_labels_against_direct_formulas() -> None:
    rows = [r for r in made(5, 80) if r["kind"] == "human"]
    labels: dict[str, list[str]] = {}
    for r in rows:
        labels.setdefault(r["item"], []).append(r["verdict"])
    several = [x for x in labels.values() if len(x) > 1]
    # Krippendorff's alpha, nominal, from its definition: 1 - observed / expected disagreement of pairs.
    values = [v for x in several for v in x]
    observed = sum(sum(a != b for a in x for b in x) / (len(x) - 1) for x in several) / len(values)
    expected = sum(a != b for a in values for b in values) / (len(values) * (len(values) - 1))
    people = figures(rows)["humans"]
    assert people["krippendorff_alpha"]["nominal"] == pytest.approx(1 - observed / expected)
    usual = max((2, 3), key=lambda m: sum(len(x) == m for x in several))
    assert people["fleiss_kappa"]["ratings"] == usual
    assert people["fleiss_kappa"]["n"] == sum(len(x) == usual for x in several)
    shares = [sum(x.count(c) / len(x) for x in labels.values()) / len(labels) for c in ("A", "B", "tie")]
    chance = sum(s * (1 - s) for s in shares) / 2
    seen = [sum(x.count(c) * (x.count(c) - 1) for c in set(x)) / (len(x) * (len(x) - 1)) for x in several]
    observed_pairs = sum(seen) / len(seen)
    assert people["gwet_ac1"] == pytest.approx((observed_pairs - chance) / (1 - chance))


@pytest.mark.parametrize("items", [20, 60])
def test_alt_test_against_the_paper_step_by_step(items: int) -> None:
    from scipy import stats
    from statsmodels.stats.multitest import multipletests

    rows = made(7, items, orders=False)
    said: dict[str, dict[str, str]] = {}
    for r in rows:
        said.setdefault(r["item"], {})[r["rater"]] = r["verdict"]
    p, rho = [], []
    for person in ("h0", "h1", "h2"):
        ahead, behind = [], []
        for x in said.values():
            others = [v for k, v in x.items() if k.startswith("h") and k != person]
            if person in x and others:
                judge, human = (sum(v == x[who] for v in others) / len(others) for who in ("jay0", person))
                ahead.append(float(judge >= human))
                behind.append(float(human >= judge))
        gap = [b - a for a, b in zip(ahead, behind, strict=True)]
        test = stats.ttest_1samp(gap, 0.2, alternative="less")
        if len(gap) < 30:
            test = stats.wilcoxon([g - 0.2 for g in gap], alternative="less")
        p.append(test.pvalue)
        rho.append(sum(ahead) / len(ahead))
    found = figures(rows, epsilon=0.2)["judges"]["jay0"]["alt_test"]
    assert [h["p"] for h in found["per_human"].values()] == pytest.approx(p)
    assert found["rho"] == pytest.approx(sum(rho) / 3)
    assert found["omega"] == pytest.approx(multipletests(p, alpha=0.05, method="fdr_by")[0].mean())
    assert found["passed"] == (found["omega"] >= 0.5)


def test_a_judge_as_good_as_people_passes_the_alt_test_and_a_coin_does_not() -> None:
    draw = random.Random(1)
    rows: list[dict[str, Any]] = []
    for i in range(150):
        true = draw.choice("AB")
        for who in ("h0", "h1", "h2", "j-good"):
            rows.append(vote(i, who, true if draw.random() < 0.85 else "BA"["AB".index(true)]))
        rows.append(vote(i, "j-coin", draw.choice("AB")))
    found = {name: j["alt_test"] for name, j in figures(rows)["judges"].items()}
    assert found["j-good"]["passed"]
    assert found["j-good"]["omega"] == 1.0
    assert not found["j-coin"]["passed"]


# The rules.

TWO = [("A", "A"), ("A", "B"), ("A", "tie"), ("tie", "tie"), ("A", "invalid"), ("invalid", "invalid"), ("B", "B")]


@pytest.mark.parametrize(
    ("swap", "invalid", "right"),
    [
        # For each pair of verdicts above, with gold A: how right the judge is; None: not scored.
        ("both", "wrong", [1, 0, 0, 0, 0, 0, 0]),
        ("both", "tie", [1, 0, 0, 0, 0, 0, 0]),
        ("both", "drop", [1, 0, 0, 0, None, None, 0]),
        ("first", "wrong", [1, 1, 1, 0, 1, 0, 0]),
        ("first", "drop", [1, 1, 1, 0, 1, None, 0]),
        ("mean", "wrong", [1, 0.5, 0.5, 0, 0.5, 0, 0]),
        ("mean", "drop", [1, 0.5, 0.5, 0, 1, None, 0]),
        ("signed-sum", "wrong", [1, 0, 1, 0, 1, 0, 0]),
        ("signed-sum", "drop", [1, 0, 1, 0, 1, None, 0]),
    ],
)
def test_swap_and_invalid_rules(swap: str, invalid: str, right: list[float | None]) -> None:
    for (ab, ba), expected in zip(TWO, right, strict=True):
        # A second item, judged the same in both orders, keeps the judge one that was asked in both.
        rows = [vote(0, "h", "A"), vote(0, "j", ab, order="ab"), vote(0, "j", ba, order="ba")]
        j = figures(rows, swap=swap, invalid=invalid)["judges"]["j"]
        assert j["accuracy"]["value"] == expected, (ab, ba)
        assert j["n"] == (expected is not None)


def test_signed_sum_with_a_tie_as_gold() -> None:
    for (ab, ba), expected in {("tie", "tie"): 1, ("tie", "A"): 0, ("A", "B"): 0, ("tie", "invalid"): 1}.items():
        rows = [vote(0, "h", "tie"), vote(0, "j", ab, order="ab"), vote(0, "j", ba, order="ba")]
        assert figures(rows, swap="signed-sum")["judges"]["j"]["accuracy"]["value"] == expected, (ab, ba)


def test_mean_is_the_mean_of_the_two_orders_accuracies() -> None:
    rows = made(9)
    mean = figures(rows, swap="mean", invalid="drop")["judges"]["jay0"]["accuracy"]["value"]
    orders = [[r for r in rows if r["kind"] == "human" or r["order"] == order] for order in ("ab", "ba")]
    apart = [figures(x, invalid="drop")["judges"]["jay0"]["accuracy"]["value"] for x in orders]
    assert mean == pytest.approx(sum(apart) / 2)


def test_consistency_never_counts_two_unreadable_verdicts() -> None:
    pairs = [("A", "A"), ("invalid", "invalid"), ("refused", "refused"), ("A", "B"), ("tie", "tie")]
    rows = [vote(i, "j", v, order=o) for i, p in enumerate(pairs) for v, o in zip(p, ("ab", "ba"), strict=True)]
    rows += [vote(9, "j", "A", order="ab")]
    for invalid in ("tie", "wrong", "drop"):
        assert figures(rows, invalid=invalid)["judges"]["j"]["consistency"] == {"value": 0.4, "n": 5}


def test_tie_rules() -> None:
    gold = ["A", "A", "tie", "tie", "B"]
    said = ["A", "tie", "A", "tie", "A"]
    rows = [vote(i, "h", g) for i, g in enumerate(gold)] + [vote(i, "j", s) for i, s in enumerate(said)]
    found = {tie: figures(rows, tie=tie)["judges"]["j"] for tie in ("three-class", "half", "drop")}
    assert {k: j["accuracy"]["value"] for k, j in found.items()} == {"three-class": 0.4, "half": 0.6, "drop": 0.5}
    assert found["drop"]["n"] == 2
    assert found["three-class"]["s2"] == {"value": 0.5, "n": 2}


def test_gold_rules() -> None:
    labels = [["A", "A", "B"], ["A", "B", "tie"], ["B", "B", "B"]]
    rows = [vote(i, f"h{k}", v) for i, x in enumerate(labels) for k, v in enumerate(x)]
    rows += [vote(i, "j", "A") for i in range(3)]
    majority, each, rest = (figures(rows, gold=g)["judges"]["j"] for g in ("majority", "each", "leave-one-out"))
    assert (majority["accuracy"]["value"], majority["n"], majority["coverage"]["no_gold"]) == (0.5, 2, 1)
    assert each["accuracy"]["value"] == pytest.approx(3 / 9)
    # Left out in turn: item 0 leaves B+A twice without a majority, and A, A once; item 1 never has one; item 2 always.
    assert rest["accuracy"]["value"] == pytest.approx(1 / 4)
    assert rest["n"] == 2


def test_people_say_no_gold_with_an_invalid_label() -> None:
    rows = [
        vote(0, "h0", "invalid"),
        vote(0, "h1", "A"),
        vote(0, "j", "A"),
        vote(1, "h0", "refused"),
        vote(1, "j", "B"),
    ]
    f = figures(rows)
    assert f["judges"]["j"]["n"] == 1
    assert f["judges"]["j"]["coverage"] == {"both": 1, "judge_only": 1, "human_only": 0, "no_gold": 0}


# Bias, calibration, judges beside each other.


def test_slot_and_length_bias() -> None:
    rows: list[dict[str, Any]] = []
    for i in range(40):
        facts = {"len_a": 10 + i, "len_b": 100}
        rows.append(vote(i, "h", "A" if i % 4 else "B", **facts))
        rows += [vote(i, "j-first", "A", order="ab", **facts), vote(i, "j-first", "B", order="ba", **facts)]
        rows.append(vote(i, "j-long", "B", order="ab", **facts))
    judges = figures(rows)["judges"]
    first, long = judges["j-first"], judges["j-long"]
    assert first["first_slot_share"] == 1.0
    assert first["bias"]["same_slot_share"] == {"value": 1.0, "n": 40}
    assert first["consistency"]["value"] == 0.0
    assert first["accuracy"]["value"] == 0.0
    assert long["first_slot_share"] == 0.0
    assert long["bias"]["longer_share"] == {"value": 1.0, "n": 40, "humans": 0.25, "humans_n": 40}
    assert long["bias"]["longer_baseline"]["value"] == long["accuracy"]["value"] == 0.25
    assert long["bias"]["first_baseline"]["value"] == 0.75
    assert long["bias"]["majority_baseline"]["value"] == 0.75
    quarters = long["bias"]["by_length_quartile"]
    assert [q["n"] for q in quarters] == [10, 10, 10, 10]
    assert quarters[0]["to"] < quarters[1]["from"]


def test_a_taste_for_ones_own_family() -> None:
    rows: list[dict[str, Any]] = []
    for i in range(10):
        models = {"model_a": "org/Jay-7b", "model_b": "kay"} if i % 2 else {"model_a": "kay", "model_b": "jay-70b"}
        rows.append(vote(i, "h", "A", slices=models))
        rows.append(vote(i, "jay-chat", "A" if i % 2 else "B", slices=models))
    found = figures(rows)["judges"]["jay-chat"]["bias"]["self_family"]
    assert found == {"family": "jay", "judge": 1.0, "humans": 0.5, "n": 10}


def test_calibration_before_and_after_averaging() -> None:
    from sklearn.metrics import brier_score_loss

    rows: list[dict[str, Any]] = []
    p = [(0.9, 0.5), (0.8, 0.1), (0.3, 0.7), (0.95, 0.85)]
    for i, (ab, ba) in enumerate(p):
        rows.append(vote(i, "h", "A" if i != 2 else "B"))
        rows += [vote(i, "j", "A" if x > 0.5 else "B", order=o, p_a=x) for x, o in ((ab, "ab"), (ba, "ba"))]
    c = figures(rows)["judges"]["j"]["calibration"]
    y = [1, 1, 0, 1]
    assert c["before"]["brier"] == pytest.approx(
        brier_score_loss([v for v in y for _ in "ab"], [x for q in p for x in q])
    )
    means = [(a + b) / 2 for a, b in p]
    assert c["after"]["brier"] == c["brier"] == pytest.approx(brier_score_loss(y, means))
    assert (c["before"]["n"], c["after"]["n"]) == (8, 4)
    # Means 0.7, 0.45, 0.5 (half in either middle bin), 0.9.
    assert c["after"]["ece"] == pytest.approx((0.3 + abs(0.45 + 0.25 - 1) + 0.5 * 0.5 + 0.1) / 4)


def test_mcnemar_difference_and_ranks() -> None:
    from statsmodels.stats.contingency_tables import mcnemar

    rows = [vote(i, "h", "A") for i in range(100)]
    rows += [vote(i, "j1", "A" if i < 90 else "B") for i in range(100)]
    rows += [vote(i, "j2", "A" if i >= 20 else "B") for i in range(100)]
    between = figures(rows)["between"]
    (test,), (gap,) = between["mcnemar"], between["difference"]
    assert (test["only_first_right"], test["only_second_right"], test["n"]) == (20, 10, 100)
    assert test["p"] == pytest.approx(mcnemar([[70, 20], [10, 0]], exact=False, correction=True).pvalue)
    assert gap["value"] == pytest.approx(0.1)
    assert gap["low"] < 0.1 < gap["high"]
    assert between["rank_stability"]["order"] == ["j1", "j2"]
    assert between["rank_stability"]["kept"] > 0.9


def test_graded_votes() -> None:
    from scipy import stats
    from sklearn.metrics import cohen_kappa_score

    draw = random.Random(2)
    rows: list[dict[str, Any]] = []
    truth, judged = [], []
    for i in range(80):
        true = draw.randint(1, 5)
        said = min(5, max(1, true + draw.choice([-1, 0, 0, 1])))
        truth.append(true)
        judged.append(said)
        for k in range(3):
            rows.append({"item": str(i), "rater": f"h{k}", "kind": "human", "score": true})
        rows.append({"item": str(i), "rater": "j", "kind": "judge", "score": said})
    f = figures(rows)
    j = f["judges"]["j"]
    assert j["accuracy"]["value"] == pytest.approx(sum(a == b for a, b in zip(truth, judged, strict=True)) / 80)
    assert j["weighted_kappa"] == pytest.approx(cohen_kappa_score(truth, judged, weights="quadratic"))
    assert j["correlation"]["spearman"] == pytest.approx(stats.spearmanr(truth, judged).statistic)
    assert j["s2"]["value"] is None
    assert f["humans"]["krippendorff_alpha"]["interval"] == 1.0


def test_scores_that_differ_between_orders_have_no_weighted_kappa_under_both() -> None:
    rows = [{"item": str(i), "rater": "h", "kind": "human", "score": i % 3} for i in range(9)]
    for order, shift in (("ab", 0), ("ba", 1)):
        judge = {"rater": "j", "kind": "judge", "order": order}
        rows += [{**judge, "item": str(i), "score": min(2, i % 3 + shift)} for i in range(9)]
    both, mean = (figures(rows, swap=swap)["judges"]["j"] for swap in ("both", "mean"))
    assert both["weighted_kappa"] is None
    assert "different scores" in both["why"]["weighted_kappa"]
    assert 0 < mean["weighted_kappa"] < 1


def test_scores_of_many_values_are_no_classes_but_correlate() -> None:
    draw = random.Random(4)
    rows: list[dict[str, Any]] = []
    for i in range(400):
        true = draw.random()
        for who, kind in (("h0", "human"), ("h1", "human"), ("h2", "human"), ("j", "judge")):
            rows.append({"item": str(i), "rater": who, "kind": kind, "score": true + draw.gauss(0, 0.1)})
    f = figures(rows)
    j = f["judges"]["j"]
    why = "scores have more than 12 values, so they are no classes"
    assert j["accuracy"] == {
        "value": None, "low": None, "high": None, "n": None, "why": why,
        "wilson": {"low": None, "high": None, "why": why},
    }  # fmt: skip
    assert j["correlation"]["pearson"] > 0.8
    assert f["humans"]["krippendorff_alpha"]["interval"] > 0.7
    assert j["alt_test"]["passed"]


# What must not matter.


def swapped(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every item with its A and B exchanged, and all that names them exchanged with it."""
    other = {"A": "B", "B": "A", "ab": "ba", "ba": "ab"}
    out: list[dict[str, Any]] = []
    for r in rows:
        new = {**r, "verdict": other.get(r["verdict"], r["verdict"]), "len_a": r["len_b"], "len_b": r["len_a"]}
        if "order" in r:
            new |= {"order": other[r["order"]], "p_a": round(1 - r["p_a"], 3)}
        new["slices"] = {**r["slices"], "model_a": r["slices"]["model_b"], "model_b": r["slices"]["model_a"]}
        out.append(new)
    return out


@pytest.mark.parametrize("swap", ["both", "mean", "signed-sum"])
def test_exchanging_a_and_b_everywhere_changes_nothing(swap: str) -> None:
    rows = made(11)
    one, two = (figures(x, by=("topic",), swap=swap) for x in (rows, swapped(rows)))
    for name, j in one["judges"].items():
        k = two["judges"][name]
        same = ("accuracy", "balanced_accuracy", "macro", "weighted", "cohen_kappa", "scott_pi", "gwet_ac1", "s2")
        for key in (
            *same,
            "consistency",
            "first_slot_share",
            "alt_test",
            "bias",
            "slices",
            "coverage",
            "disagreements",
        ):
            assert near(j[key], k[key]), key
        for key in ("brier", "ece", "ece_confidence"):
            assert j["calibration"][key] == pytest.approx(k["calibration"][key])
        assert near(j["rogan_gladen"]["A"], k["rogan_gladen"]["B"])
    for key in ("fleiss_kappa", "krippendorff_alpha", "gwet_ac1", "cohen", "leave_one_out_ceiling"):
        assert near(one["humans"][key], two["humans"][key])
    assert near(one["between"], two["between"])


def near(one: Any, two: Any) -> bool:
    """Equal but for the last bits of a sum."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(near(one[k], two[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(near, one, two))
    return bool(one == pytest.approx(two)) if isinstance(one, float) else one == two


def test_order_of_lines_changes_nothing() -> None:
    rows = made(12)
    shuffled = random.Random(0).sample(rows, len(rows))
    assert figures(shuffled) == figures(rows)


def test_names_of_raters_change_nothing() -> None:
    rows = made(13)
    new = {"h0": "hz", "h1": "ha", "h2": "hm", "jay0": "jay-z", "jay1": "jay-a"}
    renamed = figures([{**r, "rater": new[r["rater"]]} for r in rows])
    before = figures(rows)
    for name in ("jay0", "jay1"):
        one, two = before["judges"][name], renamed["judges"][new[name]]
        per_human = two["alt_test"].pop("per_human")
        assert one["alt_test"].pop("per_human") == {h: per_human[new[h]] for h in ("h0", "h1", "h2")}
        assert near(one, two)
    assert near(before["humans"]["krippendorff_alpha"], renamed["humans"]["krippendorff_alpha"])
    assert before["between"]["difference"][0]["value"] == -renamed["between"]["difference"][0]["value"]


# Sets in which little exists.


def nulls_have_reasons(value: Any, path: str = "") -> list[str]:
    """Paths of nulls in objects without a "why"."""
    bad: list[str] = []
    if isinstance(value, dict):
        for k, v in value.items():
            if v is None and not value.get("why"):
                bad.append(f"{path}.{k}")
            bad += nulls_have_reasons(v, f"{path}.{k}")
    elif isinstance(value, list):
        for i, v in enumerate(value):
            bad += nulls_have_reasons(v, f"{path}[{i}]")
    return bad


def keys(value: Any, path: str = "") -> set[str]:
    """Paths of all keys that every judge's object must have."""
    if not isinstance(value, dict):
        return set()
    return {f"{path}.{k}" for k in value} | {x for k, v in value.items() for x in keys(v, f"{path}.{k}")}


DEGENERATE: dict[str, list[dict[str, Any]]] = {
    "one class": [vote(i, who, "A") for i in range(5) for who in ("h0", "h1", "j")],
    "no overlap": [vote(0, "h0", "A"), vote(0, "h1", "A"), vote(1, "j", "A")],
    "all invalid": [vote(i, "h0", "A") for i in range(4)] + [vote(i, "j", "invalid") for i in range(4)],
    "all refused twice": [vote(0, "h0", "B")] + [vote(0, "j", "refused", order=o) for o in ("ab", "ba")],
    "one person": [vote(i, who, "AB"[i % 2]) for i in range(6) for who in ("h0", "j")],
    "one item": [vote(0, "h0", "A"), vote(0, "h1", "B"), vote(0, "j", "A")],
    "one vote": [vote(0, "j", "A")],
    "people only": [vote(0, "h0", "A"), vote(0, "h1", "tie")],
    "all ties": [vote(i, who, "tie") for i in range(4) for who in ("h0", "h1", "j")],
    "people never agree": [vote(i, f"h{k}", "AB"[k]) for i in range(4) for k in range(2)] + [vote(0, "j", "A")],
    "two judges, nothing shared": [vote(0, "h0", "A"), vote(1, "h0", "A"), vote(0, "j0", "A"), vote(1, "j1", "A")],
}


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize(
    "rules", [{}, {"invalid": "drop"}, {"tie": "drop"}, {"tie": "half", "swap": "mean", "gold": "each"},
              {"swap": "signed-sum", "gold": "leave-one-out"}],
)  # fmt: skip
def test_degenerate_sets_give_null_with_a_reason(name: str, rules: dict[str, Any]) -> None:
    f = figures(DEGENERATE[name], **rules)
    text = json.dumps(f, allow_nan=False)
    assert "NaN" not in text
    assert not [x for j in f["judges"].values() for x in nulls_have_reasons(j)]
    assert not nulls_have_reasons(f["humans"])
    assert not nulls_have_reasons(f["between"])
    whole = a_whole_judge()
    for j in f["judges"].values():
        missing = {k for k in keys(whole) - keys(j) if not k.startswith(NULL_AS_A_WHOLE)}
        assert not missing


@cache
def a_whole_judge() -> dict[str, Any]:
    return figures(made())["judges"]["jay0"]


NULL_AS_A_WHOLE = (".confusion.", ".rogan_gladen.", ".alt_test.per_human.", ".bias.longer_share.", ".slices.")
"""Objects whose keys come from the data: null as a whole where they do not exist."""


def test_all_invalid_is_wrong_or_nothing_and_never_right() -> None:
    rows = DEGENERATE["all invalid"]
    assert figures(rows)["judges"]["j"]["accuracy"]["value"] == 0.0
    dropped = figures(rows, invalid="drop")["judges"]["j"]
    assert dropped["accuracy"]["value"] is None
    assert dropped["n"] == 0
    assert dropped["states"]["invalid"] == 4


def test_a_class_that_the_judge_never_says_has_no_precision() -> None:
    rows = [vote(i, "h", ["A", "B", "tie"][i % 3]) for i in range(9)] + [vote(i, "j", "AB"[i % 2]) for i in range(9)]
    macro = figures(rows)["judges"]["j"]["macro"]
    assert macro["precision"] is None
    assert macro["why"] == "precision: the judge never says tie"
    assert macro["recall"] is not None


def test_small_slices_are_marked() -> None:
    rows = [vote(i, who, "AB"[i % 2], slices={"size": "big" if i < 40 else "small"}) for i in range(50) for who in "hj"]
    found = figures(rows)["judges"]["j"]["slices"]["size"]
    assert {k: (v["n"], v["small"]) for k, v in found.items()} == {"big": (40, False), "small": (10, True)}


def test_disagreements_come_most_confident_first() -> None:
    p = [0.6, 0.99, 0.2, 0.7]
    rows = [vote(i, "h", "B") for i in range(4)]
    rows += [vote(i, "j", "A" if x > 0.5 else "B", p_a=x) for i, x in enumerate(p)]
    assert figures(rows)["judges"]["j"]["disagreements"] == ["1", "3", "0"]


# One function more is one key more.


def test_a_metric_is_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    def jaccard_of_a(view: View) -> float:
        table = view.table
        return float(table[0, 0] / (table[0].sum() + table[:, 0].sum() - table[0, 0]))

    jaccard_of_a.__module__ = metrics.__name__
    monkeypatch.setattr(metrics, "jaccard_of_a", jaccard_of_a, raising=False)
    assert "jaccard_of_a" in known_metrics()
    rows = [vote(i, "h", "A" if i < 3 else "B") for i in range(4)] + [vote(i, "j", "A" if i else "B") for i in range(4)]
    assert figures(rows)["judges"]["j"]["jaccard_of_a"] == 0.5
    assert figures(DEGENERATE["no overlap"])["judges"]["j"]["why"]["jaccard_of_a"]
