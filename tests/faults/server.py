"""A server that plays nano with the oracle's knowledge, and the table of what may go wrong on the way to it."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service import recipe as recipes
from service import run
from tenet.engines import Request, Sampling
from tenet.records import Message
from tests import oracle_script
from tests.faults.runs import write
from tests.stub_server import Answer, Call, Script, Stub, chat, error, scores

MODEL = "{kind: openai, model: m, base_url: 'BASE', key_env: TENET_FAULT_KEY, backoff_s: 0.01, MORE}"


def play(call: Call) -> Answer:
    """The oracle's answer to a call, the same whenever the same is asked."""
    body = call.body
    messages = tuple(Message(role=m["role"], content=m["content"]) for m in body["messages"])
    drawn = Sampling(temperature=body["temperature"], max_tokens=body["max_tokens"], seed=body.get("seed"))
    asked = Request(messages=messages, sampling=drawn, choices=("A", "B") if "top_logprobs" in body else ())
    reply = oracle_script.play(asked)
    if asked.choices:
        a, b = (p if p is not None else -99.0 for p in reply.choice_logprobs)
        answer = scores((" A", a), (" B", b))
    else:
        answer = chat(reply.text)
    u = reply.usage
    answer.body["usage"] = {"prompt_tokens": u.prompt_tokens, "completion_tokens": u.completion_tokens}
    return answer


def is_judged(call: Call) -> bool:
    """Whether a call asks for a verdict."""
    return "top_logprobs" in call.body


def is_first(call: Call) -> bool:
    """Whether a call asks for a first reply."""
    return not is_judged(call) and len(call.body["messages"]) == 1


def some(call: Call) -> bool:
    """A third of all calls, by what they ask."""
    return sum(call.payload) % 3 == 0


def lake(call: Call) -> bool:
    """Calls about one of the prompts' words, whichever stage makes them."""
    return any("lake" in m["content"] for m in call.body["messages"][:1]) and not is_judged(call)


def once(bad: Callable[[Call], Answer], whom: Callable[[Call], bool] = some) -> Callable[[], Script]:
    """The fault strikes each such call the first time that it is made."""

    def fresh() -> Script:
        struck: set[bytes] = set()

        def script(call: Call) -> Answer:
            if call.payload not in struck and whom(call):
                struck.add(call.payload)
                return bad(call)
            return play(call)

        return script

    return fresh


def always(bad: Callable[[Call], Answer], whom: Callable[[Call], bool] = lake) -> Callable[[], Script]:
    """The fault strikes each such call every time."""
    return lambda: lambda call: bad(call) if whom(call) else play(call)


def altered(change: Callable[[dict[str, Any]], object]) -> Callable[[Call], Answer]:
    """The good answer, with a change to its body."""

    def bad(call: Call) -> Answer:
        answer = play(call)
        change(answer.body)
        return answer

    return bad


def late(call: Call) -> Answer:
    """The good answer, after the client's patience."""
    return Answer(play(call).body, delay=30.0)


@dataclass(frozen=True)
class Passing:
    """Strikes calls once: the run must come out as if nothing had been."""

    name: str
    how: str
    script: Callable[[], Script]
    settings: str = ""


@dataclass(frozen=True)
class Lasting:
    """Strikes some calls whenever they are made: those are dropped with the reason, and tried again if it may pass."""

    name: str
    how: str
    script: Callable[[], Script]
    reason: tuple[str, str, str]
    """unit, stage and reason of the drops"""
    passes: bool = True
    """whether a later start asks again, and then has the rows of a run without the fault"""
    settings: str = ""


def _set_logprobs(value: float | None) -> Callable[[dict[str, Any]], object]:
    def change(body: dict[str, Any]) -> None:
        told = body["choices"][0]
        if value is None:
            told["logprobs"] = None
            return
        for top in told["logprobs"]["content"][0]["top_logprobs"]:
            top["logprob"] = value

    return change


def _finish_length(body: dict[str, Any]) -> None:
    body["choices"][0]["finish_reason"] = "length"
    body["choices"][0]["message"]["content"] = ""


QUICK = "timeout_s: 2.0, retries: 10"
PASSING = (
    Passing("408", "a third of the calls: HTTP 408, once", once(lambda _: error(408, "too slow"))),
    Passing("429", "a third of the calls: HTTP 429 without Retry-After, once", once(lambda _: error(429, "slow down"))),
    Passing(
        "429 with Retry-After", "a third of the calls: HTTP 429 with Retry-After in seconds, once",
        once(lambda _: error(429, "slow down", retry_after="0.02")),
    ),
    Passing("500", "a third of the calls: HTTP 500, once", once(lambda _: error(500, "oops"))),
    Passing("502", "a third of the calls: HTTP 502 in HTML, once", once(lambda _: Answer(b"<html>", status=502))),
    Passing("503", "a third of the calls: HTTP 503, once", once(lambda _: error(503, "busy"))),
    Passing("529", "a third of the calls: HTTP 529, once", once(lambda _: error(529, "overloaded"))),
    Passing("read timeout", "first replies come after the time-out, once", once(late, is_first), QUICK),
    Passing(
        "slow stream", "first replies begin at once and drip, so that they end after the time-out; once",
        once(lambda call: Answer(play(call).body, drip=0.5), is_first), QUICK,
    ),
    Passing("truncated JSON", "a third of the calls: half a JSON under its own length, once",
            once(lambda call: Answer(json.dumps(play(call).body).encode()[:60]))),
    Passing("broken off", "a third of the calls: the connection ends in the middle of the body, once",
            once(lambda call: Answer(play(call).body, cut=40))),
    Passing("reset", "a third of the calls: the connection is closed without an answer, once",
            once(lambda _: Answer(reset=True))),
    Passing("wrong content type", "a third of the calls: HTTP 200 with a login page in HTML, once",
            once(lambda _: Answer(b"<html>sign in</html>", headers={"content-type": "text/html"}))),
    Passing("empty choices", "a third of the calls: `choices: []`, once",
            once(altered(lambda body: body.update(choices=[])))),
)  # fmt: skip
LASTING = (
    Lasting("413", "calls about a lake: HTTP 413", always(lambda _: error(413, "too large")),
            ("prompt", "respond", "context length"), passes=False),
    Lasting("500 that stays", "calls about a lake: HTTP 500", always(lambda _: error(500, "oops")),
            ("prompt", "respond", "server")),
    Lasting("truncated JSON that stays", "calls about a lake: half a JSON", always(lambda _: Answer(b'{"choices": [{')),
            ("prompt", "respond", "bad reply")),
    Lasting("read timeout that stays", "calls about a lake: no answer in time", always(late),
            ("prompt", "respond", "timeout"), settings="timeout_s: 2.0, retries: 0"),
    Lasting("log-probabilities missing", "one vote in fifteen: no log-probabilities",
            always(altered(_set_logprobs(None)), lambda c: is_judged(c) and sum(c.payload) % 15 == 0),
            ("pair", "judge", "invalid verdict")),
    Lasting("log-probabilities NaN", "one vote in fifteen: NaN for each option",
            always(altered(_set_logprobs(math.nan)), lambda c: is_judged(c) and sum(c.payload) % 15 == 0),
            ("pair", "judge", "invalid verdict"), passes=False),
    Lasting("finish_reason length", "first replies about a lake: empty, cut at max_tokens",
            always(altered(_finish_length), lambda c: is_first(c) and lake(c)),
            ("prompt", "respond", "empty reply"), passes=False),
    Lasting("duplicate replies", "replies about a lake: always the same text",
            always(lambda _: chat("Rinse it under warm water, then let it dry."), lake),
            ("pair", "pairs", "identical replies"), passes=False),
)  # fmt: skip


async def served(
    folder: Path, script: Script, use: Callable[[Stub, Path], Any], *, prompts: int = 8, more: str = ""
) -> Any:
    """What `use` makes of a server that follows the script and a recipe that names it."""
    async with Stub(script) as stub:
        model = MODEL.replace("BASE", stub.base_url).replace("MORE", more or "retries: 3")
        return await use(stub, write(folder, prompts, model))


async def walk(recipe: Path, out: str, **settings: str) -> dict[str, Any]:
    """The manifest of a run through the server that the recipe names."""
    plan = recipes.open_recipe(recipe, [f"{k}={v}" for k, v in settings.items()], str(recipe.parent / out))
    return await asyncio.wait_for(run.execute(plan), 240)
