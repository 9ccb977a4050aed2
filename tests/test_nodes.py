"""Replicas on a Ray cluster of three nodes: what a killed replica, node or driver, or a node cut off, does to a run."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from service import recipe as recipes
from service import run
from tenet.errors import LedgerError, RunFolderError
from tenet.ledger import Rows
from tests import cluster

ROOT = Path(__file__).parent.parent
PROMPTS = 100
RECIPE = """
prompts: {path: prompts.jsonl}
constitution: nano
models:
  m: {kind: scripted, script: "tests.oracle_script:play", MORE}
respond: {samples: 2}
revise: {rounds: 1, principles: 2}
judge: {kind: pairwise, principles: 2}
limits: {in_flight: 12}
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A head and three nodes with room for two replicas each."""
    # a dead node is noticed after two seconds, not fifteen
    fast = {"RAY_health_check_period_ms": "400", "RAY_health_check_initial_delay_ms": "0"}
    os.environ |= fast
    try:
        with cluster.cluster({"num_cpus": 2}, {"num_cpus": 2}, {"num_cpus": 2}) as made:
            yield made
    finally:
        for name in fast:
            del os.environ[name]


def write(folder: Path, more: str) -> Path:
    lines = (ROOT / "service/demo_files/prompts.jsonl").read_text().splitlines()[:PROMPTS]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "recipe.yaml").write_text(RECIPE.replace("MORE", more))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The rows of the same recipe, played in this process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    plan = recipes.open_recipe(write(folder, "delay: 0"), (), str(folder / "runs/r"))
    asyncio.run(run.execute(plan))
    return rows_of(folder / "runs/r")


def rows_of(folder: Path) -> list[Any]:
    with Rows(folder, readonly=True) as rows:
        return list(rows.iterate())


def ended(folder: Path) -> int:
    try:
        with Rows(folder, readonly=True) as rows:
            return sum(1 for _ in rows.iterate("outcome"))
    except (LedgerError, RunFolderError):
        return 0  # not there yet


@contextmanager
def start(recipe: Path, address: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command as a user gives it."""
    command = [sys.executable, "-m", "service", "generate", str(recipe), "--out", str(recipe.parent / "runs/r")]
    with subprocess.Popen(
        [*command, "--address", address], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as driver:  # fmt: skip
        try:
            yield driver
        finally:
            driver.kill()


def wait(what: Callable[[], Any], driver: subprocess.Popen[bytes], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        assert driver.poll() is None, driver.communicate()[0].decode()[-3000:]
        time.sleep(0.05)


def finish(driver: subprocess.Popen[bytes], folder: Path) -> dict[str, Any]:
    said = driver.communicate(timeout=120)[0].decode()
    assert driver.returncode == 0, said[-3000:]
    return json.loads((folder / "manifest.json").read_text())


def players(node: Any) -> list[psutil.Process]:
    """The replicas on a node."""
    return [p for p in cluster.processes_of(node) if "Player" in " ".join(p.cmdline())]


def test_node_killed(nodes: Any, undisturbed: list[Any], tmp_path: Path) -> None:
    """The driver is killed and started again; then a replica is killed, and a node with all that runs on it."""
    recipe, folder = write(tmp_path, "replicas: 3, delay: 0.2"), tmp_path / "runs/r"
    one, gone, three = nodes.worker_nodes
    with start(recipe, nodes.address) as driver:
        wait(lambda: ended(folder) >= 10, driver)
    before = ended(folder)
    assert 10 <= before < PROMPTS
    with start(recipe, nodes.address) as driver:
        wait(lambda: ended(folder) >= before + 8, driver)
        assert [len(players(n)) for n in (one, gone, three)] == [1, 1, 1]
        players(one)[0].kill()
        wait(lambda: ended(folder) >= before + 20, driver)
        for process in cluster.processes_of(gone):
            process.kill()
        manifest = finish(driver, folder)
    assert rows_of(folder) == undisturbed
    assert manifest["prompts"]["rows"] == PROMPTS
    first, second = manifest["starts"]
    assert "ended" not in first  # it was killed
    story = second["replicas"]["m"]
    assert (story["started"], story["lost"]) == (3, 2)
    assert story["asked_again"] > 0
    lost = [e for e in story["events"] if e["what"] == "lost"]
    assert gone.node_id[:8] in lost[1]["node"]
    replaced = [e["node"] for e in story["events"] if e["what"] == "replaced"]
    assert all(gone.node_id[:8] not in node for node in replaced)
    print(json.dumps(manifest["starts"], indent=1))
