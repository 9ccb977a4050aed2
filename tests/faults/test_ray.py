"""Ray at fault under replicas: a full object store, an error as a GPU raises it, a head that goes and comes back."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from pathlib import Path

from tenet.engines import Request
from tenet.engines._ray import ray
from tenet.engines.scripted import Settings, build
from tenet.records import Message
from tests import cluster
from tests.faults.runs import ROOT, command, environment, files, go, manifest_of, start, stored, write
from tests.faults.scripts import CUDA

MB = 1 << 20


def ask(text: str) -> Request:
    return Request(messages=(Message(role="user", content=text),))


def test_a_full_object_store_and_an_error_of_a_gpu_lose_no_other_answer() -> None:
    async def run() -> None:
        engine = build(Settings(script="tests.faults.scripts:echo", replicas=1, address=None))
        try:
            await engine.generate([ask("hello")])
            held = [ray().put(b"x" * (30 * MB)) for _ in range(7)]  # more than the store's 200 MB
            texts = [str(n) * 2 * MB for n in range(6)]
            replies = await asyncio.wait_for(engine.generate([ask(t) for t in (*texts, "break the GPU", "after")]), 120)
            assert [(r.text, r.fault) for r in replies[:6]] == [(t, None) for t in texts]
            assert (replies[6].fault, replies[6].detail) == ("server", f"RuntimeError: {CUDA}")
            assert (replies[7].text, replies[7].fault) == ("after", None)
            assert len(held) == 7
        finally:
            await engine.close()

    asyncio.run(run())


def test_a_head_that_goes_ends_the_run_and_a_new_head_goes_on_with_it(tmp_path: Path) -> None:
    model = '{kind: scripted, script: "tests.oracle_script:play", replicas: 1, delay: 0.2, wait_s: 30}'
    recipe, out = write(tmp_path, 12, model), tmp_path / "wild/run"
    quick = {"RAY_gcs_rpc_server_reconnect_timeout_s": "3"}  # for 60 s Ray waits for the head to come back
    os.environ |= quick
    try:
        with cluster.cluster({"num_cpus": 1}) as nodes:
            driver = start([*command(recipe, out, "limits.in_flight=2"), "--address", nodes.address], **quick)
            try:
                deadline = time.monotonic() + 120
                while not rows_in(out) and time.monotonic() < deadline:
                    assert driver.poll() is None, driver.communicate()[0]
                    time.sleep(0.1)
                nodes.head_node.kill_gcs_server(check_alive=False)
                said, _ = driver.communicate(timeout=120)
            finally:
                driver.kill()
        assert driver.returncode != 0, said
        assert not (out / "manifest.json").exists()
        with cluster.cluster({"num_cpus": 1}) as nodes:
            given = [*command(recipe, out, "models.m.delay=0"), "--address", nodes.address]
            subprocess.run(given, cwd=ROOT, env=environment(), check=True, capture_output=True, timeout=240)
    finally:
        for name in quick:
            del os.environ[name]
    calm = go(write(tmp_path / "calm", 12), "run")
    assert files(manifest_of(out)) == files(calm)
    assert stored(out) == stored(tmp_path / "calm/run")


def rows_in(folder: Path) -> int:
    """Rows that a run has stored so far."""
    return len(stored(folder)) if (folder / "rows.sqlite").exists() else 0
