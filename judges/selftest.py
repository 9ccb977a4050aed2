"""The selftest's cases: what is planted, what the model behind the judge says, and which outcomes are right.

Every fault that was found in other systems' released code is a case by its own name. The pipeline that the cases
are sent through is `service.selftest`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from judges import _planted as p
from judges._planted import Outcome, Planted, Play
from tenet.errors import EngineUnreachable
from tenet.records import Comparison, Verdict

Drive = Literal["once", "heal", "crash", "twice", "resume", "endpoint", "refuse", "elsewhere"]
"""How a case is sent: one run; a second start after faults; after a crash; two fresh runs; a second start with
other limits; through a real endpoint that is busy; with settings that must be refused; or not here at all."""


@dataclass(frozen=True)
class Traits:
    """What can be asked of a judge, found by its settings and by one question to it."""

    slots: Literal["both", "one", "none"]
    """In how many orders a pair is shown; none where replies are scored one by one."""
    forms: frozenset[str]
    """The forms of its questions."""
    alone: bool = False
    """Whether replies are scored one by one too, as by members of a panel."""

    @property
    def by_text(self) -> bool:
        """Whether a verdict is read from text alone."""
        return not self.forms - {"text"}


@dataclass(frozen=True)
class Evidence:
    """What is left of a case when its runs have ended."""

    outcomes: tuple[Outcome, ...]
    """One per planted pair, in their order."""
    rows: tuple[Mapping[str, Any], ...]
    """The exported preference rows."""
    judged: tuple[tuple[Comparison, Verdict], ...]
    """Every comparison that was judged."""
    manifest: Mapping[str, Any]
    whys: tuple[str, ...] = ()
    """Why pairs were dropped, in the run's words."""
    complaints: tuple[str, ...] = ()
    """What the runs' own checks found."""


Expect = Callable[[Planted, Traits], frozenset[Outcome]]
Check = Callable[[Evidence, Traits], Sequence[str]]


def _as_planted(pair: Planted, traits: Traits) -> frozenset[Outcome]:
    return frozenset({pair.right})


def _no_complaint(evidence: Evidence, traits: Traits) -> Sequence[str]:
    return ()


@dataclass(frozen=True)
class Case:
    """One named fault, and how it would show."""

    name: str
    about: str
    """What goes wrong in a system that has the fault."""
    pairs: tuple[Planted, ...] = ()
    play: Play = p.honest
    expect: Expect = _as_planted
    check: Check = _no_complaint
    drive: Drive = "once"
    skip: Callable[[Traits], str] = lambda _: ""
    """Why the case says nothing about such a judge; empty if it does."""
    caveat: Callable[[Traits], str] = lambda _: ""
    """What the certificate must say although the case holds."""


def _expect_third(*outcomes: Outcome) -> Expect:
    return lambda pair, _: frozenset(outcomes) if pair.number % 3 == 1 else frozenset({pair.right})


def _all(*outcomes: Outcome) -> Expect:
    return lambda _, __: frozenset(outcomes)


# What files and figures must show besides the outcomes.


def _from_both(evidence: Evidence, traits: Traits) -> Sequence[str]:
    found: list[str] = []
    for field_, names in (("chosen_slot", {"A", "B"}), ("chosen_from", {"sample 0", "sample 1"})):
        seen = {row[field_] for row in evidence.rows}
        if seen != names:
            found.append(f"{field_} is only ever {', '.join(sorted(map(str, seen)))}")
    for row in evidence.rows:
        for vote in row["votes"]:
            if vote["label"] not in (row["chosen_slot"], "tie"):
                found.append(f"a vote says {vote['label']} where the label is {row['chosen_slot']}")
    return found


def _only_second(evidence: Evidence, traits: Traits) -> Sequence[str]:
    wrong = sum(row["chosen_from"] != "sample 1" for row in evidence.rows)
    return [f"{wrong} rows name another sample than the better one"] if wrong else []


def _nothing_written(evidence: Evidence, traits: Traits) -> Sequence[str]:
    return [f"{len(evidence.rows)} rows were written"] if evidence.rows else []


def _inconsistent(evidence: Evidence, traits: Traits) -> Sequence[str]:
    if traits.slots != "both" or traits.alone:
        return []
    said = sum(verdict.consistent is not False for _, verdict in evidence.judged)
    return [f"{said} verdicts are not called inconsistent"] if said else []


def _not_consistent(evidence: Evidence, traits: Traits) -> Sequence[str]:
    said = sum(verdict.consistent is True for _, verdict in evidence.judged)
    counted = evidence.manifest["agreement"]["consistent"]
    return [f"{said} verdicts are called consistent, {counted} are counted so"] if said or counted else []


def _says(word: str) -> Check:
    def check(evidence: Evidence, traits: Traits) -> Sequence[str]:
        silent = sum(word not in why for why in evidence.whys)
        return [f"{silent} drops do not say {word!r}"] if silent else []

    return check


def _cut_is_said(evidence: Evidence, traits: Traits) -> Sequence[str]:
    return _says("cut at max_tokens")(evidence, traits) if traits.by_text else []


def _both_placements(evidence: Evidence, traits: Traits) -> Sequence[str]:
    first = sum(c.a_from == "sample 0" for c, _ in evidence.judged)
    n = len(evidence.judged)
    return [] if n / 4 <= first <= 3 * n / 4 else [f"sample 0 is reply a in {first} of {n} pairs"]


def _slot_bias(pair: Planted, traits: Traits) -> frozenset[Outcome]:
    found = {"both": {"tie"}, "one": {"right", "wrong"}, "none": {"right"}}
    # Members that see no slots may settle what the others leave open.
    return frozenset(found[traits.slots] | ({"right"} if traits.alone else set()))


def _half_read(pair: Planted, traits: Traits) -> frozenset[Outcome]:
    # Where one order is asked, the half that is read is all there is to it.
    return frozenset({"refused"} if traits.slots != "one" else {"refused", "right"})


def _cut_outcome(pair: Planted, traits: Traits) -> frozenset[Outcome]:
    return frozenset({"invalid"} if traits.by_text else {"right", "invalid"} if "text" in traits.forms else {"right"})


def _no_slots(traits: Traits) -> str:
    return "replies are scored one by one: there are no slots" if traits.slots == "none" else ""


def _one_order(traits: Traits) -> str:
    return "labels depend on slots: the settings ask one order only" if traits.slots == "one" else ""


_LORA = "no part of making data: the trainers must prove that an adapter moves every expert's weights"
_STALE = "no part of making data: a trainer that samples must prove that its engine serves the new weights"


def _one_fails(asked: p.Asked) -> p.Reply:
    return p.failing("bad_reply")(asked) if asked.pair.number == 6 else p.honest(asked)


def _sixth(pair: Planted, traits: Traits) -> frozenset[Outcome]:
    return frozenset({"invalid" if pair.number == 6 else "right"})


def _no_pair_of_copies(pair: Planted, traits: Traits) -> frozenset[Outcome]:
    return frozenset({"identical replies" if pair.replies[0] == pair.replies[1] else "tie"})


PLANTED = (
    Case("clear wins", "a good reply loses", p.clear(24), check=_from_both),
    Case("planted ties", "a tie becomes a label", p.even(12), check=_nothing_written),
    Case(
        "no log-probabilities", "None becomes a number",
        p.clear(12), p.no_numbers, _all("invalid"), _nothing_written,
    ),
    Case(
        "half the log-probabilities", "what is missing is taken for 0",
        p.clear(10), p.half_numbers, _all("invalid"), _nothing_written,
    ),
    Case(
        "order-biased judge", "a taste for the first slot becomes labels",
        p.clear(24), p.loves_first, _slot_bias, _inconsistent, skip=_no_slots, caveat=_one_order,
    ),
    Case(
        "refusing judge", "a refusal is read as a verdict",
        p.clear(12), p.third(p.refuse), _expect_third("refused"),
    ),
    Case("one half refused", "the half that was read decides", p.clear(12), p.refuse_half, _half_read),
    Case(
        "server errors", "a 500 becomes a label",
        p.clear(12), p.third(p.failing("server")), _expect_third("invalid"), _says("server"),
    ),
    Case(
        "time-outs", "a late reply becomes a label",
        p.clear(12), p.third(p.failing("timeout")), _expect_third("invalid"), _says("timeout"),
    ),
    Case(
        "engine that dies", "what was paid for is lost with it",
        p.clear(12), p.third(p.raising(EngineUnreachable("planted"))), drive="crash",
    ),
    Case(
        "unparsable judge", "babble is read as a verdict",
        p.clear(12), p.third(p.babble), _expect_third("invalid"),
    ),
)  # fmt: skip
"""What a judge or a model may do to a label."""
FOUND_ELSEWHERE = (
    Case("un-shuffling", "the first candidate is always chosen", p.clear(12, better=1), check=_only_second),
    Case("failed judgement", "one None after all the spend ends the run", p.clear(13), _one_fails, _sixth),
    Case(
        "ratings 4, 4", "chosen and rejected are one text",
        p.with_copies(), expect=_no_pair_of_copies, check=_nothing_written,
    ),
    Case("None rating", "one None raises", p.clear(12), p.third(p.no_numbers), _expect_third("invalid")),
    Case("random tie", "a tie writes a random pair", (*p.even(6), *p.clear(6, start=6))),
    Case("last partial batch", "the rows that fill no batch are dropped", p.clear(1003)),
    Case("bad judge id", "an unknown judge ends the run after the spend", p.clear(2), drive="refuse"),
    Case(
        "fixed candidate order", "a taste for slots looks like a taste for a model",
        p.clear(64), check=_both_placements,
    ),
    Case("prompt cut at a colon", "the prompt ends at its second ': '", p.paragraphs()),
    Case(
        "unparsable is 0.0", "an unparsable reply counts as a tie",
        p.even(12), p.babble, _all("invalid"), _nothing_written,
    ),
    Case("0.0 is missing", "a score of 0.0 counts as none", p.clear(12), p.certain),
    Case(
        "two unparsed agree", "two unreadable orders count as consistent",
        p.clear(10), p.babble, _all("invalid"), _not_consistent,
    ),
    Case("braces", "a brace in a text breaks str.format", p.nasty()),
    Case("cached nulls", "failed calls are stored and never tried again", p.clear(12), p.passing, drive="heal"),
    Case("unseeded placement", "two runs of one recipe differ", p.clear(24), p.loves_first, _slot_bias, drive="twice"),
    Case("429s", "rows are dropped where the server asked to wait", p.clear(9), drive="endpoint"),
    Case(
        "truncation", "a text cut at max_tokens counts as unparsable",
        tuple(replace(x, cut=True) for x in p.clear(8)), p.cut_short, _cut_outcome, _cut_is_said,
    ),
    Case(
        "one bad row", "an exception in one row ends the job",
        p.clear(12), p.third(p.raising(ZeroDivisionError("planted"))), _expect_third("internal error"),
    ),
    Case("resume", "a second start wants an identical configuration", p.clear(12), drive="resume"),
    Case("LoRA on fused experts", "an adapter that changes nothing", drive="elsewhere", skip=lambda _: _LORA),
    Case("stale weights", "an engine that slept serves the old weights", drive="elsewhere", skip=lambda _: _STALE),
)  # fmt: skip
"""The faults of other systems' released code, each by a name of its own."""
CASES = PLANTED + FOUND_ELSEWHERE
