"""A process that outlives a replica for a moment and ends what the replica left behind.

vLLM's engine and worker processes stay alive when the process that owns them is killed. Every
process that a replica starts inherits a mark in its environment; once the owner is gone, whatever
still carries that mark is killed.
Run as a file: `python _watchdog.py OWNER_PID MARK`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil

MARK = "TENET_REPLICA"
_POLL = 0.5


def guard(mark: str) -> None:
    """Starts a watchdog over this process. The caller has put `mark` into its environment."""
    # its own session: a signal to the replica's process group must not end it
    clean = {k: v for k, v in os.environ.items() if k != MARK}
    subprocess.Popen(
        [sys.executable, __file__, str(os.getpid()), mark], env=clean, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def marked(mark: str) -> list[psutil.Process]:
    """The processes that carry the mark."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def reap(mark: str) -> None:
    """Kills what carries the mark. Python's resource trackers go last: they free shared memory."""
    for attempt in range(20):
        left = marked(mark)
        if not left:
            return
        for process in left:
            try:
                if attempt >= 4 or "resource_tracker" not in " ".join(process.cmdline()):
                    process.kill()
            except (psutil.Error, OSError):
                continue
        time.sleep(_POLL)


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    owner = int(sys.argv[1])
    while os.getppid() == owner:
        time.sleep(_POLL)
    reap(sys.argv[2])
