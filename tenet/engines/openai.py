"""Engine kind "openai": any server that speaks OpenAI's HTTP protocol, such as `vllm serve`.

Plain aiohttp rather than the openai client, which costs ten times the CPU a call and follows
redirects to other origins with the prompt in hand.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Sequence
from typing import Any, Literal, Self, cast

from pydantic import Field, model_validator

from tenet.engines import Fault, Reply, Request, _http, _wire
from tenet.engines._budget import Budget
from tenet.engines._limiter import LONGEST_PAUSE, Limiter
from tenet.errors import BudgetExceeded, EngineRefused, SettingsError
from tenet.records import Frozen, Usage, canonical

_OURS = {
    *("messages", "prompt", "model", "max_tokens", "max_completion_tokens", "temperature", "top_p"),
    *("stop", "seed", "logprobs", "top_logprobs", "stream", "n"),
}


class Settings(Frozen):
    """Where the server is, what to ask of it, and how much."""

    model: str = Field(min_length=1)
    """The model's name as the server knows it."""
    base_url: str = "http://127.0.0.1:8000/v1"
    """Up to and without `/chat/completions`; no user, password or query in it."""
    key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable with the key; no key is sent if it is unset or empty."""
    family: str = ""
    """The model's family, such as "qwen3"; read off the model's name if empty."""
    concurrency: int = Field(default=64, ge=1)
    """Most calls in flight; the engine finds by itself how many the server copes with."""
    version: str = ""
    """Part of the fingerprint: change it when another model answers at the same address under the same name."""
    pinned: _wire.Pinned = "fingerprint"
    """What must not change in the server's answers while one workspace stores its replies: the model's name and
    `system_fingerprint`, only the name (for servers that alternate between backends), or nothing."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds one call may take, connecting included."""
    retries: int = Field(default=5, ge=0)
    """How often a call is sent again after a 500, a time-out, a reset, or an unreadable answer."""
    backoff_s: float = Field(default=0.5, gt=0)
    """Seconds before the first retry; doubles each time, up to 30."""
    patience_s: float = Field(default=900.0, gt=0)
    """Seconds that a call refused for overload (429, 503) is tried again before it is a fault."""
    max_calls: int | None = Field(default=None, ge=1)
    """Budget of answered calls for the engine's life; None is no limit, here and below."""
    max_tokens_budget: int | None = Field(default=None, ge=1)
    """Budget of prompt and completion tokens."""
    max_money: float | None = Field(default=None, gt=0)
    """Budget of money, in the currency of the prices."""
    price_prompt: float = Field(default=0.0, ge=0)
    """Price of a million prompt tokens."""
    price_cached: float | None = Field(default=None, ge=0)
    """Price of a million prompt tokens that the server had cached; None: like the others."""
    price_completion: float = Field(default=0.0, ge=0)
    """Price of a million completion tokens."""
    choices: bool = True
    """Whether the server returns log-probabilities, so that choices can be scored."""
    top_logprobs: int = Field(default=20, ge=1)
    """How many of the likeliest tokens to look for the choices in; servers allow 5 to 20."""
    length_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls the limit on a chat reply; newer OpenAI models want the second."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """More fields for the body of every call, such as `chat_template_kwargs`."""

    @model_validator(mode="before")
    @classmethod
    def _no_secrets(cls, given: Any) -> Any:
        # First of all, and not as a ValueError: pydantic's own errors quote what was given.
        told = cast(dict[str, Any], given) if isinstance(given, dict) else {}
        _http.check_address(str(told.get("base_url", "http://127.0.0.1")))
        _http.check_key_env(str(told.get("key_env", "")))
        _http.check_extra(told.get("extra"))
        return cast(Any, given)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.max_money is not None and not (self.price_prompt or self.price_completion):
            fix = "set price_prompt and price_completion, per million tokens"
            raise SettingsError("a budget without prices", where="engine.max_money", fix=fix)
        for name in self.extra:
            if name in _OURS:
                what = "the engine sets this field itself"
                raise SettingsError(what, where=f"engine.extra.{name}", fix="use sampling")
        return self


class OpenAIEngine:
    """Serves one model over HTTP, from one event loop. `spent` and `money` tell what it used."""

    def __init__(self, settings: Settings) -> None:
        s = settings
        self.name = f"openai:{s.model}"
        where = s.base_url.rstrip("/")
        self.fingerprint = f"openai:{where}:{s.model}:{canonical(s.extra)}:top{s.top_logprobs}"
        self.fingerprint += f":{s.version}" if s.version else ""
        self.has_choices, self.has_scores = s.choices, False
        # "Qwen/Qwen3-8B" is "qwen3": letters and the version that sticks to them.
        guess = re.match(r"[a-z]+\d*", s.model.rsplit("/", 1)[-1].lower())
        self.family = s.family or (guess[0] if guess else "")
        self._settings = s
        self._http = _http.Http(s.base_url, s.key_env, timeout_s=s.timeout_s, pinned=s.pinned)
        self._limiter = Limiter(s.concurrency, pause_s=s.backoff_s)
        self._budget = Budget(
            most_calls=s.max_calls,
            most_tokens=s.max_tokens_budget,
            most_money=s.max_money,
            price_prompt=s.price_prompt,
            price_completion=s.price_completion,
            price_cached=s.price_cached,
        )

    @property
    def spent(self) -> Usage:
        """What all calls so far used."""
        return self._budget.spent

    @property
    def money(self) -> float:
        """What all calls so far cost, by the prices in the settings."""
        return self._budget.money

    async def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply per request, in order; calls run side by side.

        Raises EngineUnreachable if the server never answered, EngineRefused if it will go on
        refusing, BudgetExceeded if for want of budget none of the requests was served. Where the
        budget ran out on the way, the requests left over have fault "budget".
        """
        if len(requests) == 1:
            replies = [await self._call(requests[0])]
        else:
            tasks = [asyncio.create_task(self._call(r)) for r in requests]
            try:
                replies = await asyncio.gather(*tasks)
            except BaseException:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                raise
        if replies and all(r.fault == "budget" for r in replies):
            raise BudgetExceeded(f"{self.name}: {replies[0].detail}")
        return replies

    async def close(self) -> None:
        """End the connections; calls that still wait for a place come back as faults."""
        self._limiter.close()
        await self._http.close()

    async def _call(self, request: Request) -> Reply:
        """The reply to one request, after as many attempts as it takes and the settings allow."""
        s = self._settings
        if request.choices and not s.choices:
            return Reply(fault="bad_reply", detail="this engine has choices: false")
        if not request.messages and request.text is None:
            return Reply(fault="bad_reply", detail="the request has neither messages nor text")
        path, body = _wire.body_of(
            request, model=s.model, extra=s.extra, top=s.top_logprobs, length_field=s.length_field
        )
        failures, refused_since, paid = 0, None, Usage()
        fault: Fault
        while True:
            place = await self._limiter.acquire(again=refused_since is not None)
            if place < 0:
                return Reply(fault="rate_limit", detail="gave up waiting for a place", usage=paid)
            if why := self._budget.take():
                self._limiter.release()
                return Reply(fault="budget", detail=why, usage=paid)
            usage = Usage()
            try:
                reply = await self._http.send(path, body, request)
                usage = reply.usage
                self._limiter.succeeded()
                # Unreadable answers before this one were paid for, too.
                return reply.model_copy(update={"usage": paid + usage}) if paid.calls else reply
            except _wire.Unreadable as error:
                usage, fault, detail = error.usage, "bad_reply", str(error)
            except _http.Overloaded as error:
                fault, detail = error.fault, str(error)
                refused_since = refused_since or time.monotonic()
                if self._wait_for_room(place, error, refused_since):
                    continue
                failures = s.retries
            except _http.Failed as error:
                fault, detail = error.fault, str(error)
                failures = failures if error.again else s.retries
            finally:
                self._budget.settle(usage)
                self._limiter.release()
            paid += usage
            failures += 1
            if failures > s.retries:
                return Reply(fault=fault, detail=detail, usage=paid)
            pause = min(s.backoff_s * 2 ** (failures - 1), LONGEST_PAUSE)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))

    def _wait_for_room(self, place: int, refusal: _http.Overloaded, since: float) -> bool:
        """Slow the whole engine down; False if this call has waited long enough.

        EngineRefused if the server names a time beyond our patience: to fail one row after the
        other until then would lose them all.
        """
        patience = self._settings.patience_s
        if (refusal.pause or 0.0) > patience:
            what = f"{self.name}: the server asks to wait {refusal.pause:.0f} s ({refusal})"
            raise EngineRefused(f"{what}: start again later, or raise engine.patience_s")
        self._limiter.refused(place, refusal.pause)
        now = time.monotonic()
        if now - (self._limiter.storm_began or now) > patience:
            self._limiter.give_up()
            return False
        return now - since <= patience


def build(settings: Settings) -> OpenAIEngine:
    """The engine; no call is made yet. SettingsError if the key cannot stand in a header."""
    return OpenAIEngine(settings)
