"""What stands before every route: who asks, from where, how often, how much and how slowly."""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import problems
from service.api.keys import ANYONE, Caller, Keys, is_loopback
from service.api.metrics import Metrics
from service.api.settings import Limits

COOKIE = "tenet_session"
CSRF = "x-csrf-token"
_SAFE = ("GET", "HEAD", "OPTIONS")
OPEN = ("/health", "/ready", "/openapi.json", "/v1/session")
"""Answered without a key. The page's files are too: they hold no data."""
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        b"font-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
]


class Buckets:
    """A token bucket for each name: `rate` a second, `burst` at once."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, burst
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, name: str) -> float:
        """0, or the seconds until the next request would pass."""
        now = time.monotonic()
        left, then = self._left.get(name, (float(self._burst), now))
        left = min(float(self._burst), left + (now - then) * self._rate)
        if len(self._left) > 10_000:  # full buckets say nothing
            full = self._burst / self._rate
            self._left = {n: b for n, b in self._left.items() if now - b[1] < full}
        self._left[name] = (left - 1.0 if left >= 1.0 else left, now)
        return 0.0 if left >= 1.0 else (1.0 - left) / self._rate


class Guard:
    """ASGI middleware; what it lets through carries its caller in `scope["state"]["caller"]`."""

    def __init__(self, app: ASGIApp, keys: Keys, limits: Limits, metrics: Metrics) -> None:
        self._app, self._keys, self._limits, self._metrics = app, keys, limits, metrics
        self._buckets = Buckets(limits.rate, limits.burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        status = 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers: list[Any] = message.setdefault("headers", [])
                given = {name for name, _ in headers}
                headers += [h for h in _HEADERS if h[0] not in given]
                if b"cache-control" not in given:
                    headers.append((b"cache-control", b"no-store"))
            await send(message)

        try:
            await self._pass(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", "(none)")
            self._metrics.request(scope["method"], route, status, time.perf_counter() - begun)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            caller = self._admit(scope, path, headers)
            scope.setdefault("state", {})["caller"] = caller
            receive = await self._body(headers, receive)
        except problems.Refusal as no:
            extra = {**no.headers, "connection": "close"} if no.status in (408, 413) else no.headers
            await problems.answer(path, no.status, no.detail, code=no.code, headers=extra)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope, path: str, headers: dict[str, str]) -> Caller | None:
        changes = scope["method"] not in _SAFE
        host = headers.get("host", "")
        if changes:
            _same_origin(headers, host)
        caller: Caller | None
        if not self._keys.any:
            # A page of another site could name this machine by a name of its own and read what is here.
            name = urlsplit(f"//{host}").hostname or ""
            if not is_loopback(name):
                raise problems.Refusal(403, f"without keys the service answers to loopback names only, not {name!r}")
            caller = ANYONE
        else:
            caller = self._identify(headers, changes)
        wait = self._buckets.take((caller.name if caller else "") or str((scope.get("client") or ("",))[0]))
        if wait:
            refusal = problems.Refusal(429, f"more than {self._limits.rate:g} requests a second", code="rate_limit")
            refusal.headers["retry-after"] = str(max(1, round(wait)))
            raise refusal
        if caller is None and path not in OPEN and (path.startswith(("/v1/", "/metrics")) or path == "/get_reward"):
            refusal = problems.Refusal(401, "this needs a key: Authorization: Bearer tenet_…", code="invalid_api_key")
            refusal.headers["www-authenticate"] = "Bearer"
            raise refusal
        return caller

    def _identify(self, headers: dict[str, str], changes: bool) -> Caller | None:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._keys.caller(key.strip())
        cookie = _cookie(headers.get("cookie", ""))
        caller = self._keys.session(cookie) if cookie else None
        if caller and changes and not hmac.compare_digest(headers.get(CSRF, "").encode(), caller.csrf.encode()):
            raise problems.Refusal(403, f"a session's request needs the header {CSRF} that GET /v1/session tells")
        return caller

    async def _body(self, headers: dict[str, str], receive: Receive) -> Receive:
        """The whole body, within its limits of size, time and depth, before any route sees it."""
        most = int(self._limits.body_mib * 2**20)
        said = headers.get("content-length", "")
        if said.isdecimal() and int(said) > most:
            raise problems.Refusal(413, f"the body has {int(said):,} bytes; at most {most:,} are taken")
        if not said and "transfer-encoding" not in headers:
            return receive
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._limits.receive_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return _replay(message, receive)
                    size += len(message.get("body", b""))
                    if size > most:
                        raise problems.Refusal(413, f"the body has more than {most:,} bytes")
                    parts.append(message.get("body", b""))
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            what = f"the body did not arrive within {self._limits.receive_s:g} s"
            raise problems.Refusal(408, what) from None
        body = b"".join(parts)
        if deeper(body, self._limits.depth):
            raise problems.Refusal(400, f"the body is nested more than {self._limits.depth} levels deep")
        return _replay({"type": "http.request", "body": body, "more_body": False}, receive)


def _replay(first: Message, receive: Receive) -> Receive:
    waiting = [first]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


def _same_origin(headers: dict[str, str], host: str) -> None:
    """Refuses what a page of another site sends with a user's cookie, or to a service without keys."""
    site = headers.get("sec-fetch-site", "none")
    origin = headers.get("origin", "")
    if site not in ("none", "same-origin") or (origin and urlsplit(origin).netloc.lower() != host.lower()):
        raise problems.Refusal(403, "a request from another origin may change nothing here")


def _cookie(header: str) -> str:
    for part in header.split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            return value
    return ""


def deeper(body: bytes, most: int) -> bool:
    """Whether JSON is nested deeper than `most`, without parsing it."""
    if body.count(b"[") + body.count(b"{") <= most:
        return False
    depth = 0
    for sign in re.findall(rb"[\[\]{}]", _STRING.sub(b"", body)):
        depth += 1 if sign in b"[{" else -1
        if depth > most:
            return True
    return False
