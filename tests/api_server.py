"""A service on a real port of loopback, for the tests of its API: uvicorn in a thread, or a process to be killed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
import yaml

from service.api import app, server
from service.api.settings import Config
from tenet.engines import Engine

ROOT = Path(__file__).parent.parent
SCRIPT = "tests.oracle_script:play"
RECIPE = """
prompts: {path: prompts.jsonl, dedup: exact}
constitution: nano
models:
  m: {kind: scripted, script: "tests.oracle_script:play"}
revise: {rounds: 1, principles: 2}
pairs: [{kind: samples}, {kind: initial_vs_revision, per_prompt: 2}]
judge: {kind: pairwise, principles: 2}
"""


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    """A service's settings over the oracle's script; its prompts are the demo's."""
    return {
        "workspace": str(folder / "runs"),
        "data": [str(folder / "data")],
        "models": {"oracle": {"kind": "scripted", "script": SCRIPT}},
        "judges": {"pairwise": {"kind": "pairwise", "constitution": "nano", "principles": 2}},
        "allow": {"scripts": [SCRIPT]},
        **more,
    }


@contextmanager
def serving(folder: Path, engines: dict[str, Engine] | None = None, **more: Any) -> Generator[httpx.Client]:
    """A client of a service in a thread; `client.app` is the application."""
    (folder / "data").mkdir(exist_ok=True)
    config = Config.model_validate(settings(folder, **more))
    made = app.create(config, engines=engines)
    running = uvicorn.Server(server.uvicorn_config(made, "127.0.0.1", 0, config.limits))
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        while not running.started:
            assert thread.is_alive()
            time.sleep(0.005)
        port = running.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            client.app = made  # type: ignore[attr-defined]
            yield client
    finally:
        running.should_exit = True
        thread.join()


@contextmanager
def process(folder: Path, **more: Any) -> Generator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """`tenet serve` in a process of its own, which the test may kill."""
    (folder / "data").mkdir(exist_ok=True)
    file = folder / "service.yaml"
    file.write_text(yaml.safe_dump(settings(folder, **more)))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "service", "serve", "--config", str(file), "--port", str(port)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with (folder / "server.log").open("ab") as log:
        child = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            wait_for(lambda: _answers(client), 30)
            yield child, client
    finally:
        child.terminate()
        child.wait(20)


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health").is_success
    except httpx.TransportError:
        return False


def wait_for(true: Any, seconds: float = 30.0) -> Any:
    """What `true` returns as soon as it is not false; it fails if that takes too long."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)
    return found


def run_ends(client: httpx.Client, name: str, seconds: float = 30.0) -> dict[str, Any]:
    """A run's detail once it has ended."""

    def ended() -> dict[str, Any] | None:
        found = client.get(f"/v1/runs/{name}").json()
        return found if found["state"] not in ("queued", "running", "stopping") else None

    return wait_for(ended, seconds)
