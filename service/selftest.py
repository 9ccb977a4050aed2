"""`tenet selftest`: planted preferences through the whole pipeline, to certify that no label is lost, flipped or
invented.

Every case is a run of its own in a temporary folder: recipe, pipeline, ledger and exports are the real ones, the
judge has the user's own settings, and only the model is scripted.
"""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from judges._planted import Planted, outcome_of
from judges.selftest import CASES, Case, Evidence, Traits
from service._workshop import DRIVES, Subject, Workshop, probe, traits_of
from service.judging import open_config
from service.recipe import Plan
from service.screen import columns
from tenet.errors import SettingsError, TenetError
from tenet.ledger import Rows
from tenet.records import Comparison, Dropped, Preference, Verdict

State = Literal["pass", "fail", "not here"]


@dataclass(frozen=True)
class Result:
    """What became of a case."""

    name: str
    about: str
    state: State
    planted: str = ""
    expected: str = ""
    got: str = ""
    why: tuple[str, ...] = ()
    """What was wrong; or, where nothing was, what the certificate must say all the same."""


@dataclass(frozen=True)
class Certificate:
    """All results, and what they prove."""

    judge: Mapping[str, Any]
    traits: Traits
    results: tuple[Result, ...]

    @property
    def failed(self) -> tuple[Result, ...]:
        return tuple(r for r in self.results if r.state == "fail")

    @property
    def caveats(self) -> tuple[str, ...]:
        """What holds only as far as the settings allow."""
        return tuple(dict.fromkeys(why for r in self.results if r.state == "pass" for why in r.why))

    @property
    def verdict(self) -> str:
        """The certificate in one sentence."""
        passed = sum(r.state == "pass" for r in self.results)
        if self.failed:
            return f"NOT certified: {len(self.failed)} of {passed + len(self.failed)} cases failed"
        but = f"; but {'; '.join(self.caveats)}" if self.caveats else ""
        return f"certified: no label lost, flipped or invented in {passed} cases{but}"

    def as_json(self) -> dict[str, Any]:
        traits = {"slots": self.traits.slots, "forms": sorted(self.traits.forms)}
        return {
            "certified": not self.failed, "verdict": self.verdict, "caveats": list(self.caveats),
            "judge": dict(self.judge), "traits": traits, "cases": [asdict(r) for r in self.results],
        }  # fmt: skip


async def run_case(case: Case, subject: Subject, traits: Traits) -> Result:
    """Sends one case through the pipeline and says what came of it."""
    if skip := case.skip(traits):
        return Result(case.name, case.about, "not here", why=(skip,))
    with tempfile.TemporaryDirectory(prefix="tenet-selftest-") as folder:
        shop = Workshop(Path(folder), case, subject)
        if case.drive == "refuse":
            return await _refused(shop)
        told = _planted(case.pairs)
        allowed = [case.expect(p, traits) for p in case.pairs]
        expected = _count(" or ".join(sorted(a)) for a in allowed)
        try:
            plan, manifest = await DRIVES[case.drive](shop)
            evidence = gather(shop, plan, manifest)
        except Exception as error:  # whatever ends a run is what the case is there to find
            why = f"the run ended with {type(error).__name__}: {error}"[:300]
            return Result(case.name, case.about, "fail", told, expected, "no rows", (why,))
    ends = zip(case.pairs, evidence.outcomes, allowed, strict=True)
    wrong = [f"planted-{pair.number} is {end}" for pair, end, right in ends if end not in right]
    found = tuple(dict.fromkeys((*wrong[:3], *evidence.complaints, *case.check(evidence, traits))))
    caveat = case.caveat(traits)
    why = found or ((caveat,) if caveat else ())
    return Result(case.name, case.about, "fail" if found else "pass", told, expected, _count(evidence.outcomes), why)


async def _refused(shop: Workshop) -> Result:
    """Settings that name an unknown judge, and an unknown model, must end before the first call."""
    expected, got = "refused before the first call", ""
    for wrong in ({**shop.subject.judge, "kind": "no-such-judge"}, {**shop.subject.judge, "model": "no-such-model"}):
        try:
            await shop.go(shop.plan("first", judge=wrong))
            got = got or f"a run with {wrong}"
        except TenetError as error:
            if not isinstance(error, SettingsError) or shop.model.paid:
                got = got or f"{type(error).__name__} after {sum(shop.model.paid.values())} calls"
    case = shop.case
    return Result(case.name, case.about, "fail" if got else "pass", "2 wrong recipes", expected, got or expected)


def gather(shop: Workshop, plan: Plan, manifest: dict[str, Any]) -> Evidence:
    """Reads what a run left, and checks what must hold of every run."""
    by_id = {shop.prompts[p.number].id: p for p in shop.case.pairs}
    ends: dict[str, str] = {}
    judged: list[tuple[Comparison, Verdict]] = []
    whys: list[str] = []
    with Rows(plan.folder, readonly=True) as stored:
        for row in stored.iterate():
            if row.stage == "preference":
                made = Preference.model_validate_json(row.record)
                judged.append((made.comparison, made.verdict))
                pair = by_id.get(made.comparison.prompt.id)
                ends[made.comparison.prompt.id] = outcome_of(pair, made.texts[0]) if pair else "unplanted"
            elif row.stage == "judged":
                data = json.loads(row.record)
                judged.append((Comparison.model_validate(data["comparison"]), Verdict.model_validate(data["verdict"])))
            elif row.stage == "dropped":
                gone = Dropped.model_validate_json(row.record)
                ends.setdefault(gone.prompt_id, gone.reason.removesuffix(" verdict"))
                whys += [gone.detail] if gone.unit == "pair" else []
    outcomes = tuple(ends.get(prompt_id, "lost") for prompt_id in by_id)
    rows = [json.loads(line) for line in (plan.folder / "data/preference.jsonl").read_text("utf-8").splitlines()]
    complaints = [*shop.complaints, *shop.model.complaints[:3]]
    complaints += check_files(plan.folder / "data", rows, by_id, outcomes)
    if strangers := ends.keys() - by_id.keys():
        complaints.append(f"{len(strangers)} prompts that nobody planted")
    if manifest["state"] != "whole":
        complaints.append(f"the run is {manifest['state']}")
    if twice := sum(n > 1 for n in shop.model.paid.values()):
        complaints.append(f"{twice} questions were paid twice")
    return Evidence(outcomes, tuple(rows), tuple(judged), manifest, tuple(whys), tuple(complaints))


def check_files(
    data: Path, rows: list[dict[str, Any]], by_id: Mapping[str, Planted], outcomes: Sequence[str]
) -> list[str]:
    """What is wrong with a run's exports, by the planted pairs and by one another."""
    import pyarrow.parquet as pq

    found: list[str] = []
    labels = sum(o in ("right", "wrong", "invented") for o in outcomes)
    if len(rows) != labels:
        found.append(f"{labels} labels were made and {len(rows)} rows exported")
    for row in rows:
        pair = by_id.get(row["prompt_id"])
        if pair is None:
            found.append("a row with a prompt that nobody planted")
            continue
        texts = [row[side][0]["content"] for side in ("chosen", "rejected")]
        froms = [row[f"{side}_from"] for side in ("chosen", "rejected")]
        if sorted(texts) != sorted(pair.replies) or texts[0] == texts[1]:
            found.append(f"planted-{pair.number}: chosen and rejected are not the two planted replies")
        elif froms != [f"sample {pair.replies.index(t)}" for t in texts]:
            found.append(f"planted-{pair.number}: a reply is said to come from another sample")
        if row["prompt"] != [m.model_dump() for m in pair.messages]:
            found.append(f"planted-{pair.number}: the prompt is not the planted one")
        if not 0.5 < row["p_chosen"] <= 1.0:
            found.append(f"planted-{pair.number}: p_chosen is {row['p_chosen']}")
    short = [{k: r[k] for k in ("prompt", "chosen", "rejected", "p_chosen")} for r in rows]
    single = [
        {"prompt": r["prompt"], "completion": r[side], "label": side == "chosen", "p": p}
        for r in rows
        for side, p in (("chosen", r["p_chosen"]), ("rejected", 1 - r["p_chosen"]))
    ]
    for name, wanted in (("preference", rows), ("reward", short), ("unpaired", single)):
        lines = [json.loads(x) for x in (data / f"{name}.jsonl").read_text("utf-8").splitlines()]
        if lines != wanted or pq.read_table(data / f"{name}.parquet").to_pylist() != wanted:
            found.append(f"{name}.jsonl and {name}.parquet are not the preference rows")
    return found[:5]


def _planted(pairs: Sequence[Planted]) -> str:
    return _count("ties" if p.better is None else "clear wins" for p in pairs)


def _count(words: Any) -> str:
    return ", ".join(f"{n} {word}" for word, n in Counter[str](words).most_common())


async def certify(subject: Subject, cases: Sequence[Case] = CASES) -> Certificate:
    """Runs all cases, one after the other. SettingsError if the judge's settings cannot be used."""
    traits = traits_of(subject, probe(subject))
    results = [await run_case(case, subject, traits) for case in cases]
    return Certificate(dict(subject.judge), traits, tuple(results))


def table(certificate: Certificate) -> str:
    """The results, one a line, what was wrong or is to be known, and the verdict."""
    rows = [("case", "planted", "expected", "got", "result")]
    rows += [(r.name, r.planted, r.expected, r.got, r.state) for r in certificate.results]
    notes = [f"{r.name}: {why}" for r in certificate.results for why in r.why]
    return "\n".join([*columns(rows), "", *notes, certificate.verdict])


def main(config: Path, overrides: Sequence[str], json_out: Path | None) -> bool:
    """Certifies the judge of a config or a recipe and prints the table; whether no case failed."""
    certificate = asyncio.run(certify(Subject.of(open_config(config, overrides))))
    print(table(certificate))
    if json_out:
        json_out.parent.mkdir(parents=True, exist_ok=True)
        json_out.write_text(json.dumps(certificate.as_json(), indent=1, ensure_ascii=False), encoding="utf-8")
    return not certificate.failed
