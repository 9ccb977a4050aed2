"""Judge kind "reward_model": a sequence-classification checkpoint scores each reply by itself.

The probability that a is better is sigmoid(r_a - r_b), the Bradley-Terry model that reward models are
trained under (Ouyang et al. 2022, section 3.5). The constitution is what the model learnt, or nothing:
no principle is shown to it.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from constitution import Constitution
from judges import Ask, Scale
from judges._engines import Engines, pick
from judges._votes import combine, cost, failed, label_of, mean_score
from tenet.engines import Engine, Reply, Request, Sampling
from tenet.errors import SettingsError
from tenet.records import Comparison, Frozen, Label, Message, Prompt, Rating, Score, Verdict, Vote


class Settings(Frozen):
    """How to read a reward model."""

    model: str = ""
    """Name of one of the recipe's models, of engine kind "classifier"; empty: the first."""
    labels: Literal["soft", "hard"] = "soft"
    """Of a pair. Soft: sigmoid of the difference; hard: 0 or 1."""
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """What the difference of the scores is divided by, to calibrate p; 1 is the model's own."""
    tie: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """A verdict with |p - 0.5| up to this is a tie."""


class RewardModelJudge:
    """Asks a reward model; see Settings."""

    scale: Scale = "reward"

    def __init__(self, settings: Settings, engine: Engine):
        self.settings, self.engines = settings, (engine,)
        self._engine = engine

    async def score(self, prompt: Prompt, reply: str, key: str = "") -> Score:
        """The model's own score of a reply, unbounded."""
        replies = await self._engine.generate([_request(prompt, reply)])
        return mean_score((_rating(replies[0]),)).model_copy(update={"usage": cost(replies)})

    async def judge(self, comparison: Comparison, key: str = "") -> Verdict:
        """The verdict on a comparison, from one vote of two scores."""
        replies = await self._engine.generate([_request(comparison.prompt, t) for t in (comparison.a, comparison.b)])
        a, b = (_rating(r) for r in replies)
        verdict = combine((self._vote(a, b),), self.settings.tie)
        return verdict.model_copy(update={"usage": cost(replies)})

    def split(self, verdict: Verdict) -> dict[str, Verdict]:
        """The verdict itself: each reply is looked at alone."""
        return {"": verdict}

    def asks(self, comparison: Comparison, key: str = "") -> list[Ask]:
        """The two questions that a comparison costs."""
        return [
            Ask("judge", self.settings.model, _request(comparison.prompt, t)) for t in (comparison.a, comparison.b)
        ]

    def score_asks(self, prompt: Prompt, reply: str, key: str = "") -> list[Ask]:
        """The question that a score costs."""
        return [Ask("score", self.settings.model, _request(prompt, reply))]

    def _vote(self, a: Rating, b: Rating) -> Vote:
        scores = (a.value, b.value)
        if a.value is None or b.value is None:
            bad = [(name, r) for name, r in (("a", a), ("b", b)) if r.value is None]
            label: Label = "refused" if any(r.label == "refused" for _, r in bad) else "invalid"
            why = "; ".join(f"{name}: {r.why}" for name, r in bad)
            return Vote(principle="", label=label, scores=scores, why=why, fault=bad[0][1].fault)
        p = _sigmoid((a.value - b.value) / self.settings.temperature)
        if self.settings.labels == "hard" and a.value != b.value:
            p = float(a.value > b.value)
        return Vote(principle="", label=label_of(p), p_a=p, scores=scores)


def _request(prompt: Prompt, reply: str) -> Request:
    turns = (*prompt.messages, Message(role="assistant", content=reply))
    return Request(messages=turns, sampling=Sampling(temperature=0.0, max_tokens=1), affinity=prompt.id)


def _rating(reply: Reply) -> Rating:
    if (bad := failed(reply)) is not None:
        label, why = bad
        state = "refused" if label == "refused" else "invalid"
        return Rating(principle="", label=state, why=why, fault=reply.fault or "")
    try:
        value = float(reply.text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        return Rating(principle="", label="invalid", why=f"the score is {reply.text[:40]!r}")
    return Rating(principle="", value=value)


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x > -700.0 else 0.0  # exp overflows at 710


def build(settings: Settings, engines: Engines, constitution: Constitution, seed: int = 0) -> RewardModelJudge:
    """The judge; SettingsError if its engine is no reward model."""
    engine = pick(engines, settings.model)
    if not engine.has_scores:
        what = f"{engine.name} answers in words, and is no reward model"
        raise SettingsError(what, where="judge.model", fix="a model of kind classifier")
    return RewardModelJudge(settings, engine)
