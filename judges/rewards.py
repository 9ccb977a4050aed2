"""A judge as a reward function: the callable that TRL's online trainers (GRPO, RLOO) ask for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from judges import Scorer
from tenet.records import Message, Prompt, Score

Turns = str | Sequence[dict[str, Any]]
RewardFunction = Callable[..., list[float | None]]


def reward_function(scorer: Scorer, *, name: str = "judge", key: str = "reward") -> RewardFunction:
    """`f(prompts, completions, **columns) -> scores`, as TRL calls it, for plain and conversational data.

    A score that cannot be read is None, which TRL leaves out of the sum, and not 0. All completions of
    a prompt are scored under the same principles, so that a group is comparable. `key` decides which. A row
    that is no conversation ends in ValueError.
    """

    async def score_all(prompts: Sequence[Turns], completions: Sequence[Turns]) -> list[Score]:
        pairs = [(_prompt(p), _reply(c)) for p, c in zip(prompts, completions, strict=True)]
        return await asyncio.gather(*(scorer.score(p, reply, key) for p, reply in pairs))

    def rewards(prompts: Sequence[Turns], completions: Sequence[Turns], **columns: Any) -> list[float | None]:
        # In a thread of its own, since the caller may be inside an event loop, as in a notebook.
        with ThreadPoolExecutor(1) as thread:
            scores = thread.submit(lambda: asyncio.run(score_all(prompts, completions))).result()
        return [s.value for s in scores]

    rewards.__name__ = name  # TRL logs rewards under the function's name
    return rewards


def _prompt(turns: Turns) -> Prompt:
    if isinstance(turns, str):
        return Prompt(messages=(Message(role="user", content=turns),))
    return Prompt(messages=tuple(_message(t) for t in turns))


def _reply(turns: Turns) -> str:
    """The text of a completion; of several turns (calls of tools), what the assistant said last."""
    if isinstance(turns, str):
        return turns
    said = [m.content for m in map(_message, turns) if m.role == "assistant"]
    if not said:
        raise ValueError("a completion holds no assistant turn")
    return said[-1]


def _message(turn: dict[str, Any]) -> Message:
    return Message(role=turn["role"], content=turn["content"] or "")
