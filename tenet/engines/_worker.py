"""Loaded into vLLM's worker processes, to ask the kernel for the AMX tiles that they will use."""

from __future__ import annotations

import importlib
from typing import Any


class WorkerExtension:
    """Adds nothing to a worker: vLLM imports this module (`worker_extension_cls`) before the model."""


def _request_amx() -> None:
    # vLLM's CPU attention uses AMX wherever the CPU has it, but a process must ask Linux first.
    # oneDNN does that at its first large product; a short first prompt comes before it, and kills
    # the worker with an illegal instruction.
    cpu: Any = importlib.import_module("torch").cpu
    if cpu._is_amx_tile_supported():
        cpu._init_amx()


_request_amx()
