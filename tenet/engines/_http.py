"""One HTTP call to an OpenAI-compatible server: the answer as a Reply, or the right error."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from tenet.engines import Fault, Reply, Request, _wire
from tenet.engines._limiter import retry_after
from tenet.errors import EngineError, EngineRefused, EngineUnreachable, SettingsError

_OVERLOADED = {429, 503, 529}
_PASSING = {408, 409, 425, 500, 502, 504, 520, 522, 524}
_LARGEST = 64 * 2**20  # bytes; no reply is this long, and all calls in flight share the memory
_SECRET = re.compile(r"api_?key|authorization|password|secret|access_?token", re.IGNORECASE)


class Failed(Exception):
    """The call failed; `fault` says how, and `again` whether the same call may succeed later."""

    def __init__(self, fault: Fault, detail: str, *, again: bool = True) -> None:
        super().__init__(detail)
        self.fault: Fault = fault
        self.again = again


class Overloaded(Failed):
    """The server wants fewer calls, after `pause` seconds if it said so."""

    def __init__(self, fault: Fault, detail: str, pause: float | None) -> None:
        super().__init__(fault, detail)
        self.pause = pause


class Http:
    """The connections to one server; holds the key, which leaves it only as a header to it."""

    def __init__(self, base_url: str, key_env: str, *, timeout_s: float, pinned: _wire.Pinned = "nothing") -> None:
        base = base_url.rstrip("/")
        parts = urlsplit(base)
        self.host = f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
        self._urls = {p: URL(base + p) for p in ("/chat/completions", "/completions")}
        self._key_env, self._timeout_s = key_env, timeout_s
        self._pinned: _wire.Pinned = pinned
        self._key = os.environ.get(key_env, "").strip() if key_env else ""
        if not (self._key.isascii() and self._key.isprintable()):
            what = f"${key_env} holds a character that no HTTP header can carry"
            raise SettingsError(what, where="engine.key_env", fix="set it to the bare key")
        self._session: aiohttp.ClientSession | None = None
        self._closed = False
        self._answered = False  # whether the server ever sent an answer, good or bad

    async def close(self) -> None:
        """End the connections; none is opened any more."""
        self._closed = True
        if self._session:
            await self._session.close()
            self._session = None

    async def send(self, path: str, body: bytes, request: Request) -> Reply:
        """The server's reply. Raises Failed, Overloaded, `_wire.Unreadable`, or an EngineError."""
        if self._closed:  # a run that an error ended has calls of other samples still on their way
            raise Failed("server", "the engine is closed", again=False)
        session = self._session or self._open()
        try:
            # A redirect would carry prompt and key to another server: it is never followed.
            async with session.post(self._urls[path], data=body, allow_redirects=False) as answer:
                self._answered = True
                if (answer.content_length or 0) > _LARGEST:
                    answer.close()
                    raise Failed("bad_reply", f"an answer of {answer.content_length} bytes")
                payload = await answer.read()
        except aiohttp.ClientPayloadError:
            raise _wire.Unreadable("the answer broke off") from None
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            if not self._answered:
                raise self._unreachable(error) from None
            raise Failed("server", f"cannot connect to {self.host} any more") from None
        except TimeoutError:
            detail = f"no answer from {self.host} within {self._timeout_s:g} s"
            raise Failed("timeout", detail) from None
        except (aiohttp.ClientError, OSError) as error:
            detail = f"the connection to {self.host} failed: {type(error).__name__}"
            raise Failed("server", detail) from None
        if 200 <= answer.status < 300:
            said = _wire.load(payload)
            if said.get("choices") or not said.get("error"):
                return _wire.reply_of(said, request, self._pinned)
            # Some gateways wrap the failure of the server behind them in a 200.
            inner: Any = said["error"]
            code: Any = inner.get("code") if isinstance(inner, dict) else None  # pyright: ignore
            status = code if isinstance(code, int) and 400 <= code < 600 else 500
            raise self._error(status, answer.headers, payload)
        raise self._error(answer.status, answer.headers, payload)

    def _open(self) -> aiohttp.ClientSession:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        self._session = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=0),  # the limiter counts; a second queue hides
            timeout=aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=min(30.0, self._timeout_s)),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self._session

    def _unreachable(self, error: Exception) -> EngineUnreachable:
        os_error = getattr(error, "os_error", None)
        why = getattr(os_error, "strerror", None) or type(os_error or error).__name__
        if isinstance(os_error, ConnectionRefusedError):
            why = "connection refused"  # asyncio's own words repeat the address
        return EngineUnreachable(
            f"nothing answers at {self.host} ({why}): start the server, or correct engine.base_url"
        )

    def _error(self, status: int, headers: Mapping[str, str], payload: bytes) -> Exception:
        message, code = _wire.error_of(payload)
        if self._key:
            message = message.replace(self._key, "[key]")
        message = _wire.clean(re.sub(r"\bsk-\S+", "[key]", message))
        detail = f"HTTP {status}" + (f": {message}" if message else "")
        if status in _OVERLOADED and code != "insufficient_quota":
            fault: Fault = "rate_limit" if status == 429 else "server"
            return Overloaded(fault, detail, retry_after(headers))
        if status in _PASSING or status >= 500:
            return Failed("server", detail, again=status in _PASSING)
        if status == 413 or _wire.too_long(message, code):
            return Failed("context_length", detail, again=False)
        if code in ("content_filter", "content_policy_violation"):
            return Failed("refused", detail, again=False)
        return self._refusal(status, headers, detail) or Failed("bad_reply", detail, again=False)

    def _refusal(self, status: int, headers: Mapping[str, str], detail: str) -> EngineError | None:
        if 300 <= status < 400:
            to = urlsplit(headers.get("location", ""))
            where = f"{to.scheme}://{to.hostname}" if to.hostname else "another path"
            what = f"redirects to {where} (HTTP {status}), which is never followed"
            return EngineRefused(f"{self.host} {what}: set engine.base_url to the final address")
        if status in (401, 403):
            key = f"the key in ${self._key_env}" if self._key else "a call without a key"
            hint = "correct the key" if self._key else f"put a key into ${self._key_env}"
            return EngineRefused(f"{self.host} refuses {key}: {hint} ({detail})")
        if status == 404:
            hint = "check engine.model, and that engine.base_url ends as the server wants (/v1)"
            return EngineRefused(f"{self.host} knows no such model or path: {hint} ({detail})")
        if status in (402, 429):
            return EngineRefused(f"{self.host} wants the account to be paid first ({detail})")
        return None


def check_address(url: str) -> None:
    """SettingsError unless it is an http(s) address without credentials; does not show them."""
    where, fix = "engine.base_url", "such as http://127.0.0.1:8000/v1"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port  # a port that is no number raises here
    except ValueError:
        raise SettingsError("not an address", where=where, fix=fix) from None
    if "@" in url or "?" in url or "#" in url:
        what = "an address with a user, password, query or fragment, which messages would show"
        raise SettingsError(what, where=where, fix="give the key by the variable that key_env names")
    if not usable:
        raise SettingsError("not an http or https address", where=where, fix=fix)
    if parts.path.rstrip("/").endswith("/completions"):
        raise SettingsError("the address of one kind of call", where=where, fix="end it at /v1")


def check_key_env(name: str) -> None:
    """SettingsError unless it can be a variable's name; a key given by mistake is not shown."""
    if name and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name):
        what = "not the name of an environment variable (not shown: it may be a key)"
        raise SettingsError(what, where="engine.key_env", fix="such as OPENAI_API_KEY")


def check_extra(extra: Any, where: str = "engine.extra") -> None:
    """SettingsError if a field at any depth looks like a secret: settings go into the manifest."""
    if isinstance(extra, dict):
        for name, value in extra.items():  # pyright: ignore[reportUnknownVariableType]
            if _SECRET.search(str(name)):  # pyright: ignore[reportUnknownArgumentType]
                what, fix = "secrets do not belong into settings", "use key_env"
                raise SettingsError(what, where=f"{where}.{name}", fix=fix)
            check_extra(value, f"{where}.{name}")
