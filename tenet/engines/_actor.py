"""What every replica is inside its Ray actor: questions come in, a tray of finished answers goes out.

Only plain tuples cross Ray.
"""

from __future__ import annotations

import asyncio
from typing import Any

from tenet.engines._prompt import Fault

_TRAY = 0.004
"""Seconds that answers may gather before they are sent: a Ray call costs as much as some tokens."""
_BEAT = 5.0
"""Seconds, at most, after which `collect` returns although nothing is done: so that a driver tells quiet from gone."""


class Actor:
    """`start` it; `submit` puts questions in and `collect` brings out what is done."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan
        self._beat = min(_BEAT, plan.get("hang_s", _BEAT) / 3)
        self._serving: set[asyncio.Task[None]] = set()
        self._tray: list[tuple[Any, ...]] = []
        self._news = asyncio.Event()
        self._loop = 0
        self._dead = ""

    async def node(self) -> str:
        """The Ray node that this actor runs on."""
        import ray

        return ray.get_runtime_context().get_node_id()

    async def start(self, share: tuple[int, int]) -> int:
        """Makes ready to answer, as the i-th of n replicas on its node; returns the context length, 0 for none."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Ends what `start` started."""

    async def _answer(self, asked: tuple[Any, ...]) -> tuple[Any, ...]:
        """(text, finish, log-probabilities, (prompt, completion, cached tokens)); Fault if there is no answer."""
        raise NotImplementedError

    async def submit(self, loop: int, questions: list[tuple[Any, ...]]) -> None:
        """Takes questions of the driver's n-th event loop in and returns at once."""
        self._follow(loop)
        if loop == self._loop:
            for question in questions:
                task = asyncio.create_task(self._serve(loop, question))
                self._serving.add(task)
                task.add_done_callback(self._serving.discard)

    async def collect(self, loop: int) -> list[tuple[Any, ...]] | str:
        """Waits until something that this loop asked is done and returns it; a string says why this replica is dead.

        Nothing, as a sign of life, if nothing is done for some seconds.
        """
        self._follow(loop)
        while loop == self._loop:
            try:
                await asyncio.wait_for(self._news.wait(), self._beat)
            except TimeoutError:
                return []
            if self._tray and not self._dead:
                await asyncio.sleep(_TRAY)
            if self._dead:
                return self._dead
            if loop != self._loop:
                break
            self._news.clear()
            if self._tray:
                answers, self._tray = self._tray, []
                return answers
        return []

    def _follow(self, loop: int) -> None:
        """A newer loop takes over: nobody waits for an ended one's answers.

        Ray runs calls of an async actor in any order, so each of them says which loop it is from.
        """
        if loop > self._loop:
            self._loop, self._tray = loop, []
            self._news.set()

    async def _serve(self, loop: int, question: tuple[Any, ...]) -> None:
        number, asked = question[0], question[1:]
        try:
            self._put(loop, (number, *await self._answer(asked), None, ""))
        except Exception as error:
            fault = self._fault(error)
            if fault is not None:
                self._put(loop, (number, "", "stop", (), (0, 0, 0), *fault))

    def _fault(self, error: Exception) -> tuple[Any, ...] | None:
        """(kind, detail) of a question that got no answer; None if it is the replica that died."""
        return error.args if isinstance(error, Fault) else ("server", f"{type(error).__name__}: {error}"[:500])

    def _put(self, loop: int, answer: tuple[Any, ...]) -> None:
        if loop == self._loop:
            self._tray.append(answer)
            self._news.set()

    def _die(self, why: str) -> None:
        """From here on `collect` says why this replica is dead."""
        self._dead = self._dead or why
        self._news.set()
