"""Judge kind "pointwise": how good one reply is, from 1 to 10; of two replies, the better scored is the better.

The model is asked for the likelihood of each score "1" to "10" as a string, "10" being two tokens in
many tokenizers; normalised, the expected score is rescaled to [-1, 1] (direct RLAIF, Lee et al. 2023,
section 2.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import Field

from constitution import Constitution, Principle
from constitution.draw import draw
from judges import Ask, Scale, _parse, _render
from judges._engines import Engines, pick, require_text
from judges._votes import combine, cost, distribution, failed, label_of, mean_score
from tenet.engines import Engine, Reply, Request, Sampling
from tenet.records import Comparison, Frozen, Label, Message, Prompt, Rating, Score, Verdict, Vote, seed_of

SCORES = tuple(str(i) for i in range(1, 11))


class Settings(Frozen):
    """How to score a reply."""

    model: str = ""
    """Name of one of the recipe's models; empty: the first."""
    principles: Annotated[int, Field(ge=1)] | Literal["all"] = 1
    """How many principles are drawn; the reply gets a score under each, and their mean."""
    read: Literal["logprobs", "text"] = "logprobs"
    """Log-probabilities of the scores, or a score in words for endpoints that have none."""
    labels: Literal["soft", "hard"] = "soft"
    """Of a pair. Soft: the probability that a's score is higher; hard: which expected score is."""
    tie: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """A verdict with |p - 0.5| up to this is a tie."""
    quorum: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the principles that must be readable; with fewer the verdict or score is invalid."""
    max_tokens: Annotated[int, Field(ge=1)] = 64
    """Longest score in words."""


class PointwiseJudge:
    """Asks an engine; see Settings."""

    scale: Scale = "unit"

    def __init__(self, settings: Settings, engine: Engine, constitution: Constitution, seed: int):
        self.settings, self.engines = settings, (engine,)
        self._engine, self._constitution, self._seed = engine, constitution, seed

    async def score(self, prompt: Prompt, reply: str, key: str = "") -> Score:
        """The expected score on [-1, 1], the mean over the principles; `key` decides which are drawn."""
        principles = self._principles(prompt, key)
        replies = await self._engine.generate([self._request(prompt, reply, p, key) for p in principles])
        shown = _render.shown(prompt, reply)
        ratings = tuple(self._rating(p, r, shown) for p, r in zip(principles, replies, strict=True))
        return mean_score(ratings, self.settings.quorum).model_copy(update={"usage": cost(replies)})

    async def judge(self, comparison: Comparison, key: str = "") -> Verdict:
        """The verdict on a comparison, from one vote per principle, each of two scores."""
        principles, prompt = self._principles(comparison.prompt, key), comparison.prompt
        if not principles:
            return Verdict(label="invalid", why="no principle applies to this prompt")
        pairs = list(product(principles, (comparison.a, comparison.b)))
        replies = await self._engine.generate([self._request(prompt, text, p, key) for p, text in pairs])
        ratings = [
            self._rating(p, r, _render.shown(prompt, text)) for (p, text), r in zip(pairs, replies, strict=True)
        ]
        votes = tuple(self._vote(a, b) for a, b in zip(ratings[::2], ratings[1::2], strict=True))
        verdict = combine(votes, self.settings.tie, self.settings.quorum)
        return verdict.model_copy(update={"usage": cost(replies)})

    def split(self, verdict: Verdict) -> dict[str, Verdict]:
        """The verdict itself: each reply is looked at alone."""
        return {"": verdict}

    def asks(self, comparison: Comparison, key: str = "") -> list[Ask]:
        """Every question that a comparison costs."""
        both = [self.score_asks(comparison.prompt, text, key) for text in (comparison.a, comparison.b)]
        return [ask._replace(step="judge") for asks in zip(*both, strict=True) for ask in asks]

    def score_asks(self, prompt: Prompt, reply: str, key: str = "") -> list[Ask]:
        """Every question that a score costs."""
        asked = [self._request(prompt, reply, p, key) for p in self._principles(prompt, key)]
        return [Ask("score", self.settings.model, request) for request in asked]

    def _principles(self, prompt: Prompt, key: str) -> Sequence[Principle]:
        pool = self._constitution.principles
        if self.settings.principles == "all":
            return [p for p in pool if p.applies_to(prompt.tags)]
        return draw(pool, self.settings.principles, self._seed, prompt.id, "judge", key, tags=prompt.tags)

    def _request(self, prompt: Prompt, reply: str, principle: Principle, key: str) -> Request:
        said: list[Message] = []
        if self._constitution.preamble:
            said.append(Message(role="system", content=self._constitution.preamble))
        said.append(Message(role="user", content=_render.pointwise(prompt.messages, reply, principle.score)))
        by_odds = self.settings.read == "logprobs"
        return Request(
            messages=tuple(said),
            sampling=Sampling(
                temperature=0.0,
                max_tokens=1 if by_odds else self.settings.max_tokens,
                seed=seed_of(self._seed, prompt.id, "score", key, principle.id),
            ),
            choices=SCORES if by_odds else (),
            affinity=prompt.id,
        )

    def _rating(self, principle: Principle, reply: Reply, shown: Sequence[str]) -> Rating:
        named: dict[str, Any] = {"principle": principle.id, "principle_hash": principle.hash}

        def bad(label: Any, why: str) -> Rating:
            return Rating(**named, label=label, why=why, fault=reply.fault or "")

        if (fault := failed(reply)) is not None:
            return bad(*fault)
        if self.settings.read == "text":
            said = _parse.score(reply.text, shown, reply.finish == "length")
            if said is not None:
                return Rating(**named, value=rescale(said))
            cut = "cut at max_tokens; " if reply.finish == "length" else ""
            state = "refused" if _parse.is_refusal(reply.text) else "invalid"
            return bad(state, f"{cut}said {reply.text[:80]!r}")
        found = distribution(reply.choice_logprobs, len(SCORES))
        if isinstance(found, str):
            return bad("invalid", found)
        value = rescale(math.fsum(i * p for i, p in enumerate(found, 1)))
        return Rating(**named, value=value, distribution=tuple(found))

    def _vote(self, a: Rating, b: Rating) -> Vote:
        scores = (a.value, b.value)
        named: dict[str, Any] = {"principle": a.principle, "principle_hash": a.principle_hash}
        if a.value is None or b.value is None:
            bad = [r for r in (a, b) if r.value is None]
            label: Label = "refused" if any(r.label == "refused" for r in bad) else "invalid"
            why = "; ".join(f"{name}: {r.why}" for name, r in (("a", a), ("b", b)) if r.value is None)
            fault = next((r.fault for r in bad if r.fault), "")
            return Vote(**named, label=label, scores=scores, why=why, fault=fault)
        p = p_higher(a, b) if self.settings.labels == "soft" else _step(a.value - b.value)
        return Vote(**named, label=label_of(p), p_a=p, scores=scores)


def rescale(score: float) -> float:
    """From 1..10 to -1..1."""
    return (score - 5.5) / 4.5


def p_higher(a: Rating, b: Rating) -> float:
    """The probability that a score drawn for a is higher than one drawn for b, ties counted half.

    It needs no scale of its own, as a sigmoid of the difference would, and is 0.5 where the judge says the same of
    both. Scores in words are certain: it is then 0, 0.5 or 1.
    """
    if not (a.distribution and b.distribution):
        return _step((a.value or 0.0) - (b.value or 0.0))
    below, p = 0.0, 0.0
    for pa, pb in zip(a.distribution, b.distribution, strict=True):
        p += pa * (below + 0.5 * pb)
        below += pb
    return min(max(p, 0.0), 1.0)


def _step(difference: float) -> float:
    # Expected scores are sums of ten products: equal ones may differ in their last bits.
    return 0.5 if abs(difference) < 1e-9 else float(difference > 0)


def build(settings: Settings, engines: Engines, constitution: Constitution, seed: int = 0) -> PointwiseJudge:
    """The judge; SettingsError if the engine cannot give what `read` needs."""
    from constitution.loader import require

    require(constitution, ["score"])
    engine = pick(engines, settings.model)
    require_text(engine, settings.read)
    return PointwiseJudge(settings, engine, constitution, seed)
