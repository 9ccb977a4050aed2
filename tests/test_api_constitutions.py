"""Constitutions over HTTP: read, lint as one types, diff, save versions, and preview an edit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import constitution
from constitution.diff import diff, open_side
from constitution.lint import lint
from tests.api_server import RECIPE, ROOT, run_ends, serving, wait_for

EDITED = "name: house\nextends: nano\nremove: [REMOVED]\n"
NANO = constitution.load("nano")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with serving(tmp_path_factory.mktemp("constitutions")) as made:
        yield made


def edited(which: int = 0) -> str:
    return EDITED.replace("REMOVED", NANO.principles[which].id)


def save(client: httpx.Client, name: str, text: str) -> dict[str, Any]:
    return client.post("/v1/constitutions", json={"name": name, "text": text}).raise_for_status().json()


def test_packaged_ones_are_listed_and_read(client: httpx.Client) -> None:
    listed = {c["name"]: c for c in client.get("/v1/constitutions").json()["constitutions"]}
    assert listed["nano"] | {"saved": False, "error": "", "hash": NANO.hash} == listed["nano"]
    whole = client.get("/v1/constitutions/nano").json()
    assert whole["text"] == (ROOT / "constitution/files/nano.yaml").read_text()
    assert len(whole["constitution"]["principles"]) == len(NANO.principles)
    assert client.get("/v1/constitutions/nobody").status_code == 404


def test_a_text_is_linted_as_the_command_line_lints_a_file(client: httpx.Client, tmp_path: Path) -> None:
    text = "name: x\nprinciples:\n  - {id: a, choose: 'Which reply is not not bad?'}\n  - {id: a, choose: Which?}\n"
    (tmp_path / "x.yaml").write_text(text)
    expected = [(f.rule, f.line, f.level) for f in lint(tmp_path / "x.yaml")]
    told = client.post("/v1/constitutions/lint", json={"text": text}).json()
    assert [(f["rule"], f["line"], f["level"]) for f in told["findings"]] == expected
    assert expected
    assert told["errors"] + told["warnings"] == len(expected)
    assert all("draft" not in f["file"] + f["what"] for f in told["findings"])
    assert client.post("/v1/constitutions/lint", json={"name": "nano"}).json()["errors"] == 0
    assert client.post("/v1/constitutions/lint", json={"name": "nano", "text": text}).status_code == 422


def test_versions_are_kept_and_the_plain_name_is_the_last(client: httpx.Client) -> None:
    one, two = save(client, "house", edited(0)), save(client, "house", edited(1))
    assert [(s["name"], s["version"]) for s in (one, two)] == [("house", 1), ("house", 2)]
    assert client.get("/v1/constitutions/house").json() | {"versions": [1, 2], "hash": two["hash"]} == client.get(
        "/v1/constitutions/house"
    ).json()
    assert client.get("/v1/constitutions/house", params={"version": 1}).json()["text"] == edited(0)
    assert client.get("/v1/constitutions/house", params={"version": 9}).status_code == 404
    child = save(client, "child", "name: child\nextends: house.v1.yaml\nprinciples: [{id: z, choose: Which?}]\n")
    assert child["version"] == 1
    assert client.post("/v1/constitutions", json={"name": "nano", "text": edited()}).status_code == 409
    broken = client.post("/v1/constitutions", json={"name": "broken", "text": "name: [1]\n"})
    assert broken.status_code == 422
    assert "the text" in broken.json()["errors"][0]["where"]
    made = client.post("/v1/runs", json={"recipe": RECIPE, "overrides": ["constitution=house"], "limit": 2})
    name = made.raise_for_status().json()["name"]
    assert run_ends(client, name)["constitution_hash"] == two["hash"]


def test_a_diff_is_told_by_meaning(client: httpx.Client) -> None:
    told = client.post("/v1/constitutions/diff", json={"old": {"name": "nano"}, "new": {"text": edited()}}).json()
    assert [(c["kind"], c["id"]) for c in told["changes"]] == [("removed", NANO.principles[0].id)]
    assert told["old_hash"] == diff(open_side("nano"), open_side("nano")).old_hash
    assert "draft" not in str(told)


def test_an_edit_is_previewed_by_a_job(client: httpx.Client) -> None:
    principle = NANO.principles[0]
    changed = f"name: mild\nextends: nano\nprinciples:\n  - id: {principle.id}\n    weight: 50.0\n"
    body = {"old": {"name": "nano"}, "new": {"text": changed}, "limit": 6, "name": "look"}
    started = client.post("/v1/previews", json=body).raise_for_status().json()
    assert started["state"] in ("queued", "running")

    def ended() -> Any:
        found = client.get("/v1/previews/look").json()
        return found if found["state"] not in ("queued", "running") else None

    found = wait_for(ended)
    assert (found["state"], found["reason"]) == ("whole", "")
    assert found["result"]["verdict"].startswith("This edit changes")
    page = client.get("/v1/previews/look/report")
    assert "<html" in page.text
    assert "sandbox" in page.headers["content-security-policy"]
    assert '"state": "whole"' in client.get("/v1/previews/look/events").text
    assert client.post("/v1/previews", json=body).status_code == 409
    bad = {**body, "name": "bad", "new": {"text": "name: x\nprinciples: [{id: a, choose: Which?}]\n"}}
    assert client.post("/v1/previews", json=bad).status_code == 422  # no text to critique by
