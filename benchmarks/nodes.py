"""What the loss of a replica, a node, or a node's network for 20 s does to a run's throughput on three nodes.

    sudo python -P benchmarks/nodes.py > docs/benchmarks/nodes.json

A head and three Ray nodes on this machine, each in a network namespace of its own (root is needed), joined by a bridge.
Replicas play a script, so that what is measured is Ray's and tenet's part. Rates are prompts ended a second.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent
NET = "10.77.0"
PORT = 6399
CUT = 20.0
BUSY = "none, driver busy"
"""So many questions in flight that the driver's core is what limits: what a call costs it."""
RECIPE = """
prompts: {path: prompts.jsonl}
constitution: helpful
models:
  m: {kind: scripted, script: "benchmarks.scale:play", MORE}
revise: {rounds: 1}
pairs: [{kind: initial_vs_revision}]
judge: {kind: pairwise, order: both}
limits: {in_flight: MANY}
"""
START = """
from ray.scripts.scripts import main
from tests.cluster import light_agents
with light_agents():
    main()
"""
"""`ray start`, whose agents would else cost the two cores more than the work."""
COUNT = """
import sys
from ray._raylet import GcsClient
print(sum(n.state == 0 for n in GcsClient(address=sys.argv[1]).get_all_node_info().values()))
"""
"""In a process of its own: a client ends its process when the head is gone for a minute."""


def sh(*words: str) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


@contextmanager
def network(n: int) -> Iterator[None]:
    """Namespaces tenet1..n behind a bridge, with addresses .11, .12, …; the bridge is .1."""
    made: list[tuple[str, ...]] = []
    try:
        sh("ip", "link", "add", "tenetbr", "type", "bridge")
        made.append(("ip", "link", "del", "tenetbr"))
        sh("ip", "addr", "add", f"{NET}.1/24", "dev", "tenetbr")
        sh("ip", "link", "set", "tenetbr", "up")
        for i in range(1, n + 1):
            sh("ip", "netns", "add", f"tenet{i}")
            made.append(("ip", "netns", "del", f"tenet{i}"))
            sh("ip", "link", "add", f"tenetv{i}", "type", "veth", "peer", "name", "eth0", "netns", f"tenet{i}")
            sh("ip", "link", "set", f"tenetv{i}", "master", "tenetbr", "up")
            sh("ip", "-n", f"tenet{i}", "addr", "add", f"{NET}.1{i}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                sh("ip", "-n", f"tenet{i}", "link", "set", device, "up")
        yield
    finally:
        for words in reversed(made):
            with suppress(subprocess.CalledProcessError):
                sh(*words)


def ray_start(i: int) -> subprocess.Popen[bytes]:
    """The head (0) or a node, in the foreground of a process of its own."""
    inside = ["ip", "netns", "exec", f"tenet{i}"] if i else []
    ports = [
        "metrics-export-port",
        "runtime-env-agent-port",
        "dashboard-agent-grpc-port",
        "dashboard-agent-listen-port",
    ]
    command = [
        *inside, sys.executable, "-c", START, "start", "--block", "--disable-usage-stats",
        "--object-store-memory", str(80 << 20), "--include-log-monitor", "false", "--num-cpus", "2" if i else "0",
        "--node-ip-address", f"{NET}.1{i}" if i else f"{NET}.1",
        *(x for k, name in enumerate(ports) for x in (f"--{name}", str(20_100 + 10 * i + k))),
        *(["--address", f"{NET}.1:{PORT}"] if i else ["--head", "--port", str(PORT), "--include-dashboard=false"]),
    ]  # fmt: skip
    quick = {"RAY_worker_niceness": "0", "RAY_prestart_worker_first_driver": "0", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, env={**os.environ, **quick}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip


def end(process: subprocess.Popen[bytes]) -> None:
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    process.wait()


@contextmanager
def nodes(n: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A head and n nodes that have joined it."""
    started: list[subprocess.Popen[bytes]] = []
    until = time.monotonic() + 600
    try:
        for i in range(n + 1):
            started.append(ray_start(i))
            while alive() <= i:
                if time.monotonic() > until:
                    raise SystemExit("the nodes did not come up: is the machine too busy?")
                if started[i].poll() is not None:  # its agents were too slow for its raylet
                    end(started[i])
                    started[i] = ray_start(i)
                time.sleep(1)
        yield started[1:]
    finally:
        for process in reversed(started):
            end(process)


def alive() -> int:
    """Nodes that are up, the head included."""
    with socket.socket() as s:
        s.settimeout(2)
        if s.connect_ex((f"{NET}.1", PORT)):
            return 0
    told = subprocess.run([sys.executable, "-c", COUNT, f"{NET}.1:{PORT}"], capture_output=True, text=True)
    return int(told.stdout or 0)


def players(node: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [p for p in psutil.Process(node.pid).children(recursive=True) if "Player" in " ".join(p.cmdline())]


def ended(folder: Path) -> int:
    with suppress(sqlite3.Error):
        db = sqlite3.connect(f"{(folder / 'rows.sqlite').as_uri()}?mode=ro", uri=True)
        try:
            return db.execute("SELECT count(*) FROM rows WHERE stage = 'outcome'").fetchone()[0]
        finally:
            db.close()
    return 0


def measure(fault: str, prompts: int, folder: Path, started: list[subprocess.Popen[bytes]]) -> dict[str, Any]:
    """One run with one fault after a third of its prompts."""
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"How do I clean brush number {i}?"}) + "\n" for i in range(prompts))
    )
    said = RECIPE.replace("MORE", "replicas: 3, delay: 0.25, hang_s: 15")
    (folder / "recipe.yaml").write_text(said.replace("MANY", "1024" if fault == BUSY else "48"))
    run = folder / "runs/r"
    command = [sys.executable, "-m", "service", "generate", str(folder / "recipe.yaml"), "--out", str(run)]
    driver = subprocess.Popen(
        [*command, "--address", f"{NET}.1:{PORT}"], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        samples, hit, back = watch(driver, run, fault, prompts, started)
        said = driver.communicate()[0].decode()
    finally:
        driver.kill()
        driver.wait()
    if driver.returncode:
        raise SystemExit(said[-3000:])
    return told(fault, run, samples, hit, back)


def watch(
    driver: subprocess.Popen[bytes], run: Path, fault: str, prompts: int, started: list[subprocess.Popen[bytes]]
) -> tuple[list[tuple[float, int, float]], float, float]:
    """(seconds, prompts ended, driver's CPU seconds) twice a second; when the fault began, and when it was over."""
    samples: list[tuple[float, int, float]] = []
    hit = back = 0.0
    process = psutil.Process(driver.pid)
    while driver.poll() is None:
        now, n = time.monotonic(), ended(run)
        with suppress(psutil.NoSuchProcess):
            cpu = process.cpu_times()
            samples.append((now, n, cpu.user + cpu.system))
        if not hit and n > prompts / 3:
            hit = back = time.monotonic()
            if fault == "replica killed":
                players(started[1])[0].send_signal(signal.SIGKILL)
            elif fault == "node killed":
                end(started[1])
            elif fault == "network cut":
                sh("ip", "link", "set", "tenetv2", "down")
                back = hit + CUT
        if fault == "network cut" and hit and now > back and "DOWN" in state("tenetv2"):
            sh("ip", "link", "set", "tenetv2", "up")
        time.sleep(0.5)
    return samples, hit, back


def state(device: str) -> str:
    return subprocess.run(["ip", "-o", "link", "show", device], capture_output=True, text=True, check=True).stdout


def told(fault: str, run: Path, samples: list[tuple[float, int, float]], hit: float, back: float) -> dict[str, Any]:
    manifest = json.loads((run / "manifest.json").read_text())
    begun = next(i for i, s in enumerate(samples) if s[1])
    last = next(i for i, s in enumerate(samples) if s[1] == samples[-1][1])
    samples = samples[begun : last + 1]

    def rate(since: float, until: float) -> float | None:
        span = [s for s in samples if since <= s[0] <= until]
        return round((span[-1][1] - span[0][1]) / (span[-1][0] - span[0][0]), 1) if len(span) > 1 else None

    calls = sum(u["calls"] for u in manifest["usage"].values())
    (start,) = manifest["starts"]
    # the last prompts leave replicas idle: that is no rate
    end_ = next(s[0] for s in samples if s[1] >= 0.9 * samples[-1][1])
    return {
        "fault": fault,
        "prompts": manifest["prompts"]["rows"],
        "calls": calls,
        "prompts_s": {
            "before": rate(samples[0][0], hit), "first 10 s": rate(hit, hit + 10),
            "next 10 s": rate(hit + 10, hit + 20), "after": rate(max(back, hit + 20), end_),
        },
        "driver_cpu_ms_a_call": round((samples[-1][2] - samples[0][2]) / calls * 1e3, 3),
        "by_second": [s[1] for s in samples[::2]],
        "fault_at_s": round(hit - samples[0][0], 1),
        "files": {k: v["sha256"][:16] for k, v in manifest["files"].items()},
        "replicas": start["replicas"]["m"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--prompts", type=int, default=1200)
    faults = [BUSY, "none", "replica killed", "network cut", "node killed"]
    parser.add_argument("--fault", choices=faults, action="append", help="only this one; may be repeated")
    given = parser.parse_args()
    # the bridge leads nowhere else, and a token that this machine has for other work would have to be given around
    os.environ["RAY_AUTH_MODE"] = "disabled"
    runs: list[dict[str, Any]] = []
    with network(3), nodes(3) as started:
        for fault in sorted(given.fault or faults, key=faults.index):  # the node that is killed does not come back
            with tempfile.TemporaryDirectory() as folder:
                runs.append(measure(fault, given.prompts, Path(folder), started))
            print(f"{fault} done", file=sys.stderr)
    machine = {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1), "python": platform.python_version()}
    same = len({json.dumps(r["files"]) for r in runs}) == 1  # rows, wherever they were asked and however often
    print(json.dumps({"machine": machine, "same_files": same, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
