"""Judge kind "panel": several judges, or one under several personas, and what they make of a pair together.

A member that fails keeps its seat: it is counted and shown, and too many of them make the verdict invalid.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

import judges
from constitution import Constitution
from judges import Ask, Judge, Scale, Scorer
from judges._engines import Engines
from judges._votes import label_of
from tenet.errors import SettingsError
from tenet.records import Comparison, Frozen, Label, Member, Prompt, Score, Usage, Verdict
from tenet.settings import Document, assemble

_OURS = ("name", "persona", "weight")


class Settings(Frozen):
    """Who sits on a panel, and how it decides."""

    members: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)]
    """Judges: `kind` and that kind's settings; and `name`, `persona` (who the judge is to be: put before the
    constitution's preamble), `weight` (of its probability in a mean)."""
    rule: Literal["majority", "mean"] = "majority"
    """Strict majority of all seats, or the weighted mean of the members' probabilities."""
    tie: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """For the mean: a verdict with |p - 0.5| up to this is a tie."""
    quorum: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the members whose verdicts must be readable; with fewer the panel's is invalid."""


class Seat(Frozen):
    """What a panel adds to a member's own settings."""

    name: str = ""
    """How records call it; empty: its kind, with a number where that is not enough."""
    persona: str = ""
    """Who the judge is to be."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Of its probability in a mean."""


class _Member(NamedTuple):
    name: str
    weight: float
    judge: Judge

    def seat(self, verdict: Verdict) -> Member:
        engine = self.judge.engines[0]
        return Member(
            name=self.name, label=verdict.label, p_a=verdict.p_a, weight=self.weight, consistent=verdict.consistent,
            why=verdict.why, model=engine.name, family=engine.family,
        )  # fmt: skip


class PanelJudge:
    """Asks its members; see Settings."""

    def __init__(self, settings: Settings, members: Sequence[_Member]):
        self.settings, self._members = settings, members
        self.engines = tuple(e for m in members for e in m.judge.engines)
        scales = {m.judge.scale for m in members}
        # Scores of reward models have no common unit: a mean of them would be the loudest one's.
        self.scale: Scale = "unit" if scales == {"unit"} else ""

    async def judge(self, comparison: Comparison, key: str = "") -> Verdict:
        """The panel's verdict; every member's is in `members`, its votes under its name."""
        said = await asyncio.gather(*(m.judge.judge(comparison, key) for m in self._members))
        named = [m.seat(v) for m, v in zip(self._members, said, strict=True)]
        votes = tuple(
            vote.model_copy(update={"member": m.name})
            for m, v in zip(self._members, said, strict=True)
            for vote in v.votes
        )
        whole = self._decide(named).model_copy(
            update={"votes": votes, "usage": sum((v.usage for v in said), Usage()), "members": tuple(named)}
        )
        orders = self.split(whole)
        readable = all(v.p_a is not None for v in (*said, *orders.values()))
        consistent = len({v.label for v in orders.values()}) == 1 if len(orders) == 2 and readable else None
        return whole.model_copy(update={"consistent": consistent})

    async def score(self, prompt: Prompt, reply: str, key: str = "") -> Score:
        """The weighted mean of the members' scores; SettingsError if they have no common scale."""
        scorers = self._scorers()
        said = await asyncio.gather(*(s.score(prompt, reply, key) for s in scorers))
        ratings = tuple(
            rating.model_copy(update={"member": m.name})
            for m, s in zip(self._members, said, strict=True)
            for rating in s.ratings
        )
        usage = sum((s.usage for s in said), Usage())
        known = [(s.value, m.weight) for m, s in zip(self._members, said, strict=True) if s.value is not None]
        if not known or len(known) < self.settings.quorum * len(said):
            state = "refused" if any(s.label == "refused" for s in said) else "invalid"
            whys = (f"{m.name}: {s.why}" for m, s in zip(self._members, said, strict=True) if s.value is None)
            return Score(label=state, ratings=ratings, why="; ".join(whys), usage=usage)
        return Score(value=_mean(known), ratings=ratings, usage=usage)

    def split(self, verdict: Verdict) -> dict[str, Verdict]:
        """What the panel says if each member goes by one slot order; members without slots say what they said."""
        parts: list[dict[str, Verdict]] = []
        for m, said in zip(self._members, verdict.members, strict=True):
            own = Verdict(
                label=said.label, p_a=said.p_a, why=said.why, consistent=said.consistent,
                votes=tuple(v for v in verdict.votes if v.member == m.name),
            )  # fmt: skip
            parts.append(m.judge.split(own))
        orders = sorted({o for part in parts for o in part if o})
        if not orders:
            return {"": verdict}
        return {o: self._decide([m.seat(_either(part, o)) for m, part in zip(self._members, parts, strict=True)])
                for o in orders}  # fmt: skip

    def asks(self, comparison: Comparison, key: str = "") -> list[Ask]:
        """Every member's questions."""
        return [ask for m in self._members for ask in m.judge.asks(comparison, key)]

    def score_asks(self, prompt: Prompt, reply: str, key: str = "") -> list[Ask]:
        """Every member's questions for a score."""
        return [ask for s in self._scorers() for ask in s.score_asks(prompt, reply, key)]

    def _scorers(self) -> list[Scorer]:
        found: list[Scorer] = [m.judge for m in self._members if isinstance(m.judge, Scorer)]
        if not self.scale or len(found) != len(self._members):
            raise SettingsError("the members' scores have no common scale", where="judge.members")
        return found

    def _decide(self, said: Sequence[Member]) -> Verdict:
        bad = [m for m in said if m.p_a is None]
        if len(said) - len(bad) < self.settings.quorum * len(said) or len(bad) == len(said):
            label: Label = "refused" if any(m.label == "refused" for m in bad) else "invalid"
            return Verdict(label=label, why=_told(said, bad))
        decide = self._majority if self.settings.rule == "majority" else self._weigh
        return decide(said, bad)

    def _weigh(self, said: Sequence[Member], bad: Sequence[Member]) -> Verdict:
        p = _mean([(m.p_a, m.weight) for m in said if m.p_a is not None])
        return Verdict(label=label_of(p, self.settings.tie), p_a=p, why=_told(said, bad) if bad else "")

    def _majority(self, said: Sequence[Member], bad: Sequence[Member]) -> Verdict:
        """A side wins with more than half of all seats. None does: a tie; or invalid, if the failed could have won
        it for one. p is the share of a's among the readable, ties counted half."""
        labels = [m.label for m in said]
        p = (labels.count("A") + 0.5 * labels.count("tie")) / (len(said) - len(bad))
        why = _told(said, bad) if bad else ""
        for side in ("A", "B"):
            if 2 * labels.count(side) > len(said):
                return Verdict(label=side, p_a=p, why=why)
        if any(2 * (labels.count(side) + len(bad)) > len(said) for side in ("A", "B")) and bad:
            label: Label = "refused" if any(m.label == "refused" for m in bad) else "invalid"
            return Verdict(label=label, why=f"no majority without the unreadable: {why}")
        return Verdict(label="tie", p_a=p, why=why)


def _either(part: dict[str, Verdict], order: str) -> Verdict:
    """A member's verdict in one slot order; its whole one if it knows no orders, or was not asked in this one."""
    return part.get(order) or next(iter(part.values()))


def _mean(weighted: Sequence[tuple[float, float]]) -> float:
    return math.fsum(x * w for x, w in weighted) / math.fsum(w for _, w in weighted)


def _told(said: Sequence[Member], bad: Sequence[Member]) -> str:
    return f"{len(bad)} of {len(said)} members unreadable: " + "; ".join(f"{m.name}: {m.why}" for m in bad)


def check(document: Document) -> None:
    """SettingsError, with its place, if a member's settings are wrong."""
    for i, data in enumerate(document.data["members"]):
        at = replace(document, data=data, prefix=(*document.prefix, "members", i))
        assemble(Seat, replace(at, data={k: v for k, v in data.items() if k in _OURS}))
        judges.read_settings(at.without(*_OURS))


def build(settings: Settings, engines: Engines, constitution: Constitution, seed: int = 0) -> PanelJudge:
    """The panel; SettingsError if a member does not fit its engine, or two have one name."""
    members: list[_Member] = []
    for i, data in enumerate(settings.members):
        seat = Seat.model_validate({k: data[k] for k in _OURS if k in data})
        own = {k: v for k, v in data.items() if k not in _OURS}
        where, kind = f"judge.members.{i}", str(own.get("kind"))
        if kind == "panel":
            raise SettingsError("a panel cannot sit on a panel", where=f"{where}.kind", fix="list its members here")
        if seat.persona and kind == "reward_model":
            raise SettingsError("a reward model plays no persona", where=f"{where}.persona", fix="leave it out")
        try:
            judge = judges.open_judge(own, engines, _as(constitution, seat.persona), seed)
        except SettingsError as error:
            at = error.where.replace("judge", where, 1)
            raise SettingsError(error.what, where=at, fix=error.fix) from None
        several = sum(m.get("kind") == kind for m in settings.members) > 1
        name = seat.name or (f"{kind} {i + 1}" if several else kind)
        if any(m.name == name for m in members):
            raise SettingsError(f"two members are called {name!r}", where=f"{where}.name", fix="another name")
        members.append(_Member(name, seat.weight, judge))
    return PanelJudge(settings, members)


def _as(constitution: Constitution, persona: str) -> Constitution:
    """The constitution with a persona before its preamble. Built anew: a copy would carry the cached hash along."""
    if not persona:
        return constitution
    said = "\n\n".join(t for t in (persona, constitution.preamble) if t)
    return Constitution.model_validate({**constitution.model_dump(), "preamble": said})
