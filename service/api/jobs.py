"""Jobs: each a process of its own that outlives the service; what became of it is read off files and locks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from service.api import lockfile
from service.api.keys import now
from service.api.problems import Refusal
from service.api.settings import Limits
from service.api.store import Store
from tenet.errors import TenetError

State = Literal["queued", "running", "stopping", "whole", "stopped", "short", "failed", "crashed", "interrupted"]
_TRIES = 3
"""How often the service starts a job again by itself after both died."""


@dataclass(frozen=True)
class Status:
    """Where a job stands."""

    state: State
    reason: str = ""
    """Why it failed, stopped short or crashed."""


@dataclass(frozen=True)
class Job:
    """A job as the store holds it."""

    name: str
    kind: str
    spec: dict[str, Any]
    queued: bool
    attempt: int
    exit: int | None
    note: str
    owner: str
    created: str


class Jobs:
    """Starts, watches, stops and remembers jobs."""

    def __init__(self, store: Store, home: Path, limits: Limits) -> None:
        self._store, self._limits = store, limits
        self._home = home / "jobs"
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def folder(self, name: str) -> Path:
        """The files of a job: its recipe, events, outcome, lock and log."""
        return self._home / name

    def get(self, name: str) -> Job | None:
        row = self._store.one("SELECT * FROM jobs WHERE name = ?", (name,))
        return _job(row) if row else None

    def listed(self) -> list[Job]:
        """All jobs, the newest first."""
        return [_job(r) for r in self._store.all("SELECT * FROM jobs ORDER BY place DESC")]

    def repeated(self, key: str, asked: str) -> Job | None:
        """The job that an idempotency key made before. Refusal if it then asked for something else."""
        row = self._store.one("SELECT * FROM jobs WHERE idempotency = ?", (key,))
        if row is not None and row["asked"] != asked:
            raise Refusal(422, "this idempotency key was used before, with another request")
        return _job(row) if row else None

    def submit(
        self, name: str, kind: str, spec: dict[str, Any], files: dict[str, str], owner: str,
        idempotency: str = "", asked: str = "",
    ) -> Job:  # fmt: skip
        """Stores a job and starts it, or lets it wait. Refusal: 409 for a name that is taken, 429 for a full queue."""
        if self.get(name):
            raise Refusal(409, f"there is a job {name!r} already: choose another name")
        if sum(j.queued for j in self.listed()) >= self._limits.queue + (self._free() > 0):
            raise Refusal(429, f"{self._limits.queue} jobs wait already: try again later", code="queue_full")
        folder = self.folder(name)
        shutil.rmtree(folder, ignore_errors=True)  # a submission that died before its row was stored
        folder.mkdir(parents=True)
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
        row = (name, kind, json.dumps(spec), "queued", owner, now(), self._next_place(), idempotency or None, asked)
        with self._store.change() as db:
            db.execute(
                "INSERT INTO jobs(name, kind, spec, state, owner, created, place, idempotency, asked) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
        self.advance()
        found = self.get(name)
        assert found is not None
        return found

    def status(self, job: Job) -> Status:
        """Read off the lock and the outcome, so that it is right whoever died in the meantime."""
        if job.queued:
            return Status("queued", job.note)
        if lockfile.holder(self.folder(job.name) / "lock") is not None:
            return Status("stopping" if (self.folder(job.name) / "stop").exists() else "running")
        outcome = self.outcome(job)
        if outcome:
            return Status(outcome["state"], outcome.get("reason", ""))
        job = self._with_exit(job)
        if job.exit is None:
            return Status("crashed", job.note or "its process ended without a word while the service was away")
        if -job.exit in (signal.SIGINT, signal.SIGTERM) and (self.folder(job.name) / "stop").exists():
            return Status("stopped", "stopped before it began")  # its Python had not come far enough to say so itself
        how = f"killed by signal {-job.exit}" if job.exit < 0 else f"ended with status {job.exit}"
        tail = _tail(self.folder(job.name) / "log")
        return Status("crashed", f"its process was {how}" + (f"; its last words: {tail}" if tail else ""))

    def _with_exit(self, job: Job) -> Job:
        """The job with the exit status of its process, which is told a moment after the lock is free."""
        child = self._children.get(job.name)
        if child is None:
            return self.get(job.name) or job
        with contextlib.suppress(subprocess.TimeoutExpired):
            return replace(job, exit=child.wait(1.0))
        return job

    def outcome(self, job: Job) -> dict[str, Any] | None:
        """What the job's last start wrote at its end; None if it wrote nothing."""
        try:
            found = json.loads((self.folder(job.name) / "outcome.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if found.get("attempt") == job.attempt else None

    def cancel(self, job: Job, at_once: bool) -> None:
        """Asks a job to stop after what is in flight, or at once; what is stored stays. Refusal if it does not run."""
        if job.queued:
            self._put(job.name, state="started", note="cancelled before it began")
            folder = self.folder(job.name)
            text = json.dumps({"attempt": job.attempt, "state": "stopped", "reason": "cancelled before it began"})
            (folder / "outcome.json").write_text(text, encoding="utf-8")
            return
        pid = lockfile.holder(self.folder(job.name) / "lock")
        if pid is None:
            raise Refusal(409, f"{job.name!r} does not run: it is {self.status(job).state}")
        (self.folder(job.name) / "stop").write_text("now" if at_once else "soon")
        child = self._children.get(job.name)
        pid = child.pid if child else pid
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT if at_once else signal.SIGTERM)

    def resume(self, job: Job) -> None:
        """Puts a job that ended on its way back into the queue. Refusal if it runs, or is whole."""
        state = self.status(job).state
        if state in ("queued", "running", "stopping"):
            raise Refusal(409, f"{job.name!r} is {state}")
        if state == "whole":
            raise Refusal(409, f"{job.name!r} is whole: there is nothing left to do")
        self._put(job.name, state="queued", note="", place=self._next_place())
        self.advance()

    def recover(self, resume: bool) -> None:
        """At the service's start: jobs that died without a word go on, up to three times, or say why not."""
        for job in self.listed():
            if job.queued or self.outcome(job) or lockfile.holder(self.folder(job.name) / "lock") is not None:
                continue
            if job.exit is not None:  # it crashed under the eyes of the service, which is no accident of ours
                continue
            if not resume:
                self._put(job.name, note="died together with the service; resume it, or start with resume=true")
            elif job.attempt >= _TRIES:
                self._put(job.name, note=f"died {job.attempt} times; it is not started again by itself")
            else:
                self._put(job.name, state="queued", note="goes on after the service's restart")
        self.advance()

    def advance(self) -> None:
        """Notes how children ended and starts what may start."""
        self._reap()
        waiting = [j for j in reversed(self.listed()) if j.queued]
        for job in waiting[: max(0, self._free())]:
            self._start(job)

    def _reap(self) -> None:
        for name, child in list(self._children.items()):
            status = child.poll()
            if status is not None:
                del self._children[name]
                self._put(name, exit=status)

    async def watch(self) -> None:
        """Until it is cancelled: starts jobs as others end."""
        while True:
            await asyncio.sleep(0.2)
            try:
                if self._children or any(j.queued for j in self.listed()):
                    self.advance()
            except TenetError as error:  # a disk that is full for a while must not end the watch for good
                print(f"tenet serve: {error}", file=sys.stderr)

    def close(self) -> None:
        """Lets go of the jobs, which live on."""
        self._reap()
        for child in self._children.values():
            child.returncode = 0  # else Popen complains that nobody waits for it; the next service watches its lock
        self._children.clear()

    def running(self) -> list[str]:
        """Names of the jobs whose process lives."""
        return [j.name for j in self.listed() if not j.queued and self._lives(j.name)]

    def _lives(self, name: str) -> bool:
        return lockfile.holder(self.folder(name) / "lock") is not None

    def _free(self) -> int:
        return self._limits.jobs - len(self.running())

    def _start(self, job: Job) -> None:
        folder = self.folder(job.name)
        # The child is born with the lock in its hands: there is no moment in which it lives and seems dead.
        lock = lockfile.take(folder / "lock")
        if lock is None:
            return
        attempt = job.attempt + 1
        (folder / "stop").unlink(missing_ok=True)
        self._put(job.name, state="started", attempt=attempt, exit=None, note="")
        path = os.pathsep.join(p for p in sys.path if p)
        command = [sys.executable, "-m", "service.api.worker", str(folder), str(attempt), str(lock)]
        try:
            with (folder / "log").open("ab") as log:
                self._children[job.name] = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(lock,),
                    start_new_session=True, env={**os.environ, "PYTHONPATH": path},
                )  # fmt: skip
        except OSError as error:
            self._put(job.name, note=f"its process could not be started: {error}")
        finally:
            os.close(lock)

    def _put(self, name: str, **values: Any) -> None:
        names = {"exit": "status"}
        sets = ", ".join(f"{names.get(k, k)} = ?" for k in values)
        with self._store.change() as db:
            db.execute(f"UPDATE jobs SET {sets} WHERE name = ?", (*values.values(), name))  # nosec B608 # the words are ours

    def _next_place(self) -> int:
        row = self._store.one("SELECT coalesce(max(place), 0) + 1 AS n FROM jobs")
        assert row is not None
        return int(row["n"])


def _job(row: Any) -> Job:
    return Job(
        name=row["name"], kind=row["kind"], spec=json.loads(row["spec"]), queued=row["state"] == "queued",
        attempt=row["attempt"], exit=row["status"], note=row["note"], owner=row["owner"], created=row["created"],
    )  # fmt: skip


def _tail(log: Path) -> str:
    """The last line that a process said."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 2000))
            lines = [x.strip() for x in file.read().decode("utf-8", "replace").splitlines() if x.strip()]
    except OSError:
        return ""
    return lines[-1][:300] if lines else ""
