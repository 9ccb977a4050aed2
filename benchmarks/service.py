"""The HTTP service under load on loopback: clients that page a large run while it is written, and raters at once.

    python benchmarks/service.py --rows 1000000 > docs/benchmarks/service.json

Everything shares the machine: the service (one process), the clients (one process), and a run that writes. Clients
are plain sockets, so that what they cost is little beside the service. `think` is the pause of a client between two
pages; with 0 the clients ask as fast as they are answered, and the latency is the queue's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import random
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from tenet.ledger import Rows
from tenet.ledger._file import checksum
from tenet.records import canonical

CHAIN = ("prompt", "candidate", "candidate", "preference", "outcome")
TEXT = "Rinse the brush under warm water, then let it dry flat. "


def record(ordinal: int, seq: int) -> str:
    """About 600 bytes, of the shapes that a run stores."""
    stage = CHAIN[seq]
    if stage == "preference":
        vote = {"principle": "p1", "order": "ab", "label": "A", "p_a": 0.7, "logprobs": [-0.3, -1.2]}
        pair = {"prompt": {"messages": [{"role": "user", "content": TEXT}]}, "a": TEXT * 3, "b": TEXT * 4}
        verdict = {"label": "A", "p_a": 0.7, "votes": [vote, {**vote, "order": "ba"}]}
        return canonical({"comparison": pair, "verdict": verdict, "chosen": "A", "p_chosen": 0.5 + ordinal % 50 / 100})
    if stage == "outcome":
        return canonical({"preferences": 1, "comparisons": 1, "retry": False})
    return canonical({"index": seq, "model": "m", "prompt_id": f"{ordinal:020x}", "text": TEXT * 9})


def fill(folder: Path, rows: int) -> None:
    """A run of so many records, through the ledger's own schema."""
    with Rows(folder) as ledger:
        asyncio.run(ledger.put(0, f"{0:020x}", [(s, record(0, i)) for i, s in enumerate(CHAIN)]))
    db = sqlite3.connect(folder / "rows.sqlite", isolation_level=None)
    db.execute("BEGIN")
    for ordinal in range(1, rows // len(CHAIN)):
        chain = [(ordinal, i, f"{ordinal:020x}", s, record(ordinal, i)) for i, s in enumerate(CHAIN)]
        db.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?)", [(*row, checksum(row)) for row in chain])
    db.execute("COMMIT")
    db.close()


def write(folder: str, start: int, per_second: int, done: Any) -> None:
    """Another process: the run goes on, prompt after prompt."""

    async def work() -> None:
        with Rows(Path(folder)) as ledger:
            ordinal, begun = start, time.monotonic()
            while not done.is_set():
                await ledger.put(ordinal, f"{ordinal:020x}", [(s, record(ordinal, i)) for i, s in enumerate(CHAIN)])
                ordinal += 1
                await asyncio.sleep(max(0.0, begun + (ordinal - start) / per_second - time.monotonic()))

    asyncio.run(work())


class Client:
    """One connection that is kept, and what its requests took."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.seconds: list[float] = []
        self.errors = 0

    async def open(self) -> None:
        self._in, self._out = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 24)

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The answer's JSON; an answer that is no success counts as an error and is None."""
        data = b"" if body is None else json.dumps(body).encode()
        kind = "Content-Type: application/json\r\n" if body is not None else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{kind}Content-Length: {len(data)}\r\n\r\n"
        begun = time.perf_counter()
        self._out.write(head.encode() + data)
        lines = (await self._in.readuntil(b"\r\n\r\n")).split(b"\r\n")
        sizes = [line for line in lines if line.lower().startswith(b"content-length:")]
        text = await self._in.readexactly(int(sizes[0].split(b":")[1]))
        self.seconds.append(time.perf_counter() - begun)
        if not lines[0].split()[1].startswith(b"2"):
            self.errors += 1
            return None
        return text

    def close(self) -> None:
        self._out.close()


def spread(seconds: list[float]) -> dict[str, float]:
    """Milliseconds."""
    s = sorted(seconds)

    def at(q: float) -> float:
        return round(1000 * s[min(len(s) - 1, int(q * len(s)))], 2)

    return {"p50_ms": at(0.5), "p95_ms": at(0.95), "p99_ms": at(0.99), "max_ms": at(1.0)}


def cpu_of(pid: int) -> float:
    """CPU seconds of a process so far: what the service costs, whatever else the machine is doing."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def page(
    port: int, pid: int, clients: int, seconds: float, think: float, rows: int, filtered: float
) -> dict[str, Any]:
    """Clients that go through the run page by page, each from a place of its own; some look for something."""
    rng = random.Random(0)
    crowd = [Client(port) for _ in range(clients)]
    for c in crowd:
        await c.open()
    end = time.monotonic() + seconds

    async def walk(c: Client, i: int) -> None:
        await asyncio.sleep(rng.random() * min(think, 1.0))
        after = f"{rng.randrange(rows // len(CHAIN))}.0"
        wants = "&stage=preference&min_margin=0.2" if i < filtered * clients else ""
        while time.monotonic() < end:
            text = await c.ask("GET", f"/v1/runs/big/rows?limit=50&after={after}{wants}")
            if text is not None:
                tail = text[text.rindex(b'"next":') + 7 : -1]
                after = json.loads(tail) or "0.0"
            await asyncio.sleep(think * (0.5 + rng.random()))

    begun, cpu = time.monotonic(), cpu_of(pid)
    await asyncio.gather(*(walk(c, i) for i, c in enumerate(crowd)))
    took, cpu = time.monotonic() - begun, cpu_of(pid) - cpu
    every = [s for c in crowd for s in c.seconds]
    for c in crowd:
        c.close()
    return {
        "clients": clients, "think_s": think, "filtered_share": filtered, "requests": len(every),
        "per_second": round(len(every) / took, 1), "errors": sum(c.errors for c in crowd), **spread(every),
        "service_cpu_ms_each": round(1000 * cpu / len(every), 3), "load": os.getloadavg()[0],
    }  # fmt: skip


async def label(port: int, raters: int, pairs: int) -> dict[str, Any]:
    """Raters who label one set at once, as fast as they are served, until nothing is left."""
    maker = Client(port)
    await maker.open()
    given = [{"prompt": f"How {i}?", "a": f"{TEXT}{i}", "b": f"{TEXT * 2}{i}"} for i in range(pairs)]
    made = {"name": "crowd", "pairs": given, "n": pairs, "overlap": 0.25, "raters": 3, "attention": 0.05}
    assert await maker.ask("POST", "/v1/labels", made) is not None
    crowd = [Client(port) for _ in range(raters)]
    told: list[tuple[str, str]] = []

    async def rate(c: Client, rater: str) -> None:
        await c.open()
        while True:
            text = await c.ask("POST", f"/v1/labels/crowd/next?rater={rater}")
            pair = json.loads(text)["pair"] if text else None
            if pair is None:
                return
            body = {"item": pair["item"], "label": "left"}
            if await c.ask("POST", f"/v1/labels/crowd/labels?rater={rater}", body) is not None:
                told.append((rater, pair["item"]))

    begun = time.monotonic()
    await asyncio.gather(*(rate(c, f"r{i}") for i, c in enumerate(crowd)))
    took = time.monotonic() - begun
    text = await maker.ask("GET", "/v1/labels/crowd/votes")
    stored = [(v["rater"], v["item"]) for v in map(json.loads, text.decode().splitlines()) if v["kind"] == "human"]
    progress = json.loads(await maker.ask("GET", "/v1/labels/crowd/progress"))
    checks = sum(r["checks"] for r in progress["raters"])
    every = [s for c in crowd for s in c.seconds]
    return {
        "raters": raters, "pairs": pairs, "labels": len(stored), "wanted": progress["wanted"],
        "lost": len(told) - checks - len(stored), "doubled": len(stored) - len(set(stored)),
        "errors": sum(c.errors for c in crowd), "labels_per_second": round(len(told) / took, 1), **spread(every),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--writes", type=int, default=100, help="prompts a second that the run writes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("filling", file=sys.stderr)
        fill(folder / "runs/big", args.rows)
        config = {
            "workspace": str(folder / "runs"), "models": {"m": {"kind": "scripted"}}, "judges": {},
            "limits": {"rate": 1e6, "burst": 1_000_000, "body_mib": 64},
        }  # fmt: skip
        (folder / "service.yaml").write_text(yaml.safe_dump(config))
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        file = str(folder / "service.yaml")
        command = [sys.executable, "-m", "service", "serve", "--config", file, "--port", str(port)]
        server = subprocess.Popen(command, stdout=sys.stderr)
        context = multiprocessing.get_context("spawn")
        done = context.Event()
        writer = context.Process(target=write, args=(str(folder / "runs/big"), args.rows, args.writes, done))
        try:
            wait(port)
            writer.start()
            paging = [
                asyncio.run(page(port, server.pid, args.clients, args.seconds, think, args.rows, filtered))
                for think, filtered in ((1.0, 0.0), (1.0, 0.1), (0.0, 0.0))
            ]
            done.set()
            writer.join()
            labelling = asyncio.run(label(port, 50, 1000))
        finally:
            done.set()
            server.terminate()
            server.wait()
        written = sqlite3.connect(folder / "runs/big/rows.sqlite").execute("SELECT count(*) FROM rows").fetchone()[0]
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()}
    told = {"machine": machine, "rows": args.rows, "rows_written_meanwhile": written - args.rows // 5 * 5}
    print(json.dumps({**told, "paging": paging, "labelling": labelling}, indent=1))


def wait(port: int) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit("the service did not start")


if __name__ == "__main__":
    main()
