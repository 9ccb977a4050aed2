"""Runs over HTTP on real processes: create, watch, page, download, cancel, resume; whoever is killed, nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tenet.ledger import Rows
from tests.api_server import RECIPE, ROOT, run_ends, serving


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="module")
def client(place: Path) -> Iterator[httpx.Client]:
    """A service with one run, `first`, that has ended."""
    with serving(place) as made:
        made.post("/v1/runs", json={"recipe": RECIPE, "name": "first", "limit": 20}).raise_for_status()
        assert run_ends(made, "first")["state"] == "whole"
        yield made


def pages(client: httpx.Client, path: str, **params: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after = ""
    while after is not None:
        page = client.get(path, params={**params, "after": after}).raise_for_status().json()
        found += page["rows"]
        after = page["next"]
    return found


def test_a_run_is_made_watched_and_paged(client: httpx.Client, place: Path) -> None:
    detail = client.get("/v1/runs/first").json()
    assert detail["progress"]["done"] == 20 == detail["records"]["outcome"]
    assert detail["usage"]["scripted" if "scripted" in detail["usage"] else next(iter(detail["usage"]))]["calls"] > 0
    rows = pages(client, "/v1/runs/first/rows", limit=7)
    with Rows(place / "runs/first", readonly=True) as ledger:
        stored = [(r.ordinal, r.seq, r.stage, json.loads(r.record)) for r in ledger.iterate()]
    assert [(r["ordinal"], r["seq"], r["stage"], r["record"]) for r in rows] == stored
    events = client.get("/v1/runs/first/events").text
    assert "event: progress" in events
    assert events.rstrip().splitlines()[-1] == 'data: {"event": "end", "state": "whole", "reason": ""}'
