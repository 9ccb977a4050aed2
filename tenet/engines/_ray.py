"""Joining and leaving Ray: started once for all engines of a process, ended with the last one."""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import os
import signal
import threading
import uuid
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from tenet.engines import _watchdog
from tenet.errors import EngineError

_lock = threading.Lock()
_guests = 0
_ours = False
_where: str | None = None
"""The address that this process joined; None for a Ray of its own."""


def ray() -> Any:
    """The `ray` module, imported only now; its types are too loose to be checked."""
    return importlib.import_module("ray")


async def enter(address: str | None) -> None:
    """Starts a local Ray (address None) or joins a cluster, unless this process is there already.

    EngineError if that fails, or if this process is elsewhere. To be followed by one `leave`.
    """
    # a local node has 30 seconds to come up, and a busy machine may need more
    ours = signal.getsignal(signal.SIGTERM)
    for left in (2, 1, 0) if address is None else (0,):
        why = await _in_lasting_thread(partial(_join, address))
        _take_back(ours)
        if not why:
            return
        if not left:
            raise EngineError(f"Ray did not start: {why}")


def _take_back(ours: Any) -> None:
    """Sets SIGTERM's handler once more, over Ray's, even if Python still knows it as ours.

    Ray's C++ puts its own before it: that prints a stack, lets ours run, and aborts the process three seconds later,
    in the middle of a clean stop.
    """
    if ours is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, ours)
        signal.siginterrupt(signal.SIGTERM, False)  # as asyncio has it


def _join(address: str | None) -> None:
    global _guests, _ours, _where
    # read when Ray is imported or started
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("SPT_NOENV", "1")  # a process title must not be written over its environment
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    # Ray runs its workers, and so all of vLLM, at niceness 15: behind whatever else is busy
    os.environ.setdefault("RAY_worker_niceness", "0")
    # idle workers that nobody asked for cost a second of CPU and 60 MB each
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    ray()
    logging.getLogger("ray").setLevel(logging.ERROR)
    local: dict[str, Any] = {"include_dashboard": False, "object_store_memory": 200 << 20}
    with _lock:
        if not ray().is_initialized():
            if address is None:
                _mark_node()
            try:
                ray().init(
                    address=address or "local",
                    log_to_driver=False,
                    configure_logging=False,
                    **(local if address is None else {}),
                )
            finally:
                os.environ.pop(_watchdog.NODE_MARK, None)
            _ours, _where = True, address
        elif _ours and address != _where:
            places = " and ".join("a local Ray" if at is None else at for at in (_where, address))
            raise EngineError(
                f"one process works with one Ray, but its engines name {places}: give all the same address"
            )
        _guests += 1


def _mark_node() -> None:
    """Has what the local Ray leaves behind reaped after this process, however that ends."""
    mark = os.environ[_watchdog.NODE_MARK] = f"{os.getpid()}-{uuid.uuid4().hex}"
    # Five seconds: most of Ray ends by itself, more cleanly than by a kill.
    _watchdog.guard(mark, _watchdog.NODE_MARK, grace=5.0)


def leave() -> None:
    """Ends what `join` started, if nobody else in this process uses it."""
    global _guests, _ours
    with _lock:
        _guests -= 1
        if _ours and not _guests and ray().is_initialized():
            _ours = False
            ray().shutdown()


async def _in_lasting_thread(work: Callable[[], None]) -> str:
    """Runs `work` in a daemon thread that ends only if that fails; returns the reason, or nothing.

    Linux ends Ray's processes with the *thread* that started them (PR_SET_PDEATHSIG): they must not
    be started from a pool's thread, which may end before the program's own exit handlers run, and
    whatever a failed start leaves behind goes with its thread.
    """
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    failed: list[str] = []

    def run() -> None:
        try:
            work()
        except Exception as error:
            failed.append(reason(error))
        if failed:
            with warnings.catch_warnings():
                # Ray forgets the processes of a failed start while they still run
                warnings.simplefilter("ignore", ResourceWarning)
                gc.collect()
        loop.call_soon_threadsafe(done.set)
        if not failed:
            threading.Event().wait()

    threading.Thread(target=run, name="tenet-ray", daemon=True).start()
    await done.wait()
    return "".join(failed)


async def bring(ref: Any, seconds: float) -> Any:
    """What a call gives. TimeoutError after so many seconds, or what the call raised.

    Whoever is cancelled meanwhile leaves the call alone: a cancelled future makes Ray's client print tracebacks.
    """
    future: asyncio.Future[Any] = asyncio.wrap_future(ref.future())
    future.add_done_callback(lambda f: f.cancelled() or f.exception())  # nobody may be left to look at an error
    done, _ = await asyncio.wait([future], timeout=seconds)
    if not done:
        raise TimeoutError
    return future.result()


def reason(error: BaseException) -> str:
    """What an exception says, without the remote traceback that Ray puts before it."""
    cause = getattr(error, "cause", None)
    told = str(cause or error).strip().partition(" Some common causes")[0]
    if cause is None and "\n" in told:
        told = told.splitlines()[-1]
    return told[:1500] or type(error).__name__
