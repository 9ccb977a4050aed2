"""An engine that never pays twice: the ledger answers what it can, the rest is asked and stored."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence

from tenet.engines import Engine, Fault, Reply, Request
from tenet.errors import BudgetExceeded, EngineError, EngineRefused
from tenet.ledger import Calls, StoredReply
from tenet.records import Usage


class Budget:
    """What a run may spend in this process, shared by all its engines.

    A call is a request; what an engine sends again on its own after a fault is not counted.
    `max_calls` is never exceeded. `max_tokens` (prompt and completion) can be, by the calls that
    are in flight when it is reached: nobody knows a reply's length before it is there.
    """

    def __init__(
        self,
        *,
        max_calls: int | None = None,
        max_tokens: int | None = None,
        spent: Usage | None = None,
    ) -> None:
        spent = spent or Usage()
        self.max_calls, self.max_tokens = max_calls, max_tokens
        self.calls = spent.calls
        self.tokens = spent.prompt_tokens + spent.completion_tokens

    @classmethod
    def resume(cls, calls: Calls, run: str, *, max_calls: int | None = None, max_tokens: int | None = None) -> Budget:
        """The budget of a run that may have been started before: its stored replies count."""
        spent = sum(calls.usage(run).values(), Usage())
        return cls(max_calls=max_calls, max_tokens=max_tokens, spent=spent)

    def reserve(self, n: int) -> None:
        """Before n calls. BudgetExceeded, and nothing reserved, if they do not fit."""
        if self.max_tokens is not None and self.tokens >= self.max_tokens:
            raise BudgetExceeded(f"max_tokens={self.max_tokens}: {self.tokens} tokens are spent")
        if self.max_calls is not None and self.calls + n > self.max_calls:
            raise BudgetExceeded(f"max_calls={self.max_calls}: {self.calls} calls are spent and {n} more are due")
        self.calls += n


class CachedEngine:
    """Wraps an engine. Identical requests at once are asked once; a fault goes to all who wait.

    Faults are never stored, so that a rerun tries again. EngineError and LedgerError pass through.
    """

    def __init__(self, engine: Engine, calls: Calls, run: str, budget: Budget | None = None) -> None:
        self.name, self.fingerprint = engine.name, engine.fingerprint
        self.has_choices, self.has_scores, self.family = engine.has_choices, engine.has_scores, engine.family
        self.asked = 0
        """Requests that went to the engine."""
        self.reused = 0
        """Requests answered without it: from the ledger, or by the same question's reply."""
        self.faults: Counter[Fault] = Counter()
        self._engine, self._calls, self._run = engine, calls, run
        self._budget = budget or Budget()
        self._served = ""
        self._asking: dict[str, asyncio.Future[Reply]] = {}
        self._paid = [0, 0, 0, 0]

    @property
    def usage(self) -> Usage:
        """What this object has paid, faults included."""
        calls, prompt, completion, cached = self._paid
        return Usage(calls=calls, prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached)

    @property
    def served(self) -> str:
        """What the server calls the model whose replies are stored; "" if it says nothing, or was never asked."""
        return self._served or self._calls.served(self.fingerprint)

    async def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply per request, in order; every reply without fault is durable on return."""
        keys = [request.key(self.fingerprint) for request in requests]
        by_key = dict(zip(keys, requests, strict=True))
        replies = await self._answer(by_key)
        self.reused += len(requests) - len(by_key)
        return [replies[key] for key in keys]

    async def close(self) -> None:
        """Closes the engine, not the ledger."""
        await self._engine.close()

    async def _answer(self, by_key: Mapping[str, Request]) -> dict[str, Reply]:
        others = {key: self._asking[key] for key in by_key if key in self._asking}
        mine = {key: request for key, request in by_key.items() if key not in others}
        replies = await self._lead(mine) if mine else {}
        if others:
            await asyncio.wait(others.values())
            # Who asked was cancelled, which says nothing about the question: ask it ourselves.
            again = {key: by_key[key] for key, waiter in others.items() if waiter.cancelled()}
            replies |= {key: w.result() for key, w in others.items() if key not in again}
            self.reused += len(others) - len(again)
            if again:
                replies |= await self._answer(again)
        return replies

    async def _lead(self, mine: Mapping[str, Request]) -> dict[str, Reply]:
        """Answers requests that nobody else is asking, and tells those who wait for them."""
        loop = asyncio.get_running_loop()
        self._asking |= {key: loop.create_future() for key in mine}
        try:
            replies = await self._fetch(mine)
        except BaseException as error:
            for key in mine:
                waiter = self._asking.pop(key)
                if isinstance(error, Exception):
                    waiter.set_exception(error)
                    waiter.exception()  # marks it as seen: there may be nobody who waits
                else:
                    waiter.cancel()
            raise
        for key in mine:
            self._asking.pop(key).set_result(replies[key])
        return replies

    async def _fetch(self, mine: Mapping[str, Request]) -> dict[str, Reply]:
        found = await self._calls.get_many(list(mine))
        self.reused += len(found)
        replies = {key: _unpack(stored) for key, stored in found.items()}
        missing = {key: request for key, request in mine.items() if key not in found}
        return replies | await self._ask(missing) if missing else replies

    async def _ask(self, missing: Mapping[str, Request]) -> dict[str, Reply]:
        self._budget.reserve(len(missing))
        self.asked += len(missing)
        answers = await self._engine.generate(list(missing.values()))
        if len(answers) != len(missing):
            raise EngineError(f"{self.name}: {len(answers)} replies to {len(missing)} requests")
        replies = dict(zip(missing, answers, strict=True))
        good: dict[str, StoredReply] = {}
        others: set[str] = set()
        for key, reply in replies.items():
            self._count(reply)
            if reply.fault is None and self._is_another(reply.served):
                others.add(reply.served)
            elif reply.fault is None:
                good[key] = StoredReply(reply.text, reply.finish, reply.choice_logprobs, reply.usage)
        stored = await self._calls.put_many(good, self._run, self.name) if good else {}
        for key, kept in stored.items():
            if kept is not good[key]:  # another process was faster: everyone builds on its reply
                replies[key] = _unpack(kept)
        spent = next((r.detail for r in replies.values() if r.fault == "budget"), None)
        if others:
            raise EngineRefused(self._swapped(*others))
        if spent is not None:  # the engine's own budget ends the run; it is no fault of these rows
            raise BudgetExceeded(f"{self.name}: {spent}")
        return replies

    def _is_another(self, model: str) -> bool:
        """Whether a server answers under another name than when this workspace first heard it."""
        if model and not self._served:
            self._served = self._calls.served(self.fingerprint, model)
        heard, first = f"{model}, ", f"{self._served}, "  # one may be told without the fingerprint behind the name
        return bool(model) and not (heard.startswith(first) or first.startswith(heard))

    def _swapped(self, *models: str) -> str:
        return (
            f"{self.name}: the server now answers as {' and '.join(map(repr, sorted(models)))}, and the stored replies "
            f"are those of {self._served!r}; the two are not mixed, and nothing of the new one is kept. Bring the old "
            "model back; or set the engine's `version`, which asks everything anew for another run folder; or, if this "
            "server alternates between backends of one model, set `pinned: model`"
        )

    def _count(self, reply: Reply) -> None:
        if reply.fault is not None:
            self.faults[reply.fault] += 1
        u = reply.usage
        paid = (max(1, u.calls), u.prompt_tokens, u.completion_tokens, u.cached_tokens)
        self._paid = [a + b for a, b in zip(self._paid, paid, strict=True)]
        self._budget.tokens += u.prompt_tokens + u.completion_tokens


def _unpack(stored: StoredReply) -> Reply:
    """Without validation, which the reply passed before it was stored."""
    return Reply.model_construct(
        text=stored.text,
        finish=stored.finish,
        choice_logprobs=stored.choice_logprobs,
        usage=stored.usage,
    )
