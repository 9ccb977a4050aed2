"""A job's process: `python -m service.api.worker FOLDER ATTEMPT LOCK`; it says what it does in events.jsonl."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from service.api import lockfile
from tenet.errors import TenetError

_EVERY_S = 0.25


class Events:
    """Appends events, a line of JSON each, as the API streams them."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / "events.jsonl").open("a", encoding="utf-8", newline="\n")

    def put(self, event: str, **data: Any) -> None:
        """One event; it is in the file when this returns."""
        data = {"event": event, "time": round(time.time(), 3), **data}
        self._file.write(json.dumps(data, ensure_ascii=False) + "\n")
        self._file.flush()


def main(folder: Path, attempt: int, lock: int) -> None:
    """Does the job that `spec.json` describes; the outcome is written last."""
    os.set_inheritable(lock, False)
    lockfile.sign(lock)
    events = Events(folder)
    events.put("start", attempt=attempt)
    try:
        # A stop before the work begins ends like Ctrl-C. SIGINT too is set: a service that a shell put in the
        # background hands it down ignored, and one that came before this line left no more than the file.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        if (folder / "stop").exists():
            raise KeyboardInterrupt
        spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
        outcome = asyncio.run(_run(folder, spec, events))
    except (asyncio.CancelledError, KeyboardInterrupt):
        outcome = {"state": "stopped", "reason": "stopped at once; stored replies stay"}
    except TenetError as error:
        outcome = {"state": "failed", "reason": f"{type(error).__name__}: {error}"}
    except Exception as error:  # the job's end is told whatever it was; the traceback is in the log
        import traceback

        traceback.print_exc()
        outcome = {"state": "failed", "reason": f"a fault of ours: {type(error).__name__}: {error}"}
    new = folder / "outcome.new"
    new.write_text(json.dumps({"attempt": attempt, **outcome}, ensure_ascii=False), encoding="utf-8")
    os.replace(new, folder / "outcome.json")
    events.put("end", **{k: v for k, v in outcome.items() if k in ("state", "reason")})


async def _run(folder: Path, spec: dict[str, Any], events: Events) -> dict[str, Any]:
    if spec["kind"] == "run":
        return await _generate(folder, spec, events)
    if spec["kind"] == "preview":
        from service.api import previews

        return await previews.work(folder, spec, events.put)
    raise TenetError(f"unknown kind of job {spec['kind']!r}")


async def _generate(folder: Path, spec: dict[str, Any], events: Events) -> dict[str, Any]:
    """One start of a run."""
    from service import recipe as recipes
    from service import run
    from service.pipeline import Pipeline, Tally, Window

    plan = recipes.open_recipe(folder / "plan.yaml", [], spec["out"])
    limit, shard = spec.get("limit"), spec.get("shard") or [0, 1]
    begun = told = 0.0
    pipelines: list[Pipeline] = []
    total: list[int] = []

    def tally(t: Tally, last: bool = False) -> None:
        nonlocal told
        now = time.monotonic()
        if not last and now - told < _EVERY_S:
            return
        told = now
        rate = (t.done - t.resumed) / max(now - begun, 1e-9)
        left = max(0, total[-1] - t.done)
        events.put(
            "progress", done=t.done, total=total[-1], resumed=t.resumed, kept=t.kept, failed=t.failed,
            drops=dict(t.drops), rate=round(rate, 3), eta_s=round(left / rate, 1) if rate else None,
        )  # fmt: skip

    def stage(name: str) -> None:
        nonlocal begun
        if name == "generating":  # the engines' start is no part of the rate
            begun = time.monotonic()
        if pipelines:
            tally(pipelines[-1].tally, last=True)
        events.put("stage", stage=name)

    hooks = run.Hooks(stage=stage, rows=total.append, tally=tally, pipeline=pipelines.append)
    task = asyncio.ensure_future(run.execute(plan, Window(limit, (shard[0], shard[1])), hooks))

    def stop() -> None:
        if pipelines and not pipelines[-1].stopped:
            pipelines[-1].stop()
            events.put("stage", stage="stopping")
        else:
            task.cancel()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop)
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    if (folder / "stop").exists():
        # asked to while Python was starting: a library's import may have swallowed the interrupt
        task.cancel()
    manifest = await task
    tally(pipelines[-1].tally, last=True)
    agreed = manifest["agreement"]
    if agreed["both_orders"] and agreed["consistent"] < 0.5 * agreed["both_orders"]:
        events.put("warning", text=f"slot orders agree on {agreed['consistent']} of {agreed['both_orders']} pairs only")
    state = manifest["state"]
    if state in ("whole", "stopped"):
        return {"state": state, "reason": ""}
    return {"state": "short", "reason": state}


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
