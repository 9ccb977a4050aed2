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
from tenet.engines._scaling import Range, Scale
from tenet.errors import LedgerError, RunFolderError, SettingsError
from tenet.ledger import Rows
from tests import cluster

ROOT = Path(__file__).parent.parent
PROMPTS = 54
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
        wait(lambda: ended(folder) >= before + 4, driver)
        assert [len(players(n)) for n in (one, gone, three)] == [1, 1, 1]
        players(one)[0].kill()
        wait(lambda: ended(folder) >= before + 12, driver)
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


def test_node_cut_off(nodes: Any, undisturbed: list[Any], tmp_path: Path) -> None:
    """A node whose processes stand still, as if its network were cut: the others take over what it holds."""
    recipe, folder = write(tmp_path, "replicas: 2, delay: 0.2, hang_s: 6"), tmp_path / "runs/r"
    with start(recipe, nodes.address) as driver:
        wait(lambda: ended(folder) >= 10, driver)
        cut = next(n for n in nodes.worker_nodes if players(n))
        still = cluster.processes_of(cut)
        for process in still:
            process.suspend()
        try:
            begun = ended(folder)
            wait(lambda: ended(folder) >= begun + 20, driver)
        finally:
            for process in still:
                process.resume()
        manifest = finish(driver, folder)
    assert rows_of(folder) == undisturbed
    story = manifest["starts"][0]["replicas"]["m"]
    assert story["lost"] == 1
    lost = next(e for e in story["events"] if e["what"] == "lost")
    assert "no sign of life for 6 s" in lost["why"]
    assert lost["asked_again"] > 0
    assert cut.node_id[:8] in lost["node"]


def test_models_have_nodes_of_their_own_and_replicas_come_when_questions_pile_up(nodes: Any, tmp_path: Path) -> None:
    for_judges = cluster.add(nodes, num_cpus=1, resources={"judge": 1})
    recipe = write(tmp_path, "replicas: {min: 1, max: 2, full: 8, calm_s: 1}, delay: 0.3")
    judge = (
        '  j: {kind: scripted, script: "tests.oracle_script:play", replicas: 1, resources: {judge: 1}, version: "2"}'
    )
    said = recipe.read_text().replace("respond:", f"{judge}\nrespond:").replace("pairwise,", "pairwise, model: j,")
    recipe.write_text(said)
    with start(recipe, nodes.address) as driver:
        manifest = finish(driver, tmp_path / "runs/r")
    policy, judge = (manifest["starts"][0]["replicas"][name] for name in ("m", "j"))
    assert [for_judges.node_id[:8] in e["node"] for e in judge["events"]] == [True]
    assert not any(for_judges.node_id[:8] in e["node"] for e in policy["events"])
    assert policy["started"] == 1
    assert policy["grown"] >= 1


NO_ROOM = """
import asyncio, sys
from tenet.engines.scripted import Settings, build
from tenet.errors import EngineError

async def main():
    engine = build(Settings(replicas=2, address=sys.argv[1], resources={"absent": 1}, wait_s=0))
    try:
        await engine.start()
    except EngineError as error:
        print(error)

asyncio.run(main())
"""


def test_no_room_is_told_with_what_the_cluster_has(nodes: Any) -> None:
    command = [sys.executable, "-c", NO_ROOM, nodes.address]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout
    assert "no room within 0 s for 2 replicas of 1 CPU, 1 absent" in said
    assert "0 absent (0 free): fewer replicas, or a longer engine.wait_s" in said


@pytest.mark.parametrize("address", ["head", "head:port", "http://head:1", "ray://head"])
def test_what_is_no_address_is_refused_before_anything_starts(tmp_path: Path, address: str) -> None:
    plan = recipes.open_recipe(write(tmp_path, "replicas: 1"))
    with pytest.raises(SettingsError, match=r"no Ray address.*ray://host:port"):
        plan.on(address)


def test_how_many_replicas_are_wanted() -> None:
    scale = Scale.of(Range(min=1, max=4, full=10, calm_s=5), 256)
    assert scale.wanted(1, 10, 0) == 1
    assert scale.wanted(1, 25, 0) == 3
    assert scale.wanted(3, 1000, 0) == 4
    # fewer only after a calm, and one at a time
    assert [scale.wanted(4, 5, t) for t in (10, 14, 15, 16)] == [4, 4, 3, 4]
    assert scale.wanted(4, 35, 17) == 4
    assert [scale.wanted(4, 5, t) for t in (18, 22)] == [4, 4]
    assert Scale.of(3, 256).wanted(3, 10_000, 0) == 3
    with pytest.raises(ValueError, match="max 1 is less than min 2"):
        Range(min=2, max=1)
