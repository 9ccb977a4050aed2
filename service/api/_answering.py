"""One answer of constitutional chat: reply, critique, revise; nothing that was not revised is given out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from constitution import Constitution
from constitution.loader import require
from constitution.schema import Stage
from generators import respond, revise
from service.api.context import Service
from service.api.problems import Refusal
from tenet.engines import Engine, Reply, Request
from tenet.errors import ConstitutionError
from tenet.records import Dropped, Message, Prompt, Response, Usage


@dataclass(frozen=True)
class Question:
    """What a client asks."""

    model: str
    constitution: Constitution | None
    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float
    top_p: float
    stop: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class Answer:
    """What it gets."""

    text: str
    finish: Literal["stop", "length"]
    usage: Usage
    story: dict[str, Any]
    """The first answer and its rounds, for clients that ask for critiques."""


class _Counted:
    """An engine that remembers what one answer cost, and how its last reply ended."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.name, self.fingerprint, self.family = engine.name, engine.fingerprint, engine.family
        self.has_choices, self.has_scores = engine.has_choices, engine.has_scores
        self.usage, self.finish = Usage(), "stop"

    async def generate(self, requests: Sequence[Request]) -> list[Reply]:
        replies = await self._engine.generate(requests)
        self.usage = sum((r.usage for r in replies), self.usage)
        self.finish = replies[-1].finish
        return replies

    async def close(self) -> None:
        return None


async def answer_all(service: Service, question: Question, n: int) -> list[Answer]:
    """n answers at once. Refusal 400 for what the model cannot take, 502 if it fails."""
    if question.constitution is not None:
        stages: list[Stage] = ["revise", "critique"] if service.config.chat.revise.critique else ["revise"]
        try:
            require(question.constitution, stages)
        except ConstitutionError as error:
            raise Refusal(400, str(error), code="constitution_unfit") from None
    return list(await asyncio.gather(*(_answer(service, question, i) for i in range(n))))


async def _answer(service: Service, question: Question, which: int) -> Answer:
    """The first of some attempts whose every round gave a revision that can be used."""
    engine = _Counted(service.engines.engine(question.model))
    attempts = service.config.chat.attempts if question.constitution else 1
    dropped: Dropped | None = None
    for attempt in range(attempts):
        made = await _attempt(service, question, engine, which * attempts + attempt)
        if isinstance(made, Answer):
            return made
        dropped = made
        if made.reason == "context length":
            raise Refusal(400, f"the conversation is too long: {made.detail}", code="context_length_exceeded")
    assert dropped is not None
    what = f"no answer that can be given out in {attempts} attempts; the last: {dropped.stage}: {dropped.reason}"
    raise Refusal(502, f"{what} {dropped.detail}".strip()[:400], code="no_revised_answer")


async def _attempt(service: Service, q: Question, engine: _Counted, index: int) -> Answer | Dropped:
    prompt = Prompt(messages=q.messages)
    draw = respond.Draw(temperature=q.temperature, top_p=q.top_p, max_tokens=q.max_tokens, stop=q.stop)
    settings = respond.Settings(model=q.model, samples=1, sampling=draw)
    first = await respond.respond(prompt, index, settings, {q.model: engine}, q.seed)
    if isinstance(first, Dropped):
        return first
    if q.constitution is None:
        return Answer(first.text, first.finish, engine.usage, {"first": first.text, "rounds": []})
    rounds = service.config.chat.revise
    drawn = rounds.sampling.model_copy(update={"max_tokens": q.max_tokens, "stop": q.stop})
    rounds = rounds.model_copy(update={"sampling": drawn})
    chain = revise.Chain(prompt, q.messages, first, q.constitution, rounds, q.seed)
    failed = await chain.run(engine)
    if failed is not None:
        return failed
    return Answer(chain.text, "length" if engine.finish == "length" else "stop", engine.usage, _story(first, chain))


def _story(first: Response, chain: revise.Chain) -> dict[str, Any]:
    rounds = [
        {
            "round": r.round, "principles": list(r.principles), "critique": r.critique.text if r.critique else None,
            "revision": r.text, "flags": list(r.flags),
        }
        for r in chain.revisions
    ]  # fmt: skip
    return {"first": first.text, "rounds": rounds}
