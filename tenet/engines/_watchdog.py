"""A process that outlives its owner for a moment and ends what the owner left behind.

vLLM's engine and worker processes stay alive when the process that owns them is killed, and so do
agents of a local Ray, for minutes. Every process that a replica, or a local Ray, starts inherits a
mark in its environment; once the owner is gone, whatever still carries that mark is killed. What
outlives its watchdog too is killed at the next start on that machine.
Run as a file: `python _watchdog.py OWNER_PID NAME MARK GRACE_SECONDS`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil

MARK = "TENET_REPLICA"
NODE_MARK = "TENET_RAY"
_POLL = 0.5


def guard(mark: str, name: str = MARK, grace: float = 0.0) -> None:
    """Starts a watchdog over this process. The caller has put `mark` into its environment as `name`.

    A mark begins with its owner's process id and a dash. `grace` seconds are left to what ends by itself.
    """
    reap_orphans()
    # its own session: a signal to the replica's process group must not end it
    clean = {k: v for k, v in os.environ.items() if k not in (MARK, NODE_MARK)}
    dog = subprocess.Popen(
        [sys.executable, __file__, str(os.getpid()), name, mark, str(grace)],
        env=clean, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    dog.returncode = 0  # never waited for: it outlives this process, and Python would complain of that at its end


def marked(name: str, mark: str) -> list[psutil.Process]:
    """The processes that carry the mark."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(name) == mark:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def reap(name: str, mark: str) -> None:
    """Kills what carries the mark. Python's resource trackers go last: they free shared memory."""
    for attempt in range(20):
        left = marked(name, mark)
        if not left:
            return
        for process in left:
            try:
                if attempt >= 4 or "resource_tracker" not in " ".join(process.cmdline()):
                    process.kill()
            except (psutil.Error, OSError):
                continue
        time.sleep(_POLL)


def reap_orphans() -> None:
    """Kills what carries the mark of an owner that is gone, with its watchdog or before it."""
    here = _namespace(os.getpid())
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            mark = environment.get(MARK) or environment.get(NODE_MARK, "")
            owner = mark.partition("-")[0]
            # in a container that is seen from outside, the owner has another number
            if owner.isdecimal() and _namespace(process.pid) == here and not _outlived_by(int(owner), process):
                process.kill()
        except (psutil.Error, OSError):
            continue


def _outlived_by(owner: int, process: psutil.Process) -> bool:
    """Whether the owner of a process is still there; one that began later only has its number."""
    try:
        return psutil.Process(owner).create_time() <= process.create_time()
    except psutil.NoSuchProcess:
        return False


def _namespace(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/pid")


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    owner = int(sys.argv[1])
    while os.getppid() == owner:
        time.sleep(_POLL)
    time.sleep(float(sys.argv[4]))
    reap(sys.argv[2], sys.argv[3])
