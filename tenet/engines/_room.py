"""Room for replicas on a Ray cluster: what one takes of its node, reserved in placement groups spread over nodes."""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tenet.engines import _ray
from tenet.errors import EngineError

_LOOK = 1.0
"""Seconds between two looks at whether room was found."""


@dataclass(frozen=True)
class Needs:
    """What one replica takes, all of it on one node."""

    cpus: float = 0
    gpus: float = 0
    resources: Mapping[str, float] = field(default_factory=dict[str, float])
    """Custom resources, which pin it to the nodes that have them."""
    wait: float = 30.0
    """Seconds to wait for room."""

    @property
    def bundle(self) -> dict[str, float]:
        """The same as Ray counts it."""
        kinds = {"CPU": self.cpus, "GPU": self.gpus, **self.resources}
        return {kind: n for kind, n in kinds.items() if n}


@dataclass(frozen=True, eq=False)
class Place:
    """Room for one replica: a bundle of a placement group. Ray moves it to another node when its own dies."""

    group: Any
    index: int


def reserve(needs: Needs, n: int) -> list[Place]:
    """Asks for room for n replicas, spread over nodes; does not wait for it."""
    group = _module("placement_group").placement_group([needs.bundle] * n, strategy="SPREAD")
    return [Place(group, i) for i in range(n)]


async def found(place: Place) -> bool:
    """Whether the room is there; looks for a second."""
    return bool(await asyncio.to_thread(place.group.wait, _LOOK))


async def wait_for(needs: Needs, places: list[Place]) -> None:
    """EngineError, with what the cluster has, unless there is room for all of them in time."""
    until = time.monotonic() + needs.wait
    while not await found(places[0]):
        if time.monotonic() > until:
            raise EngineError(_shortage(needs, len(places)))


def give_back(place: Place | None) -> None:
    """Frees the whole group of a place."""
    if place is not None and _ray.ray().is_initialized():
        _module("placement_group").remove_placement_group(place.group)


def check_local(needs: Needs, n: int) -> None:
    """EngineError if a local Ray, which never grows, lacks GPUs."""
    has = _ray.ray().cluster_resources().get("GPU", 0)
    if needs.gpus * n > has:
        raise EngineError(f"{n} replicas need {needs.gpus * n:g} GPUs; the machine has {has:g}")


def hire(replica: type[Any], plan: dict[str, Any], needs: Needs, place: Place | None) -> Any:
    """A new actor in its place; on a local Ray, which has nothing to ration, anywhere."""
    actor: Any = _ray.ray().remote(replica)
    options: dict[str, Any] = {"max_restarts": 0, "max_concurrency": 10_000, "num_gpus": needs.gpus}
    options["num_cpus"] = needs.cpus if place else 0
    if place:
        options["resources"] = dict(needs.resources)
        options["scheduling_strategy"] = _module("scheduling_strategies").PlacementGroupSchedulingStrategy(
            place.group, placement_group_bundle_index=place.index
        )
    return actor.options(**options).remote(plan)


def node_name(node: str) -> str:
    """A node for people to read: host name and the beginning of Ray's id."""
    for told in _ray.ray().nodes():
        if told["NodeID"] == node:
            return f"{told['NodeManagerHostname']} {node[:8]}"
    return node[:8]


def _shortage(needs: Needs, n: int) -> str:
    total: Mapping[str, float] = _ray.ray().cluster_resources()
    free: Mapping[str, float] = _ray.ray().available_resources()
    each = ", ".join(f"{x:g} {kind}" for kind, x in needs.bundle.items())
    has = ", ".join(f"{total.get(kind, 0):g} {kind} ({free.get(kind, 0):g} free)" for kind in needs.bundle)
    return (
        f"no room within {needs.wait:g} s for {n} replicas of {each}, each on one node; the Ray cluster has {has}: "
        "fewer replicas, or a longer engine.wait_s where nodes are still to come"
    )


def _module(name: str) -> Any:
    return importlib.import_module(f"ray.util.{name}")
