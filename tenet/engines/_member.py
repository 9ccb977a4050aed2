"""A replica's place in a pool, the questions it holds, and the story of what became of replicas."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from tenet.engines import _ray
from tenet.engines._room import Place

Question = tuple[Any, ...]
"""What a replica is asked, without its number; see `_replica.Question`."""
Answer = tuple[Any, ...]

_TOLD = 200
"""So many events are kept one by one; all are counted."""


@dataclass(slots=True, eq=False)
class Job:
    """A question on its way."""

    number: int
    question: Question
    affinity: str
    answer: asyncio.Future[Answer]
    deaths: int = 0


@dataclass(slots=True, eq=False)
class Member:
    """One replica's place in the pool: it stays when the actor in it is replaced."""

    index: int
    place: Place | None = None
    actor: Any = None
    node: str = ""
    share: tuple[int, int] = (0, 1)
    """The i-th of n replicas on its node."""
    ready: bool = False
    leaving: bool = False
    """It gets no more questions, and ends when it has answered those it holds."""
    deaths: int = 0
    """How often in a row the replica died without an answer in between."""
    waiting: dict[int, Job] = field(default_factory=dict[int, Job])
    outbox: list[Job] = field(default_factory=list[Job])
    task: asyncio.Task[None] | None = None

    def settle(self, node: str, others: Sequence[Member]) -> None:
        """Takes a share of a node: of its cores, the smallest that no other replica there has."""
        beside = [m.share for m in others if m is not self and m.node == node]
        taken = {i for i, _ in beside}
        index = next(i for i in range(len(beside) + 1) if i not in taken)
        self.node, self.share = node, (index, max([len(beside) + 1, index + 1, *(n for _, n in beside)]))

    def kill(self) -> None:
        """Ends the actor unasked."""
        self.ready = False
        try:
            if self.actor is not None and _ray.ray().is_initialized():
                _ray.ray().kill(self.actor, no_restart=True)
        except Exception:
            return


def choose(ready: Sequence[Member], affinity: str) -> Member:
    """Who is asked: the one that has an affinity's earlier questions, else the one that holds the fewest."""
    if affinity and len(ready) > 1:
        # rendezvous hashing: when a replica leaves or returns, only its own records move
        return max(ready, key=lambda m: _weight(m.index, affinity))
    return min(ready, key=lambda m: len(m.waiting))


def _weight(index: int, affinity: str) -> bytes:
    return blake2b(f"{index}\0{affinity}".encode("utf-8", "surrogatepass"), digest_size=8).digest()


class Story:
    """What became of a pool's replicas, for the manifest."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._events: list[dict[str, Any]] = []
        self._begun = time.monotonic()

    def tell(self, what: str, member: Member, **more: Any) -> None:
        """Adds an event; `asked_again` counts questions that a lost replica held."""
        self.counts[what] += 1
        self.counts["asked_again"] += int(more.get("asked_again", 0))
        if len(self._events) < _TOLD:
            at = round(time.monotonic() - self._begun, 1)
            self._events.append({"at_s": at, "what": what, "replica": member.index, "node": member.node, **more})

    def told(self) -> dict[str, Any]:
        """Counts of what happened, and the first events with seconds since the start."""
        return {**self.counts, "events": list(self._events)}
