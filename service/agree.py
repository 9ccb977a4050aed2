"""`tenet agree`: votes in; figures of agreement on the screen, as JSON and as a report; gates at the end."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from judges import pairs_file
from judges.agreement import gates, report
from judges.agreement import votes as votes_file
from judges.agreement._sections import number, spread
from judges.agreement.measure import Agreement, measure
from judges.agreement.rules import Rules
from judges.agreement.votes import Votes
from judges.pairs_file import LabelledPair
from service.screen import console
from tenet.errors import DataError, SettingsError

_JUDGE_FILES = (".yaml", ".yml")


@dataclass(frozen=True)
class Job:
    """What the command was asked for."""

    votes: Path | None
    pairs: Path | None
    judges: Sequence[str]
    """Raters of the votes, or, without votes, configs of judges that are to judge the pairs."""
    rules: Rules
    by: Sequence[str] = ()
    gate: str = ""
    json_out: Path | None = None
    report_dir: Path | None = None
    attacks: Sequence[Path] = ()
    workspace: Path = Path("runs")


def main(job: Job) -> bool:
    """Measures, shows and writes; False if a gate failed. Raises InputError before any judge is called."""
    attacks = [_attack(path) for path in job.attacks]
    votes = _votes(job)
    agreement = measure(votes, job.rules, () if job.votes is None else job.judges, job.by)
    source = str((job.votes or job.pairs or Path()).name)
    figures = agreement.figures
    asked = _gates(job.gate, figures["judges"])
    show(agreement)
    if job.json_out:
        job.json_out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(figures, indent=1, ensure_ascii=False, allow_nan=False)
        job.json_out.write_text(text + "\n", encoding="utf-8", newline="\n")
        console.print(f"JSON: {escape(str(job.json_out))}")
    if job.report_dir:
        page, _ = report.write(agreement, job.report_dir, source, attacks)
        console.print(f"report: {escape(str(page))}, and report.md beside it")
    failures = gates.check(asked, figures["judges"])
    for failure in failures:
        console.print(f"[bold red]gate[/] {escape(str(failure))}")
    if asked and not failures:
        console.print(f"gates passed: {escape(job.gate)}")
    return not failures


def _gates(text: str, judges: dict[str, Any]) -> list[gates.Gate]:
    if not text:
        return []
    if not judges:
        raise SettingsError("there is no judge to hold a gate against", where="--gate", fix="name votes with one")
    return gates.parse(text, next(iter(judges.values())))


def _votes(job: Job) -> Votes:
    if job.votes is None and job.pairs is None:
        raise SettingsError("there is nothing to read", fix="name a votes file, or give --pairs and --judge CONFIG")
    if job.votes is not None:
        votes = votes_file.read(str(job.votes), job.rules.duplicates)
        if job.pairs is None:
            return votes
        return replace(votes, pairs={pair.id: pair.comparison for pair in pairs_file.read(job.pairs)})
    assert job.pairs is not None
    if not job.judges:
        return votes_file.from_pairs(pairs_file.read(job.pairs), job.rules.duplicates)
    for name in job.judges:
        if Path(name).suffix not in _JUDGE_FILES:
            fix = "without a votes file, --judge is a judge's config (YAML)"
            raise SettingsError(f"{name!r} is not a config file", where="--judge", fix=fix)
    return judged(list(pairs_file.read(job.pairs)), job)


def judged(pairs: list[LabelledPair], job: Job) -> Votes:
    """People's labels, and each config's verdicts on the pairs, asked for now; stored replies are reused."""
    from service import judging

    plans = [judging.open_config(Path(name)) for name in job.judges]
    stems = [Path(plan.source).stem for plan in plans]
    names = stems if len(set(stems)) == len(stems) else [plan.source for plan in plans]
    gathered = votes_file.gather(job.rules.duplicates)
    for pair in pairs:
        votes_file.add_pair(gathered, pair)

    async def ask(plan: judging.JudgePlan, rater: str, seen: Callable[[], None]) -> None:
        limits = plan.config.limits
        async with judging.opened(plan, job.workspace, f"agree:{rater}") as session:
            async for one in judging.judge_pairs(session.judge, pairs, limits.in_flight, limits.max_failures):
                for row in judging.votes_of(one, rater):
                    if row["kind"] == "judge":
                        gathered.add(row, one.pair.row)
                seen()

    columns = ("{task.description}", BarColumn(bar_width=28), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(stderr=True)) as bars:
            for plan, name in zip(plans, names, strict=True):
                bar = bars.add_task(escape(name), total=len(pairs))
                asyncio.run(ask(plan, name, partial(bars.advance, bar)))
    except KeyboardInterrupt:
        print("\nStopped. Stored replies stay; the same command goes on.", file=sys.stderr)
        sys.exit(130)
    return gathered.votes(pairs={pair.id: pair.comparison for pair in pairs})


def _attack(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise DataError(f"cannot be read: {e.strerror}", where=str(path), fix="check the path") from None
    except ValueError:
        found = None
    if not isinstance(found, dict) or not {"judge", "attacks"} <= found.keys():
        raise DataError("is no report of tenet attack", where=str(path), fix="write one with tenet attack --json")
    return cast(dict[str, Any], found)


def show(agreement: Agreement) -> None:
    """The figures that decide, on one screen."""
    f = agreement.figures
    console.print(f"[bold]{f['input']['votes']:,} votes on {f['input']['items']:,} items[/]")
    console.print(escape(report.rules_line(f["rules"])))
    console.print(_people_line(f["humans"]))
    judges = f["judges"]
    if not judges:
        console.print("No rater is of kind judge.")
        return
    console.print(_judges_table(judges))
    console.print(_second_table(judges))
    for line in _between_lines(f["between"]):
        console.print(escape(line))
    for line in _reasons(judges):
        console.print(f"[dim]{escape(line)}[/]")


def _judges_table(judges: dict[str, Any]) -> Table:
    table = _table("judge", "n", "accuracy (95%)", "kappa (95%)", "AC1", "no ties")
    for name, j in judges.items():
        cells = (number(j["n"]), spread(j["accuracy"]), spread(j["cohen_kappa"]), number(j["gwet_ac1"]))
        table.add_row(escape(name), *cells, number(j["s2"]["value"]))
    return table


def _second_table(judges: dict[str, Any]) -> Table:
    table = _table("judge", "unread", "ab = ba", "1st slot", "longer", "ECE", "trivial", "alt-test")
    for name, j in judges.items():
        states, bias, test = j["states"], j["bias"], j["alt_test"]
        total, bad = sum(states.values()), states["invalid"] + states["refused"]
        baselines = [bias[f"{k}_baseline"] for k in ("longer", "first", "majority")]
        best = max((b["value"] for b in baselines if b["value"] is not None), default=None)
        longer: dict[str, Any] = bias["longer_share"] or {}
        shares = (j["consistency"]["value"], j["first_slot_share"], longer.get("value"))
        passed = {True: "passed", False: "failed", None: "–"}[test["passed"]]
        omega = "" if test["omega"] is None else f" {test['omega']:.2f}"
        cells = map(number, (*shares, j["calibration"]["ece"], best))
        table.add_row(escape(name), f"{bad:,}/{total:,}", *cells, passed + omega)
    return table


def _table(*names: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    for i, name in enumerate(names):
        # Only the judge's name may be cut where the screen is narrow.
        table.add_column(name, justify="right" if i else "left", no_wrap=True, min_width=len(name) if i else 8)
    return table


def _people_line(humans: dict[str, Any]) -> str:
    ceiling = humans["leave_one_out_ceiling"]["random_other"]
    people = len(humans["raters"])
    said = f"{people} {'person' if people == 1 else 'people'}, {humans['items']:,} items"
    if ceiling is None:
        why = humans["leave_one_out_ceiling"].get("why", "")
        return escape(f"People: {said}; no ceiling: {why}")
    alpha, kappa = humans["krippendorff_alpha"]["nominal"], humans["fleiss_kappa"]["value"]
    return escape(
        f"People: {said}; one against a random other {ceiling:.4f}; Fleiss' kappa {number(kappa, 4)}, "
        f"Krippendorff's alpha {number(alpha, 4)}, AC1 {number(humans['gwet_ac1'], 4)}"
    )


def _between_lines(between: dict[str, Any]) -> Iterable[str]:
    for test, gap in zip(between["mcnemar"], between["difference"], strict=True):
        p = f"McNemar p = {test['p']:.2g}" if test["p"] is not None else f"McNemar: {test.get('why')}"
        yield f"{' minus '.join(gap['judges'])}: {spread(gap)}, n = {gap['n']:,}; {p}"


def _reasons(judges: dict[str, Any]) -> list[str]:
    """Why the figures that the screen shows a dash for do not exist, a line for each reason."""
    names = {"accuracy": "accuracy", "cohen_kappa": "kappa", "gwet_ac1": "AC1", "first_slot_share": "1st slot"}
    found: dict[tuple[str, str], list[str]] = {}
    for judge, j in judges.items():
        missing = {shown: j["why"].get(key) for key, shown in names.items()}
        missing |= {"ab = ba": j["consistency"].get("why"), "alt-test": j["alt_test"].get("why")}
        missing |= {"longer": j["bias"].get("why", {}).get("longer_share"), "ECE": j["calibration"].get("why")}
        for shown, why in missing.items():
            if why:
                found.setdefault((shown, why), []).append(judge)
    lines: list[str] = []
    for (shown, why), of in found.items():
        whose = "" if len(of) == len(judges) else f" of {', '.join(of)}"
        lines.append(f"no {shown}{whose}: {why}")
    return lines
