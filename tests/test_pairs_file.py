"""Pairs files: every format gives the same records, and a bad row is named."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from judges import pairs_file
from judges.pairs_file import LabelledPair
from tenet.errors import DataError

HH = Path(__file__).parent.parent / "../shared/data/hh-rlhf/harmless-base-test.jsonl.gz"
PLAIN = {
    "id": "x",
    "prompt": "Why?",
    "a": "Because, so.",
    "b": "No {idea}\nat all",
    "labels": {"ann": "A", "bo": "tie"},
}


def read(path: Path) -> list[LabelledPair]:
    return list(pairs_file.read(path))


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def labels(pair: LabelledPair) -> dict[str, str]:
    return {x.rater: x.label for x in pair.labels}


def test_the_same_pair_from_every_format(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = {**PLAIN, "slices": {"topic": "why", "hard": None}}
    made = [write(tmp_path / "p.jsonl", row)]
    (tmp_path / "p.json").write_text(json.dumps([row], indent=1))
    (tmp_path / "p.csv").write_text(
        "id,prompt,a,b,labels.ann,labels.bo,labels.cy,slices.topic\n"
        'x,Why?,"Because, so.","No {idea}\nat all",A,tie,,why\n'
    )
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "p.parquet")
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(made[0].read_bytes()))
    made += [tmp_path / f"p.{end}" for end in ("json", "csv", "parquet", "jsonl.gz")]
    for path in made:
        (pair,) = read(path)
        assert pair.id == "x"
        assert (pair.comparison.a, pair.comparison.b) == (PLAIN["a"], PLAIN["b"])
        assert labels(pair) == PLAIN["labels"]
        assert pair.slices == {"topic": "why"}
        assert all(x.comparison_id == pair.comparison.id for x in pair.labels)


def test_unlabelled_pairs_and_conversations(tmp_path: Path) -> None:
    asked = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yo"},
        {"role": "user", "content": "?"},
    ]
    one, two = read(
        write(tmp_path / "p.jsonl", {"prompt": "q", "a": "", "b": "x"}, {"prompt": asked, "a": "x", "b": "y"})
    )
    assert one.id == one.comparison.id
    assert one.labels == ()
    assert [m.content for m in two.comparison.prompt.messages] == ["Hi", "Yo", "?"]
    assert two.row == 2


def test_chosen_is_the_human_label_and_not_always_a(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(200)]
    pairs = read(write(tmp_path / "p.jsonl", *rows))
    for i, pair in enumerate(pairs):
        picked = {"A": pair.comparison.a, "B": pair.comparison.b}[labels(pair)["human"]]
        assert picked == f"good {i}"
    assert 70 < Counter(labels(p)["human"] for p in pairs)["A"] < 130
    assert pairs == read(tmp_path / "p.jsonl")
    # The coin must not see which reply was chosen: the opposite label leaves the comparison as it was.
    other = [{**r, "chosen": r["rejected"], "rejected": r["chosen"]} for r in rows]
    flipped = read(write(tmp_path / "q.jsonl", *other))
    assert [p.comparison for p in flipped] == [p.comparison for p in pairs]


def test_trl_conversations_with_and_without_a_prompt(tmp_path: Path) -> None:
    user, good, bad = ({"role": r, "content": c} for r, c in (("user", "q"), ("assistant", "yes"), ("assistant", "no")))
    explicit = {"prompt": [user], "chosen": [good], "rejected": [bad]}
    implicit = {"chosen": [user, good], "rejected": [user, bad]}
    one, two = read(write(tmp_path / "p.jsonl", explicit, implicit))
    assert one.comparison == two.comparison
    assert two.id == f"{one.id}#2"


@pytest.mark.skipif(not HH.exists(), reason="the data set is not here")
def test_every_dialogue_of_a_published_set_is_a_pair() -> None:
    pairs = read(HH)
    assert len(pairs) == 2312
    assert len({p.id for p in pairs}) == 2312
    assert all(p.comparison.prompt.messages[-1].role == "user" for p in pairs)
    assert 1000 < Counter(labels(p)["human"] for p in pairs)["A"] < 1312


def annotated(**changes: Any) -> dict[str, Any]:
    said = {"d": {"pref": "a"}, "p1": {"pref": "b"}, "p2": {"pref": None, "no_pref_reason": "not_applicable"}}
    comparison = {
        "id": "c1",
        "prompt": None,
        "response_a": {"text": "left", "model": "gpt-4"},
        "response_b": {"text": "right"},
        "annotations": said | {"p3": {"pref": None, "no_pref_reason": "invalid"}},
        "metadata": {"topic": "x"},
    }
    annotators = {"d": {"name": "preferred_text", "type": "unknown"}}
    annotators |= {k: {"description": "Select the short one", "type": "principle"} for k in ("p1", "p2")}
    annotators["p3"] = {"description": "Select the polite one", "type": "principle"}
    metadata = {"version": "2.0", "default_annotator": "d"}
    return {"metadata": metadata, "annotators": annotators, "comparisons": [comparison | changes]}


def test_annotated_pairs(tmp_path: Path) -> None:
    (tmp_path / "ap.json").write_text(json.dumps(annotated(), indent=2))
    (pair,) = read(tmp_path / "ap.json")
    assert (pair.id, pair.comparison.a, pair.comparison.b) == ("c1", "left", "right")
    assert labels(pair) == {"preferred_text": "A"}
    assert pair.machine == {"Select the short one (p1)": "B", "Select the polite one": "invalid"}
    assert pair.slices == {"topic": "x", "model_a": "gpt-4"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"response_a": {}}, "row 1: 'a' is missing or null, not text"),
        ({"annotations": {"z": {"pref": "a"}}}, "names the annotator 'z'"),
        ({"annotations": {"d": {"pref": "c"}}}, "annotations.d.pref is 'c'"),
        ({"annotations": {"d": {}}}, "annotations.d has no pref"),
    ],
)
def test_bad_annotated_pairs(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    (tmp_path / "ap.json").write_text(json.dumps(annotated(**change)))
    with pytest.raises(DataError) as e:
        read(tmp_path / "ap.json")
    assert said in str(e.value)


def test_an_old_annotated_pairs_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ap.json").write_text(json.dumps(annotated() | {"metadata": {"version": "1.0"}}))
    with pytest.raises(DataError, match=r"metadata\.version is '1\.0'"):
        read(tmp_path / "ap.json")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "q", "a": "x"}, "line 2: the field 'b' is missing"),
        ({"prompt": "q", "a": "x", "b": 3}, "'b' is a number (3), not text"),
        ({"a": "x", "b": "y"}, "'prompt' is missing or null"),
        ({"prompt": "q", "a": "x", "b": "y", "label": "a"}, "'label' is 'a' (A, B or tie"),
        ({"prompt": "q", "a": "x", "b": "y", "labels": {"ann": 1}}, "'labels.ann' is a number (1)"),
        ({"prompt": "q", "a": "x", "b": "y", "label": "A", "labels": {"human": "A"}}, "are the same rater"),
        ({"prompt": "q", "a": "x", "b": "y", "labels": ["A"]}, "'labels' is a list"),
        ({"prompt": "q", "a": "x", "b": "y", "slices": {"k": [1]}}, "slices.k is a list"),
        ({"prompt": "q", "a": "x", "b": "y", "id": 1.5}, "'id' is a number (1.5)"),
        ({"prompt": "q", "a": "x", "b": "y", "id": "first"}, "'first' was already given, in line 1"),
        ({"prompt": [{"role": "assistant", "content": "x"}], "a": "x", "b": "y"}, "ends with the assistant's turn"),
        ({"chosen": "x"}, "'rejected' is missing or null"),
        ({"chosen": "no turns", "rejected": "no turns"}, "stands where a dialogue begins"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: z\n\nAssistant: b"}, "do not share all"),
        ({"prompt": "q", "chosen": [], "rejected": "y"}, "the conversation has no messages"),
        ([1], "is a JSON list, not an object"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: Any, said: str) -> None:
    path = write(tmp_path / "p.jsonl", {"id": "first", "prompt": "q", "a": "x", "b": "y"}, row)
    with pytest.raises(DataError) as e:
        read(path)
    assert said in str(e.value)
    assert "p.jsonl, line 2" in str(e.value)


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text("")
    (tmp_path / "n.json").write_text("[]")
    (tmp_path / "c.csv").write_text("prompt,a,b\nq,x\n")
    (tmp_path / "u.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    for name, said in [
        ("none.jsonl", "no such file"), ("e.jsonl", "is empty"), ("n.json", "holds no pairs"),
        ("c.csv", "c.csv, line 2: has more or fewer fields"), ("u.jsonl", "line 1: byte 0xff is not UTF-8"),
    ]:  # fmt: skip
        with pytest.raises(DataError, match=said):
            read(tmp_path / name)
