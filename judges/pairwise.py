"""Judge kind "pairwise": which of two replies follows a principle better.

The model is asked for the log-probabilities of the two options in one decoded token, and asked again
with the replies in each other's slots; the two distributions are averaged (RLAIF, Lee et al. 2023,
section 2.1; soft labels: Constitutional AI, Bai et al. 2022, section 4.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from constitution import Constitution, Principle
from constitution.draw import draw
from judges import _parse, _render
from tenet.engines import Engine, Reply, Request, Sampling
from tenet.errors import SettingsError
from tenet.records import Comparison, Frozen, Label, Message, Verdict, Vote, seed_of

Order = Literal["ab", "ba"]


class Settings(Frozen):
    """How to judge a pair."""

    model: str = ""
    """Name of one of the recipe's models; empty: the first."""
    order: Literal["both", "given", "swapped", "random"] = "both"
    """Which reply is shown first. With "both" a label cannot depend on the slots."""
    principles: Annotated[int, Field(ge=1)] | Literal["all"] = 1
    """How many principles are drawn for a comparison; each casts its own vote."""
    read: Literal["logprobs", "text"] = "logprobs"
    """Log-probabilities of the options, or a text verdict for endpoints that have none."""
    labels: Literal["soft", "hard"] = "soft"
    """Keep probabilities, or round each vote to 0 or 1."""
    exemplars: Annotated[int, Field(ge=0)] = 0
    """How many of the constitution's worked choices are shown before the question."""
    tie: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """A verdict with |p - 0.5| up to this is a tie."""
    quorum: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the principles whose votes must be readable; with fewer the verdict is invalid."""
    max_tokens: Annotated[int, Field(ge=1)] = 64
    """Longest text verdict."""


class PairwiseJudge:
    """Asks an engine; see Settings."""

    def __init__(self, settings: Settings, engine: Engine, constitution: Constitution, seed: int):
        self.settings, self._engine, self._constitution = settings, engine, constitution
        self._seed = seed

    def requests(self, comparison: Comparison, key: str = "") -> list[tuple[Principle, Order, Request]]:
        """Every question that a comparison costs: principle, slot order, request."""
        chosen = self._principles(comparison, key)
        place = (self._seed, comparison.prompt.id, "judge", key)
        return [
            (principle, order, self._request(comparison, principle, order, place))
            for principle in chosen
            for order in self._orders(place)
        ]

    async def judge(self, comparison: Comparison, key: str = "") -> Verdict:
        """The verdict on a comparison, from one vote per principle and slot order."""
        asked = self.requests(comparison, key)
        if not asked:
            return Verdict(label="invalid", why="no principle applies to this prompt")
        replies = await self._engine.generate([request for _, _, request in asked])
        votes = tuple(
            self._vote(principle, order, reply) for (principle, order, _), reply in zip(asked, replies, strict=True)
        )
        return combine(votes, self.settings.tie, self.settings.quorum)

    def _principles(self, comparison: Comparison, key: str) -> Sequence[Principle]:
        tags = comparison.prompt.tags
        pool = self._constitution.principles
        if self.settings.principles == "all":
            return [p for p in pool if p.applies_to(tags)]
        parts = (self._seed, comparison.prompt.id, "judge", key)
        return draw(pool, self.settings.principles, *parts, tags=tags)

    def _orders(self, place: tuple[object, ...]) -> tuple[Order, ...]:
        coin: tuple[Order, ...] = ("ba",) if seed_of(*place, "order") & 1 else ("ab",)
        orders: dict[str, tuple[Order, ...]] = {
            "both": ("ab", "ba"), "given": ("ab",), "swapped": ("ba",), "random": coin,
        }  # fmt: skip
        return orders[self.settings.order]

    def _request(
        self, comparison: Comparison, principle: Principle, order: Order, place: tuple[object, ...]
    ) -> Request:
        shown = comparison if order == "ab" else comparison.swap()
        text = _render.pairwise(shown.prompt.messages, shown.a, shown.b, principle.choose)
        if self.settings.read == "logprobs":
            sampling = Sampling(temperature=0.0, max_tokens=1)
            choices = ("A", "B")
        else:
            seed = seed_of(*place, principle.id, order)
            sampling = Sampling(temperature=0.0, max_tokens=self.settings.max_tokens, seed=seed)
            choices = ()
        return Request(
            messages=(*self._before(principle), Message(role="user", content=text)),
            sampling=sampling,
            choices=choices,
            # Principles share all but the question, so a pair's calls belong to one prefix cache.
            affinity=comparison.prompt.id,
        )

    def _before(self, principle: Principle) -> tuple[Message, ...]:
        said: list[Message] = []
        if self._constitution.preamble:
            said.append(Message(role="system", content=self._constitution.preamble))
        worked = [*(e for e in principle.exemplars if e.is_choice), *self._constitution.choices]
        for e in worked[: self.settings.exemplars]:
            rule = self._constitution.by_id.get(e.principle or principle.id, principle)
            asked = (Message(role="user", content=e.prompt),)
            text = _render.pairwise(asked, e.a, e.b, rule.choose)
            said.append(Message(role="user", content=text))
            said.append(Message(role="assistant", content=str(e.answer)))
        return tuple(said)

    def _vote(self, principle: Principle, order: Order, reply: Reply) -> Vote:
        if reply.fault is not None:
            label: Label = "refused" if reply.fault == "refused" else "invalid"
            why = f"{reply.fault}: {reply.detail}".removesuffix(": ")
            return Vote(principle=principle.id, order=order, label=label, why=why, fault=reply.fault)
        read = self._by_logprobs if self.settings.read == "logprobs" else self._by_text
        # Read as the slots were shown, then turned back to the comparison's own a and b.
        vote = read(principle.id, reply)
        return vote if order == "ab" else vote.flip()

    def _by_logprobs(self, principle: str, reply: Reply) -> Vote:
        pair = reply.choice_logprobs
        if len(pair) != 2 or any(x is None or math.isnan(x) or x > 0.001 for x in pair):
            why = f"no usable log-probabilities of A and B: {list(pair)}"
            return Vote(principle=principle, order="ab", label="invalid", why=why)
        a, b = float(pair[0] or 0.0), float(pair[1] or 0.0)
        if a == b == -math.inf:
            return Vote(principle=principle, order="ab", label="invalid", why="A and B both at 0")
        p = 0.0 if b - a > 700.0 else 1.0 / (1.0 + math.exp(b - a))  # exp overflows at 710
        if self.settings.labels == "hard" and p != 0.5:
            p = float(p > 0.5)
        label: Label = "tie" if p == 0.5 else "A" if p > 0.5 else "B"
        return Vote(principle=principle, order="ab", label=label, p_a=p, logprobs=(a, b))

    def _by_text(self, principle: str, reply: Reply) -> Vote:
        label = _parse.verdict(reply.text)
        if label in ("invalid", "refused"):
            cut = "cut at max_tokens; " if reply.finish == "length" else ""
            why = f"{cut}said {reply.text[:80]!r}"
            return Vote(principle=principle, order="ab", label=label, why=why)
        p = {"A": 1.0, "B": 0.0, "tie": 0.5}[label]
        return Vote(principle=principle, order="ab", label=label, p_a=p)


def combine(votes: tuple[Vote, ...], tie: float = 0.0, quorum: float = 1.0) -> Verdict:
    """One verdict from votes: p is averaged over a principle's orders, then over the principles.

    A principle with an unreadable vote in any order does not count, and if fewer than `quorum` of
    them count the verdict is refused (if a refusal is among the reasons) or invalid.
    """
    by_principle: dict[str, list[Vote]] = {}
    for vote in votes:
        by_principle.setdefault(vote.principle, []).append(vote)
    readable = [v for v in by_principle.values() if all(x.p_a is not None for x in v)]
    consistent = _consistent(by_principle, tie)
    if not readable or len(readable) < quorum * len(by_principle):
        bad = [v for v in votes if v.p_a is None]
        label: Label = "refused" if any(v.label == "refused" for v in bad) else "invalid"
        return Verdict(label=label, votes=votes, consistent=consistent, why=bad[0].why)
    means = [sum(x.p_a or 0.0 for x in v) / len(v) for v in readable]
    p = sum(means) / len(means)
    return Verdict(label=_label(p, tie), p_a=p, votes=votes, consistent=consistent)


def _consistent(by_principle: dict[str, list[Vote]], tie: float) -> bool | None:
    """Whether each slot order by itself, averaged over the principles, gives the same label.

    None if only one order was asked, or a vote cannot be read.
    """
    votes = [v for group in by_principle.values() for v in group]
    orders = [[v.p_a for v in votes if v.order == order] for order in ("ab", "ba")]
    if not all(orders) or any(v.p_a is None for v in votes):
        return None
    labels = {_label(sum(p or 0.0 for p in ps) / len(ps), tie) for ps in orders}
    return len(labels) == 1


def _label(p: float, tie: float) -> Label:
    # A mean of 0.9 and 0.1 may miss 0.5 by its last bit, to a side that depends on the slots: no preference.
    return "tie" if abs(p - 0.5) <= max(tie, 1e-9) else "A" if p > 0.5 else "B"


def build(settings: Settings, engine: Engine, constitution: Constitution, seed: int = 0) -> PairwiseJudge:
    """The judge; SettingsError if the engine cannot give what `read` needs."""
    from constitution.loader import require

    require(constitution, ["choose"])
    if settings.read == "logprobs" and not engine.has_choices:
        raise SettingsError(f"{engine.name} gives no log-probabilities", where="judge.read", fix="read: text")
    return PairwiseJudge(settings, engine, constitution, seed)
