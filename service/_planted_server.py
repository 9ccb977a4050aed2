"""A small OpenAI-compatible server on this machine that is often busy: the selftest's endpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from tenet.engines import Reply, Request, Sampling
from tenet.records import Message


class BusyServer:
    """Answers from a script; says 429 to the first try of every call, and then nothing (null) to every fourth.

    `choices` gives the options that a question wants scored, since the protocol does not carry them.
    """

    def __init__(self, script: Callable[[Request], Reply], choices: Callable[[Request], Sequence[str]]) -> None:
        self.base_url = ""
        self.turned_away = self.nulls = 0
        self._script, self._choices = script, choices
        self._seen: dict[bytes, tuple[int, int]] = {}
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._serve)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _serve(self, call: web.Request) -> web.Response:
        raw = await call.read()
        number, tries = self._seen.get(raw, (len(self._seen), 0))
        self._seen[raw] = number, tries + 1
        if tries == 0:
            self.turned_away += 1
            return web.json_response({"error": {"message": "busy"}}, status=429, headers={"retry-after-ms": "5"})
        if tries == 1 and number % 4 == 0:
            self.nulls += 1
            return web.json_response({"choices": [{"message": {"content": None}, "finish_reason": None}]})
        return web.json_response(self._answer(await call.json()))

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        sampling = Sampling(temperature=body["temperature"], max_tokens=body["max_tokens"], seed=body.get("seed"))
        messages = tuple(Message.model_validate(m) for m in body["messages"])
        request = Request(messages=messages, sampling=sampling)
        if "logprobs" in body:
            request = request.model_copy(update={"choices": tuple(self._choices(request))})
        reply = self._script(request)
        first: dict[str, Any] = {"message": {"content": reply.text}, "finish_reason": reply.finish}
        if request.choices:
            scored = zip(request.choices, reply.choice_logprobs, strict=True)
            top = [{"token": token, "logprob": -9999.0 if x is None else x} for token, x in scored]
            first["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
        return {"choices": [first], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
