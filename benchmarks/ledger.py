"""The ledger at a million rows and a million calls: write, resume and read times, and peak memory.

    python benchmarks/ledger.py --rows 1000000 > docs/benchmarks/ledger.json

Each store runs in a process of its own, so that its peak memory is its own. Times are wall seconds
beside CPU seconds of the process, because the machine may be shared.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import multiprocessing
import os
import platform
import resource
import sqlite3
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tenet.ledger import Calls, Rows, StoredReply
from tenet.records import Usage, canonical

CHAIN = 5
"""Records of one prompt."""
AT_ONCE = 256
"""Coroutines that write."""
TEXT = "Rinse the brush under warm water, then let it dry flat. "
COST = Usage(calls=1, prompt_tokens=300, completion_tokens=80)


def record(ordinal: int, seq: int) -> str:
    """About 600 bytes, as a reply's or a verdict's record has."""
    return canonical(
        {"index": seq, "model": "nano:assistant", "prompt_id": f"{ordinal:020x}", "text": TEXT * 9}
    )


def key(n: int) -> str:
    return hashlib.blake2b(n.to_bytes(8, "big"), digest_size=16).hexdigest()


@contextmanager
def timed(figures: dict[str, Any], name: str, n: int) -> Generator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    figures[name] = {
        "seconds": round(wall, 2),
        "cpu_seconds": round(cpu, 2),
        "per_second": round(n / wall),
        "cpu_microseconds_each": round(cpu / n * 1e6, 2),
    }


async def spread(n: int, one: Callable[[int], Awaitable[Any]]) -> None:
    """Runs one(0..n-1) in AT_ONCE coroutines."""
    numbers = iter(range(n))

    async def worker() -> None:
        for number in numbers:
            await one(number)

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


def rows(folder: Path, n: int) -> dict[str, Any]:
    """Writes n rows, then opens the run again to resume it, count it and read it."""
    figures: dict[str, Any] = {"rows": n, "bytes_a_record": len(record(0, 0))}
    prompts = n // CHAIN
    with timed(figures, "write", n), Rows(folder) as run:

        async def put(o: int) -> None:
            await run.put(o, f"{o:020x}", [(f"stage{s}", record(o, s)) for s in range(CHAIN)])

        asyncio.run(spread(prompts, put))
    figures["megabytes"] = (folder / "rows.sqlite").stat().st_size >> 20
    with Rows(folder) as run:
        with timed(figures, "resume", prompts):
            assert all(run.done(o) for o in range(prompts))
        with timed(figures, "counts", n):
            assert sum(run.counts().stages.values()) == n
        with timed(figures, "iterate", n):
            assert sum(1 for _ in run.iterate()) == n
    return figures


def calls(folder: Path, n: int) -> dict[str, Any]:
    """Looks up and stores n replies, one a coroutine as an endpoint gives them, then reuses all."""
    figures: dict[str, Any] = {"calls": n, "bytes_a_text": len(TEXT * 7)}
    reply = StoredReply(TEXT * 7, "stop", (-0.105, -2.302), COST)
    with timed(figures, "miss_then_put", n), Calls(folder / "calls.sqlite") as store:

        async def pay(i: int) -> None:
            name = key(i)
            assert not await store.get_many([name])
            await store.put_many({name: reply}, "run", "engine")

        asyncio.run(spread(n, pay))
    figures["megabytes"] = (folder / "calls.sqlite").stat().st_size >> 20
    with Calls(folder / "calls.sqlite") as store:

        async def reuse(i: int) -> None:
            assert await store.get_many([key(i)])

        with timed(figures, "hit", n):
            asyncio.run(spread(n, reuse))
        with timed(figures, "counts", n):
            assert store.counts() == {"run": n}
    return figures


def alone(measure: Callable[[Path, int], dict[str, Any]], n: int, folder: str) -> dict[str, Any]:
    """In a process of its own, in a new folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        figures = measure(Path(place), n)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return figures | {"peak_memory_megabytes": peak >> 10}


def machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "load_average": [round(x, 1) for x in os.getloadavg()],
        "nice": os.nice(0),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "system": f"{platform.system()} {platform.release()}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows, and calls as well")
    parser.add_argument("--folder", default=None, help="where to write, about 2 kB a row")
    given = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(), "coroutines": AT_ONCE}
    for measure in (rows, calls):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            result[measure.__name__] = pool.apply(alone, (measure, given.rows, given.folder))
        print(f"{measure.__name__} done", file=sys.stderr)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
