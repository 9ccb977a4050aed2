"""Driver side of engine kind "vllm": Ray actors, micro-batches, answers, replacements."""

from __future__ import annotations

import asyncio
import atexit
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from tenet.engines import _ray
from tenet.errors import EngineError

Question = tuple[Any, ...]
"""What a replica is asked, without its number; see `_replica.Question`."""
Answer = tuple[Any, ...]

_GATHER = 0.002
"""Seconds that questions may gather before they cross together: Ray manages about 2,000 calls/s."""
_BATCH = 64
"""So many questions go off at once."""
_PATIENCE = 15.0
"""Seconds that vLLM gets to end its own processes before they are killed."""


@dataclass(slots=True, eq=False)
class _Job:
    number: int
    question: Question
    affinity: str
    answer: asyncio.Future[Answer]
    deaths: int = 0


@dataclass(slots=True, eq=False)
class _Member:
    """One replica's place in the pool: it stays when the actor in it is replaced."""

    index: int
    actor: Any = None
    share: tuple[int, int] = (0, 1)
    ready: bool = False
    deaths: int = 0
    """How often in a row the replica died without an answer in between."""
    waiting: dict[int, _Job] = field(default_factory=dict[int, _Job])
    outbox: list[_Job] = field(default_factory=list[_Job])
    task: asyncio.Task[None] | None = None


class Pool:
    """Replicas of one model. Serves one running event loop; when that ends, another may go on."""

    def __init__(
        self,
        plan: dict[str, Any],
        replica: type[Any],
        *,
        size: int,
        restarts: int,
        address: str | None = None,
        gpus: int = 0,
        cpus: int = 0,
    ) -> None:
        self.plan, self._replica, self._size, self._restarts = plan, replica, size, restarts
        self._address, self._gpus, self._cpus = address, gpus, cpus
        self.limit = 0
        """The model's context length in tokens, known once started."""
        self.replaced = 0
        """How many replicas were replaced so far."""
        self._members: list[_Member] = []
        self._parked: list[_Job] = []
        self._suspects: list[_Job] = []
        self._trial: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loops = 0
        """How many event loops were served so far, this one included."""
        self._starting: asyncio.Task[None] | None = None
        self._count = 0
        self._state = "new"
        self._why = ""

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
            raise EngineError("a vLLM engine serves one event loop at a time; another one is running")
        # whatever the old loop waited for, nobody wants any more: late answers find no waiting job
        self._loop, self._starting, self._parked, self._suspects = loop, None, [], []
        self._loops += 1
        for member in self._members:
            member.waiting, member.outbox = {}, []
            member.task = loop.create_task(self._attend(member))

    async def _start(self) -> None:
        try:
            await _ray.enter(self._address)
            _alive.add(self)
            # after Ray's own handler was registered, so that it runs before it
            atexit.register(_end_all)
            self._check_room()
            self._members = [_Member(i, self._hire()) for i in range(self._size)]
            nodes = await asyncio.gather(*(m.actor.node.remote() for m in self._members))
            for i, member in enumerate(self._members):
                member.share = (nodes[:i].count(nodes[i]), nodes.count(nodes[i]))
            limits = await asyncio.gather(*(m.actor.start.remote(m.share) for m in self._members))
        except BaseException as error:
            self._fail(f"the vLLM engine did not start: {_ray.reason(error)}")
            self.end()
            if isinstance(error, Exception):
                return
            raise
        self.limit, self._state = min(limits), "up"
        for member in self._members:
            member.ready = True
            member.task = asyncio.get_running_loop().create_task(self._attend(member))

    async def reload(self, folder: str) -> None:
        """Every replica, and whoever takes its place later, serves the weights of a folder from here on.

        EngineError if calls are under way, or if a replica cannot load them: then nothing is served any more, since
        some would answer with the old weights.
        """
        await self.start()
        if self._parked or any(m.waiting or not m.ready for m in self._members):
            raise EngineError("weights cannot be changed while calls are under way or a replica is being replaced")
        self.plan["args"] |= {"model": folder, "revision": None}
        try:
            await asyncio.gather(*(m.actor.reload.remote(folder) for m in self._members))
        except Exception as error:
            self._fail(f"a replica could not load the weights of {folder}: {_ray.reason(error)}")
            raise EngineError(self._why) from None

    def _check_room(self) -> None:
        have: dict[str, float] = _ray.ray().cluster_resources()
        for kind, each in (("GPU", self._gpus), ("CPU", self._cpus)):
            need = each * self._size
            if need > have.get(kind, 0):
                has = f"the Ray cluster has {have.get(kind, 0):g}"
                raise EngineError(f"{self._size} replicas need {need} {kind}s; {has}")

    def _hire(self) -> Any:
        actor: Any = _ray.ray().remote(self._replica)
        wanted = {"num_cpus": self._cpus, "num_gpus": self._gpus}
        return actor.options(max_restarts=0, max_concurrency=10_000, **wanted).remote(self.plan)

    async def close(self) -> None:
        """Ends replicas, their processes, and Ray if it was started here. May be called again."""
        for task in (self._starting, *(m.task for m in self._members)):
            if task and self._loop is asyncio.get_running_loop():
                task.cancel()
        self._fail("the engine is closed")
        stops = [asyncio.ensure_future(_quietly(m.actor.stop.remote())) for m in self._members if m.ready]
        if stops:
            await asyncio.wait(stops, timeout=_PATIENCE)
        await asyncio.to_thread(self.end)

    def end(self) -> None:
        """Kills the actors unasked and leaves Ray; needs no event loop. Watchdogs do the rest."""
        if self not in _alive:
            return
        _alive.discard(self)
        for member in self._members:
            member.ready = False
            _kill(member.actor)
        _ray.leave()

    def _fail(self, why: str) -> None:
        """From here on nothing is served."""
        self._state, self._why = "down", self._why or why
        held = (job for m in self._members for job in m.waiting.values())
        jobs = [*self._parked, *self._suspects, *held]
        self._parked, self._suspects = [], []
        for member in self._members:
            member.waiting, member.outbox = {}, []
        for job in jobs:
            if not job.answer.done():
                job.answer.set_exception(EngineError(self._why))

    async def ask(self, questions: Sequence[tuple[Question, str]]) -> list[Answer]:
        """Answers to (question, affinity) pairs, in order; EngineError if no replica is left."""
        await self.start()
        loop = asyncio.get_running_loop()
        jobs: list[_Job] = []
        for question, affinity in questions:
            self._count += 1
            jobs.append(_Job(self._count, question, affinity, loop.create_future()))
            self._route(jobs[-1])
        try:
            return [await job.answer for job in jobs]
        finally:
            for job in jobs:
                # cancelled, or its error looked at: asyncio complains of errors that nobody saw
                if not job.answer.cancel() and not job.answer.cancelled():
                    job.answer.exception()

    def _route(self, job: _Job) -> None:
        ready = [m for m in self._members if m.ready]
        if not ready:
            self._parked.append(job)
            return
        if job.affinity and len(ready) > 1:
            # rendezvous hashing: when a replica leaves or returns, only its own records move
            member = max(ready, key=lambda m: _weight(m.index, job.affinity))
        else:
            member = min(ready, key=lambda m: len(m.waiting))
        member.waiting[job.number] = job
        member.outbox.append(job)
        if len(member.outbox) >= _BATCH:
            self._flush(member)
        elif len(member.outbox) == 1:
            asyncio.get_running_loop().call_later(_GATHER, self._flush, member)

    def _flush(self, member: _Member) -> None:
        if member.outbox and member.ready:
            batch, member.outbox = [(j.number, *j.question) for j in member.outbox], []
            # not awaited: should the call die with its actor, that death sends the jobs again
            member.actor.submit.options(num_returns=0).remote(self._loops, batch)

    async def _attend(self, member: _Member) -> None:
        """Brings a replica's answers home, and replaces the replica when it dies."""
        while self._state == "up":
            try:
                done = await member.actor.collect.remote(self._loops) if member.ready else "it was not ready"
            except Exception as error:
                done = _ray.reason(error)
            if isinstance(done, str):
                if self._state != "up" or not await self._replace(member, done):
                    return
                continue
            for number, *answer in done:
                job = member.waiting.pop(number, None)
                if job and not job.answer.done():
                    job.answer.set_result(tuple(answer))
            member.deaths = 0 if done else member.deaths

    async def _try(self) -> None:
        """Sends those that were there at two deaths one by one: whichever kills must not take others along."""
        while self._suspects:
            job = self._suspects.pop(0)
            self._route(job)
            await asyncio.wait([job.answer])

    async def _replace(self, member: _Member, why: str) -> bool:
        """A new actor in a dead one's place; what it owed is asked again, with the same seeds."""
        member.ready = False
        jobs, member.waiting, member.outbox = list(member.waiting.values()), {}, []
        for job in jobs:
            job.deaths += 1
            if job.answer.done():
                continue
            if job.deaths >= max(2, self._restarts):
                told = f"{job.deaths} replicas died while they held this request: {why}"
                job.answer.set_result(("", "stop", (), (0, 0, 0), "server", told))
            elif job.deaths > 1:
                self._suspects.append(job)
            else:
                self._route(job)
        if self._suspects and (self._trial is None or self._trial.done()):
            self._trial = asyncio.get_running_loop().create_task(self._try())
        while self._state == "up":
            _kill(member.actor)
            member.deaths += 1
            if member.deaths > self._restarts:
                break
            self.replaced += 1
            try:
                member.actor = self._hire()
                await member.actor.start.remote(member.share)
            except Exception as error:
                why = _ray.reason(error)
                continue
            member.ready = True
            parked, self._parked = self._parked, []
            for job in parked:
                self._route(job)
            return True
        if self._state == "up":
            self._members.remove(member)
            if not self._members:
                often = f"the last one died {member.deaths} times in a row"
                self._fail(f"no replica is left; {often}: {why}")
        return False


_alive: weakref.WeakSet[Pool] = weakref.WeakSet()


def _end_all() -> None:
    for pool in list(_alive):
        pool.end()


def _weight(index: int, affinity: str) -> bytes:
    return blake2b(f"{index}\0{affinity}".encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _kill(actor: Any) -> None:
    try:
        if actor is not None and _ray.ray().is_initialized():
            _ray.ray().kill(actor, no_restart=True)
    except Exception:
        return


async def _quietly(ref: Any) -> None:
    try:
        await ref
    except Exception:
        return
