"""Who serves in a pool: replicas given room, hired, added, ended, and what became of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from tenet.engines import _ray, _room
from tenet.engines._member import Member, Story
from tenet.engines._room import Needs
from tenet.engines._scaling import Range, Scale
from tenet.errors import EngineError

_LOOK = 1.0
_PATIENCE = 15.0
"""Seconds that vLLM gets to end its own processes before they are killed."""
_DEATH = 60.0
"""Seconds that Ray may take to notice that a node is gone and to move its room elsewhere."""


class Crew:
    """The members of a pool. Whom to ask, and what was asked, is the pool's."""

    def __init__(
        self, plan: dict[str, Any], replica: type[Any], size: int | Range, full: int, address: str | None, needs: Needs
    ) -> None:
        self.plan, self._replica = plan, replica
        self.scale = Scale.of(size, full)
        self.members: list[Member] = []
        self.story = Story()
        self._address, self._needs = address, needs
        self._named = 0

    async def open(self) -> list[int]:
        """Finds room for the first members and starts them; returns their context lengths. EngineError."""
        n = self.scale.low
        if self._address is None:
            _room.check_local(self._needs, n)
            self.members = [self._named_member(None) for _ in range(n)]
        else:
            places = _room.reserve(self._needs, n)
            self.members = [self._named_member(place) for place in places]
            await _room.wait_for(self._needs, places)
        for member in self.members:
            member.actor = _room.hire(self._replica, self.plan, self._needs, member.place)
        nodes = await asyncio.gather(*(m.actor.node.remote() for m in self.members))
        for i, member in enumerate(self.members):
            member.node, member.share = _room.node_name(nodes[i]), (nodes[:i].count(nodes[i]), nodes.count(nodes[i]))
        limits = await asyncio.gather(*(m.actor.start.remote(m.share) for m in self.members))
        for member in self.members:
            member.ready = True
            self.story.tell("started", member)
        return limits

    async def fill(self, member: Member) -> None:
        """A new actor in a member's place, started and ready to be asked. EngineError, or what the actor raised."""
        member.actor = _room.hire(self._replica, self.plan, self._needs, member.place)
        node: asyncio.Future[str] = asyncio.ensure_future(member.actor.node.remote())
        alone = 0.0
        while not (await asyncio.wait([node], timeout=_LOOK))[0]:
            # With others at work it may wait for room as long as it takes.
            alone = 0.0 if any(m.ready for m in self.members) else alone + _LOOK
            if self._address and alone > self._needs.wait + _DEATH:
                raise EngineError("the Ray cluster has no room for it, and no other replica is left")
        member.settle(_room.node_name(node.result()), self.members)
        await member.actor.start.remote(member.share)
        member.ready = True

    def change(self, questions: int, now: float) -> list[Member]:
        """Members to be filled, as so many questions are open; one that is no longer needed is told to leave."""
        here = [m for m in self.members if not m.leaving]
        wanted = self.scale.wanted(len(here), questions, now)
        added = [self._named_member(self._room_for_one()) for _ in range(wanted - len(here))]
        self.members += added
        # only those that came later: the first ones share a placement group
        later = [m for m in here if m.index >= self.scale.low]
        if wanted < len(here) and later:
            later[-1].leaving = True
            if not later[-1].ready:  # it still waits for room, which an autoscaler would go on to look for
                self._call_off(later[-1])
        return added

    def _call_off(self, member: Member) -> None:
        if member.task:
            member.task.cancel()
        self.remove(member)

    def remove(self, member: Member) -> None:
        """Ends a member, and gives its room back when nobody else is in its group."""
        member.kill()
        self.members = [m for m in self.members if m is not member]
        if member.place and all(m.place is None or m.place.group is not member.place.group for m in self.members):
            _room.give_back(member.place)

    async def dismiss(self, member: Member) -> None:
        """Ends a member that has answered all it was asked."""
        self.story.tell("retired", member)
        await self.stop([member])
        self.remove(member)

    async def stop(self, members: Sequence[Member]) -> None:
        """Lets those that are ready end their processes."""
        stops = [asyncio.ensure_future(_quietly(m.actor.stop.remote())) for m in members if m.ready]
        if stops:
            await asyncio.wait(stops, timeout=_PATIENCE)

    def end(self) -> None:
        """Kills all and gives all room back."""
        for member in list(self.members):
            member.kill()
        for place in {id(m.place.group): m.place for m in self.members if m.place}.values():
            _room.give_back(place)

    def _room_for_one(self) -> _room.Place | None:
        return _room.reserve(self._needs, 1)[0] if self._address and _ray.ray().is_initialized() else None

    def _named_member(self, place: _room.Place | None) -> Member:
        self._named += 1
        return Member(self._named - 1, place)


async def _quietly(ref: Any) -> None:
    try:
        await ref
    except Exception:
        return
