"""Listens: uvicorn with a clock on slow heads; without keys on this machine alone."""

# uvicorn picks its protocol's class when it starts.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from service.api.keys import is_loopback
from service.api.settings import Config, Limits
from tenet.errors import SettingsError
from tenet.settings import assemble, read


def patient(seconds: float) -> type[Any]:
    """uvicorn's protocol, which by itself waits for the rest of a request's head for ever."""
    base: Any = AutoHTTPProtocol

    class Patient(base):
        _clock: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wind()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            cycle = self.cycle
            if cycle is not None and not cycle.response_complete:
                self._stop()  # a whole head is here; the guard has a clock for the body
            elif self._clock is None and not self.transport.is_closing():
                self._wind()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._stop()  # uvicorn's own clock watches idle connections

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _wind(self) -> None:
            self._clock = self.loop.call_later(seconds, self.transport.close)

        def _stop(self) -> None:
            if self._clock is not None:
                self._clock.cancel()
                self._clock = None

    return Patient


def uvicorn_config(app: FastAPI, host: str, port: int, limits: Limits) -> uvicorn.Config:
    """How uvicorn serves the application."""
    return uvicorn.Config(
        app, host=host, port=port, http=patient(limits.receive_s), ws="none", lifespan="on",
        timeout_keep_alive=limits.idle_s, limit_concurrency=limits.connections, server_header=False,
        access_log=False, log_level="warning", proxy_headers=False, backlog=1024, timeout_graceful_shutdown=5,
    )  # fmt: skip


def settings(file: Path | None, overrides: list[str]) -> Config:
    """The service's settings from a file, or the defaults, and `key=value`. SettingsError."""
    if file is None:
        return assemble(Config, {}, overrides, where="the command line")
    return assemble(Config, read(file).override(overrides))


def check_address(host: str, has_keys: bool) -> None:
    """SettingsError for an address that others reach while everybody who reaches it may do everything."""
    if not has_keys and not is_loopback(host):
        raise SettingsError(
            f"without any key the service listens on this machine only, not on {host!r}",
            where="--host",
            fix="make a key first: tenet keys create NAME --role admin",
        )
