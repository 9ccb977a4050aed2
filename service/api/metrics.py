"""Prometheus metrics: requests, runs, rows, calls, tokens, drops, engine queues."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)

Series = tuple[str, str, tuple[str, ...], list[tuple[tuple[str, ...], float]]]
"""(name, help, label names, [(label values, value)]) of a gauge that is read when it is asked for."""


class Metrics(Collector):
    """The service's own registry: nothing of another service in the same process gets in."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "tenet_http_requests", "Requests by route and status", ("method", "route", "status"),
            registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "tenet_http_seconds", "Seconds until a request was answered whole", ("route",),
            buckets=_BUCKETS, registry=self._registry,
        )  # fmt: skip
        self._asked = Counter("tenet_engine_requests", "Requests to engines", ("engine",), registry=self._registry)
        self._tokens = Counter(
            "tenet_engine_tokens", "Tokens of this process's engines", ("engine", "side"), registry=self._registry
        )
        self._faults = Counter("tenet_engine_faults", "Failed calls", ("engine", "fault"), registry=self._registry)
        self._sources: list[Callable[[], list[Series]]] = []
        self._registry.register(self)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts an answered request."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def asked(self, engine: str, replies: Iterable[Any]) -> None:
        """Counts what an engine of this process answered."""
        for reply in replies:
            self._asked.labels(engine).inc()
            self._tokens.labels(engine, "prompt").inc(reply.usage.prompt_tokens)
            self._tokens.labels(engine, "completion").inc(reply.usage.completion_tokens)
            if reply.fault:
                self._faults.labels(engine, reply.fault).inc()

    def add(self, source: Callable[[], list[Series]]) -> None:
        """Adds gauges that are read at every scrape."""
        self._sources.append(source)

    def collect(self) -> Iterable[Metric]:
        for source in self._sources:
            for name, said, labels, values in source():
                family = GaugeMetricFamily(name, said, labels=labels)
                for label_values, value in values:
                    family.add_metric(label_values, value)
                yield family

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
