"""A Ray cluster of several nodes on this machine, for tests and benchmarks: real GCS, real raylets, one each a node."""

from __future__ import annotations

import inspect
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# read by raylets: workers run at the niceness of the rest, and none is started that nobody asked for
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _node(**more: Any) -> dict[str, Any]:
    # with a port given, a raylet does not wait for its agents, which a busy machine starts too slowly
    ports = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port", "dashboard_agent_listen_port")
    return {"object_store_memory": 80 << 20, "include_log_monitor": False, **{p: free_port() for p in ports}, **more}


@contextmanager
def light_agents() -> Iterator[None]:
    """Nodes that are started meanwhile have agents without dashboard and metrics: two seconds of CPU less for each.

    Their raylets do not wait for these agents' port either. Ray gives them 15 s for it, too few on a busy machine.
    """
    import ray._private.services as services
    import ray._private.utils as utils
    from ray._raylet import DASHBOARD_AGENT_LISTEN_PORT_NAME, persist_port

    whole, start = utils.get_dashboard_dependency_error, services.start_raylet

    def start_raylet(*args: Any, **more: Any) -> Any:
        given = inspect.signature(start).bind(*args, **more).arguments
        persist_port(given["session_dir"], given["node_id"], DASHBOARD_AGENT_LISTEN_PORT_NAME, -1)
        return start(*args, **more)

    utils.get_dashboard_dependency_error = lambda: ImportError("not wanted here")
    services.start_raylet = start_raylet
    try:
        yield
    finally:
        utils.get_dashboard_dependency_error, services.start_raylet = whole, start


@contextmanager
def cluster(*nodes: dict[str, Any], **head: Any) -> Iterator[Any]:
    """A head without CPUs of its own and a node for each of `nodes`, which are Ray's settings of a node."""
    from ray.cluster_utils import Cluster

    with light_agents():
        made = Cluster(
            initialize_head=True, shutdown_at_exit=False,
            head_node_args=_node(num_cpus=0, include_dashboard=False, **head),
        )  # fmt: skip
        try:
            for settings in nodes:
                add(made, **settings)
            made.wait_for_nodes(timeout=120)
            yield made
        finally:
            made.shutdown()


def add(made: Any, **settings: Any) -> Any:
    """A further node. Tried again, as a busy machine may start its agents too slowly for the raylet."""
    for left in (2, 1, 0):
        try:
            return made.add_node(wait=False, **_node(**settings))
        except Exception:
            if not left:
                raise
    return None


def processes_of(node: Any) -> list[psutil.Process]:
    """A node's raylet, its agents, and the workers it started."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [raylet, *raylet.children(recursive=True)]


def python_path() -> str:
    return os.pathsep.join(p for p in sys.path if p)
