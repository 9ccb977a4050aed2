"""What the terminal shows: bars while a run works, its plan before, a summary after."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich import progress
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.pipeline import Pipeline, Tally
from service.recipe import Plan

if TYPE_CHECKING:
    from service.plan import Description

console = Console(highlight=False)


class Progress:
    """One bar with rate, what is left, and the drops so far."""

    def __init__(self) -> None:
        self._bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=28),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )
        self._task = self._bars.add_task("starting", total=None, rate="", note="")
        self._pipeline: Pipeline | None = None
        self._started = False

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bars.stop()

    def stage(self, name: str) -> None:
        self._bars.update(self._task, description=name)

    def rows(self, n: int) -> None:
        self._bars.reset(self._task, total=n)

    def pipeline(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def tally(self, t: Tally) -> None:
        elapsed = self._bars.tasks[0].elapsed or 0.0
        rate = f"{(t.done - t.resumed) / elapsed:.1f}/s" if elapsed > 0 else ""
        drops = ", ".join(f"{n} {reason}" for reason, n in t.drops.most_common(2))
        note = f"{t.kept} pairs" + (f"; dropped: {escape(drops)}" if drops else "")
        self._bars.update(self._task, completed=t.done, rate=rate, note=note)

    def stop(self) -> bool:
        """Asks the pipeline to stop; False if it was asked before, or there is none yet."""
        if self._pipeline is None or self._pipeline.stopped:
            return False
        self._pipeline.stop()
        self.stage("stopping (again: at once)")
        return True


def drops_table(drops: dict[str, dict[str, dict[str, int]]]) -> Table:
    """Everything that was dropped, by what it was, stage and reason."""
    table = Table("dropped", "stage", "reason", "n", box=None, padding=(0, 2, 0, 0))
    for unit, stages in drops.items():
        for stage, reasons in stages.items():
            for reason, n in sorted(reasons.items(), key=lambda x: -x[1]):
                table.add_row(unit, stage, escape(reason), str(n))
    return table


def show_summary(plan: Plan, manifest: dict[str, Any]) -> None:
    """A finished run in a few lines."""
    p, pairs, votes = manifest["prompts"], manifest["pairs"], manifest["agreement"]
    console.print(
        f"[bold]{escape(manifest['run'])}[/]: {p['rows']} prompts in, {p['kept']} gave pairs, "
        f"{p['dropped']} dropped; {pairs['made']} pairs made, {pairs['exported']} exported"
    )
    if manifest["drops"]:
        console.print(drops_table(manifest["drops"]))
    if votes["both_orders"]:
        share = 100 * votes["consistent"] / votes["both_orders"]
        console.print(f"both slot orders agree on {share:.1f}% of {votes['both_orders']} pairs")
    console.print(usage_line(manifest))
    console.print(f"reused {manifest['reused']:,} stored replies, asked {manifest['asked']:,}")
    if manifest["constitution_edited"]:
        console.print(
            "[bold yellow]The constitution was edited while this run was going[/]: "
            f"{escape(manifest['constitution_edited'])}. The run kept to its snapshot, "
            f"{escape(str(plan.folder))}/constitution.yaml (hash {plan.constitution.hash})."
        )
    console.print(f"files: {plan.folder}/data, card: {plan.folder}/README.md")


def usage_line(manifest: dict[str, Any]) -> str:
    """Calls, tokens and speed of a run."""
    from service.run import total

    u, s = total(manifest["usage"]), max(manifest["seconds"], 1e-9)
    tokens = u.prompt_tokens + u.completion_tokens
    return (
        f"{u.calls:,} calls ({manifest['reused']:,} reused), {u.prompt_tokens:,} tokens in "
        f"({u.cached_tokens:,} cached), {u.completion_tokens:,} out, {s:.1f} s, {tokens / s:,.0f} tokens/s"
    )


def show_plan(d: Description) -> None:
    """What a run would do."""
    console.print(f"[bold]{escape(str(d.folder))}[/], constitution {escape(d.constitution)}")
    for line in d.lines:
        console.print(escape(line))
    table = Table("stage", "model", "calls", "tokens in (about)", "tokens out (most)", box=None)
    for stage in d.stages:
        table.add_row(stage.name, stage.model, f"{stage.calls:,}", f"{stage.tokens_in:,}", f"{stage.tokens_out:,}")
    console.print(table)
    for title, text in d.examples:
        console.rule(escape(title))
        console.print(escape(text))


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with columns, never wrapped: for tables that are also kept in files."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def tell(doing: str) -> None:
    """Says on stderr what a long command is at."""
    print(doing, file=sys.stderr, flush=True)
