"""The loop that one writes around a client: a semaphore, four calls a record, and a file of finished records."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable

import chain

Call = Callable[[str, dict[str, str]], Awaitable[str]]
"""Takes a stage and the row so far, and returns the reply's text."""


async def run(given: argparse.Namespace, call: Call) -> None:
    """Every record through `call`; those in the file from an earlier start are not asked again."""
    path = given.folder / "rows.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    done = {row["prompt"]: row for row in (json.loads(line) for line in lines if line.endswith("\n"))}
    places = asyncio.Semaphore(given.concurrency)
    with path.open("a") as file:

        async def record(prompt: str) -> None:
            row = {"prompt": prompt}
            async with places:
                for stage in chain.STAGES:
                    row[stage] = await call(stage, row)
            file.write(json.dumps(row) + "\n")
            file.flush()
            done[prompt] = row

        await asyncio.gather(*(record(p) for p in chain.prompts(given.records) if p not in done))
    chain.tell(row["verdict"] for row in done.values())
