"""An engine whose replicas stand in Ray actors: requests become plain tuples, answers become replies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tenet.engines import Reply, Request
from tenet.engines._pool import Pool
from tenet.records import Usage


class PooledEngine:
    """Serves one model from a pool. The first `generate`, or `start`, starts the replicas."""

    has_choices, has_scores = True, False

    def __init__(self, pool: Pool, *, name: str, fingerprint: str, family: str) -> None:
        self.pool = pool
        self.name, self.fingerprint, self.family = name, fingerprint, family

    @property
    def story(self) -> dict[str, Any]:
        """What became of the replicas."""
        return self.pool.story

    async def start(self) -> None:
        """Starts Ray and the replicas; EngineError, with the reason, if they cannot start."""
        await self.pool.start()

    async def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply per request, in order. EngineError if no replica is left, or two event loops ask at once."""
        answers = await self.pool.ask([(_question(r), r.affinity) for r in requests])
        return [_reply(a) for a in answers]

    async def close(self) -> None:
        """Ends every process that the engine started. May be called again."""
        await self.pool.close()


def _question(r: Request) -> tuple[Any, ...]:
    s = r.sampling
    return (
        tuple((m.role, m.content) for m in r.messages),
        r.text,
        (s.temperature, s.top_p, s.max_tokens, s.stop, s.seed),
        r.choices,
    )


def _reply(answer: tuple[Any, ...]) -> Reply:
    text, finish, logprobs, (prompt, completion, cached), fault, detail = answer
    usage = Usage(calls=1, prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached)
    return Reply(text=text, finish=finish, choice_logprobs=logprobs, usage=usage, fault=fault, detail=detail)
