"""First replies: n samples from one model or a weighted pool, each from a seed of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, model_validator

from tenet.engines import Engine, Request, Sampling
from tenet.records import Dropped, Frozen, Message, Prompt, Response, canonical, seed_of


class Draw(Frozen):
    """How a model draws its text."""

    temperature: Annotated[float, Field(ge=0, le=5)] = 1.0
    """0 is greedy; Constitutional AI uses 1."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling; 1 is off."""
    max_tokens: Annotated[int, Field(ge=1)] = 512
    """Longest text, in tokens."""
    stop: tuple[str, ...] = ()
    """Texts that end a reply."""

    def sampling(self, seed: int) -> Sampling:
        """The draw under one seed."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_tokens,
            stop=self.stop,
            seed=seed,
        )


class Settings(Frozen):
    """How first replies are drawn."""

    model: str = ""
    """Name of one of the recipe's models; empty: the first."""
    pool: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default_factory=dict[str, float])
    """In place of `model`: several models with weights; each sample draws one."""
    samples: Annotated[int, Field(ge=1, le=64)] = 2
    """Replies per prompt."""
    system: str = ""
    """A system message put before conversations that have none."""
    sampling: Draw = Draw()
    """How a reply is drawn."""

    @model_validator(mode="after")
    def _one_source(self) -> Settings:
        if self.model and self.pool:
            raise ValueError("has both model and pool: give one of them")
        return self


def model_for(settings: Settings, default: str, *place: object) -> str:
    """The model that a sample uses: drawn by weight, from nothing but its place in the run."""
    if not settings.pool:
        return settings.model or default
    raw = hashlib.blake2b(canonical(place).encode(), digest_size=8).digest()
    at = int.from_bytes(raw, "big") / 2**64 * sum(settings.pool.values())
    for name, weight in sorted(settings.pool.items()):
        at -= weight
        if at < 0:
            return name
    return max(settings.pool)


def conversation(prompt: Prompt, system: str) -> tuple[Message, ...]:
    """The prompt's turns, after the system message if it has none of its own."""
    if system and prompt.messages[0].role != "system":
        return (Message(role="system", content=system), *prompt.messages)
    return prompt.messages


def request(prompt: Prompt, index: int, settings: Settings, seed: int) -> Request:
    """The question that sample `index` asks."""
    return Request(
        messages=conversation(prompt, settings.system),
        sampling=settings.sampling.sampling(seed_of(seed, prompt.id, "respond", index)),
        affinity=prompt.id,
    )


async def respond(
    prompt: Prompt,
    index: int,
    settings: Settings,
    engines: Mapping[str, Engine],
    seed: int,
) -> Response | Dropped:
    """Sample `index` of a prompt's replies, or why there is none."""
    name = model_for(settings, next(iter(engines)), seed, prompt.id, "model", index)
    reply = (await engines[name].generate([request(prompt, index, settings, seed)]))[0]
    if reply.fault is not None:
        return Dropped.from_fault(prompt.id, "respond", reply.fault, reply.detail)
    if not reply.text.strip():
        return Dropped(prompt_id=prompt.id, unit="reply", stage="respond", reason="empty reply")
    return Response(prompt_id=prompt.id, index=index, text=reply.text.strip(), model=name, finish=reply.finish)
