"""Benchmark: records/s of a whole run against a stub server, beside the engine alone and the openai client.

`python benchmarks/endpoint.py` prints JSON. A record is four calls, one after the other: respond,
critique, revise, judge. The floor is latency * calls / concurrency: what a client that costs nothing
would need. "tenet generate" is everything the command does: prompts read and deduplicated, the
ledger of calls and rows on disk, exports, card, manifest. Every contender runs in this process, in
turn, against the same stub, which runs in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tenet.engines import Reply, Request, Sampling
from tenet.engines.openai import Settings, build
from tenet.records import Message

STUB = Path(__file__).parent.parent / "tests" / "stub_server.py"
CALLS = 4  # of one record, in sequence
PROMPT = "How do I keep a wooden board clean? " * 20
RECIPE = """
prompts: {{path: prompts.jsonl, dedup: exact}}
constitution: helpful
models:
  stub: {{kind: openai, model: stub, base_url: "{base_url}", concurrency: {concurrency}, key_env: ""}}
respond: {{samples: 1}}
revise: {{rounds: 1}}
pairs: [{{kind: initial_vs_revision}}]
judge: {{kind: pairwise, order: given}}
limits: {{in_flight: {concurrency}}}
"""
RULE = "You answer kindly, and never boast."

Contender = Callable[[str, int, int], Awaitable[None]]
"""Takes (base_url, records, concurrency) and returns when every record is done."""


@contextmanager
def stub(latency: float) -> Generator[str]:
    """The base URL of a stub server in its own process."""
    command = [sys.executable, str(STUB), "--latency", str(latency)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        yield process.stdout.readline().decode().strip()
        process.stdin.close()  # tells it to stop


async def engine(base_url: str, records: int, concurrency: int) -> None:
    """Our engine alone: chains of four calls, as many at once as may be in flight."""
    served = build(Settings(model="stub", base_url=base_url, concurrency=concurrency, key_env=""))

    async def record(number: int) -> None:
        for step in range(CALLS):
            asked = (
                Message(role="system", content=RULE),
                Message(role="user", content=f"{number} {step} {PROMPT}"),
            )
            choices = ("A", "B") if step == CALLS - 1 else ()
            request = Request(messages=asked, sampling=Sampling(seed=number), choices=choices)
            (reply,) = await served.generate([request])
            _good(reply)

    try:
        await chains(record, records, concurrency)
    finally:
        await served.close()


async def pipeline(base_url: str, records: int, concurrency: int) -> None:
    """A whole run from a recipe, in a new folder."""
    from service import recipe, run

    with tempfile.TemporaryDirectory() as folder:
        lines = (json.dumps({"prompt": f"{number} {PROMPT}"}) for number in range(records))
        Path(folder, "prompts.jsonl").write_text("\n".join(lines))
        Path(folder, "recipe.yaml").write_text(RECIPE.format(base_url=base_url, concurrency=concurrency))
        plan = recipe.open_recipe(Path(folder, "recipe.yaml"), out=f"{folder}/runs/r")
        manifest = await run.execute(plan)
    if manifest["asked"] != CALLS * records or manifest["prompts"]["kept"] != records:
        raise SystemExit(f"not {CALLS} calls a record: {manifest['asked']} calls, {manifest['drops']}")


def _good(reply: Reply) -> None:
    if reply.fault:
        raise SystemExit(f"the stub failed: {reply.fault} {reply.detail}")


async def client(base_url: str, records: int, concurrency: int) -> None:
    """What one would write first: asyncio and the openai client."""
    from openai import AsyncOpenAI

    # Its own 5 s to connect are too few where a busy machine starves it; it shall finish.
    async with AsyncOpenAI(base_url=base_url, api_key="none", timeout=600) as served:

        async def record(number: int) -> None:
            for step in range(CALLS):
                asked: Any = [
                    {"role": "system", "content": RULE},
                    {"role": "user", "content": f"{number} {step} {PROMPT}"},
                ]
                more: dict[str, Any] = {"max_tokens": 512, "temperature": 1.0, "seed": number}
                if step == CALLS - 1:
                    more = {"max_tokens": 1, "logprobs": True, "top_logprobs": 20}
                await served.chat.completions.create(model="stub", messages=asked, **more)

        await chains(record, records, concurrency)


async def chains(record: Callable[[int], Awaitable[None]], records: int, concurrency: int) -> None:
    """Run `record(0..records-1)`, `concurrency` at a time, each going on by itself."""
    numbers = iter(range(records))

    async def worker() -> None:
        for number in numbers:
            await record(number)

    await asyncio.gather(*(worker() for _ in range(min(concurrency, records))))


def measure(
    contenders: dict[str, Contender], *, records: int, concurrency: int, latency: float
) -> dict[str, Any]:
    """Each contender's wall and CPU time, and their ratios to the floor and to "openai client"."""
    floor_s = latency * records * CALLS / concurrency
    found: dict[str, Any] = {
        "records": records,
        "calls_a_record": CALLS,
        "concurrency": concurrency,
        "latency_s": latency,
        "cpus": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "floor_s": round(floor_s, 3),
        "floor_records_s": round(records / floor_s, 1),
    }
    for name, contender in contenders.items():
        before = _children_cpu()
        with stub(latency) as base_url:
            asyncio.run(_timed(contender, base_url, 20, concurrency))  # imports, caches
            wall, cpu = asyncio.run(_timed(contender, base_url, records, concurrency))
        found[name] = {
            "seconds": round(wall, 3),
            "records_s": round(records / wall, 1),
            "cpu_ms_a_call": round(cpu / records / CALLS * 1000, 3),
            "of_floor": round(floor_s / wall, 3),
            # Start-up included; where this comes near the above, the stub is what is measured.
            "stub_cpu_ms_a_call": round((_children_cpu() - before) / records / CALLS * 1000, 3),
        }
    if plain := found.get("openai client"):
        for name in contenders:
            found[name]["over_client"] = round(plain["seconds"] / found[name]["seconds"], 2)
    return found


def _children_cpu() -> float:
    told = resource.getrusage(resource.RUSAGE_CHILDREN)  # of those that have ended
    return told.ru_utime + told.ru_stime


async def _timed(
    contender: Contender, base_url: str, records: int, concurrency: int
) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    await contender(base_url, records, concurrency)
    return time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--records", type=int, default=2000)
    options.add_argument("--concurrency", type=int, default=256)
    options.add_argument("--latency", type=float, default=0.05, help="seconds")
    options.add_argument("--only", choices=["tenet generate", "engine", "openai client"])
    given = options.parse_args()
    runs: dict[str, Contender] = {"tenet generate": pipeline, "engine": engine, "openai client": client}
    if given.only:
        runs = {given.only: runs[given.only]}
    told = measure(
        runs, records=given.records, concurrency=given.concurrency, latency=given.latency
    )
    print(json.dumps(told, indent=2))
