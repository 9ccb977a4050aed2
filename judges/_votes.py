"""From answers to a verdict: what log-probabilities say, and how votes are put together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from tenet.engines import Reply
from tenet.records import Label, Rating, Score, Usage, Verdict, Vote

_MISSING = 0.01
"""So much probability may be out of sight: some endpoints tell only their likeliest tokens."""


def distribution(logprobs: Sequence[float | None], n: int) -> list[float] | str:
    """The probabilities of n options, normalised among themselves; or why there are none.

    An option without a log-probability counts as 0 if those that have one hold 0.99 or more of the
    whole distribution, since it can then have 0.01 at most. Otherwise nothing is made up for it.
    """
    seen = [x for x in logprobs if x is not None]
    if len(logprobs) != n or not seen or any(math.isnan(x) or x > 0.001 for x in seen):
        return f"no usable log-probabilities of the options: {list(logprobs)}"
    high = max(seen)
    if high == -math.inf:
        return "all options have probability 0"
    if len(seen) < n and sum(map(math.exp, seen)) < 1 - _MISSING:
        return f"too little is known of the options: {list(logprobs)}"
    weights = [0.0 if x is None else math.exp(x - high) for x in logprobs]
    total = math.fsum(weights)
    return [w / total for w in weights]


def failed(reply: Reply) -> tuple[Label, str] | None:
    """The state of a call that failed, and why; None if it did not."""
    if reply.fault is None:
        return None
    label: Label = "refused" if reply.fault == "refused" else "invalid"
    return label, f"{reply.fault}: {reply.detail}".removesuffix(": ")


def cost(replies: Iterable[Reply]) -> Usage:
    """The sum of what replies cost."""
    return sum((r.usage for r in replies), Usage())


def label_of(p: float, tie: float = 0.0) -> Label:
    """The label that a probability of a stands for; a tie if it is within `tie` of one half."""
    # A mean of 0.9 and 0.1 may miss 0.5 by its last bit, to a side that depends on the slots: no preference.
    return "tie" if abs(p - 0.5) <= max(tie, 1e-9) else "A" if p > 0.5 else "B"


def split(verdict: Verdict, tie: float, quorum: float) -> dict[str, Verdict]:
    """The verdict of each slot order's votes alone; {"": the verdict} if no vote has an order."""
    orders = sorted({v.order for v in verdict.votes if v.order is not None})
    if not orders:
        return {"": verdict}
    return {o: combine(tuple(v for v in verdict.votes if v.order == o), tie, quorum) for o in orders}


def combine(votes: tuple[Vote, ...], tie: float = 0.0, quorum: float = 1.0) -> Verdict:
    """One verdict from votes: p is averaged over the samples of a question, then over a principle's orders, then
    over the principles.

    A question counts if at least `quorum` of its samples are readable; a principle if all its questions count; and
    if fewer than `quorum` of the principles count, the verdict is refused (if a refusal is among the reasons) or
    invalid.
    """
    by_principle: dict[str, dict[str, list[Vote]]] = {}
    for vote in votes:
        by_principle.setdefault(vote.principle, {}).setdefault(vote.order or "", []).append(vote)
    means = [_mean(orders, quorum) for orders in by_principle.values()]
    readable = [m for m in means if m is not None]
    if not readable or len(readable) < quorum * len(by_principle):
        bad = [v for v in votes if v.p_a is None]
        label: Label = "refused" if any(v.label == "refused" for v in bad) else "invalid"
        why = bad[0].why if bad else "no vote"
        return Verdict(label=label, votes=votes, why=why)
    p = math.fsum(math.fsum(m.values()) / len(m) for m in readable) / len(readable)
    consistent = _consistent(readable, tie) if len(readable) == len(by_principle) else None
    return Verdict(label=label_of(p, tie), p_a=p, votes=votes, consistent=consistent)


def _mean(orders: dict[str, list[Vote]], quorum: float) -> dict[str, float] | None:
    """One principle's mean p by slot order; None if one of its questions has too few readable samples."""
    means: dict[str, float] = {}
    for order, votes in orders.items():
        ps = [v.p_a for v in votes if v.p_a is not None]
        if not ps or len(ps) < quorum * len(votes):
            return None
        means[order] = math.fsum(ps) / len(ps)
    return means


def _consistent(means: list[dict[str, float]], tie: float) -> bool | None:
    """Whether each slot order by itself, averaged over the principles, gives the same label; None if one was asked."""
    if not all("ab" in m and "ba" in m for m in means):
        return None
    labels = {label_of(math.fsum(m[order] for m in means) / len(means), tie) for order in ("ab", "ba")}
    return len(labels) == 1


def mean_score(ratings: tuple[Rating, ...], quorum: float = 1.0) -> Score:
    """One score from ratings: their mean, if at least `quorum` of them are readable."""
    values = [r.value for r in ratings if r.value is not None]
    if values and len(values) >= quorum * len(ratings):
        return Score(value=math.fsum(values) / len(values), ratings=ratings)
    bad = [r for r in ratings if r.value is None]
    state = "refused" if any(r.label == "refused" for r in bad) else "invalid"
    return Score(label=state, ratings=ratings, why=bad[0].why if bad else "no principle applies to this prompt")
