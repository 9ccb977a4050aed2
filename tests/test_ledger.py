"""The ledger: what it acknowledged survives kill -9, nothing is paid twice, faults stay out."""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tenet.engines import Reply, Request, Sampling
from tenet.engines._cache import Budget, CachedEngine
from tenet.engines.scripted import ScriptedEngine
from tenet.errors import (
    AccountingError,
    BudgetExceeded,
    EngineError,
    EngineUnreachable,
    LedgerError,
    RunFolderError,
)
from tenet.ledger import DROPPED, Calls, Counts, Rows, StoredReply, in_use
from tenet.records import Dropped, Message, Usage, canonical

ROOT = Path(__file__).parent.parent
COST = Usage(calls=1, prompt_tokens=30, completion_tokens=8, cached_tokens=16)


def key(n: int) -> str:
    return f"{n:032x}"


def reply(text: str, *logprobs: float | None) -> StoredReply:
    return StoredReply(text, "stop", logprobs, COST)


def ask(text: str, seed: int = 1) -> Request:
    return Request(messages=(Message(role="user", content=text),), sampling=Sampling(seed=seed))


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process with what the writers below need; it prints what it holds for durable."""
    head = (
        "import asyncio, os, sys, time\nfrom pathlib import Path\n"
        "from tenet.errors import *\nfrom tenet.ledger import *\nfrom tenet.records import Usage\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", head + code, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> list[str]:
    # communicate() would leave out what an earlier readline() has already buffered
    assert process.stdout is not None
    with process.stdout:
        said = process.stdout.read()
    process.wait(timeout=60)
    return said.split("\n")[:-1]  # what follows the last line's end was cut off by the kill


# Calls


def test_replies_come_back_to_the_bit(tmp_path: Path) -> None:
    floats = (None, 0.1 + 0.2, -0.0, 5e-324, -math.inf, math.inf, math.nan, None, -1e308)
    kept = {
        key(1): reply("", *floats),
        key(2): StoredReply("zwölf 😀 \x00 nul \r\n end", "length", (), Usage()),
        key(3): reply("half an emoji \ud83d and so on \udc00", -1.5, -2.5),
    }

    async def main() -> dict[str, StoredReply]:
        with Calls(tmp_path / "calls.sqlite") as calls:
            await calls.put_many(kept, "run", "engine")
        with Calls(tmp_path / "calls.sqlite") as calls:
            assert await calls.get_many([]) == {}
            return await calls.get_many([*kept, key(4)])

    found = asyncio.run(main())
    assert found.keys() == kept.keys()
    assert [found[k]._replace(choice_logprobs=()) for k in kept] == [
        kept[k]._replace(choice_logprobs=()) for k in kept
    ]

    def bits(values: tuple[float | None, ...]) -> list[bytes | None]:
        return [None if v is None else struct.pack("<d", v) for v in values]

    assert bits(found[key(1)].choice_logprobs) == bits(floats)
    assert found[key(3)].choice_logprobs == (-1.5, -2.5)


def test_first_write_wins_and_both_have_paid(tmp_path: Path) -> None:
    async def main() -> None:
        with Calls(tmp_path / "calls.sqlite") as one, Calls(tmp_path / "calls.sqlite") as two:
            assert await one.put_many({key(1): reply("one")}, "a", "m") == {key(1): reply("one")}
            both = {key(1): reply("late"), key(2): reply("new")}
            stored = await two.put_many(both, "b", "m")
            assert stored == {key(1): reply("one"), key(2): reply("new")}
            assert await one.get_many([key(1), key(2)]) == stored
            assert one.usage("a") == {"m": COST}
            assert one.usage("b") == {"m": COST + COST}
            assert one.usage("nobody") == {}
            assert one.counts() == {"a": 1, "b": 1}

    asyncio.run(main())


WRITER = """
async def main(path, who, first, last):
    with Calls(path) as calls:
        async def some(part):
            for n in range(first + part, last, 4):
                key = f"{n:032x}"
                mine = StoredReply(who * 20, "stop", (-1.0, None), Usage(calls=1))
                told = await calls.put_many({key: mine}, who, "m")
                print(key, told[key].text, flush=True)
        await asyncio.gather(*map(some, range(4)))
asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
"""


def test_acknowledged_replies_survive_kill_9(tmp_path: Path) -> None:
    rng = random.Random(7)
    said: list[str] = []
    for first in (0, 10**6, 2 * 10**6, 3 * 10**6):
        process = start(WRITER, tmp_path / "calls.sqlite", "ant", first, 10**9)
        assert process.stdout is not None
        said.append(process.stdout.readline())
        time.sleep(rng.random() / 2)
        process.send_signal(signal.SIGKILL)
        said += finish(process)
        assert process.returncode == -signal.SIGKILL
    assert len(said) > 8
    keys = list({line.split()[0] for line in said})
    with Calls(tmp_path / "calls.sqlite") as calls:
        found = asyncio.run(calls.get_many(keys))
    assert found.keys() == set(keys)


def test_processes_that_share_a_workspace_agree_on_every_reply(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    said = [finish(p) for p in [start(WRITER, path, who, 0, 200) for who in ("ant", "bee", "cat")]]
    assert [len(lines) for lines in said] == [200, 200, 200]
    assert set(said[0]) == set(said[1]) == set(said[2])
    with Calls(path) as calls:
        assert sum(calls.counts().values()) == 200
        assert [calls.usage(who)["m"].calls for who in ("ant", "bee", "cat")] == [200, 200, 200]


def test_a_reply_that_cannot_be_stored_fails_alone(tmp_path: Path) -> None:
    huge = reply("huge")._replace(usage=Usage(calls=1, prompt_tokens=10**30))

    async def main() -> list[object]:
        with Calls(tmp_path / "calls.sqlite") as calls:
            puts = [calls.put_many({key(n): reply("fine")}, "r", "m") for n in range(5)]
            puts.insert(2, calls.put_many({key(99): huge}, "r", "m"))
            outcomes = await asyncio.gather(*puts, return_exceptions=True)
            assert len(await calls.get_many([key(n) for n in range(100)])) == 5
            assert calls.usage("r")["m"].calls == 5
            return list(outcomes)

    outcomes = asyncio.run(main())
    assert [isinstance(o, LedgerError) for o in outcomes] == [False, False, True] + [False] * 3


# Disks and files that fail


def test_full_disk_keeps_what_was_acknowledged_and_says_what_to_do(tmp_path: Path) -> None:
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
async def main(path):
    with Calls(path) as calls:
        for n in range(10_000):
            long = StoredReply("x" * 2000, "stop", (), Usage())
            await calls.put_many({f"{n:032x}": long}, "r", "m")
            print(n, flush=True)
try:
    asyncio.run(main(Path(sys.argv[1])))
except LedgerError as error:
    print(error)
"""
    path = tmp_path / "calls.sqlite"
    *acknowledged, error = finish(start(code, path))
    assert len(acknowledged) > 20
    assert str(path) in error
    assert "the disk is full" in error
    assert "everything stored before stays" in error
    with Calls(path) as calls:
        found = asyncio.run(calls.get_many([key(int(n)) for n in acknowledged]))
        assert len(found) == len(acknowledged)
        asyncio.run(calls.put_many({key(10**6): reply("room again")}, "r", "m"))


def test_full_disk_stops_a_run_between_two_chains(tmp_path: Path) -> None:
    async def main() -> int:
        with Rows(tmp_path) as rows:
            rows._writing._db.execute("PRAGMA max_page_count=60")  # SQLITE_FULL, as on a full disk
            long, n = [("response", canonical("x" * 900))] * 3, 0
            with pytest.raises(LedgerError, match="database or disk is full"):  # noqa: PT012
                for n in range(1000):
                    await rows.put(n, f"p{n}", long)
            assert rows.counts() == Counts(n, {"response": 3 * n}, {})
            rows._writing._db.execute("PRAGMA max_page_count=1000000")
            await rows.put(n, f"p{n}", long)
            return n

    assert asyncio.run(main()) > 10


def test_damaged_or_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    path.write_bytes(b"not a database, and long enough to be asked about" * 40)
    with pytest.raises(LedgerError, match=r"calls\.sqlite.*damaged.*move it"):
        Calls(path)
    path.unlink()
    later = sqlite3.connect(path)
    later.execute("PRAGMA user_version=9")
    later.close()
    with pytest.raises(LedgerError, match="format 9"):
        Calls(path)
    with pytest.raises(RunFolderError, match="a file is in the way"):
        Rows(path)


def test_a_page_damaged_later_is_named_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    with Calls(path) as calls:
        many = {key(n): reply("x" * 500) for n in range(500)}
        asyncio.run(calls.put_many(many, "r", "m"))
    content = bytearray(path.read_bytes())
    content[8192:-4096] = os.urandom(len(content) - 12288)
    path.write_bytes(content)
    with Calls(path) as calls, pytest.raises(LedgerError, match="damaged"):
        asyncio.run(calls.get_many(list(many)))


# Rows


def chain(n: int) -> list[tuple[str, str]]:
    if n % 3 == 0:
        drop = Dropped(prompt_id=f"p{n}", stage="pairs", reason="equal" if n % 2 else "length")
        return [("response", canonical({"n": n})), (DROPPED, canonical(drop.model_dump()))]
    return [("response", canonical({"n": n, "text": "ü\x00😀"})), ("preference", canonical(n))]


async def write_run(folder: Path, ordinals: list[int]) -> None:
    with Rows(folder) as rows:
        await asyncio.gather(*(rows.put(n, f"p{n}", chain(n)) for n in ordinals))


def test_rows_come_out_in_order_and_equal_whatever_the_order_of_writing(tmp_path: Path) -> None:
    shuffled = random.Random(3).sample(range(2500), 2500)
    asyncio.run(write_run(tmp_path / "a", list(range(2500))))
    asyncio.run(write_run(tmp_path / "b", shuffled))
    with Rows(tmp_path / "a", readonly=True) as a, Rows(tmp_path / "b", readonly=True) as b:
        rows = list(a.iterate())
        assert rows == list(b.iterate())
        assert [(r.ordinal, r.seq) for r in rows] == [(n, s) for n in range(2500) for s in (0, 1)]
        assert [r.record for r in rows] == [record for n in range(2500) for _, record in chain(n)]
        assert [r.ordinal for r in a.iterate(DROPPED)] == list(range(0, 2500, 3))
        stages = {"dropped": 834, "preference": 1666, "response": 2500}
        assert a.counts() == Counts(2500, stages, {"pairs": {"equal": 417, "length": 417}})
        with pytest.raises(LedgerError, match="reading only"):
            a.set_meta("state", "done")


def test_resume_skips_what_is_done_and_names_whose_outcome_it_is(tmp_path: Path) -> None:
    asyncio.run(write_run(tmp_path, [0, 1, 5000, 9999]))

    async def resume() -> list[int]:
        with Rows(tmp_path) as rows:
            assert (rows.done(1), rows.done(5000), rows.done(2)) == ("p1", "p5000", None)
            todo = [n for n in range(10_000) if rows.done(n) is None]
            await rows.put(9998, "p9998", chain(9998))
            assert rows.done(9998) == "p9998"
            return todo

    assert asyncio.run(resume()) == [n for n in range(10_000) if n not in (0, 1, 5000, 9999)]


def test_a_prompt_ends_once_and_never_without_a_record(tmp_path: Path) -> None:
    async def main() -> list[object]:
        with Rows(tmp_path) as rows:
            puts = [rows.put(n, f"p{n}", chain(1)) for n in (0, 1, 1, 2)]
            outcomes = await asyncio.gather(*puts, return_exceptions=True)
            assert [r.ordinal for r in rows.iterate("preference")] == [0, 1, 2]
            with pytest.raises(AccountingError, match="without a record"):
                await rows.put(3, "p3", [])
            return list(outcomes)

    first, second, third, fourth = asyncio.run(main())
    assert isinstance(third, AccountingError)
    assert "stored already" in str(third)
    assert first is second is fourth is None


def test_half_an_emoji_in_a_record_becomes_its_escape(tmp_path: Path) -> None:
    async def main() -> str:
        with Rows(tmp_path) as rows:
            await rows.put(0, "p", [("response", canonical("cut \ud83d"))])
            return next(rows.iterate()).record

    assert asyncio.run(main()) == '"cut \\ud83d"'


def test_meta_is_kept_and_replaced(tmp_path: Path) -> None:
    with Rows(tmp_path) as rows:
        assert rows.meta("recipe") is None
        rows.set_meta("recipe", "one")
        rows.set_meta("recipe", "two")
    with Rows(tmp_path, readonly=True) as rows:
        assert rows.meta("recipe") == "two"


HOLDER = """
async def main(folder):
    with Rows(folder) as rows:
        if os.fork() == 0:
            time.sleep(2)  # a worker that outlives the driver
            os._exit(0)
        n = 0
        while True:
            await rows.put(n, f"p{n}", [("response", "1"), ("preference", "2")])
            print(n, flush=True)
            n += 1
asyncio.run(main(Path(sys.argv[1])))
"""


def test_a_run_has_one_writer_and_kill_9_frees_it_with_whole_chains(tmp_path: Path) -> None:
    with Rows(tmp_path), pytest.raises(RunFolderError, match=f"in use by process {os.getpid()}"):
        Rows(tmp_path)
    process = start(HOLDER, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"
    with pytest.raises(RunFolderError, match=f"in use by process {process.pid}"):
        Rows(tmp_path)
    time.sleep(0.3)
    process.kill()
    process.wait()
    with Rows(tmp_path) as rows:  # at once, although the worker still lives
        done = rows.counts()
        assert done.stages == {"preference": done.prompts, "response": done.prompts}
    acknowledged = finish(process)
    assert 0 < len(acknowledged) < done.prompts


def test_a_run_is_in_use_while_its_writer_lives_and_no_longer(tmp_path: Path) -> None:
    assert not in_use(tmp_path)
    with Rows(tmp_path):
        assert in_use(tmp_path)
    assert not in_use(tmp_path)
    for left in ("", "no number\n", "4194305\n"):  # a dead writer's number; Linux gives out none so high
        (tmp_path / "run.lock").write_text(left)
        assert not in_use(tmp_path)


def test_a_closed_ledger_says_so(tmp_path: Path) -> None:
    calls = Calls(tmp_path / "deep" / "calls.sqlite")
    calls.close()
    calls.close()
    with pytest.raises(LedgerError, match="closed"):
        asyncio.run(calls.put_many({key(1): reply("late")}, "r", "m"))
    with pytest.raises(LedgerError, match="closed"):
        asyncio.run(calls.get_many([key(1)]))


# The cached engine


def test_a_rerun_asks_nothing_again(tmp_path: Path) -> None:
    engine = ScriptedEngine(lambda r: r.messages[0].content.upper())
    requests = [ask("a"), ask("b"), ask("a"), ask("a", seed=2)]
    for asked, reused in ((3, 1), (0, 4)):
        with Calls(tmp_path / "calls.sqlite") as calls:
            cached = CachedEngine(engine, calls, "run")
            replies = asyncio.run(cached.generate(requests))
            assert [r.text for r in replies] == ["A", "B", "A", "A"]
            assert replies[0].usage == Usage(calls=1, prompt_tokens=1, completion_tokens=1)
            assert (cached.asked, cached.reused, cached.usage.calls) == (asked, reused, asked)
            assert calls.usage("run")["scripted"].calls == 3
    assert engine.calls == 3


def test_a_fault_is_not_stored_and_leaves_its_neighbours_alone(tmp_path: Path) -> None:
    broken = True

    def script(request: Request) -> Reply | str:
        bad = broken and request.messages[0].content == "b"
        return Reply(fault="server", detail="500") if bad else "fine"

    async def main() -> None:
        nonlocal broken
        with Calls(tmp_path / "calls.sqlite") as calls:
            cached = CachedEngine(ScriptedEngine(script), calls, "run")
            first = await cached.generate([ask("a"), ask("b")])
            assert [r.fault for r in first] == [None, "server"]
            broken = False
            second = await cached.generate([ask("a"), ask("b")])
            assert [r.text for r in second] == ["fine", "fine"]
            assert (cached.asked, cached.reused, cached.faults) == (3, 1, {"server": 1})

    asyncio.run(main())


@pytest.mark.parametrize("fault", [None, "timeout"])
def test_the_same_question_at_once_is_asked_once(tmp_path: Path, fault: str | None) -> None:
    engine = ScriptedEngine(lambda r: Reply(text="t", fault=fault), delay=0.05)  # type: ignore[arg-type]

    async def main() -> None:
        with Calls(tmp_path / "calls.sqlite") as calls:
            cached = CachedEngine(engine, calls, "run")
            both = await asyncio.gather(
                cached.generate([ask("a"), ask("b")]), cached.generate([ask("c"), ask("a")])
            )
            assert [r.fault for replies in both for r in replies] == [fault] * 4
            assert (engine.calls, cached.asked, cached.reused) == (3, 3, 1)

    asyncio.run(main())


def test_who_waits_for_a_cancelled_question_asks_it(tmp_path: Path) -> None:
    engine = ScriptedEngine(lambda r: "said", delay=0.05)

    async def main() -> None:
        with Calls(tmp_path / "calls.sqlite") as calls:
            cached = CachedEngine(engine, calls, "run")
            leader = asyncio.create_task(cached.generate([ask("a")]))
            await asyncio.sleep(0.01)
            follower = asyncio.create_task(cached.generate([ask("a")]))
            await asyncio.sleep(0.01)
            leader.cancel()
            assert [r.text for r in await follower] == ["said"]
            assert leader.cancelled()

    asyncio.run(main())


def test_engine_errors_pass_through_to_all_who_wait(tmp_path: Path) -> None:
    down = True

    class Flaky(ScriptedEngine):
        async def generate(self, requests):  # type: ignore[no-untyped-def]
            await asyncio.sleep(0.01)
            if down:
                raise EngineUnreachable("nobody answers")
            return (await super().generate(requests))[:-1]

    async def main() -> None:
        nonlocal down
        with Calls(tmp_path / "calls.sqlite") as calls:
            cached = CachedEngine(Flaky(lambda r: "said"), calls, "run")
            both = [cached.generate([ask("a")]), cached.generate([ask("a")])]
            outcomes = await asyncio.gather(*both, return_exceptions=True)
            assert [type(o) for o in outcomes] == [EngineUnreachable, EngineUnreachable]
            down = False
            with pytest.raises(EngineError, match="1 replies to 2 requests"):
                await cached.generate([ask("a"), ask("b")])

    asyncio.run(main())


def test_budgets_hold_over_restarts_and_engines_and_reuse_is_free(tmp_path: Path) -> None:
    def script(request: Request) -> Reply:
        return Reply(text="t", usage=Usage(calls=1, prompt_tokens=6, completion_tokens=4))

    async def main() -> None:
        with Calls(tmp_path / "calls.sqlite") as calls:
            budget = Budget.resume(calls, "run", max_calls=3)
            one = CachedEngine(ScriptedEngine(script, name="one"), calls, "run", budget)
            two = CachedEngine(ScriptedEngine(script, name="two"), calls, "run", budget)
            await one.generate([ask("a")])
            await two.generate([ask("a")])
            with pytest.raises(BudgetExceeded, match="max_calls=3: 2 calls are spent and 2 more"):
                await one.generate([ask("b"), ask("c")])
            await one.generate([ask("b"), ask("a")])
            budget = Budget.resume(calls, "run", max_tokens=31)
            one = CachedEngine(ScriptedEngine(script, name="one"), calls, "run", budget)
            await one.generate([ask("c")])
            with pytest.raises(BudgetExceeded, match="max_tokens=31: 40 tokens"):
                await one.generate([ask("d")])
            assert len(await one.generate([ask("a"), ask("b"), ask("c")])) == 3

    asyncio.run(main())
