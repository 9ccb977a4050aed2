"""Votes files: every format gives the same votes, and what cannot be used is refused by line and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from judges.agreement import votes as votes_file
from judges.agreement.measure import measure
from judges.agreement.rules import Rules
from tenet.errors import DataError, SettingsError

GOOD = {"item": "q1", "rater": "ann", "kind": "human", "verdict": "A"}


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


ROWS: list[dict[str, Any]] = [
    {"item": "q1", "rater": "ann", "kind": "human", "verdict": "A", "len_a": 5, "len_b": 9, "slices": {"topic": "x"}},
    {"item": "q1", "rater": "jo", "kind": "judge", "verdict": "B", "order": "ab", "p_a": 0.25},
    {"item": "q1", "rater": "jo", "kind": "judge", "verdict": "A", "order": "ba", "p_a": 1},
    {"item": "q,2", "rater": "ann", "kind": "human", "verdict": "tie", "slices": {"topic": "y"}},
    {"item": "q,2", "rater": "jo", "kind": "judge", "verdict": "refused", "order": "ab"},
]


def test_the_same_votes_from_every_format(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = [write(tmp_path / "v.jsonl", ROWS)]
    (tmp_path / "v.json").write_text(json.dumps(ROWS))
    (tmp_path / "v.csv").write_text(
        "item,rater,kind,verdict,order,p_a,len_a,len_b,slices.topic\n"
        "q1,ann,human,A,,,5,9,x\nq1,jo,judge,B,ab,0.25,,,\nq1,jo,judge,A,ba,1,,,\n"
        '"q,2",ann,human,tie,,,,,y\n"q,2",jo,judge,refused,ab,,,,\n'
    )
    pq.write_table(pa.Table.from_pylist([{"p_a": None, "order": None, **r} for r in ROWS]), tmp_path / "v.parquet")
    paths += [str(tmp_path / f"v.{end}") for end in ("json", "csv", "parquet")]
    found = [measure(votes_file.read(path), Rules()).figures for path in paths]
    assert found[0]["judges"]["jo"]["states"] == {"A": 1, "B": 1, "tie": 0, "invalid": 0, "refused": 1}
    assert found[0]["judges"]["jo"]["calibration"]["before"]["n"] == 2
    assert all(f == found[0] for f in found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"verdict": "a"}, "line 2: 'verdict' is 'a' (one of A, B, tie, invalid, refused)"),
        ({"verdict": "both"}, "'verdict' is 'both'"),
        ({"verdict": 1}, "'verdict' is a number (1)"),
        ({"verdict": None}, "there is no verdict (write one of A, B, tie, invalid, refused, or a score)"),
        ({"score": 3}, "there are both a verdict and a score"),
        ({"verdict": None, "score": 3}, "is graded, and row 1 is not"),
        ({"item": None}, "'item' is missing or null"),
        ({"item": ""}, "'item' is empty"),
        ({"rater": None}, "'rater' is missing or null"),
        ({"rater": "\ud800"}, "'rater' is not valid Unicode (take out the lone surrogate)"),
        ({"rater": "bo", "kind": None}, "'kind' is missing or null (human or judge)"),
        ({"rater": "bo", "kind": "person"}, "'kind' is 'person' (human or judge)"),
        ({"kind": "judge"}, "the rater 'ann' is a judge here and a human in an earlier vote"),
        ({"order": "AB"}, "'order' is 'AB' (ab (A was shown first) or ba)"),
        ({"p_a": 1.2}, "'p_a' is 1.2 (it lies in [0, 1])"),
        ({"p_a": -0.1}, "'p_a' is -0.1"),
        ({"p_a": "0.5"}, "'p_a' is text"),
        ({"p_a": True}, "'p_a' is true or false"),
        ({"p_a": float("nan")}, "'p_a' is a number (nan) (write a finite number, or leave it out)"),
        ({"len_a": float("inf")}, "'len_a' is a number (inf)"),
        ({"len_a": -1}, "'len_a' is -1"),
        ({"item": "q1", "rater": "bo", "len_a": 7}, "'len_a' is 7; it was 5 before"),
        ({"item": "q1", "rater": "bo", "slices": {"topic": "y"}}, "slices.topic is 'y'; it was 'x' before"),
        ({"slices": ["x"]}, "'slices' is a list"),
        ({"slices": {"topic": {}}}, "slices.topic is an object"),
    ],
)
def test_a_bad_vote_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    rows = [{**GOOD, "len_a": 5, "slices": {"topic": "x"}}, {**GOOD, "item": "q2", **change}]
    with pytest.raises(DataError) as e:
        votes_file.read(write(tmp_path / "v.jsonl", rows))
    assert said in str(e.value)
    assert "v.jsonl, line 2" in str(e.value)


def test_a_nan_score_is_refused(tmp_path: Path) -> None:
    row = {"item": "q", "rater": "ann", "kind": "human", "score": float("nan")}
    with pytest.raises(DataError, match=r"line 1: 'score' is a number \(nan\)"):
        votes_file.read(write(tmp_path / "v.jsonl", [row]))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["{"], "line 1: is not JSON"),
        (["[]"], "line 1: is a JSON list"),
        ([""], "holds no votes"),
        ([json.dumps(GOOD), '{"item": "\\ud800'], "line 2: is not JSON"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, rows: list[Any], said: str) -> None:
    with pytest.raises(DataError) as e:
        votes_file.read(write(tmp_path / "v.jsonl", rows))
    assert said in str(e.value)


def test_csv_numbers_are_checked(tmp_path: Path) -> None:
    (tmp_path / "v.csv").write_text("item,rater,kind,verdict,p_a\nq,j,judge,A,half\n")
    with pytest.raises(DataError, match="line 2: 'p_a' is 'half'"):
        votes_file.read(str(tmp_path / "v.csv"))
    (tmp_path / "w.csv").write_text("item,rater,kind,verdict,p_a\nq,j,judge,A,nan\n")
    with pytest.raises(DataError, match=r"line 2: 'p_a' is a number \(nan\)"):
        votes_file.read(str(tmp_path / "w.csv"))


def twice(*verdicts: str, rater: str = "jo", kind: str = "judge", **more: Any) -> list[dict[str, Any]]:
    return [{"item": "q", "rater": rater, "kind": kind, "verdict": v, **more} for v in verdicts]


def test_duplicates_are_refused_unless_a_rule_says_what_to_do(tmp_path: Path) -> None:
    path = write(tmp_path / "v.jsonl", [GOOD, *twice("A", "B", "B")])
    with pytest.raises(DataError) as e:
        votes_file.read(path)
    said = f"v.jsonl, line 3: 'jo' voted on 'q' before, in {path}, line 2"
    assert str(e.value).endswith(f"{said} (take one out, or say --duplicates last or majority)")
    for rule, verdicts, kept in [
        ("last", "AAB", "B"), ("majority", "AAB", "A"), ("majority", "AB", "invalid"), ("last", "BA", "A"),
    ]:  # fmt: skip
        votes = votes_file.read(write(tmp_path / "w.jsonl", [GOOD, *twice(*verdicts)]), rule)  # type: ignore[arg-type]
        states = measure(votes, Rules()).figures["judges"]["jo"]["states"]
        assert [k for k, n in states.items() if n] == [kept], (rule, verdicts)
        assert sum(states.values()) == 1


def test_the_two_orders_of_a_judge_are_no_duplicates_but_a_persons_are(tmp_path: Path) -> None:
    orders = [{**v, "order": o} for v, o in zip(twice("A", "B"), ("ab", "ba"), strict=True)]
    assert len(votes_file.read(write(tmp_path / "v.jsonl", orders)).item) == 2
    people = [{**v, "rater": "ann", "kind": "human"} for v in orders]
    with pytest.raises(DataError, match="line 2: 'ann' voted on 'q' before"):
        votes_file.read(write(tmp_path / "w.jsonl", people))
    mixed = [*twice("A"), *twice("B", order="ba")]
    with pytest.raises(DataError, match="line 2: 'jo' voted on 'q' with an order and without one"):
        votes_file.read(write(tmp_path / "x.jsonl", mixed))


def test_columns_that_nothing_reads_are_named(tmp_path: Path) -> None:
    votes = votes_file.read(write(tmp_path / "v.jsonl", [{**GOOD, "wieght": 2, "p_a": None}]))
    assert measure(votes, Rules()).figures["input"]["ignored_columns"] == ["wieght"]


def test_unknown_judges_and_slices_are_refused(tmp_path: Path) -> None:
    votes = votes_file.read(write(tmp_path / "v.jsonl", ROWS))
    for judge, said in (("joe", "no vote is by 'joe' (did you mean 'jo'?)"), ("ann", "'ann' is a person")):
        with pytest.raises(SettingsError) as e:
            measure(votes, Rules(), judges=[judge])
        assert said in str(e.value)
    with pytest.raises(SettingsError, match="no vote has a slice 'tpic'"):
        measure(votes, Rules(), by=["tpic"])


def test_annotated_pairs_and_preference_rows_are_votes(tmp_path: Path) -> None:
    comparisons = [
        {
            "id": f"c{i}",
            "prompt": "why?",
            "response_a": {"text": "because " * (i + 1)},
            "response_b": {"text": "no"},
            "annotations": {"d": {"pref": "ab"[i % 2]}, "p": {"pref": "a"}},
        }
        for i in range(4)
    ]
    annotators = {"d": {"name": "ann", "type": "human"}, "p": {"description": "longer", "type": "principle"}}
    document = {"metadata": {"version": "2.0"}, "annotators": annotators, "comparisons": comparisons}
    (tmp_path / "ap.json").write_text(json.dumps(document))
    votes = votes_file.read(str(tmp_path / "ap.json"))
    f = measure(votes, Rules()).figures
    assert list(f["judges"]) == ["longer"]
    assert f["judges"]["longer"]["accuracy"]["value"] == 0.5
    assert f["judges"]["longer"]["bias"]["longer_share"]["value"] == 1.0
    assert votes.pairs["c0"].b == "no"
    rows = [{"prompt": f"q{i}", "chosen": "x", "rejected": "y"} for i in range(3)]
    f = measure(votes_file.read(write(tmp_path / "p.jsonl", rows)), Rules()).figures
    assert f["humans"]["raters"] == {"human": 3}
    assert f["judges"] == {}
