"""Ledger files that are cut, overwritten, emptied or held by others: refused in words, never mended in silence."""

from __future__ import annotations

import random
import re
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from service.cli import main
from tenet.errors import LedgerError, TenetError
from tenet.ledger import Calls, _file
from tests.faults.runs import files, go, stored, write
from tests.test_ledger_files import fill, read

WAYS_OUT = re.compile("the file is damaged; move it|this version of tenet reads")


def damage(path: Path, kind: str, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    at = draw.randrange(len(content))
    if kind == "bit":
        content[at] ^= 1 << draw.randrange(8)
    elif kind == "64 bytes":
        content[at : at + 64] = draw.randbytes(len(content[at : at + 64]))
    elif kind == "page":
        content[at // 4096 * 4096 : at // 4096 * 4096 + 4096] = bytes(4096)
    else:
        del content[at:]
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["bit", "64 bytes", "page", "truncated"])
def test_no_damaged_row_or_reply_is_ever_taken_for_a_good_one(tmp_path: Path, kind: str) -> None:
    fill(tmp_path / "good")
    good = read(tmp_path / "good")
    draw, ends = random.Random(kind), Counter[str]()
    for n in range(40):
        bad = tmp_path / f"bad{n}"
        shutil.copytree(tmp_path / "good", bad)
        name = draw.choice(["rows.sqlite", "calls.sqlite"])
        damage(bad / name, kind, draw)
        try:
            held, replies, usage = read(bad)
        except LedgerError as error:
            said = str(error)
            ends["refused" if said.startswith(f"{bad / name}: ") and WAYS_OUT.search(said) else said] += 1
        else:
            # a damaged index may hide a row, which is then made anew; what is found is what was written
            assert held.items() <= good[0].items()
            assert replies.items() <= good[1].items()
            assert usage == good[2]
            ends["harmless"] += 1
    assert ends.keys() <= {"refused", "harmless"}
    # what hits nobody's bytes, or a page that holds nothing a run reads, is harmless
    assert ends["refused"] >= {"truncated": 40, "page": 30}.get(kind, 8)


def test_a_run_on_damaged_files_ends_in_words_or_with_the_same_rows(tmp_path: Path) -> None:
    recipe = write(tmp_path, 6)
    calm = go(recipe, "good/run")
    rows, draw, refused = stored(tmp_path / "good/run"), random.Random(2), 0
    for n in range(8):
        bad = tmp_path / f"bad{n}"
        shutil.copytree(tmp_path / "good", bad)
        if n % 2:  # a run made anew from stored replies reads them all
            shutil.rmtree(bad / "run")
        damage(bad / ("calls.sqlite" if n % 2 else "run/rows.sqlite"), ("bit", "64 bytes")[n % 4 // 2], draw)
        try:
            again = go(recipe, f"bad{n}/run")
        except TenetError:
            refused += 1
        else:
            assert (files(again), stored(bad / "run")) == (files(calm), rows)
    assert refused >= 3


@pytest.mark.parametrize("name", ["run/rows.sqlite", "calls.sqlite"])
@pytest.mark.parametrize("kept", [0, 5000, -3000])
def test_a_truncated_file_is_refused_and_made_anew_when_it_is_moved_away(
    tmp_path: Path, name: str, kept: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write(tmp_path, 4)
    calm = go(recipe, "ws/run")
    rows = stored(tmp_path / "ws/run")
    file = tmp_path / "ws" / name
    content = file.read_bytes()
    file.write_bytes(content[:kept])
    monkeypatch.setattr(sys, "argv", ["tenet", "generate", str(recipe), "--out", str(tmp_path / "ws/run")])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code in (2, 3)
    assert f"{file}: " in said
    assert "the file is damaged; move it and its -wal and -shm files away" in said
    assert "Traceback" not in said
    assert file.read_bytes() == content[:kept]  # nothing was mended
    file.rename(file.with_suffix(".damaged"))
    again = go(recipe, "ws/run")
    assert (files(again), stored(tmp_path / "ws/run")) == (files(calm), rows)
    assert again["asked"] == 0  # what was lost with one of the files is in the other


def test_a_log_that_a_kill_left_and_a_disk_damaged_loses_whole_commits_and_they_are_made_again(tmp_path: Path) -> None:
    recipe = write(tmp_path, 8)
    go(recipe, "calm/run")
    code = (
        "import os, sys; from tests.faults.runs import go; from pathlib import Path; from tests import oracle_script\n"
        "n = 0\n"
        "def play(r):\n"
        "    global n; n += 1\n"
        "    return oracle_script.play(r) if n < 60 else os.kill(os.getpid(), 9)\n"
        "go(Path(sys.argv[1]), 'wild/run', play, **{'limits.in_flight': '1'})"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(recipe)], cwd=Path(__file__).parents[2], check=False)
    assert ended.returncode == -9
    for log in (tmp_path / "wild/run/rows.sqlite-wal", tmp_path / "wild/calls.sqlite-wal"):
        content = bytearray(log.read_bytes())
        assert len(content) > 20_000
        content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
        log.write_bytes(content)
    go(recipe, "wild/run")
    assert stored(tmp_path / "wild/run") == stored(tmp_path / "calm/run")


def test_a_ledger_held_by_another_process_is_waited_for_and_then_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_file, "BUSY_SECONDS", 0.4)
    recipe = write(tmp_path, 8)
    go(recipe, "calm/run")
    Calls(tmp_path / "ws/calls.sqlite").close()
    other = sqlite3.connect(tmp_path / "ws/calls.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(TenetError, match=r"calls\.sqlite: database is locked \(another process held it"):
        go(recipe, "ws/run")
    other.execute("ROLLBACK")
    other.close()
    go(recipe, "ws/run")
    assert stored(tmp_path / "ws/run") == stored(tmp_path / "calm/run")
