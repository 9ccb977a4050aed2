"""Constitutional chat in OpenAI's protocol: an answer, its critique and its revision under a named constitution."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field

from service.api import _answering
from service.api._answering import Answer, Question
from service.api.context import Runs, Service, The
from service.api.problems import Refusal, answer, status_of
from tenet.errors import TenetError
from tenet.records import Message

router = APIRouter(prefix="/v1", tags=["chat"])
_BEAT_S = 10.0
_PIECES = re.compile(r"\S+\s*|\s+")
_REFUSED = ("tools", "functions", "tool_choice", "function_call", "logprobs", "logit_bias", "audio", "modalities")
"""Fields that change what is answered and cannot be honoured here."""


class Part(BaseModel):
    """A piece of a message; only texts are taken."""

    type: Literal["text"]
    text: str


class Turn(BaseModel):
    """A message as OpenAI's clients send it."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None


class StreamOptions(BaseModel):
    include_usage: bool = False


class Wanted(BaseModel, extra="forbid"):
    """Fields of ours (`extra_body={"tenet": {…}}` in the openai client)."""

    critiques: bool = False
    """Also tell the first answer, each critique with its principles, and each revision."""


class ChatIn(BaseModel, extra="allow"):
    """A chat request. Fields that are not listed are ignored, except those that would change the answer."""

    model: Annotated[str, Field(max_length=200)]
    """`MODEL@CONSTITUTION`, or `MODEL` for its plain answer."""
    messages: Annotated[list[Turn], Field(min_length=1, max_length=500)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=8)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tenet: Wanted | None = None


@router.get("/models")
async def models(service: The, _: Runs) -> dict[str, Any]:
    """The models, plain and under each constitution."""
    from service.api.constitutions import known

    names = [n for m in service.engines.names for n in (m, *(f"{m}@{c}" for c in known(service)))]
    return {"object": "list", "data": [{"id": n, "object": "model", "created": 0, "owned_by": "tenet"} for n in names]}


@router.post(
    "/chat/completions", response_model=None,
    responses={
        200: {"content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}}},
        "default": {"description": "OpenAI's error object", "content": {"application/json": {}}},
    },
)  # fmt: skip
async def complete(body: ChatIn, service: The, _: Runs) -> JSONResponse | StreamingResponse:
    """Answers as OpenAI's API does, whole or streamed; `usage` counts critiques and revisions too."""
    question = _question(service, body)
    id, created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
    if body.stream:
        service.engines.check_free()  # a refusal must be an answer of its own, not the first line of a stream
        return StreamingResponse(_stream(service, body, question, id, created), media_type="text/event-stream")
    async with service.engines.turn():
        answers = await _answering.answer_all(service, question, body.n or 1)
    wants = bool(body.tenet and body.tenet.critiques)
    choices = [
        {
            "index": i, "finish_reason": a.finish, "logprobs": None,
            "message": {"role": "assistant", "content": a.text, "refusal": None},
            **({"tenet": a.story} if wants else {}),
        }
        for i, a in enumerate(answers)
    ]  # fmt: skip
    made = {"id": id, "object": "chat.completion", "created": created, "model": body.model, "choices": choices}
    return JSONResponse({**made, "usage": _usage(answers)})


async def _stream(
    service: Service, body: ChatIn, question: Question, id: str, created: int
) -> AsyncGenerator[str]:
    def event(choices: list[dict[str, Any]], **more: Any) -> str:
        base = {"id": id, "object": "chat.completion.chunk", "created": created, "model": body.model}
        return f"data: {json.dumps({**base, 'choices': choices, **more}, ensure_ascii=False)}\n\n"

    def chunk(index: int, delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
        choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None, **more}
        return event([choice])

    n = body.n or 1

    async def work() -> list[Answer]:
        async with service.engines.turn():
            return await _answering.answer_all(service, question, n)

    task = asyncio.ensure_future(work())
    try:
        for i in range(n):
            yield chunk(i, {"role": "assistant", "content": ""})
        # An answer is held back until its last revision is there: what a critique takes out must not have been shown.
        while not task.done():
            await asyncio.wait([task], timeout=_BEAT_S)
            if not task.done():
                yield ": working\n\n"
        try:
            answers = task.result()
        except (Refusal, TenetError) as error:
            status = error.status if isinstance(error, Refusal) else status_of(error)
            told = answer("/v1/chat/", status, str(error), code=getattr(error, "code", ""))
            yield f"data: {bytes(told.body).decode()}\n\n"
            return
        wants = bool(body.tenet and body.tenet.critiques)
        for i, a in enumerate(answers):
            # In one write: the text is there as a whole, and a write for every word would cost the engine its cores.
            pieces = [chunk(i, {"content": piece}) for piece in _PIECES.findall(a.text)]
            yield "".join([*pieces, chunk(i, {}, a.finish, **({"tenet": a.story} if wants else {}))])
        if body.stream_options and body.stream_options.include_usage:
            yield event([], usage=_usage(answers))
        yield "data: [DONE]\n\n"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _question(service: Service, body: ChatIn) -> Question:
    """What is asked. Refusal in OpenAI's words for what cannot be."""
    for field in _REFUSED:
        if (body.model_extra or {}).get(field):
            raise Refusal(400, f"{field!r} cannot be honoured here", code="unsupported_parameter")
    form: Any = (body.model_extra or {}).get("response_format")
    if isinstance(form, dict) and form.get("type", "text") != "text":  # pyright: ignore[reportUnknownMemberType]
        raise Refusal(400, "only response_format text is answered", code="unsupported_parameter")
    model, at, rules = body.model.partition("@")
    if model not in service.engines.names:
        known = ", ".join(service.engines.names)
        raise Refusal(404, f"there is no model {model!r}; known: {known}", code="model_not_found")
    constitution = service.engines.constitution(rules) if at else None
    most = service.config.limits.max_tokens
    tokens = body.max_completion_tokens or body.max_tokens or min(service.config.chat.max_tokens, most)
    if tokens > most:
        raise Refusal(400, f"max_tokens is at most {most}", code="invalid_value")
    messages = tuple(_message(t) for t in body.messages)
    if messages[-1].role != "user" or any(m.role == "system" for m in messages[1:]):
        what = "the last message is the user's, and only the first may be the system's"
        raise Refusal(400, what, code="invalid_messages")
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return Question(
        model=model, constitution=constitution, messages=messages, max_tokens=tokens, stop=tuple(s for s in stop if s),
        temperature=1.0 if body.temperature is None else body.temperature, top_p=body.top_p or 1.0,
        seed=secrets.randbits(31) if body.seed is None else body.seed & 0x7FFF_FFFF,
    )  # fmt: skip


def _message(turn: Turn) -> Message:
    text = turn.content if isinstance(turn.content, str) else "".join(p.text for p in turn.content)
    return Message(role="system" if turn.role == "developer" else turn.role, content=text)


def _usage(answers: list[Answer]) -> dict[str, Any]:
    """Tokens of all calls that were made, not only those that wrote the last text."""
    prompt = sum(a.usage.prompt_tokens for a in answers)
    completion = sum(a.usage.completion_tokens for a in answers)
    return {
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(a.usage.cached_tokens for a in answers)},
    }  # fmt: skip
