"""Properties of votes and of agreement: what must not change a figure does not, and other libraries say the same."""

from __future__ import annotations

import csv
import json
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from judges.agreement import votes as votes_file
from judges.agreement._ranks import signed_rank
from judges.agreement.measure import measure
from judges.agreement.rules import Rules
from tests.test_properties import few

FLIP = {"A": "B", "B": "A", "ab": "ba", "ba": "ab"}
TRIO = ((2, "ann"), (3, "bob"), (4, "cho"))
WORDS = ("A", "B", "tie", "invalid", "refused")


@st.composite
def voting(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Votes of up to three people, and of a judge asked in both orders, on a few items."""
    rows: list[dict[str, Any]] = []
    for i in range(draw(st.integers(2, 8))):
        facts = {"item": f"i{i}", "len_a": draw(st.integers(0, 9)), "len_b": draw(st.integers(0, 9))}
        for rater in ("ann", "bob", "cho"):
            if verdict := draw(st.sampled_from(["A", "B", "tie", "", "A"])):
                rows.append({**facts, "rater": rater, "kind": "human", "verdict": verdict})
        for order in ("ab", "ba"):
            p = draw(st.integers(0, 4)) / 4
            said = {"verdict": draw(st.sampled_from(WORDS)), "order": order, "p_a": p}
            rows.append({**facts, "rater": "jay", "kind": "judge", **said})
    return rows


rules = st.builds(
    Rules,
    tie=st.sampled_from(["three-class", "half", "drop"]),
    swap=st.sampled_from(["both", "mean", "signed-sum"]),
    invalid=st.sampled_from(["tie", "wrong", "drop"]),
    gold=st.sampled_from(["majority", "each", "leave-one-out"]),
    resamples=st.just(100),
)


def figures(rows: list[dict[str, Any]], rule: Rules) -> dict[str, Any]:
    gathered = votes_file.gather()
    for number, row in enumerate(rows, 1):
        gathered.add(row, number)
    return measure(gathered.votes(), rule).figures


def points(found: Any) -> Any:
    """Every figure but the ends of intervals, which depend on which item is drawn first, rounded for float noise."""
    if isinstance(found, dict):
        return {k: points(v) for k, v in found.items() if k not in ("low", "high", "disagreements", "why")}
    if isinstance(found, list):
        return [points(x) for x in found]
    return round(found, 9) if isinstance(found, float) else found


# What changes nothing.


@settings(few, max_examples=7)
@given(voting(), rules, st.integers(0, 99))
def test_the_order_of_lines_and_the_names_of_items_and_people_change_nothing(
    rows: list[dict[str, Any]], rule: Rules, seed: int
) -> None:
    first = figures(rows, rule)
    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)
    assert figures(shuffled, rule) == first
    names = {"ann": "zoe", "bob": "bob", "cho": "abe", "jay": "kim"}
    renamed = [{**r, "item": f"{(int(r['item'][1:]) * 7) % 11}", "rater": names[r["rater"]]} for r in rows]
    there = points(figures(renamed, rule))
    assert there["judges"]["kim"]["accuracy"] == points(first)["judges"]["jay"]["accuracy"]
    for name in ("cohen_kappa", "scott_pi", "gwet_ac1", "macro", "confusion", "consistency", "rogan_gladen"):
        assert there["judges"]["kim"][name] == points(first)["judges"]["jay"][name], name
    for name in ("fleiss_kappa", "krippendorff_alpha", "gwet_ac1", "majority"):
        assert there["humans"][name] == points(first)["humans"][name], name


@settings(few, max_examples=7)
@given(voting(), rules)
def test_exchanging_the_sides_changes_nothing(rows: list[dict[str, Any]], rule: Rules) -> None:
    turned = [
        {**r, "verdict": FLIP.get(r["verdict"], r["verdict"]), "len_a": r["len_b"], "len_b": r["len_a"]}
        | ({"order": FLIP[r["order"]], "p_a": 1 - r["p_a"]} if "order" in r else {})
        for r in rows
    ]
    here, there = (points(figures(x, rule)) for x in (rows, turned))
    one, other = here["judges"]["jay"], there["judges"]["jay"]
    for name in ("n", "accuracy", "balanced_accuracy", "cohen_kappa", "scott_pi", "gwet_ac1", "s2", "consistency"):
        assert one[name] == other[name], name
    assert one["first_slot_share"] == other["first_slot_share"]
    assert (one["calibration"]["before"] or {}).get("brier") == (other["calibration"]["before"] or {}).get("brier")
    for gold, said in (("A", "A"), ("A", "B"), ("tie", "A"), ("A", "split"), ("B", "invalid")):
        if one["confusion"]:
            assert one["confusion"][gold][said] == other["confusion"][FLIP.get(gold, gold)][FLIP.get(said, said)]
    for name in ("fleiss_kappa", "krippendorff_alpha", "gwet_ac1"):
        assert here["humans"][name] == there["humans"][name], name


# What is bounded, and what others compute.


@settings(few, max_examples=10)
@given(voting(), rules)
def test_figures_lie_where_they_must(rows: list[dict[str, Any]], rule: Rules) -> None:
    found = figures(rows, rule)
    j, people = found["judges"]["jay"], found["humans"]
    for name, low in (("accuracy", 0), ("cohen_kappa", -1)):
        value = (j[name] or {}).get("value")
        assert value is None or low <= value <= 1
        if value is not None and j[name]["low"] is not None:
            assert low <= j[name]["low"] <= j[name]["high"] <= 1
    for value in (j["scott_pi"], j["gwet_ac1"], people["gwet_ac1"], (people["fleiss_kappa"] or {}).get("value")):
        assert value is None or -1 <= value <= 1
    alpha = (people["krippendorff_alpha"] or {}).get("nominal")
    assert alpha is None or alpha <= 1
    for corrected in (j["rogan_gladen"] or {}).values():
        assert corrected["corrected"] is None or 0 <= corrected["corrected"] <= 1
    asked = sum(sum(row.values()) for row in (j["confusion"] or {}).values())
    assert asked == 0 or j["n"] >= 1


@settings(few, max_examples=10)
@given(st.lists(st.tuples(*[st.sampled_from(["A", "B", "tie"])] * 2), min_size=3, max_size=12))
def test_two_raters_agree_as_other_libraries_and_the_definitions_say(pairs: list[tuple[str, str]]) -> None:
    from sklearn.metrics import accuracy_score, cohen_kappa_score
    from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa

    rows = [{"item": i, "rater": "h", "kind": "human", "verdict": gold} for i, (gold, _) in enumerate(pairs)]
    rows += [{"item": i, "rater": "j", "kind": "judge", "verdict": said} for i, (_, said) in enumerate(pairs)]
    gold, said = zip(*pairs, strict=True)
    j = figures(rows, Rules(resamples=100))["judges"]["j"]
    assert j["accuracy"]["value"] == pytest.approx(accuracy_score(gold, said))
    if len({*gold, *said}) == 1:
        assert j["cohen_kappa"]["value"] is None
        assert j["scott_pi"] is None
        return
    assert j["cohen_kappa"]["value"] == pytest.approx(cohen_kappa_score(gold, said))
    share = {c: v / (2 * len(pairs)) for c, v in Counter([*gold, *said]).items()}
    same = sum(a == b for a, b in pairs) / len(pairs)
    chance = sum(s * s for s in share.values())
    assert j["scott_pi"] == pytest.approx((same - chance) / (1 - chance))
    # With two raters Fleiss' kappa is Scott's pi.
    table, _ = aggregate_raters([["AB".find(a), "AB".find(b)] for a, b in pairs])
    assert j["scott_pi"] == pytest.approx(fleiss_kappa(table))
    chance = sum(s * (1 - s) for s in share.values()) / (len(share) - 1)
    assert j["gwet_ac1"] == pytest.approx((same - chance) / (1 - chance))


@few
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=7).filter(any))
def test_the_signed_rank_test_is_scipys(differences: list[int]) -> None:
    expected = stats.wilcoxon(differences, alternative="less").pvalue
    assert signed_rank(np.array(differences, dtype=float)) == pytest.approx(expected)


def test_thirteen_items_are_compared_at_once() -> None:
    rows = [{"item": i, "rater": r, "kind": "human", "verdict": "AB"[i % k == 0]} for i in range(13) for k, r in TRIO]
    rows += [{"item": i, "rater": "j", "kind": "judge", "verdict": "AB"[i % 5 == 0]} for i in range(13)]
    started = time.process_time()
    tested = figures(rows, Rules(resamples=100))["judges"]["j"]["alt_test"]["per_human"]
    assert [h["n"] for h in tested.values()] == [13, 13, 13]
    assert time.process_time() - started < 3  # scipy, which tries 2^13 signs for each person, takes longer


# Files.


@settings(few, max_examples=10)
@given(voting(), st.sampled_from(["jsonl", "json", "csv", "parquet"]))
def test_votes_are_the_same_from_every_kind_of_file(rows: list[dict[str, Any]], end: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = list(dict.fromkeys(k for r in rows for k in r))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"v.{end}"
        if end == "jsonl":
            path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        elif end == "json":
            path.write_text(json.dumps(rows))
        elif end == "csv":
            with path.open("w", newline="") as f:
                table = csv.DictWriter(f, names)
                table.writeheader()
                table.writerows(rows)
        else:
            pq.write_table(pa.Table.from_pylist([{k: r.get(k) for k in names} for r in rows]), path)
        assert measure(votes_file.read(str(path)), Rules(resamples=100)).figures == figures(rows, Rules(resamples=100))
