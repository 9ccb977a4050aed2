"""The ledger at millions of rows and calls: append, resume scan, export, page queries, and peak memory.

    python -P benchmarks/ledger.py --rows 1000000 > docs/benchmarks/ledger.json
    python -P benchmarks/ledger.py --rows 10000000 --folder /big/disk > docs/benchmarks/ledger-10m.json

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
import random
import resource
import sqlite3
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service import export
from service import recipe as recipes
from service.api.reader import Filter, Pages, Reader
from tenet.ledger import Calls, Rows, StoredReply
from tenet.records import (
    Candidate,
    Comparison,
    Message,
    Preference,
    Prompt,
    Response,
    Usage,
    Verdict,
    Vote,
    canonical,
)

AT_ONCE = 512
"""Coroutines that write: as many prompts as a recipe has in flight where it says nothing else."""
PAGES, PAGE = 2000, 50
TEXT = "Rinse the brush under warm water, then let it dry flat. "
ASKED = Prompt(messages=(Message(role="user", content="How do I clean brush number @?"),))
VOTES = tuple(
    Vote(principle="calm", order=order, label="A", p_a=0.75, logprobs=(-0.25, -1.5)) for order in ("ab", "ba")
)
CHAIN = [
    ("prompt", ASKED),
    *(("candidate", Candidate(response=Response(prompt_id="@", index=i, text=TEXT * 5, model="m"))) for i in (0, 1)),
    ("preference", Preference(
        comparison=Comparison(prompt=ASKED, a=TEXT * 5, b=TEXT * 6, a_from="sample 0", b_from="sample 1"),
        verdict=Verdict(label="A", p_a=0.75, votes=VOTES, consistent=True), chosen="A", p_chosen=0.75,
    )),
]  # fmt: skip
"""The records of one prompt; "@" is its number."""
RECORDS = [
    *((stage, canonical(record.model_dump(mode="json"))) for stage, record in CHAIN),
    ("outcome", canonical({"prompt_id": "@", "preferences": 1, "comparisons": 1, "retry": False})),
]
RECIPE = """
prompts: {path: prompts.jsonl}
constitution: helpful
models: {m: {kind: scripted}}
revise: {rounds: 0}
"""
COST = Usage(calls=1, prompt_tokens=300, completion_tokens=80)


def chain(ordinal: int) -> list[tuple[str, str]]:
    return [(stage, record.replace("@", f"{ordinal:020x}")) for stage, record in RECORDS]


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
    """Writes n rows, then opens the run again to resume it, count it, read it, page through it and export it."""
    prompts = n // len(RECORDS)
    size = sum(len(record) for _, record in chain(0)) // len(RECORDS)
    figures: dict[str, Any] = {"rows": n, "bytes_a_record": size}
    with timed(figures, "append", n), Rows(folder) as run:

        async def put(o: int) -> None:
            await run.put(o, f"{o:020x}", chain(o))

        asyncio.run(spread(prompts, put))
    figures["megabytes"] = (folder / "rows.sqlite").stat().st_size >> 20
    with Rows(folder) as run:
        with timed(figures, "reopen", n):
            assert run.reopen() == 0
        with timed(figures, "resume_scan", prompts):
            assert all(run.done(o) for o in range(prompts))
        with timed(figures, "counts", n):
            assert sum(run.counts().stages.values()) == n
        with timed(figures, "iterate", n):
            assert sum(1 for _ in run.iterate()) == n
        figures["peak_memory_megabytes_before_export"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        figures |= paged(folder, prompts)
        (folder / "prompts.jsonl").write_text('{"prompt": "?"}\n')
        (folder / "recipe.yaml").write_text(RECIPE)
        with timed(figures, "export", prompts):
            _, sieve = export.write(run, recipes.open_recipe(folder / "recipe.yaml"), folder / "data")
    assert sieve.kept == prompts
    figures["exported_megabytes"] = sum(p.stat().st_size for p in (folder / "data").iterdir()) >> 20
    return figures


def paged(folder: Path, prompts: int) -> dict[str, Any]:
    """Milliseconds of a page, a page with a filter, and a prompt's chain, each from places drawn at random."""
    pages, reader, draw = Pages(), Reader(folder), random.Random(0)
    wanted = Filter(stages=("preference",), principle="calm")
    kinds: dict[str, tuple[int, Callable[[int], Any]]] = {
        "page": (PAGES, lambda o: len(pages.page(folder, (o, -1), PAGE).rows) == PAGE),
        "filtered_page": (PAGES // 10, lambda o: len(reader.page((o, -1), PAGE, wanted, 1.0).rows) == PAGE),
        "chain": (PAGES // 10, lambda o: len(reader.chain(o)) == len(RECORDS)),
    }
    figures: dict[str, Any] = {}
    for name, (times, ask) in kinds.items():
        took: list[float] = []
        for _ in range(times):
            place = draw.randrange(prompts - 2 * PAGE)
            begun = time.perf_counter()
            assert ask(place)
            took.append((time.perf_counter() - begun) * 1e3)
        took.sort()
        figures[name] = {"n": times, "p50_ms": round(took[times // 2], 2), "p99_ms": round(took[times * 99 // 100], 2)}
    pages.close()
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
    parser.add_argument("--only", choices=("rows", "calls"), help="one of the two stores")
    given = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(), "coroutines": AT_ONCE}
    for measure in (m for m in (rows, calls) if given.only in (None, m.__name__)):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            result[measure.__name__] = pool.apply(alone, (measure, given.rows, given.folder))
        print(f"{measure.__name__} done", file=sys.stderr)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
