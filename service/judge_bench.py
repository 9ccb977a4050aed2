"""`tenet judge-bench`: the same labelled pairs under many settings of a judge, and which differences are real.

A variant is scored by the verdict that a run would use: all its votes together, both orders averaged where both are
asked. Engines are opened once; a reply that two variants ask for is paid once.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from itertools import combinations, islice
from pathlib import Path
from typing import Any

from judges import pairs_file
from judges.agreement import metrics, votes
from judges.agreement._fields import figure
from judges.agreement.between import between
from judges.agreement.calibration import calibration
from judges.agreement.rules import Rules
from judges.agreement.view import People, View
from judges.pairs_file import LabelledPair
from service import judging
from service._grid import Bench, Variant, differ, open_grid
from service.screen import columns, tell
from tenet.engines import Engine
from tenet.engines._unasked import Unasked
from tenet.errors import DataError
from tenet.records import Usage, Verdict

REAL = 0.05
"""Family-wise error rate of the paired tests (Holm)."""


@dataclass(frozen=True)
class Judged:
    """All verdicts of a variant, and what they took."""

    variant: Variant
    verdicts: tuple[Verdict, ...]
    usage: Usage
    """What all its calls cost when they were made, by this variant or an earlier one."""
    reused: int
    seconds: float


def labelled(path: Path, limit: int | None) -> list[LabelledPair]:
    """The first pairs that people labelled. DataError if there are none."""
    found = [p for p in islice(pairs_file.read(path), limit) if p.labels]
    if not found:
        fix = 'rows need "label" or "labels", or chosen and rejected'
        raise DataError("no pair has a label", where=str(path), fix=fix)
    return found


# Judging.


async def judge_all(
    bench: Bench,
    pairs: Sequence[LabelledPair],
    workspace: Path,
    fresh: bool = False,
    engines: Mapping[str, Engine] | None = None,
    watch: Callable[[str], None] = lambda _: None,
) -> list[Judged]:
    """Every variant's verdicts, one variant after the other.

    `fresh` asks everything anew, so that the seconds are each variant's own. `engines` are left open.
    """
    built = bench.plan.build_engines() if engines is None else dict(engines)
    try:
        made: list[Judged] = []
        if fresh:  # the first calls of an engine compile and warm up, which is no variant's own doing
            with tempfile.TemporaryDirectory() as folder:
                await _judge(bench.variants[0], pairs[:8], Path(folder), built)
        for variant in bench.variants:
            watch(variant.name)
            with ExitStack() as stack:
                place = Path(stack.enter_context(tempfile.TemporaryDirectory())) if fresh else workspace
                made.append(await _judge(variant, pairs, place, built))
        return made
    finally:
        if engines is None:
            for engine in {id(e): e for e in built.values()}.values():
                await engine.close()


async def _judge(variant: Variant, pairs: Sequence[LabelledPair], place: Path, engines: Mapping[str, Engine]) -> Judged:
    limits = variant.plan.config.limits
    async with judging.opened(variant.plan, place, f"bench: {variant.name}", engines) as session:
        begun = time.monotonic()
        judged = judging.judge_pairs(session.judge, pairs, limits.in_flight, limits.max_failures)
        verdicts = [j.verdict async for j in judged]
        seconds = time.monotonic() - begun
        usage = sum((v.usage for v in verdicts), Usage())
        short = (v.model_copy(update={"votes": (), "members": ()}) for v in verdicts)
        return Judged(variant, tuple(short), usage, session.reused, seconds)


# Counting.


def measure(bench: Bench, pairs: Sequence[LabelledPair], judged: Sequence[Judged], rules: Rules) -> dict[str, Any]:
    """The report: figures of every variant, and the paired tests."""
    gathered = votes.gather()
    for pair in pairs:
        votes.add_pair(gathered, pair.model_copy(update={"machine": {}}))
    for j in judged:
        for pair, verdict in zip(pairs, j.verdicts, strict=True):
            row = {"item": pair.id, "rater": j.variant.name, "kind": "judge", "verdict": verdict.label}
            gathered.add(row if verdict.p_a is None else {**row, "p_a": verdict.p_a}, pair.row)
    cast = gathered.votes()
    people = People.of(cast)
    views = {j.variant.name: View(cast, people, cast.raters.index(j.variant.name), rules) for j in judged}
    return {
        "rules": {**rules.model_dump(), "verdict": "all votes of a pair together, both orders averaged"},
        "pairs": len(pairs),
        "variants": [_figures(j, views[j.variant.name], pairs) for j in judged],
        "impossible": bench.impossible,
        "comparisons": _compare(views, [j.variant for j in judged], rules),
    }


def _figures(j: Judged, view: View, pairs: Sequence[LabelledPair]) -> dict[str, Any]:
    accuracy, why = figure(metrics.accuracy, view)
    by_label = {x: sum(v.label == x for v in j.verdicts) for x in ("A", "B", "tie", "invalid", "refused")}
    known = [v.consistent for v in j.verdicts if v.consistent is not None]
    consistency: dict[str, Any] = {"value": sum(known) / len(known) if known else None, "n": len(known)}
    if not known:
        consistency["why"] = "no pair was read in both slot orders"
    decided, undecided = figure(metrics.s2, view)
    calibrated = calibration(view)
    n = len(j.verdicts)
    per = {k: 1000 * v / n for k, v in j.usage.model_dump().items()}
    seconds: dict[str, Any] = {"value": j.seconds, "pairs_per_second": n / max(j.seconds, 1e-9)}
    if j.reused:
        why_not = f"{j.reused} replies were stored ones; --fresh asks for all of them anew"
        seconds = {"value": None, "pairs_per_second": None, "why": why_not}
    return {
        "name": j.variant.name,
        "settings": j.variant.settings,
        "accuracy": accuracy | ({"why": why} if why else {}) if accuracy else {"value": None, "why": why},
        "without_ties": decided or {"value": None, "n": 0, "why": undecided},
        "states": by_label,
        "consistency": consistency,
        "calibration": {k: calibrated.get(k) for k in ("brier", "ece", "n", "why") if k in calibrated},
        "per_1000_pairs": {**per, "money": _money(j, pairs)},
        "seconds": seconds,
    }


def _money(j: Judged, pairs: Sequence[LabelledPair]) -> dict[str, Any]:
    """What a thousand pairs cost, in the currency of the prices; null where nothing is priced."""
    plan = j.variant.plan
    engines: dict[str, Engine] = {name: Unasked() for name in plan.models}
    asks = plan.open(engines).asks(pairs[0].comparison)
    names = {ask.model or next(iter(plan.models)) for ask in asks}
    if len(names) != 1:
        return {"value": None, "why": f"it asks {len(names)} models, and calls are counted together"}
    settings = plan.models[names.pop()][1]
    price_in, price_out = (getattr(settings, f"price_{k}", 0.0) for k in ("prompt", "completion"))
    if not (price_in or price_out):
        return {"value": None, "why": "the model has no price_prompt or price_completion"}
    cached = getattr(settings, "price_cached", None)
    u = j.usage
    million = (u.prompt_tokens - u.cached_tokens) * price_in + u.completion_tokens * price_out
    million += u.cached_tokens * (price_in if cached is None else cached)
    return {"value": 1000 * million / 1e6 / len(j.verdicts)}


def _compare(views: Mapping[str, View], variants: Sequence[Variant], rules: Rules) -> list[dict[str, Any]]:
    """Paired tests of variants that differ in one setting, and of each extra one with the nearest of the grid; Holm
    over all of them."""
    near = [pair for pair in combinations(variants, 2) if len(differ(*pair)) == 1]
    grid = [v for v in variants if not v.extra] or list(variants[:1])
    for v in variants:
        others = [x for x in grid if x is not v]
        if v.extra and others:
            nearest = min(others, key=lambda x: len(differ(x, v)))
            near += [(nearest, v)] if (nearest, v) not in near else []
    made: list[dict[str, Any]] = []
    for x, y in near:
        found = between([views[x.name], views[y.name]], rules)
        test, difference = found["mcnemar"][0], found["difference"][0]
        row = {"first": x.name, "second": y.name, "settings": differ(x, y), "difference": difference}
        made.append(row | _test(test))
    tested = [m for m in made if m["p"] is not None]
    if tested:
        multi: Any = import_module("statsmodels.stats.multitest")
        held = multi.multipletests([m["p"] for m in tested], alpha=REAL, method="holm")
        for m, reject, p in zip(tested, held[0], held[1], strict=True):
            m |= {"p_holm": float(p), "real": bool(reject)}
    return made


def _test(found: Mapping[str, Any]) -> dict[str, Any]:
    names = ("n", "only_first_right", "only_second_right", "p", "test", "why")
    return {**{k: found[k] for k in names if k in found}, "p_holm": None, "real": False}


# What is printed.


def table(report: Mapping[str, Any]) -> str:
    """The report as text."""
    head = ("variant", "agreement (95%)", "without ties", "tie", "unread", "same in both orders", "Brier", "ECE",
            "calls", "tokens in", "out", "money", "seconds")  # fmt: skip
    rows: list[list[str]] = [list(head)]
    for v in report["variants"]:
        per, states = v["per_1000_pairs"], v["states"]
        numbers = [_number(v["calibration"].get(k), 3) for k in ("brier", "ece")]
        costs = [f"{per[k]:,.0f}" for k in ("calls", "prompt_tokens", "completion_tokens")]
        rows.append([
            v["name"], _share(v["accuracy"]), _percent(v["without_ties"]["value"]), str(states["tie"]),
            str(states["invalid"] + states["refused"]), _percent(v["consistency"]["value"]), *numbers, *costs,
            _number(per["money"]["value"], 4), _number(v["seconds"]["value"], 1),
        ])  # fmt: skip
    r = report["rules"]
    notes = [
        f"{report['pairs']} pairs; calls, tokens and money are for 1,000 pairs; seconds for these pairs",
        f"rules: verdict: {r['verdict']}; tie: {r['tie']}; unreadable: {r['invalid']}; gold: {r['gold']}",
        "agreement with Wilson intervals; without ties: of the pairs where neither people nor judge say tie",
        *_impossible(report["impossible"]),
    ]
    return "\n".join([*columns(rows), "", *notes, "", *_tests(report["comparisons"])])


def _tests(found: Sequence[Mapping[str, Any]]) -> list[str]:
    if not found:
        return []
    head = ("first", "second", "agreement, 1st - 2nd (95%)", "only 1st right", "only 2nd", "p", "p (Holm)", "real")
    rows: list[list[str]] = [list(head)]
    for c in found:
        d = c["difference"]
        value, low, high = (None if d[k] is None else 100 * d[k] for k in ("value", "low", "high"))
        shown = "-" if value is None else f"{value:+.1f} ({low:+.1f} to {high:+.1f})"
        only = [str(c["only_first_right"]), str(c["only_second_right"])]
        rows.append([c["first"], c["second"], shown, *only, _p(c["p"]), _p(c["p_holm"]), "yes" if c["real"] else "no"])
    what = f"paired tests on the same pairs (McNemar), {len(found)} of them; real: p (Holm) below {REAL:g}"
    return [*columns(rows), "", what]


def _impossible(found: Mapping[str, str]) -> list[str]:
    """Which variants were left out, by the reason."""
    by_why: dict[str, list[str]] = {}
    for name, why in found.items():
        by_why.setdefault(why, []).append(name)
    return [f"not possible: {'; '.join(names)}: {why}" for why, names in by_why.items()]


def _share(accuracy: Mapping[str, Any]) -> str:
    if accuracy["value"] is None:
        return "-"
    ends = accuracy["wilson"]
    return f"{100 * accuracy['value']:.1f} ({100 * ends['low']:.1f}-{100 * ends['high']:.1f})"


def _percent(x: float | None) -> str:
    return "-" if x is None else f"{100 * x:.1f}"


def _p(p: float | None) -> str:
    return "-" if p is None else "<0.0001" if p < 1e-4 else f"{p:.4f}"


def _number(x: float | None, digits: int) -> str:
    return "-" if x is None else f"{x:,.{digits}f}"


def main(pairs: Path, grid: Path, limit: int | None, fresh: bool, json_out: Path | None, workspace: Path) -> None:
    """Runs a grid on a file's labelled pairs and prints the table."""
    bench = open_grid(grid)
    found = labelled(pairs, limit)
    rules = Rules(seed=bench.plan.config.seed)
    judged = asyncio.run(judge_all(bench, found, workspace, fresh, watch=tell))
    report = measure(bench, found, judged, rules)
    print(table(report))
    if json_out:
        json_out.parent.mkdir(parents=True, exist_ok=True)
        json_out.write_text(json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
