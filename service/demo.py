"""`tenet demo`: the whole job on the bundled toy model, with the oracle's word on what came of it."""

from __future__ import annotations

import json
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from nano import world
from nano.check import interval
from nano.lexicon import UNNAMED
from service import recipe as recipes
from service import screen
from service.cli import run_watched
from service.pipeline import Window
from service.recipe import Plan
from tenet.ledger import Rows
from tenet.records import Candidate, Preference, Verdict

NAMED = frozenset(world.AVOID) - UNNAMED
CONTROL = frozenset(world.AVOID) & UNNAMED


def main(out: Path, prompts: int) -> None:
    """Runs the packaged recipe and prints one screen."""
    with resources.as_file(resources.files("service").joinpath("demo_files")) as folder:
        plan = recipes.open_recipe(folder / "recipe.yaml", [], str(out))
        manifest = run_watched(plan, Window(limit=prompts))
    found = measure(out)
    show(plan, manifest, found)
    (out / "oracle.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


def measure(folder: Path) -> dict[str, Any]:
    """What the oracle says of a run's rows: fault rates by round, and the judge's accuracy."""
    n: Counter[tuple[str, int]] = Counter()
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    with Rows(folder, readonly=True) as rows:
        for row in rows.iterate():
            if row.stage == "candidate":
                c = Candidate.model_validate_json(row.record)
                for round, text in enumerate([c.response.text, *(r.text for r in c.revisions)]):
                    n["replies", round] += 1
                    n["named", round] += bool(world.faults(text, NAMED))
                    n["control", round] += bool(world.faults(text, CONTROL))
            elif row.stage in ("preference", "judged"):
                _compare(json.loads(row.record), right, asked)
    rounds = sorted(r for kind, r in n if kind == "replies")
    return {
        "rounds": [{kind: interval(n[kind, r], n["replies", r]) for kind in ("named", "control")} for r in rounds],
        "accuracy": {
            kind: interval(right[kind], asked[kind]) if asked[kind] else None
            for kind in ("verdicts", "votes", "same from both orders")
        },
    }


def _compare(record: dict[str, Any], right: Counter[str], asked: Counter[str]) -> None:
    """Counts a pair's verdict, and each principle's vote, where the oracle finds a difference."""
    c = record["comparison"]
    verdict = Verdict.model_validate(record["verdict"])
    a, b = world.read(c["a"]), world.read(c["b"])
    by_principle: dict[str, list[float]] = {}
    for vote in verdict.votes:
        if vote.p_a is not None:
            by_principle.setdefault(vote.principle, []).append(vote.p_a)
    edge = 0
    for key, ps in by_principle.items():
        better = int(b.breaks(key)) - int(a.breaks(key))
        edge += better
        if better:
            asked["votes"] += 1
            right["votes"] += (sum(ps) / len(ps) > 0.5) == (better > 0)
    if edge:
        asked["verdicts"] += 1
        right["verdicts"] += verdict.label == ("A" if edge > 0 else "B")
        if verdict.consistent is not None:
            asked["same from both orders"] += 1
            right["same from both orders"] += verdict.consistent


def show(plan: Plan, manifest: dict[str, Any], found: dict[str, Any]) -> None:
    """One screen."""
    out = screen.console
    p, pairs = manifest["prompts"], manifest["pairs"]
    out.rule("tenet demo: nano, a toy model, served by real vLLM in Ray actors")
    out.print(
        f"{p['rows']} prompts in, {p['kept']} gave pairs, {p['dropped']} dropped;  "
        f"{pairs['made']} pairs made, {pairs['exported']} exported"
    )
    out.print(screen.drops_table(manifest["drops"]))
    table = Table("replies with a fault (oracle)", box=None, padding=(0, 2, 0, 0))
    for i in range(len(found["rounds"])):
        table.add_column("first" if i == 0 else f"round {i}", justify="right")
    for kind, title in (("named", "named by the constitution"), ("control", "not named: a control")):
        table.add_row(title, *(_share(r[kind]) for r in found["rounds"]))
    out.print(table)
    votes = manifest["agreement"]
    for kind, what in (
        ("verdicts", "judge is right on pairs"),
        ("votes", "judge is right on single principles"),
        ("same from both orders", "both slot orders give the same label"),
    ):
        if found["accuracy"][kind]:
            out.print(f"{what}, where the oracle sees a difference: {_share(found['accuracy'][kind], True)}")
    if votes["both_orders"]:
        share = 100 * votes["consistent"] / votes["both_orders"]
        first = 100 * votes["first_slot"] / max(votes["readable_votes"], 1)
        out.print(
            f"the same on all judged pairs, ties too: {share:.1f}% (n = {votes['both_orders']}); "
            f"first slot preferred in {first:.1f}% of votes (nano falls to slot B when nothing differs)"
        )
    out.print(screen.usage_line(manifest))
    _example(plan.folder)
    out.print(f"files: {plan.folder}/data (Parquet, JSONL), {plan.folder}/README.md, {plan.folder}/manifest.json")


def _example(folder: Path) -> None:
    with Rows(folder, readonly=True) as rows:
        made = [Preference.model_validate_json(r.record) for r in rows.iterate("preference")]
    if not made:
        return
    best = max(
        made, key=lambda p: (p.comparison.a_from.count("round") != p.comparison.b_from.count("round"), p.p_chosen)
    )
    chosen, rejected = best.texts
    screen.console.print(f"[bold]prompt[/]    {escape(best.comparison.prompt.messages[-1].content)}")
    screen.console.print(f"[bold]chosen[/]    {escape(chosen)}")
    screen.console.print(f"[bold]rejected[/]  {escape(rejected)}")
    screen.console.print(f"[bold]p_chosen[/]  {best.p_chosen:.3f}")


def _share(x: dict[str, Any], full: bool = False) -> str:
    text = f"{100 * x['value']:.1f}%"
    return f"{text} (95% interval {100 * x['low']:.1f}-{100 * x['high']:.1f}%, n = {x['n']})" if full else text
