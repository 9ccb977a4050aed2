"""Prompts: every row of every source ends as one item, and damage is refused with its place."""

import gzip
import json
import random
import re
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from generators._dedup import bands
from generators.prompts import Settings, check, stream
from tenet.errors import DataError
from tenet.records import Dropped, Prompt
from tenet.settings import assemble

HH = Path(__file__).parents[2] / "shared/data/hh-rlhf/harmless-base-test.jsonl.gz"


def jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def items(path: Path | str, seed: int = 0, **settings: Any) -> list[Prompt | Dropped]:
    s = Settings(path=str(path), **settings)
    pairs = list(stream(s, seed))
    assert [ordinal for ordinal, _ in pairs] == list(range(len(pairs)))
    return [item for _, item in pairs]


def texts(path: Path | str, **settings: Any) -> list[str]:
    return [p.messages[-1].content for p in items(path, **settings) if isinstance(p, Prompt)]


def reasons(path: Path | str, **settings: Any) -> list[str | None]:
    return [i.reason if isinstance(i, Dropped) else None for i in items(path, **settings)]


def refused(path: Path | str, **settings: Any) -> str:
    s = Settings(path=str(path), **settings)
    with pytest.raises(DataError) as caught:
        check(s)
    assert str(caught.value).startswith(str(path)) or "\n" in str(caught.value)
    with pytest.raises(DataError):
        list(stream(s))
    return str(caught.value)


def test_jsonl_takes_text_and_messages_and_keeps_ids_and_tags(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a: b\n\nc"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "why?", "name": "ann"},
    ]
    rows = [
        {"prompt": "What is {x}?\n\nHuman: me", "id": 7, "tags": ["code", "x"], "other": 1},
        {"messages": turns, "id": "m", "tags": "code"},
        {"prompt": turns[:2]},
    ]
    path = jsonl(tmp_path / "a.jsonl", rows)
    path.write_text("\ufeff" + path.read_text().replace("\n", "\n\n"))
    one, two, three = items(path)
    assert isinstance(one, Prompt)
    assert (one.messages[0].content, one.name) == ("What is {x}?\n\nHuman: me", "7")
    assert one.tags == ("code", "x")
    assert isinstance(two, Prompt)
    assert [m.role for m in two.messages] == ["system", "user", "assistant", "user"]
    assert two.messages[1].content == "a: b\n\nc"
    assert (two.name, two.tags) == ("m", ("code",))
    assert isinstance(three, Prompt)
    assert len(three.messages) == 2
    census = check(Settings(path=str(path)))
    assert (census.rows, census.usable, census.dropped) == (3, 3, {})
    assert (census.sources[0].rows, census.sources[0].kind) == (3, "jsonl")
    assert census.sources[0].bytes == path.stat().st_size


def test_all_containers_give_the_same_prompts(tmp_path: Path) -> None:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    datasets.disable_progress_bars()
    rows = [{"prompt": f"Ask {i}: why?", "tags": ["x"]} for i in range(2_500)]
    wanted = [r["prompt"] for r in rows]
    plain = jsonl(tmp_path / "a.jsonl", rows)
    zipped = tmp_path / "a.jsonl.gz"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    bare = tmp_path / "noname"
    bare.write_bytes(zipped.read_bytes())
    parquet = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), parquet, row_group_size=300)
    text = tmp_path / "a.txt"
    text.write_text("\n\n".join(map(str, wanted)) + "\n")
    csv = tmp_path / "a.csv"
    csv.write_text("prompt,n\n" + "".join(f'"{w}",1\n' for w in wanted))
    saved, split = tmp_path / "saved", tmp_path / "split"
    table = datasets.Dataset.from_list(rows)
    table.save_to_disk(saved)
    datasets.DatasetDict({"train": table, "test": table.select(range(3))}).save_to_disk(split)
    for path in (plain, zipped, bare, parquet, text, csv, saved):
        assert texts(path) == wanted, path
    assert texts(split, split="test") == wanted[:3]
    assert texts(plain, kind="dataset") == wanted
    assert "has several splits (set split to one of: train, test)" in refused(split)
    assert "has no split 'dev'" in refused(split, split="dev")


def test_parquet_conversations_and_missing_columns(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    turns = [{"role": "user", "content": "hi"}]
    pq.write_table(pa.Table.from_pylist([{"messages": turns, "q": "x", "id": None}]), path)
    assert texts(path) == ["hi"]
    assert "no column 'qq' (did you mean 'q'? (columns.prompt))" in refused(
        path, columns={"prompt": "qq"}
    )
    pq.write_table(pa.Table.from_pylist([{"question": "x"}]), path)
    assert "there are: question; name yours with columns.prompt" in refused(path)
    assert texts(path, columns={"prompt": "question"}) == ["x"]
    path.write_bytes(path.read_bytes()[:-9])
    assert "not a whole Parquet file" in refused(path)


def test_text_by_lines_or_by_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("one: a\r\n\n  two\nthree é\n \t\nfour".encode())
    assert texts(path) == ["one: a", "  two", "three é", "four"]
    assert texts(path, paragraphs=True) == ["one: a", "  two\nthree é", "four"]
    path.write_bytes(b"fine\ncaf\xe9")
    assert "line 2: byte 0xe9 is not UTF-8 (save the file as UTF-8" in refused(path)


def test_hh_dialogues_keep_turns_colons_and_paragraphs(tmp_path: Path) -> None:
    first = (
        "\n\nHuman: One: two: three\n\nA later paragraph: yes\n\n - Human nature\n\nAssistant: Sure"
    )
    chosen = first + ":\n\n1. x\n\nHuman: More?\nHuman: no turn\n\nAssistant: last\n\nwords"
    only = "\n\nAssistant: hello"
    trailing = "\n\nHuman: ask \n\nAssistant: a\n\nAssistant: b"
    rows = [
        {"chosen": c, "rejected": "z"}
        for c in (chosen, only, trailing, "\n\nHuman: \n\nAssistant: x")
    ]
    path = jsonl(tmp_path / "a.jsonl", rows)
    for settings in ({}, {"kind": "hh"}):
        one, two, three, four = items(path, **settings, bad_rows="drop")
        assert isinstance(one, Prompt)
        assert [m.role for m in one.messages] == ["user", "assistant", "user"]
        assert one.messages[0].content == (
            "One: two: three\n\nA later paragraph: yes\n\n - Human nature"
        )
        assert one.messages[1].content == "Sure:\n\n1. x"
        assert one.messages[2].content == "More?\nHuman: no turn"
        assert isinstance(two, Dropped)
        assert two.reason == "no user turn"
        assert isinstance(three, Prompt)
        assert [m.content for m in three.messages] == ["ask "]
        assert isinstance(four, Dropped)
        assert four.reason == "empty prompt"
    other = jsonl(tmp_path / "b.jsonl", [{"talk": chosen}])
    assert texts(other, kind="hh", columns={"conversation": "talk"}) == ["More?\nHuman: no turn"]
    loose = jsonl(tmp_path / "c.jsonl", [{"chosen": "Hello\n\nHuman: x"}])
    assert "line 1: 'Hello' stands where a dialogue begins" in refused(loose, kind="hh")


@pytest.mark.skipif(not HH.exists(), reason="the HH file is not there")
def test_every_row_of_the_real_hh_file_is_accounted_for() -> None:
    rows = [json.loads(line)["chosen"] for line in gzip.decompress(HH.read_bytes()).splitlines()]
    found = items(HH)
    assert len(found) == len(rows) == 2_312
    several = 0
    for item, text in zip(found, rows, strict=True):
        if isinstance(item, Dropped):
            assert item.reason == "exact duplicate"
            continue
        several += len(item.messages) > 1
        names = {"user": "Human", "assistant": "Assistant"}
        again = "".join(f"\n\n{names[m.role]}: {m.content}" for m in item.messages)
        assert text.startswith(again + "\n\nAssistant:")
        assert re.fullmatch(r"\n\nAssistant:(?!.*\n\nHuman:).*", text[len(again) :], re.DOTALL)
    assert several > 1_500
    census = check(Settings(path=str(HH)))
    assert (census.rows, census.usable, census.dropped) == (2_312, 2_312, {})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "a"', ["line 2", "is not JSON", "one JSON object a line"]),
        ('["a"]', ["line 2", "is a JSON list, not an object"]),
        ('{"prompt": 3}', ["line 2", "the prompt is a number (3), not text"]),
        ('{"prompt": null}', ["line 2", "missing or null", "not text"]),
        ('{"prompt": " "}', ["line 2", "the prompt is empty"]),
        ('{"messages": []}', ["line 2", "no messages"]),
        ('{"messages": ["hi"]}', ["line 2", "message 0 is missing or null, not text"]),
        ('{"messages": [{"role": "user", "content": [1]}]}', ["message 0 is a list, not text"]),
        ('{"messages": [{"role": "bot", "content": "x"}]}', ["message 0 has the role 'bot'"]),
        ('{"question": "a"}', ["line 2", "no column 'prompt' or 'messages'", "question"]),
        ('{"prompt": "b", "id": "x"}', ["line 2", "the id 'x' was already given, in row 1"]),
        ('{"prompt": "b", "id": 1.5}', ["line 2", "the id is a number (1.5)"]),
        ('{"prompt": "b", "tags": [1]}', ["line 2", "tags are a list", "list of words"]),
        ('{"prompt": "\\ud800"}', ["line 2", "not valid Unicode"]),
        ("[" * 100_000, ["line 2", "is not JSON"]),
        ('{"prompt": ' + "9" * 5000 + "}", ["line 2", "is not JSON"]),
        ("\xe9", ["line 2", "byte 0xe9 is not UTF-8"]),
    ],
)
def test_a_bad_line_is_refused_or_dropped(tmp_path: Path, line: str, words: list[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(f'{{"prompt": "a", "id": "x"}}\n{line}\n{{"prompt": "c"}}\n'.encode("latin-1"))
    message = refused(path)
    for word in ["a.jsonl", *words, "bad_rows: drop"]:
        assert word in message
    found = items(path, bad_rows="drop")
    assert [isinstance(i, Prompt) for i in found] == [True, False, True]
    assert isinstance(found[1], Dropped)
    assert "a.jsonl, line 2" in found[1].detail
    census = check(Settings(path=str(path), bad_rows="drop"))
    assert (census.rows, census.usable, census.dropped) == (3, 2, {found[1].reason: 1})


def test_several_bad_lines_come_in_one_message(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "a"}, {"prompt": 1}, [2], {"prompt": ""}])
    message = refused(path)
    assert message.startswith("3 rows cannot be read\n")
    assert all(f"line {n}:" in message for n in (2, 3, 4))
    many = jsonl(tmp_path / "b.jsonl", [{"prompt": 1}] * 50)
    assert "5 rows cannot be read (and maybe more)" in refused(many)


def cut_gzip(path: Path) -> None:
    lines = [json.dumps({"prompt": f"{random.random()}"}) for _ in range(2000)]
    path.write_bytes(gzip.compress("\n".join(lines).encode())[:-4000])


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("a.jsonl", None, ["no such file"]),
        ("org/name", None, ["no such file", "kind: dataset"]),
        ("a.jsonl", lambda p: p.write_bytes(b""), ["is empty"]),
        ("a.jsonl", lambda p: p.write_bytes(b"\n \n"), ["holds no prompts"]),
        ("a.jsonl.gz", lambda p: p.write_bytes(b"{}\n"), ["not gzip"]),
        ("a.jsonl.gz", cut_gzip, ["after line ", "damaged or cut off", "download"]),
        ("a.jsonl.gz", lambda p: p.write_bytes(b"\x1f\x8bxx"), ["damaged or cut off"]),
        ("a.parquet", lambda p: p.write_bytes(b"PAR1 no"), ["not a whole Parquet file"]),
        ("a.jsonl", lambda p: p.mkdir(), ["datasets cannot read it"]),
        ("a.bin", lambda p: p.write_bytes(b"what"), ["cannot tell what kind", "say kind: jsonl"]),
        ("a.csv", lambda p: p.write_bytes(b"x,y\n1,2\n"), ["no column 'prompt'", "x, y"]),
    ],
)
def test_damaged_files_are_refused(
    tmp_path: Path, name: str, make: Callable[[Path], Any] | None, words: list[str]
) -> None:
    path = tmp_path / name
    if make:
        make(path)
    for bad_rows in ("error", "drop"):
        message = refused(path, bad_rows=bad_rows)
        for word in [str(path), *words]:
            assert word in message


def test_a_misspelt_path_and_wrong_settings_are_refused(tmp_path: Path) -> None:
    jsonl(tmp_path / "prompts.jsonl", [{"prompt": "a"}])
    assert "no such file" in refused(tmp_path / "promts.jsonl")
    with pytest.raises(ValueError, match="max_chars 3 is below min_chars 5"):
        Settings(path="x", min_chars=5, max_chars=3)
    with pytest.raises(ValueError, match="path is empty"):
        Settings(path=())
    s = assemble(Settings, {"path": ["a"]}, ["dedup=near", "near_threshold=0.9", "limit=3"])
    assert (s.paths, s.dedup, s.limit) == (("a",), "near", 3)


def test_columns_named_by_the_user_must_exist(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"question": "a", "qid": 1}])
    assert texts(path, columns={"prompt": "question", "id": "qid"}) == ["a"]
    message = refused(path, columns={"prompt": "question", "id": "quid"})
    assert "no column 'quid' (did you mean 'qid'? (columns.id)" in message


def test_a_conversation_that_waits_for_nobody_is_dropped(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = jsonl(tmp_path / "a.jsonl", [{"messages": turns}, {"messages": turns[:1]}])
    assert reasons(path) == ["no user turn at the end", None]
    assert check(Settings(path=str(path))).dropped == {"no user turn at the end": 1}
    alone = jsonl(tmp_path / "b.jsonl", [{"messages": turns}])
    assert "none of 1 rows holds a usable prompt: 1 x no user turn" in refused_check(alone)


def refused_check(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        check(Settings(path=str(path)))
    return str(caught.value)


def test_lengths_limits_and_several_sources(tmp_path: Path) -> None:
    a = jsonl(tmp_path / "a.jsonl", [{"prompt": "x" * n} for n in (1, 5, 9)])
    b = tmp_path / "b.txt"
    b.write_text("yyyy\nzzzz\n")
    assert reasons(a, min_chars=4, max_chars=6) == ["too short", None, "too long"]
    both = Settings(path=(str(a), str(b)), limit=4)
    assert [o for o, _ in stream(both)] == [0, 1, 2, 3]
    census = check(both)
    assert (census.rows, [s.rows for s in census.sources]) == (4, [3, 1])
    assert len(list(stream(both.model_copy(update={"limit": 3})))) == 3
    assert check(Settings(path=(str(a), str(b)))).rows == 5


def test_exact_duplicates_are_dropped_or_numbered(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": p} for p in ("a", "b", "a", "a", "A")])
    assert reasons(path) == [None, None, "exact duplicate", "exact duplicate", None]
    third = items(path)[2]
    assert isinstance(third, Dropped)
    assert (third.stage, third.detail) == ("prompts", "of row 0")
    kept = [p for p in items(path, dedup="none") if isinstance(p, Prompt)]
    assert [p.copy_index for p in kept] == [0, 0, 1, 2, 0]
    assert len({p.id for p in kept}) == 5


def test_near_duplicates_are_dropped(tmp_path: Path) -> None:
    words = [f"word{i}" for i in range(500)]
    draw = random.Random(5)
    rows: list[str] = []
    for _ in range(300):
        base = draw.choices(words, k=40)
        near, far = list(base), list(base)
        near[-1] = "other"
        for i in range(0, 40, 4):
            far[i] = "other"
        rows += [" ".join(base), " ".join(near).upper() + "!", " ".join(far)]
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": r} for r in rows])
    found = reasons(path, dedup="near")
    assert found[0::3] == [None] * 300
    assert found[2::3] == [None] * 300
    assert found[1::3].count("near duplicate") >= 294, "at least 98% are found"
    assert found == reasons(path, dedup="near")
    second = items(path, dedup="near", seed=9)[1]
    assert isinstance(second, Dropped)
    assert second.detail == "of row 0"
    assert Counter(reasons(path, dedup="near", near_threshold=1.0)) == {None: 900}


def test_near_duplicates_of_odd_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(
        "hi\nHi!\nhi there\n🙂🙂\n🙂\n今天天气怎么样啊朋友们\n今天天气怎么样啊朋友们？\n"
    )
    assert reasons(path, dedup="near") == [
        None, "near duplicate", None, None, None, None, "near duplicate"
    ]  # fmt: skip


def test_bands_find_what_they_promise() -> None:
    for threshold in (0.5, 0.7, 0.8, 0.9, 1.0):
        b, r = bands(threshold)
        assert b * r <= 128
        assert 1 - (1 - threshold**r) ** b >= 0.98


@pytest.mark.parametrize("dedup", ["none", "exact"])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, dedup: str) -> None:
    def peak(n: int) -> int:
        path = jsonl(tmp_path / "a.jsonl", ({"prompt": f"Ask {i}", "id": i} for i in range(n)))
        tracemalloc.start()
        s = Settings.model_validate({"path": str(path), "dedup": dedup})
        assert check(s).usable == sum(isinstance(i, Prompt) for _, i in stream(s)) == n
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(100)
    assert peak(8_000) < peak(1_000) + 100_000


def test_importing_is_light() -> None:
    code = "import sys, constitution, generators.prompts; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"datasets", "pyarrow", "datasketch", "numpy", "torch"}
