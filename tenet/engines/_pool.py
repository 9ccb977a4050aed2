"""Driver side of replicas in Ray actors: micro-batches, answers, replacements, more and fewer of them."""

from __future__ import annotations

import asyncio
import atexit
import time
import weakref
from collections.abc import Sequence
from typing import Any

from tenet.engines import _ray
from tenet.engines._crew import Crew
from tenet.engines._member import Answer, Job, Member, Question, choose
from tenet.engines._room import Needs
from tenet.engines._scaling import Range
from tenet.errors import EngineError

_GATHER = 0.002
"""Seconds that questions may gather before they cross together: Ray manages about 2,000 calls/s."""
_BATCH = 64
"""So many questions go off at once."""
_TEND = 1.0
"""Seconds between two looks at whether there are replicas enough."""


class Pool:
    """Replicas of one model. Serves one running event loop; when that ends, another may go on."""

    def __init__(
        self, plan: dict[str, Any], replica: type[Any], *, size: int | Range, restarts: int,
        address: str | None = None, needs: Needs | None = None, full: int = 256, hang: float = 120.0,
    ) -> None:  # fmt: skip
        self._restarts, self._address, self._hang = restarts, address, hang
        self._crew = Crew(plan, replica, size, full, address, needs or Needs())
        self.limit = 0
        """The model's context length in tokens, known once started."""
        self.replaced = 0
        """How many replicas were replaced so far."""
        self._parked: list[Job] = []
        self._suspects: list[Job] = []
        self._trial: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loops = 0
        """How many event loops were served so far, this one included."""
        self._starting: asyncio.Task[None] | None = None
        self._tending: asyncio.Task[None] | None = None
        self._count = 0
        self._state = "new"
        self._why = ""

    @property
    def plan(self) -> dict[str, Any]:
        """What every replica is built from."""
        return self._crew.plan

    @property
    def story(self) -> dict[str, Any]:
        """What became of the replicas, for the manifest: counts, and the first events."""
        return self._crew.story.told()

    async def start(self) -> None:
        """Starts Ray, if it is not running, and the replicas; EngineError if one cannot start."""
        self._attach()
        if self._state == "new":
            if self._starting is None:
                self._starting = asyncio.get_running_loop().create_task(self._start())
            await asyncio.wait([self._starting])
        if self._state != "up":
            raise EngineError(self._why or "the engine is closed")

    def _attach(self) -> None:
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return
        if self._loop is not None and self._loop.is_running():
            raise EngineError("an engine in Ray actors serves one event loop at a time; another one is running")
        # whatever the old loop waited for, nobody wants any more: late answers find no waiting job
        self._loop, self._starting, self._parked, self._suspects = loop, None, [], []
        self._loops += 1
        for member in self._crew.members:
            member.waiting, member.outbox = {}, []
        if self._state == "up":
            self._work(loop)

    async def _start(self) -> None:
        try:
            await _ray.enter(self._address)
            _alive.add(self)
            # after Ray's own handler was registered, so that it runs before it
            atexit.register(_end_all)
            limits = await self._crew.open()
        except BaseException as error:
            self._fail(f"the engine did not start: {_ray.reason(error)}")
            self.end()
            if isinstance(error, Exception):
                return
            raise
        self.limit, self._state = min(limits), "up"
        self._work(asyncio.get_running_loop())

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        for member in self._crew.members:
            member.task = loop.create_task(self._attend(member))
        self._tending = loop.create_task(self._tend())

    async def reload(self, folder: str) -> None:
        """Every replica, and whoever takes its place later, serves the weights of a folder from here on.

        EngineError if calls are under way, or if a replica cannot load them: then nothing is served any more, since
        some would answer with the old weights.
        """
        await self.start()
        if self._parked or any(m.waiting or not m.ready for m in self._crew.members):
            raise EngineError("weights cannot be changed while calls are under way or a replica is being replaced")
        self._crew.plan["args"] |= {"model": folder, "revision": None}
        try:
            await asyncio.gather(*(m.actor.reload.remote(folder) for m in self._crew.members))
        except Exception as error:
            self._fail(f"a replica could not load the weights of {folder}: {_ray.reason(error)}")
            raise EngineError(self._why) from None

    async def close(self) -> None:
        """Ends replicas, their processes, and Ray if it was started here. May be called again."""
        for task in (self._starting, self._tending, *(m.task for m in self._crew.members)):
            if task and self._loop is asyncio.get_running_loop():
                task.cancel()
        self._fail("the engine is closed")
        await self._crew.stop(self._crew.members)
        await asyncio.to_thread(self.end)

    def end(self) -> None:
        """Kills the actors unasked and leaves Ray; needs no event loop. Watchdogs do the rest."""
        if self not in _alive:
            return
        _alive.discard(self)
        self._crew.end()
        _ray.leave()

    def _fail(self, why: str) -> None:
        """From here on nothing is served."""
        self._state, self._why = "down", self._why or why
        held = (job for m in self._crew.members for job in m.waiting.values())
        jobs = [*self._parked, *self._suspects, *held]
        self._parked, self._suspects = [], []
        for member in self._crew.members:
            member.waiting, member.outbox = {}, []
        for job in jobs:
            if not job.answer.done():
                job.answer.set_exception(EngineError(self._why))

    async def ask(self, questions: Sequence[tuple[Question, str]]) -> list[Answer]:
        """Answers to (question, affinity) pairs, in order; EngineError if no replica is left."""
        await self.start()
        loop = asyncio.get_running_loop()
        jobs: list[Job] = []
        for question, affinity in questions:
            self._count += 1
            jobs.append(Job(self._count, question, affinity, loop.create_future()))
            self._route(jobs[-1])
        try:
            return [await job.answer for job in jobs]
        finally:
            for job in jobs:
                # cancelled, or its error looked at: asyncio complains of errors that nobody saw
                if not job.answer.cancel() and not job.answer.cancelled():
                    job.answer.exception()

    def _route(self, job: Job) -> None:
        ready = [m for m in self._crew.members if m.ready and not m.leaving]
        if not ready:
            self._parked.append(job)
            return
        member = choose(ready, job.affinity)
        member.waiting[job.number] = job
        member.outbox.append(job)
        if len(member.outbox) >= _BATCH:
            self._flush(member)
        elif len(member.outbox) == 1:
            asyncio.get_running_loop().call_later(_GATHER, self._flush, member)

    def _flush(self, member: Member) -> None:
        if member.outbox and member.ready:
            batch, member.outbox = [(j.number, *j.question) for j in member.outbox], []
            # not awaited: should the call die with its actor, that death sends the jobs again
            member.actor.submit.options(num_returns=0).remote(self._loops, batch)

    async def _attend(self, member: Member) -> None:
        """Brings a replica's answers home, and replaces the replica when it dies."""
        while self._state == "up":
            if member.leaving and not member.waiting:
                await self._crew.dismiss(member)
                return
            done = await self._collect(member)
            if isinstance(done, str):
                if self._state != "up" or not await self._replace(member, done):
                    return
                continue
            for number, *answer in done:
                job = member.waiting.pop(number, None)
                if job and not job.answer.done():
                    job.answer.set_result(tuple(answer))
            member.deaths = 0 if done else member.deaths

    async def _collect(self, member: Member) -> Any:
        """What a replica has done, perhaps nothing; a string says why it is lost."""
        if not member.ready:
            return "it was not ready"
        try:
            return await _ray.bring(member.actor.collect.remote(self._loops), self._hang)
        except TimeoutError:
            return f"it gave no sign of life for {self._hang:g} s"
        except Exception as error:
            return _ray.reason(error)

    async def _try(self) -> None:
        """Sends those that were there at two deaths one by one: whichever kills must not take others along."""
        while self._suspects:
            job = self._suspects.pop(0)
            self._route(job)
            await asyncio.wait([job.answer])

    async def _replace(self, member: Member, why: str) -> bool:
        """A new actor in a dead one's place; what it owed is asked again, with the same seeds."""
        member.ready = False
        jobs, member.waiting, member.outbox = list(member.waiting.values()), {}, []
        self._crew.story.tell("lost", member, why=why[:200], asked_again=self._ask_again(jobs, why))
        while self._state == "up" and not member.leaving:
            member.kill()
            member.deaths += 1
            if member.deaths > self._restarts:
                break
            self.replaced += 1
            try:
                await self._fill(member)
            except Exception as error:
                why = _ray.reason(error)
                continue
            self._crew.story.tell("replaced", member)
            return True
        if self._state == "up":
            self._give_up(member, why)
        return False

    def _ask_again(self, jobs: list[Job], why: str) -> int:
        """Sends a lost replica's questions to others; how many."""
        jobs = [job for job in jobs if not job.answer.done()]
        for job in jobs:
            job.deaths += 1
            if job.deaths >= max(2, self._restarts):
                told = f"{job.deaths} replicas died while they held this request: {why}"
                job.answer.set_result(("", "stop", (), (0, 0, 0), "server", told))
            elif job.deaths > 1:
                self._suspects.append(job)
            else:
                self._route(job)
        if self._suspects and (self._trial is None or self._trial.done()):
            self._trial = asyncio.get_running_loop().create_task(self._try())
        return len(jobs)

    async def _fill(self, member: Member) -> None:
        await self._crew.fill(member)
        parked, self._parked = self._parked, []
        for job in parked:
            self._route(job)

    def _give_up(self, member: Member, why: str) -> None:
        """Goes on without a replica; without any, nothing is served any more."""
        self._crew.remove(member)
        if member.leaving:
            return
        self._crew.story.tell("given_up", member, why=why[:200])
        # Something is wrong that more replicas would not mend.
        self._crew.scale.low = self._crew.scale.high = len(self._crew.members)
        if not self._crew.members:
            often = f"the last one died {member.deaths} times in a row"
            self._fail(f"no replica is left; {often}: {why}")

    async def _tend(self) -> None:
        """Starts replicas when questions pile up, and ends some when fewer would do."""
        while self._state == "up" and self._crew.scale.low < self._crew.scale.high:
            await asyncio.sleep(_TEND)
            open_ = len(self._parked) + sum(len(m.waiting) for m in self._crew.members)
            for member in self._crew.change(open_, time.monotonic()):
                member.task = asyncio.get_running_loop().create_task(self._grow(member))

    async def _grow(self, member: Member) -> None:
        try:
            await self._fill(member)
        except Exception as error:
            self._give_up(member, _ray.reason(error))
            return
        self._crew.story.tell("grown", member)
        await self._attend(member)


_alive: weakref.WeakSet[Pool] = weakref.WeakSet()


def _end_all() -> None:
    for pool in list(_alive):
        pool.end()
