"""Compares tenet with what else one would pick for many calls to an endpoint; writes "endpoint" in a JSON file.

Every contender runs as a process of its own, in an environment of its own, in turn and several times over, against the
same kind of stub in a process of its own: four calls a record, one after the other, at a fixed latency. Then each is
killed (SIGKILL, the whole tree) three times at different points, and started again with the same command.

    python benchmarks/peers/run.py --venvs /tmp/peers [--records 1000] [--repeats 3] [--only tenet,litellm]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from contenders import ENDPOINT, QUIET, Contender
from watch import Watched

HERE = Path(__file__).parent
CALLS = 4
KILLED_AT = (0.3, 0.45, 0.6)
"""Shares of a run's calls: at some, who works in stages or waves has just closed one, and loses little."""


def python_of(contender: Contender, venvs: Path) -> Path:
    """The contender's interpreter; its environment is made first where it is missing."""
    if not contender.packages:
        return Path(sys.executable)
    folder = venvs / contender.packages[0].split("==")[0].split("[")[0]
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *contender.packages], check=True)
    return python


@contextmanager
def stub(latency: float) -> Generator[str]:
    """The base URL of a stub server in its own process."""
    command = [sys.executable, str(HERE / "stub.py"), "--latency", str(latency)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdin
        assert process.stdout
        yield process.stdout.readline().decode().strip()
        process.stdin.close()  # tells it to stop


def book(base_url: str) -> dict[str, Any]:
    with urllib.request.urlopen(base_url.removesuffix("/v1") + "/book", timeout=60) as answer:
        return json.load(answer)


def start(contender: Contender, given: argparse.Namespace, base_url: str, folder: Path) -> Watched:
    command = [str(python_of(contender, given.venvs)), str(HERE / contender.script), "--base-url", base_url]
    command += ["--records", str(given.records), "--concurrency", str(given.concurrency), "--folder", str(folder)]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    env |= {**QUIET, **tokenizers(given.venvs), "HOME": str(folder), **contender.env}
    return Watched(command, env=env, cwd=folder, log=folder / f"log{len(list(folder.glob('log*')))}.txt")


def tokenizers(venvs: Path) -> dict[str, str]:
    """Where tiktoken finds its files without the network: litellm brings them along."""
    found = sorted(venvs.glob("litellm/lib/python*/site-packages/litellm/litellm_core_utils/tokenizers"))
    return {"TIKTOKEN_CACHE_DIR": str(found[0])} if found else {}


def told(watched: Watched) -> dict[str, Any]:
    """The contender's last line; empty where it died before that."""
    for line in reversed(watched.log.read_text(errors="replace").splitlines()):
        if line.startswith('{"done"'):
            return json.loads(line)
    return {}


def measure(contender: Contender, given: argparse.Namespace) -> dict[str, Any]:
    """One whole run of a contender."""
    with tempfile.TemporaryDirectory() as folder, stub(given.latency) as base_url:
        begun = time.time()
        watched = start(contender, given, base_url, Path(folder))
        code = watched.wait(given.timeout)
        ended, seen, said = time.time(), book(base_url), told(watched)
        if code != 0 or not said:
            return {"failed": "time" if code is None else end_of(watched), "answered": seen["answered"]}
    return {
        "records": said["records"],
        "records_s": given.records / (said["done"] - seen["first"]),
        "cpu_s_per_1000_calls": (watched.cpu_s - watched.cpu_until(seen["first"])) / given.records / CALLS * 1000,
        "start_cpu_s": watched.cpu_until(seen["first"]),
        "peak_mib": watched.peak / 2**20,
        "start_s": seen["first"] - begun,
        "whole_s": ended - begun,
        "busiest": seen["busiest"],
        "calls": seen["asked"],
        "load": os.getloadavg()[0],
    }


def kill_and_go_on(contender: Contender, given: argparse.Namespace, share: float) -> dict[str, Any]:
    """Killed when that share of the calls is answered, started again: what was paid twice, and what came out."""
    given = argparse.Namespace(**{**vars(given), "records": given.kill_records})
    with tempfile.TemporaryDirectory() as folder, stub(given.latency) as base_url:
        watched = start(contender, given, base_url, Path(folder))
        enough, limit = int(share * given.records * CALLS), time.time() + given.timeout
        while book(base_url)["answered"] < enough and time.time() < limit:
            if watched.wait_a_moment():
                return {"failed": f"ended before the kill: {end_of(watched)}"}
        watched.kill()
        time.sleep(2 * given.latency)
        before = book(base_url)
        watched = start(contender, given, base_url, Path(folder))
        code, after, said = watched.wait(given.timeout), book(base_url), told(watched)
        whole = (
            {}
            if code == 0 and said
            else {"failed": f"not done after {given.timeout:.0f} s" if code is None else end_of(watched)}
        )
    counts = {"answered_before": before["answered"], "paid_again": after["paid_again"]}
    return {**counts, "records": said.get("records", 0), **whole}


def end_of(watched: Watched) -> str:
    lines = [line for line in watched.log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][-4000:] if lines else "said nothing"


def versions(contender: Contender, venvs: Path) -> dict[str, str]:
    """The packages that matter, as installed."""
    names = ("openai", "litellm", "bespokelabs-curator", "data-designer", "distilabel", "aiohttp", "httpx", "httpx2")
    code = (
        "import importlib.metadata as m, json, sys\n"
        "found = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps({n: found[n] for n in sys.argv[1:] if n in found}))"
    )
    out = subprocess.run([python_of(contender, venvs), "-c", code, *names], check=True, capture_output=True)
    return json.loads(out.stdout)


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians, and every run's records/s beside them."""
    whole = [run for run in runs if "failed" not in run]
    if not whole:
        return {"runs": runs}
    middle = {key: round(statistics.median(run[key] for run in whole), 3) for key in whole[0]}
    return {**middle, "all_records_s": [round(r["records_s"], 1) for r in whole], "failed": len(runs) - len(whole)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--venvs", type=Path, required=True, help="folder of the peers' environments, made if missing")
    options.add_argument("--records", type=int, default=1000)
    options.add_argument("--concurrency", type=int, default=256)
    options.add_argument("--latency", type=float, default=0.05, help="seconds")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--timeout", type=float, default=600, help="seconds one run may take")
    options.add_argument("--only", default="", help="names, separated by commas")
    options.add_argument("--out", type=Path, default=Path("docs/benchmarks/peers.json"))
    options.add_argument("--kill-records", type=int, default=400, help="records of a kill test; 0 leaves it out")
    given = options.parse_args()
    chosen = [c for c in ENDPOINT if not given.only or c.name in given.only.split(",")]
    found = {c.name: {"how": c.how, "versions": versions(c, given.venvs.resolve())} for c in chosen}
    runs: dict[str, list[dict[str, Any]]] = {c.name: [] for c in chosen}
    for turn in range(given.repeats):
        # Forwards, then backwards: who comes first in a noisy hour is not always the same.
        for contender in chosen[:: 1 if turn % 2 == 0 else -1]:
            runs[contender.name].append(measure(contender, given))
            print(contender.name, runs[contender.name][-1], file=sys.stderr, flush=True)
            found[contender.name] |= summary(runs[contender.name])
            write(given, found)
    for share in KILLED_AT if given.kill_records else ():
        for contender in (c for c in chosen if not c.floor):
            killed = kill_and_go_on(contender, given, share)
            found[contender.name].setdefault("killed", []).append(killed)
            print(contender.name, share, killed, file=sys.stderr, flush=True)
            write(given, found)


def write(given: argparse.Namespace, found: dict[str, Any]) -> None:
    """The file as far as it has come: a long comparison that is broken off leaves what it has."""
    setting = {k: getattr(given, k) for k in ("records", "kill_records", "concurrency", "latency", "repeats")}
    setting |= {"calls_a_record": CALLS, "floor_records_s": given.concurrency / CALLS / given.latency}
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "load": round(os.getloadavg()[0], 1)}
    before: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    given.out.write_text(json.dumps({**before, "endpoint": {**setting, **machine, "found": found}}, indent=1) + "\n")


if __name__ == "__main__":
    main()
