"""What trainers read: a run's exports and TRL's formats, and what is refused, dropped, turned round or mixed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tenet.errors import DataError
from trainers import _rows
from trainers._rows import Source

PAIR = {"prompt": "How to tune a guitar?", "chosen": "Turn the peg.", "rejected": "Ask someone.", "p_chosen": 0.9}


def lines(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_pairs_keep_their_label_and_their_place(tmp_path: Path) -> None:
    rows = _rows.read(lines(tmp_path / "p.jsonl", PAIR, {**PAIR, "chosen": "Tighten it.", "p_chosen": 0.6}), "pairs")
    first, second = rows
    assert first == {**PAIR, "id": f"{tmp_path}/p.jsonl, line 1"}
    assert second["p_chosen"] == 0.6
    assert (rows.census.read, rows.census.kept, rows.census.hard) == (2, 2, 0)
    assert rows.census.files[f"{tmp_path}/p.jsonl"]["rows"] == 2


def test_a_pair_below_half_is_turned_round_and_counted(tmp_path: Path) -> None:
    rows = _rows.read(lines(tmp_path / "p.jsonl", {**PAIR, "p_chosen": 0.2}), "pairs")
    (row,) = rows
    assert (row["chosen"], row["rejected"], row["p_chosen"]) == (PAIR["rejected"], PAIR["chosen"], 0.8)
    assert rows.census.swapped == 1


@pytest.mark.parametrize("p", [-0.1, 1.2, float("nan"), None, True, "0.7"])
def test_what_is_no_probability_is_refused_with_its_line(tmp_path: Path, p: Any) -> None:
    rows = _rows.read(lines(tmp_path / "p.jsonl", PAIR, {**PAIR, "p_chosen": p}), "pairs")
    with pytest.raises(DataError, match=r"line 2: p_chosen is .*from 0 to 1"):
        list(rows)


def test_without_p_chosen_labels_are_certain_and_counted(tmp_path: Path) -> None:
    hard = {k: v for k, v in PAIR.items() if k != "p_chosen"}
    rows = _rows.read(lines(tmp_path / "p.jsonl", hard), "pairs")
    assert [row["p_chosen"] for row in rows] == [1.0]
    assert rows.census.hard == 1


@pytest.mark.parametrize(
    ("shape", "row", "column"),
    [
        ("pairs", {"prompt": "x", "chosen": "y"}, "rejected"),
        ("replies", {"prompt": "x"}, "completion"),
        ("prompts", {"question": "x"}, "prompt"),
        ("texts", {"prompt": "x"}, "text"),
    ],
)
def test_a_missing_column_is_named_with_what_is_there(tmp_path: Path, shape: Any, row: Any, column: str) -> None:
    with pytest.raises(DataError, match=rf"line 1: has no column '{column}' \(it has: {', '.join(row)}\)"):
        list(_rows.read(lines(tmp_path / "d.jsonl", row), shape))


def test_equal_and_empty_replies_are_dropped_with_counts(tmp_path: Path) -> None:
    same, empty = {**PAIR, "rejected": PAIR["chosen"]}, {**PAIR, "rejected": "  "}
    rows = _rows.read(lines(tmp_path / "p.jsonl", PAIR, same, empty), "pairs")
    assert len(list(rows)) == 1
    assert rows.census.dropped == {"equal replies": 1, "empty reply": 1}


def test_nothing_left_is_an_error_that_says_where_it_went(tmp_path: Path) -> None:
    same = {**PAIR, "rejected": PAIR["chosen"]}
    with pytest.raises(DataError, match=r"no row is left of 2 \(2 equal replies\)"):
        list(_rows.read(lines(tmp_path / "p.jsonl", same, same), "pairs"))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").touch()
    with pytest.raises(DataError, match="is empty"):
        _rows.read(str(tmp_path / "p.jsonl"), "pairs")


def test_data_of_one_class_is_refused(tmp_path: Path) -> None:
    ties = [{**PAIR, "chosen": f"Reply {i}.", "p_chosen": 0.5} for i in range(3)]
    with pytest.raises(DataError, match=r"every p_chosen is 0\.5"):
        list(_rows.read(lines(tmp_path / "ties.jsonl", *ties), "pairs"))
    refusals = [{"prompt": f"Question {i}?", "completion": "I cannot help."} for i in range(3)]
    with pytest.raises(DataError, match="all 3 rows hold the same replies"):
        list(_rows.read(lines(tmp_path / "no.jsonl", *refusals), "replies"))


def test_trls_forms_are_read_alike(tmp_path: Path) -> None:
    talk = {"prompt": user("Hello?"), "chosen": said("Yes."), "rejected": said("No."), "p_chosen": 0.7}
    implicit = {"chosen": user("Hello?") + said("Yes."), "rejected": user("Hello?") + said("No."), "p_chosen": 0.7}
    hh = {
        "chosen": "\n\nHuman: Hello?\n\nAssistant: Yes.", "rejected": "\n\nHuman: Hello?\n\nAssistant: No.",
        "p_chosen": 0.7,
    }  # fmt: skip
    mixed = {**talk, "prompt": "Hello?"}
    other = {**talk, "chosen": said("Perhaps.")}
    *rows, _ = _rows.read(lines(tmp_path / "p.jsonl", talk, implicit, hh, mixed, other), "pairs")
    assert len(rows) == 4
    assert all({**row, "id": ""} == {**talk, "id": ""} for row in rows)


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [PAIR, {**PAIR, "chosen": "Tighten it.", "p_chosen": 0.6}]
    lines(tmp_path / "a.jsonl", *rows)
    (tmp_path / "b.json").write_text(json.dumps(rows))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    (tmp_path / "hub/data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "hub/data/train-00000-of-00001.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:1]), tmp_path / "hub/data/test-00000-of-00001.parquet")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(tmp_path / "saved")
    for name in ("a.jsonl", "b.json", "c.jsonl.gz", "d.parquet", "hub", "saved"):
        read = [{k: v for k, v in row.items() if k != "id"} for row in _rows.read(str(tmp_path / name), "pairs")]
        assert read == rows, name


def run_folder(folder: Path, whole: bool = True) -> Path:
    """A run's folder with the exports that trainers read."""
    (folder / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([{**PAIR, "votes": [1, 2]}]), folder / "data/preference.parquet")
    revisions = [
        {"prompt": user(f"Q{i}?"), "completion": said(f"Round {r}."), "round": r, "last": r == 2}
        for i in range(4)
        for r in (1, 2)
    ]
    pq.write_table(pa.Table.from_pylist(revisions), folder / "data/sft.parquet")
    if whole:
        (folder / "manifest.json").write_text("{}")
    return folder


def test_a_runs_folder_gives_each_trainer_its_export(tmp_path: Path) -> None:
    run = str(run_folder(tmp_path / "run"))
    assert [row["p_chosen"] for row in _rows.read(run, "pairs")] == [0.9]
    assert len(list(_rows.read(run, "replies"))) == 8
    assert [row["prompt"][0]["content"] for row in _rows.read(run, "prompts")][::2] == ["Q0?", "Q1?", "Q2?", "Q3?"]


def test_a_run_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the run is not whole"):
        _rows.read(str(run_folder(tmp_path / "run", whole=False)), "pairs")


def test_only_the_last_round_can_be_taken(tmp_path: Path) -> None:
    run = str(run_folder(tmp_path / "run"))
    helpful = lines(tmp_path / "h.jsonl", {"prompt": "Hi", "completion": "Hello."})
    rows = _rows.read([Source(path=run, rounds="last"), Source(path=helpful)], "replies")
    assert [row["completion"][0]["content"] for row in rows if row["completion"] != "Hello."] == ["Round 2."] * 4
    assert rows.census.dropped == {"not the last round": 4}
    with pytest.raises(DataError, match="has no column 'last'"):
        list(_rows.read([Source(path=helpful, rounds="last")], "replies"))


def test_a_mixture_weighs_its_sources_and_draws_the_same_rows_again(tmp_path: Path) -> None:
    many = [{"prompt": f"Q{i}", "completion": f"A{i}."} for i in range(400)]
    a, b = lines(tmp_path / "a.jsonl", *many), lines(tmp_path / "b.jsonl", *many[:10])
    mix = [Source(path=a, weight=0.25), Source(path=b, weight=2.5)]
    drawn = [row["id"] for row in _rows.read(mix, "replies", seed=1)]
    assert drawn == [row["id"] for row in _rows.read(mix, "replies", seed=1)]
    assert drawn != [row["id"] for row in _rows.read(mix, "replies", seed=2)]
    of_a = [i for i in drawn if "a.jsonl" in i]
    assert len(of_a) == len(set(of_a))
    assert 70 < len(of_a) < 130  # 100 expected, 4.5 standard deviations
    assert 20 <= len(drawn) - len(of_a) <= 30


def test_rows_of_messages_need_something_to_learn(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no turn of the assistant"):
        list(_rows.read(lines(tmp_path / "m.jsonl", {"messages": user("Hello?")}), "replies"))


def test_rows_from_memory_are_checked_alike() -> None:
    assert [row["id"] for row in _rows.given([PAIR], "pairs")] == ["row 1"]
    with pytest.raises(DataError, match="row 1: has no column 'chosen'"):
        list(_rows.given([{"prompt": "x"}], "pairs"))
