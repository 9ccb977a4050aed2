"""Settings that every engine in Ray actors has: on which cluster, on which of its nodes, and how patient it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from tenet.engines._pool import Pool
from tenet.engines._room import Needs
from tenet.engines._scaling import Range
from tenet.records import Frozen


def _address(text: str) -> str:
    host, colon, port = text.removeprefix("ray://").partition(":")
    if text != "auto" and not (host and colon and port.isdecimal()):
        raise ValueError(f'{text!r} is no Ray address: "auto", "host:port" or "ray://host:port"')
    return text


Address = Annotated[str, AfterValidator(_address)]


def has_replicas(model: Mapping[str, Any]) -> bool:
    """Whether a model of a recipe, `kind` and that kind's settings as they were written, stands in Ray actors."""
    kind = model.get("kind", "vllm")
    asked = {"classifier": model.get("runner") == "vllm", "scripted": bool(model.get("replicas"))}
    return kind == "vllm" or asked.get(str(kind), False)


class OnCluster(Frozen):
    """Where replicas run."""

    address: Address | None = None
    """A running Ray cluster: "auto", "host:6379" or "ray://host:10001"; unset: Ray is started here, and ended here."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """On a cluster: custom resources that one replica takes, such as {judge: 1}, which pin it to the nodes that have
    them."""
    wait_s: float = Field(30.0, ge=0)
    """On a cluster: seconds to wait for room, for others to leave or for an autoscaler to add nodes."""
    restarts: int = Field(3, ge=0)
    """How often in a row a replica is replaced, or a request sent again, before it is given up."""
    hang_s: float = Field(120.0, ge=1)
    """Seconds without a sign of life after which a replica is replaced; longer than a step of the model takes."""

    def pool(
        self, plan: dict[str, Any], replica: type[Any], size: int | Range, *, full: int, cpus: float, gpus: float = 0
    ) -> Pool:
        """Replicas, not yet started; each takes so many CPUs and GPUs of a cluster's node."""
        needs = Needs(cpus=cpus, gpus=gpus, resources=dict(self.resources), wait=self.wait_s)
        return Pool(
            {**plan, "hang_s": self.hang_s}, replica, size=size, restarts=self.restarts, address=self.address,
            needs=needs, full=full, hang=self.hang_s,
        )  # fmt: skip
