"""What a killed owner and its killed watchdog leave behind is ended at the next start."""

from __future__ import annotations

import os
import subprocess

from tenet.engines import _watchdog


def test_orphans_of_a_killed_owner_are_ended_at_the_next_start_and_others_are_left_alone() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()

    def engine(mark: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["sleep", "60"], env={_watchdog.MARK: mark})

    orphan, owned, strange = engine(f"{gone.pid}-a"), engine(f"{os.getpid()}-b"), engine("c")
    try:
        _watchdog.reap_orphans()
        assert orphan.wait(timeout=10) == -9
        assert (owned.poll(), strange.poll()) == (None, None)
    finally:
        for process in (owned, strange):
            process.kill()
            process.wait()
