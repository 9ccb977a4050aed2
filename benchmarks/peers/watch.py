"""One process and its descendants: CPU seconds, peak memory, and an end to all of them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import psutil

PERIOD = 0.2
"""Seconds between two looks at the memory; a look at processes of gigabytes takes a tenth of a second itself."""


class Watched:
    """A command in a session of its own. CPU seconds are of the whole tree, also of those that ended unseen."""

    def __init__(
        self, command: list[str], *, env: dict[str, str], cwd: Path, log: Path, period: float = PERIOD
    ) -> None:
        self.log, self._period = log, period
        self._out = log.open("w")
        self.process = subprocess.Popen(
            command, env=env, cwd=cwd, stdout=self._out, stderr=subprocess.STDOUT, start_new_session=True
        )
        self.cpu_s, self.peak = 0.0, 0
        self._seen = dict[int, tuple[psutil.Process, float]]()
        self._totals = [(time.time(), 0.0)]
        self._stop = threading.Event()
        self._looking = threading.Thread(target=self._look, daemon=True)
        self._looking.start()

    def wait(self, timeout: float) -> int | None:
        """The exit code, or None where the time ran out; whoever is left of the tree is killed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            # wait4 sums over all descendants that were waited for, which a look every now and then cannot.
            self._reap(timeout)
        code = self.process.returncode
        self.kill()
        return code

    def wait_a_moment(self) -> bool:
        """Waits 20 ms; whether the command has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._reap(0.02)
        return self.process.returncode is not None

    def kill(self) -> None:
        """SIGKILL to the command and all its descendants, as when the machine goes down."""
        self._stop.set()
        self._looking.join()
        for process, _ in self._seen.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        if self.process.returncode is None:
            self._reap(60)
        self._out.close()

    def _reap(self, timeout: float) -> None:
        ended = threading.Event()

        def reap() -> None:
            _, status, used = os.wait4(self.process.pid, 0)
            self.process.returncode = os.waitstatus_to_exitcode(status)
            waited = used.ru_utime + used.ru_stime
            # Descendants that nobody waited for (a daemon, an orphan) are in no parent's sum.
            self.cpu_s = max(waited, sum(cpu for _, cpu in self._seen.values()))
            ended.set()

        if not getattr(self, "_reaper", None):
            self._ended = ended
            self._reaper = threading.Thread(target=reap, daemon=True)
            self._reaper.start()
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(self.process.args, timeout)

    def _look(self) -> None:
        while not self._stop.wait(self._period):
            self._look_once()

    def _look_once(self) -> None:
        total = 0
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.process.pid)
            for process in (root, *root.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    used = process.cpu_times()
                    self._seen[process.pid] = (process, used.user + used.system)
                    # The proportional share: pages that forked processes have in common count once.
                    total += process.memory_full_info().pss
        self.peak = max(self.peak, total)
        self._totals.append((time.time(), sum(cpu for _, cpu in self._seen.values())))

    def cpu_until(self, moment: float) -> float:
        """CPU seconds used before a moment (time.time()), to within a look."""
        return next(cpu for at, cpu in reversed(self._totals) if at <= moment or cpu == 0.0)
