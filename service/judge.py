"""`tenet judge`: a file of pairs becomes a file of verdicts, and a screen of what they amount to."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from rich import progress
from rich.console import Console
from rich.markup import escape

from judges import pairs_file
from judges.pairs_file import LabelledPair
from service import judging
from service.judging import JudgePlan, Summary
from service.screen import console


@dataclass(frozen=True)
class Places:
    """Where the command reads and writes."""

    out: Path | None
    votes: Path | None
    workspace: Path


def main(pairs: Path, config: Path, overrides: Iterable[str], places: Places, limit: int | None) -> None:
    """Judges a file's pairs. Raises InputError before the first call, EngineError, LedgerError on the way."""
    plan = judging.open_config(config, overrides)
    total = sum(1 for _ in islice(pairs_file.read(pairs), limit))  # every row is read before the first call
    out = places.out or places.workspace / "judged" / f"{pairs.stem}.jsonl"
    task = _judge_file(plan, islice(pairs_file.read(pairs), limit), total, out, places, pairs.stem)
    try:
        summary, seconds, session = asyncio.run(_interruptible(task))
    except asyncio.CancelledError:
        print("\nStopped. Stored replies stay; the same command goes on.", file=sys.stderr)
        sys.exit(130)
    show(plan, summary, session, seconds)
    console.print(f"files: {escape(str(out))}" + (f", {escape(str(places.votes))}" if places.votes else ""))


async def _interruptible(work: Any) -> Any:
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        return await task
    finally:
        loop.remove_signal_handler(signal.SIGINT)


async def _judge_file(
    plan: JudgePlan, pairs: Iterable[LabelledPair], total: int, out: Path, places: Places, name: str
) -> tuple[Summary, float, judging.Session]:
    summary, rater = Summary(), Path(plan.source).stem
    limits = plan.config.limits
    with ExitStack() as files, _bars() as bars:
        verdicts = files.enter_context(_Whole(out))
        votes = files.enter_context(_Whole(places.votes)) if places.votes else None
        bar = bars.add_task("starting", total=total)
        async with judging.opened(plan, places.workspace, f"judge:{name}") as session:
            bars.update(bar, description="judging")
            begun = time.monotonic()
            async for judged in judging.judge_pairs(session.judge, pairs, limits.in_flight, limits.max_failures):
                summary.add(judged)
                bars.advance(bar)
                _put(verdicts, [{**judging.line_of(judged), "constitution": plan.constitution.hash}])
                if votes is not None:
                    _put(votes, judging.votes_of(judged, rater))
            return summary, time.monotonic() - begun, session


def _put(file: TextIO, rows: Iterable[dict[str, Any]]) -> None:
    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


class _Whole:
    """A file that appears under its name only when it is whole."""

    def __init__(self, path: Path) -> None:
        self._path, self._new = path, path.with_name(path.name + ".new")

    def __enter__(self) -> TextIO:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._new.open("w", encoding="utf-8", newline="\n")
        return self._file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is None:
            os.replace(self._new, self._path)
        else:
            self._new.unlink()


def _bars() -> progress.Progress:
    columns = ("{task.description}", progress.BarColumn(bar_width=28), progress.MofNCompleteColumn())
    return progress.Progress(*columns, progress.TimeRemainingColumn(), console=Console(stderr=True))


def show(plan: JudgePlan, summary: Summary, session: judging.Session, seconds: float) -> None:
    """What came of it, on one screen."""
    n = sum(summary.labels.values())
    kind = plan.config.judge.get("kind")
    said = ", ".join(f"{label} {summary.labels[label]}" for label in ("A", "B", "tie", "invalid", "refused"))
    console.print(f"[bold]{escape(plan.source)}[/] ({kind}): {n} pairs: {said}")
    for why, times in summary.reasons.most_common(5):
        console.print(f"  not readable: {escape(why)}: {times}")
    if summary.both:
        share = 100 * summary.consistent / summary.both
        console.print(f"both slot orders give the same label: {share:.1f}% (n = {summary.both})")
    if summary.readable:
        share = 100 * summary.first / summary.readable
        console.print(f"first slot preferred in {share:.1f}% of votes (n = {summary.readable}; 50% is unbiased)")
    if summary.cut:
        console.print(f"rationales cut at max_tokens: {summary.cut}")
    u, rate = session.usage, n / max(seconds, 1e-9)
    console.print(
        f"{session.asked:,} calls ({session.reused:,} reused), {u.prompt_tokens:,} tokens in "
        f"({u.cached_tokens:,} cached), {u.completion_tokens:,} out, {seconds:.1f} s, {rate:,.1f} pairs/s"
    )
