"""Runs over HTTP on real processes: create, watch, page, download, cancel, resume, and kill -9 of either side."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from service import recipe as recipes
from service import run
from service.api import lockfile
from service.pipeline import Window
from tenet.ledger import Rows
from tests.api_server import RECIPE, ROOT, process, run_ends, serving, wait_for

SEED = "seed: 7\n"
"""Draws of their own: replies that an earlier test paid for would make a slow run quick."""
SLOW = RECIPE.replace('play"}', 'play", delay: 0.1}') + "limits: {in_flight: 2}\n" + SEED


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


def stored(folder: Path) -> list[tuple[Any, ...]]:
    with Rows(folder, readonly=True) as rows:
        return [tuple(r) for r in rows.iterate()]


def test_a_run_is_made_watched_and_paged(client: httpx.Client, place: Path) -> None:
    detail = client.get("/v1/runs/first").json()
    assert detail["progress"]["done"] == 20 == detail["records"]["outcome"]
    assert detail["constitution"] == "nano"
    assert sum(u["calls"] for u in detail["usage"].values()) > 100
    assert detail["estimate"]["stages"][0]["calls"] == 40
    rows = pages(client, "/v1/runs/first/rows", limit=7)
    ledger = [(r[0], r[1], r[3], json.loads(r[4])) for r in stored(place / "runs/first")]
    assert [(r["ordinal"], r["seq"], r["stage"], r["record"]) for r in rows] == ledger
    events = client.get("/v1/runs/first/events").text
    assert "event: progress" in events
    assert events.rstrip().splitlines()[-1] == 'data: {"event": "end", "state": "whole", "reason": ""}'
    ids = [int(line[4:]) for line in events.splitlines() if line.startswith("id: ")]
    rest = client.get("/v1/runs/first/events", headers={"last-event-id": str(ids[2])}).text
    assert [int(line[4:]) for line in rest.splitlines() if line.startswith("id: ")] == ids[3:]


def test_filters_find_what_a_look_at_all_rows_finds(client: httpx.Client) -> None:
    rows = pages(client, "/v1/runs/first/rows", limit=200)
    path = "/v1/runs/first/rows"

    def same(wanted: list[dict[str, Any]], **params: Any) -> None:
        assert pages(client, path, limit=3, **params) == wanted
        assert 0 < len(wanted) < len(rows)

    same([r for r in rows if r["stage"] in ("preference", "judged")], stage=["preference", "judged"])
    same([r for r in rows if r["record"].get("reason") == "identical replies"], reason="identical replies")
    margins = {
        (r["ordinal"], r["seq"]): abs((r["record"].get("p_chosen") or r["record"]["verdict"]["p_a"]) - 0.5)
        for r in rows
        if r["stage"] in ("preference", "judged")
    }
    edge = round(sorted(margins.values())[len(margins) // 2], 12)
    same([r for r in rows if margins.get((r["ordinal"], r["seq"]), -1) >= edge], min_margin=edge)
    preference = next(r["record"] for r in rows if r["stage"] == "preference")
    principle = preference["verdict"]["votes"][0]["principle"]
    same([r for r in rows if _names(r["record"], principle)], principle=principle)
    word = rows[0]["record"]["messages"][0]["content"].split()[3]
    same([r for r in rows if _says(r["record"], word.upper())], q=word.upper())
    one = [r for r in rows if r["ordinal"] == 3]
    same(one, prompt_id=one[0]["prompt_id"])
    assert client.get("/v1/runs/first/prompts/3").json()["rows"] == one
    assert pages(client, path, q='no such "text" \\ % _') == []
    assert pages(client, path, q="prompt_id") == []  # the name of a field is no text


def _names(value: Any, principle: str) -> bool:
    if isinstance(value, dict):
        if value.get("principle") == principle or principle in (value.get("principles") or []):
            return True
        return any(_names(v, principle) for v in value.values())
    return isinstance(value, list) and any(_names(v, principle) for v in value)


def _says(value: Any, word: str) -> bool:
    if isinstance(value, str):
        return word.lower() in value.lower()
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return any(_says(v, word) for v in items)


def test_exports_are_downloaded_whole_and_in_ranges(client: httpx.Client, place: Path) -> None:
    files = {f["name"]: f for f in client.get("/v1/runs/first/files").json()["files"]}
    assert {"preference.parquet", "preference.jsonl", "sft.parquet", "manifest.json", "README.md"} <= set(files)
    whole = client.get("/v1/runs/first/files/preference.jsonl").content
    assert hashlib.sha256(whole).hexdigest() == files["preference.jsonl"]["sha256"]
    part = client.get("/v1/runs/first/files/preference.jsonl", headers={"range": "bytes=100-299"})
    assert (part.status_code, part.content) == (206, whole[100:300])
    assert client.get("/v1/runs/first/files/nothing.txt").status_code == 404
    assert client.get("/v1/runs/first/manifest").json()["files"]["preference.jsonl"]["rows"] > 0


def test_a_recipe_is_checked_as_the_command_line_checks_it(client: httpx.Client, tmp_path: Path) -> None:
    said = client.post("/v1/recipes/check", json={"recipe": RECIPE, "limit": 5}).json()
    assert said["valid"]
    assert said["plan"]["stages"][0] == {"name": "respond", "model": "m", "calls": 10} | {
        k: said["plan"]["stages"][0][k] for k in ("tokens_in", "tokens_out")
    }
    wrong = RECIPE.replace("kind: pairwise", "kind: pairwize")
    answer = client.post("/v1/runs", json={"recipe": wrong, "name": "wrong"})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    (tmp_path / "recipe.yaml").write_text(wrong)
    with pytest.raises(recipes.SettingsError) as told:
        recipes.open_recipe(tmp_path / "recipe.yaml")
    assert answer.json()["errors"][0]["what"] == told.value.what
    assert answer.json()["errors"][0]["where"].endswith("line 8, judge.kind")
    assert client.get("/v1/runs/wrong").status_code == 404
    check = client.post("/v1/recipes/check", json={"recipe": wrong}).json()
    assert (check["valid"], check["errors"][0]["what"]) == (False, told.value.what)


def test_the_same_idempotency_key_makes_one_run(client: httpx.Client) -> None:
    body = {"recipe": yaml.safe_load(RECIPE), "prompts": ["What is a lake?", [{"role": "user", "content": "Why?"}]]}
    headers = {"idempotency-key": "abc"}
    one = client.post("/v1/runs", json=body, headers=headers).json()
    two = client.post("/v1/runs", json=body, headers=headers).json()
    assert one["name"] == two["name"]
    assert client.post("/v1/runs", json={**body, "limit": 1}, headers=headers).status_code == 422
    assert run_ends(client, one["name"])["progress"]["total"] == 2
    assert client.post("/v1/runs", json={**body, "name": one["name"]}).status_code == 409


def test_two_runs_are_compared(client: httpx.Client) -> None:
    given = {"recipe": RECIPE, "limit": 20, "name": "second", "overrides": ["constitution=harmless"]}
    client.post("/v1/runs", json=given).raise_for_status()
    run_ends(client, "second")
    found = client.get("/v1/runs/first/compare/second").json()
    assert found["prompts"]["both"] == 20
    assert found["constitution"]["old_hash"] != found["constitution"]["new_hash"]
    assert any(line.startswith("constitution") for line in found["settings"])
    names = [r["name"] for r in client.get("/v1/runs", params={"limit": 1}).json()["runs"]]
    assert names == ["second"]
    after = client.get("/v1/runs", params={"after": "second"}).json()["runs"]
    assert "first" in [r["name"] for r in after]


def test_a_run_is_cancelled_and_resumed_and_others_wait(client: httpx.Client, place: Path) -> None:
    client.post("/v1/runs", json={"recipe": SLOW, "name": "slow", "limit": 12}).raise_for_status()
    waiting = client.post("/v1/runs", json={"recipe": RECIPE, "name": "waiting", "limit": 2}).json()
    assert waiting["state"] == "queued"
    assert client.post("/v1/runs/waiting/cancel").json()["state"] == "stopped"
    wait_for(lambda: (client.get("/v1/runs/slow").json()["progress"] or {}).get("done"))
    assert client.post("/v1/runs/slow/resume").status_code == 409
    assert client.post("/v1/runs/slow/cancel").json()["state"] in ("stopping", "stopped")
    stopped = run_ends(client, "slow")
    assert stopped["state"] == "stopped"
    assert 0 < stopped["progress"]["done"] < 12
    assert client.post("/v1/runs/slow/resume").status_code == 202
    assert run_ends(client, "slow")["state"] == "whole"


def typed(folder: Path, out: Path, more: str, limit: int) -> None:
    """A run of the same recipe, as the command line makes it."""
    (folder / "prompts.jsonl").write_bytes((ROOT / "service/demo_files/prompts.jsonl").read_bytes())
    (folder / "r.yaml").write_text(RECIPE + more)
    asyncio.run(run.execute(recipes.open_recipe(folder / "r.yaml", [], str(out)), Window(limit)))


def test_a_job_that_is_stopped_before_it_can_say_so_is_stopped(client: httpx.Client) -> None:
    client.post("/v1/runs", json={"recipe": SLOW.replace("7", "9"), "name": "brief", "limit": 12}).raise_for_status()
    client.post("/v1/runs/brief/cancel", params={"now": True}).raise_for_status()
    brief = run_ends(client, "brief")
    assert (brief["state"], brief["reason"].partition(" ")[0]) == ("stopped", "stopped")
    client.post("/v1/runs/brief/resume").raise_for_status()
    assert run_ends(client, "brief")["state"] == "whole"


def test_a_stop_whose_signal_was_lost_while_python_started_still_stops(client: httpx.Client, place: Path) -> None:
    asked = {"recipe": SLOW.replace("7", "11"), "name": "deaf", "limit": 12}
    client.post("/v1/runs", json=asked).raise_for_status()
    client.post("/v1/runs/deaf/cancel").raise_for_status()
    run_ends(client, "deaf")
    folder = place / "runs/.service/jobs/deaf"
    (folder / "outcome.json").unlink(missing_ok=True)
    assert (folder / "stop").exists()
    lock = lockfile.take(folder / "lock")
    assert lock is not None
    command = [sys.executable, "-m", "service.api.worker", str(folder), "2", str(lock)]
    subprocess.run(command, pass_fds=(lock,), cwd=place, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    os.close(lock)
    assert json.loads((folder / "outcome.json").read_text())["state"] == "stopped"


def test_a_killed_job_is_a_crash_with_its_reason_and_goes_on(
    client: httpx.Client, place: Path, tmp_path: Path
) -> None:
    client.post("/v1/runs", json={"recipe": SLOW.replace("7", "8"), "name": "killed", "limit": 8}).raise_for_status()
    wait_for(lambda: (client.get("/v1/runs/killed").json()["progress"] or {}).get("done"))
    pid = lockfile.holder(place / "runs/.service/jobs/killed/lock")
    assert pid
    os.kill(pid, signal.SIGKILL)
    crashed = run_ends(client, "killed")
    assert (crashed["state"], "killed by signal 9" in crashed["reason"]) == ("crashed", True)
    assert '"state": "crashed"' in client.get("/v1/runs/killed/events").text
    client.post("/v1/runs/killed/resume").raise_for_status()
    assert run_ends(client, "killed")["state"] == "whole"
    typed(tmp_path, tmp_path / "unkilled", "seed: 8", 8)
    assert stored(place / "runs/killed") == stored(tmp_path / "unkilled")


def test_a_run_that_fails_says_why(client: httpx.Client) -> None:
    text = RECIPE.replace("m: {kind", "m: {choices: false, kind")
    answer = client.post("/v1/runs", json={"recipe": text, "name": "unfit", "limit": 2}).raise_for_status().json()
    failed = run_ends(client, answer["name"])
    assert failed["state"] == "failed"
    assert "log-probabilities" in failed["reason"]


def test_kill_9_of_the_service_loses_no_run(tmp_path: Path) -> None:
    """The job outlives the service and is found again; killed too, it goes on at the next start."""
    recipe = {"recipe": SLOW, "limit": 16}
    with process(tmp_path) as (server, client):
        client.post("/v1/runs", json={**recipe, "name": "outlives"}).raise_for_status()
        wait_for(lambda: (client.get("/v1/runs/outlives").json()["progress"] or {}).get("done"))
        server.kill()
        server.wait()
    pid = lockfile.holder(tmp_path / "runs/.service/jobs/outlives/lock")
    assert pid
    with process(tmp_path) as (server, client):
        assert client.get("/v1/runs/outlives").json()["state"] == "running"
        server.kill()
        server.wait()
        os.kill(pid, signal.SIGKILL)
    with process(tmp_path) as (_, client):
        ended = run_ends(client, "outlives")
        assert (ended["state"], ended["attempts"], ended["records"]["outcome"]) == ("whole", 2, 16)
        events = client.get("/v1/runs/outlives/events", params={"since": 0}).text
        assert events.count("event: start") == 2


def test_trainings_and_reports_of_the_workspace_are_listed_and_shown(
    client: httpx.Client, place: Path, tmp_path: Path
) -> None:
    folder = place / "runs/first/report"
    folder.mkdir()
    (folder / "report.html").write_text("<html><title>A report</title><script>alert(1)</script></html>")
    (tmp_path / "report.html").write_text("<title>secret</title>")
    (place / "runs/outside").symlink_to(tmp_path)
    trained = place / "runs/sft"
    trained.mkdir()
    facts = {"kind": "sft", "steps": 7, "data": {"kept": 20}, "seconds": 1.5, "figures": {"loss": 2.5, "bad": None}}
    (trained / "manifest.json").write_text(json.dumps(facts))
    (trained / "curves.svg").write_text("<svg/>")
    told = client.get("/v1/reports").json()
    assert told["reports"] == [{"path": "first/report/report.html", "title": "A report"}]
    assert told["trainings"] == [
        {
            "folder": "sft", "kind": "sft", "steps": 7, "rows": 20, "seconds": 1.5,
            "figures": {"loss": 2.5, "bad": None}, "curves": "sft/curves.svg",
        }
    ]  # fmt: skip
    for path in ("first/report/report.html", "sft/curves.svg"):
        page = client.get("/v1/reports/file", params={"path": path})
        assert page.content == (place / "runs" / path).read_bytes()
        assert "sandbox" in page.headers["content-security-policy"]
        assert "script-src" not in page.headers["content-security-policy"]
    for other in ("outside/report.html", "../secret", "", "first", "sft/manifest.json", str(tmp_path / "report.html")):
        assert client.get("/v1/reports/file", params={"path": other}).status_code == 404


def test_a_run_of_the_command_line_is_seen_beside(client: httpx.Client, place: Path, tmp_path: Path) -> None:
    typed(tmp_path, place / "runs/typed", "", 3)
    detail = client.get("/v1/runs/typed").json()
    assert (detail["state"], detail["by"], detail["records"]["outcome"]) == ("whole", "command line", 3)
    assert client.post("/v1/runs/typed/cancel").status_code == 409
