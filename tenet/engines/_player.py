"""A replica that plays a script: the scripted engine in a Ray actor, to try a cluster before a GPU is paid."""

from __future__ import annotations

import asyncio
from typing import Any

from tenet.engines import Reply, Request, Sampling, scripted
from tenet.engines._actor import Actor
from tenet.engines._prompt import Fault
from tenet.records import Message


class Player(Actor):
    """Asks the script what the same request would be asked in the driver."""

    async def start(self, share: tuple[int, int]) -> int:
        self._script = scripted.find(self._plan["script"])
        return 0

    async def _answer(self, asked: tuple[Any, ...]) -> tuple[Any, ...]:
        messages, text, (temperature, top_p, most, stop, seed), choices = asked
        request = Request(
            messages=tuple(Message(role=role, content=content) for role, content in messages), text=text,
            sampling=Sampling(temperature=temperature, top_p=top_p, max_tokens=most, stop=stop, seed=seed),
            choices=choices,
        )  # fmt: skip
        await asyncio.sleep(self._plan["delay"])
        reply: Reply = scripted.reply(self._script, request)
        if reply.fault is not None:
            raise Fault(reply.fault, reply.detail)
        u = reply.usage
        return reply.text, reply.finish, reply.choice_logprobs, (u.prompt_tokens, u.completion_tokens, u.cached_tokens)
