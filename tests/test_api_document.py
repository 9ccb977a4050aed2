"""The OpenAPI document, held against the service: whatever is sent, no 500, and every answer is as it is described."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import one_of
from schemathesis import GenerationMode
from schemathesis.core.failures import Failure
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.api_server import RECIPE, run_ends, serving

ENDLESS = ("/v1/runs/{name}/events", "/v1/previews/{name}/events")
"""Their answers are tested where they are watched."""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A service with a run and a label set, both called 0, and the key of an admin."""
    with serving(tmp_path_factory.mktemp("document"), limits={"queue": 0, "rate": 1e6, "burst": 10**6}) as made:
        made.post("/v1/runs", json={"recipe": RECIPE, "name": "0", "limit": 3}).raise_for_status()
        run_ends(made, "0")
        made.post("/v1/labels", json={"name": "0", "run": "0", "attention": 0}).raise_for_status()
        key = made.app.state.service.keys.create("0", ("admin",))  # type: ignore[attr-defined]
        made.headers["authorization"] = f"Bearer {key}"
        pair = made.post("/v1/labels/0/next").json()["pair"]
        made.post("/v1/labels/0/labels", json={"item": pair["item"], "label": "left"}).raise_for_status()
        yield made


def test_no_answer_is_a_500_or_another_than_described(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    statuses: dict[str, set[int]] = {}
    failures: list[str] = []
    for found in schemathesis.openapi.from_dict(document).get_all_operations():
        operation: Any = found.ok()
        if operation.path in ENDLESS:
            continue
        try:
            statuses[operation.label] = _tried(client, operation)
        except* Failure as error:
            failures.append(f"{operation.label}: {''.join(traceback.format_exception(error))[-1500:]}")
    assert not failures, "\n\n".join(failures)
    assert len(statuses) > 35
    assert sum(bool(seen & {200, 201, 202}) for seen in statuses.values()) > 20, statuses
    assert all(s < 500 for seen in statuses.values() for s in seen), statuses


def _tried(client: httpx.Client, operation: Any) -> set[int]:
    """The statuses of an operation's answers to some good and some bad requests."""
    headers = {"authorization": client.headers["authorization"]}
    said: set[int] = set()
    real = operation.as_strategy(generation_mode=GenerationMode.POSITIVE).map(_to_what_there_is)

    @settings(
        max_examples=5, database=None, derandomize=True, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=one_of(real, operation.as_strategy()))
    def check(case: Any) -> None:
        response = case.call(base_url=str(client.base_url), headers=headers)
        said.add(response.status_code)
        # A text that fits the schema need not be a recipe that can run: good data may be refused.
        case.validate_response(response, headers=headers, excluded_checks=[positive_data_acceptance])

    check()
    return said


def _to_what_there_is(case: Any) -> Any:
    """The case with names that exist."""
    for known in ("name", "other"):
        if known in case.path_parameters:
            case.path_parameters[known] = "0"
    return case


def test_every_operation_is_described(client: httpx.Client) -> None:
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            assert operation["description"], (method, path)
            assert "default" in operation["responses"], (method, path)
