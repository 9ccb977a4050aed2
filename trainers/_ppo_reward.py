"""Where PPO's scores come from: a reward model, a judge, or any Python function. Texts go out, numbers come back.

A score that is not there leaves its reply out of the update; it is never taken for 0.
"""

from __future__ import annotations

import asyncio
import importlib
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Protocol, Self

from pydantic import Field, model_validator

from tenet.engines import Engine, Request, Sampling, classifier
from tenet.errors import SettingsError, TooManyFailures, TrainingError
from tenet.records import Frozen, Message
from trainers._ppo_update import NotNegative, Positive

RewardFunction = Callable[..., Sequence[float | None]]
"""`f(prompts, completions, **columns)`, as TRL calls it, with conversations in both; column `id`: the rows' places."""
Turns = list[dict[str, str]]


class Reward(Frozen):
    """Who scores the replies (one of the first three), and what becomes of the scores."""

    model: str | None = None
    """A reward model: a folder of `tenet train reward`, or any …ForSequenceClassification with one label."""
    judge: str | None = None
    """A pointwise judge's config, as `tenet judge` reads it: direct RLAIF (Lee et al. 2023, section 2.3)."""
    function: str | None = None
    """`package.module:function`, called as TRL's trainers call reward functions; it returns a number or None each."""
    batch: Annotated[int, Field(ge=1)] = 16
    """Replies that a reward model reads together."""
    clip: Positive | None = None
    """Scores beyond plus or minus this are cut to it."""
    unended_penalty: NotNegative = 0.0
    """Taken off the score of a reply that was cut before an end token."""
    max_unscored: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Largest share of an update's replies that may have no score; with more the training stops."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(x is not None for x in (self.model, self.judge, self.function)) != 1:
            raise ValueError("name exactly one of reward.model, reward.judge and reward.function")
        return self


class Scorer(Protocol):
    """Scores conversations with their replies; None where there is no score."""

    name: str

    def score(self, prompts: list[Turns], replies: list[str], ids: list[str]) -> list[float | None]: ...

    def close(self) -> None: ...


class ModelScorer:
    """A reward model in this process. It reads texts with its own tokenizer and template: the policy's ids never."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.name = engine, engine.name

    def score(self, prompts: list[Turns], replies: list[str], ids: list[str]) -> list[float | None]:
        """One per reply; None where the model could not score, for example beyond its context."""
        asked = [
            Request(
                messages=(*(Message.model_validate(t) for t in p), Message(role="assistant", content=r)),
                sampling=Sampling(temperature=0.0, max_tokens=1),
            )
            for p, r in zip(prompts, replies, strict=True)
        ]
        return [None if r.fault else float(r.text) for r in asyncio.run(self._engine.generate(asked))]

    def close(self) -> None:
        """Lets the model go."""
        asyncio.run(self._engine.close())


class FunctionScorer:
    """A reward function."""

    def __init__(self, function: RewardFunction, name: str = "") -> None:
        self._function = function
        self.name = name or str(getattr(function, "__name__", "function"))

    def score(self, prompts: list[Turns], replies: list[str], ids: list[str]) -> list[float | None]:
        """One per reply; TrainingError if the function fails or gives anything else."""
        completions = [[{"role": "assistant", "content": r}] for r in replies]
        try:
            found = list(self._function(prompts=prompts, completions=completions, id=ids))
        except Exception as error:
            what = f"the reward function {self.name} failed: {type(error).__name__}: {error}"
            raise TrainingError(what[:500], where="reward", fix="mend it; the last checkpoint is good") from error
        if len(found) != len(replies):
            what = f"the reward function {self.name} gave {len(found)} scores for {len(replies)} replies"
            raise TrainingError(what, where="reward", fix="one number or None for each completion")
        return [None if x is None else float(x) for x in found]

    def close(self) -> None:
        """Nothing to end."""


def open_scorer(settings: Reward, given: RewardFunction | None = None) -> Scorer:
    """The scorer that the settings name; `given` is the opened judge. SettingsError if it cannot be used."""
    if settings.judge is not None:
        if given is None:
            what = "a judge is opened by `tenet train`; in Python, hand its reward function to build(settings, reward)"
            raise SettingsError(what, where="reward.judge", fix="judges.rewards.reward_function(judge)")
        return FunctionScorer(given)
    if settings.function is not None:
        module, _, name = settings.function.partition(":")
        try:
            found: Any = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            what = f"no function {settings.function!r}: {error}"
            raise SettingsError(what, where="reward.function", fix="package.module:function") from None
        return FunctionScorer(found, settings.function)
    assert settings.model is not None
    try:
        own = {"model": settings.model, "batch": settings.batch}
        return ModelScorer(classifier.build(classifier.Settings.model_validate(own)))
    except SettingsError as error:
        raise SettingsError(error.what, where="reward.model", fix=error.fix) from None


def usable(scores: Sequence[float | None], ended: Sequence[bool], settings: Reward) -> list[float | None]:
    """Scores cut to `clip`, with the penalty for a missing end; what is not a finite number is None.

    TooManyFailures if so many have none that what is left would be another task.
    """
    kept = [s if s is not None and math.isfinite(s) else None for s in scores]
    gone = kept.count(None)
    if gone > settings.max_unscored * len(kept):
        what = f"{gone} of {len(kept)} replies have no score; reward.max_unscored allows {settings.max_unscored:.0%}"
        raise TooManyFailures(what)
    bound = settings.clip or math.inf
    return [
        None if s is None else max(-bound, min(bound, s)) - (0.0 if end else settings.unended_penalty)
        for s, end in zip(kept, ended, strict=True)
    ]
