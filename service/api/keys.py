"""API keys: named, hashed at rest, with roles; and who a request comes from."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import Literal, get_args

from service.api.store import Store
from tenet.errors import SettingsError

Role = Literal["read", "label", "run", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
_GRANTS: dict[str, tuple[str, ...]] = {
    "read": ("read",),
    # A rater sees no run: what the judge said of a pair would not be blind.
    "label": ("label",),
    "run": ("read", "run"),
    "admin": ROLES,
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
SESSION_S = 12 * 3600.0


@dataclass(frozen=True)
class Caller:
    """Who asks."""

    name: str
    """The key's name; empty where the service has no keys."""
    roles: frozenset[str]
    csrf: str = field(default="", repr=False)
    """For the page's session: what a request that changes something must bring along."""

    def may(self, role: Role) -> bool:
        return role in self.roles


def now() -> str:
    """The time as records hold it, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _hash(secret: str) -> bytes:
    # A key holds 256 random bits, so a slow hash would protect nothing that a fast one does not.
    return hashlib.sha256(secret.encode()).digest()


class Keys:
    """The keys and the page's sessions."""

    def __init__(self, store: Store) -> None:
        self._store, self._any = store, False

    def create(self, name: str, roles: tuple[str, ...]) -> str:
        """A new key, which is shown this once. SettingsError for a name that is taken or roles that do not exist."""
        if not _NAME.fullmatch(name):
            raise SettingsError(f"{name!r} is no name for a key", fix="letters, digits, dot, dash, underscore")
        unknown = [r for r in roles if r not in ROLES]
        if unknown or not roles:
            raise SettingsError(f"unknown roles {unknown}", where="--role", fix="known: " + ", ".join(ROLES))
        if self._store.one("SELECT 1 FROM keys WHERE name = ?", (name,)):
            raise SettingsError(f"there is, or was, a key {name!r}", fix="choose another name")
        id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        with self._store.change() as db:
            row = (name, id, _hash(secret), ",".join(roles), now())
            db.execute("INSERT INTO keys(name, id, hash, roles, created) VALUES (?, ?, ?, ?, ?)", row)
        return f"tenet_{id}_{secret}"

    def revoke(self, name: str) -> None:
        """From here on the key opens nothing, nor does a session that it opened. SettingsError if there is none."""
        with self._store.change() as db:
            when = (now(), name)
            if not db.execute("UPDATE keys SET revoked = ? WHERE name = ? AND revoked IS NULL", when).rowcount:
                raise SettingsError(f"there is no valid key {name!r}", fix="tenet keys list")
            db.execute("DELETE FROM sessions WHERE key = ?", (name,))

    def listed(self) -> list[dict[str, str]]:
        """Names, roles and dates; never a key."""
        rows = self._store.all("SELECT name, id, roles, created, revoked FROM keys ORDER BY created, name")
        return [{k: row[k] or "" for k in row.keys()} for row in rows]  # noqa: SIM118 (Row iterates over values)

    @property
    def any(self) -> bool:
        """Whether a key was ever made: then every call needs one, and the last revoked key opens no door."""
        self._any = self._any or bool(self._store.one("SELECT 1 FROM keys LIMIT 1"))
        return self._any

    def caller(self, key: str) -> Caller | None:
        """Who holds the key; None if it opens nothing."""
        prefix, _, rest = key.partition("_")
        id, _, secret = rest.partition("_")
        row = self._store.one("SELECT name, hash, roles FROM keys WHERE id = ? AND revoked IS NULL", (id,))
        stored = row["hash"] if row else bytes(32)
        good = hmac.compare_digest(_hash(secret), stored)
        if row is None or prefix != "tenet" or not good:
            return None
        return Caller(row["name"], granted(row["roles"].split(",")))

    def log_in(self, key: str) -> tuple[str, Caller] | None:
        """A session's cookie and its caller; None if the key opens nothing."""
        caller = self.caller(key)
        if caller is None:
            return None
        cookie, csrf = secrets.token_urlsafe(32), secrets.token_urlsafe(24)
        with self._store.change() as db:
            db.execute("DELETE FROM sessions WHERE expires < ?", (time.time(),))
            row = (_hash(cookie), caller.name, csrf, time.time() + SESSION_S)
            db.execute("INSERT INTO sessions VALUES (?, ?, ?, ?)", row)
        return cookie, Caller(caller.name, caller.roles, csrf)

    def session(self, cookie: str) -> Caller | None:
        """Who a cookie belongs to; None if it has ended."""
        row = self._store.one(
            "SELECT k.name, k.roles, s.csrf FROM sessions s JOIN keys k ON k.name = s.key "
            "WHERE s.hash = ? AND s.expires > ? AND k.revoked IS NULL",
            (_hash(cookie), time.time()),
        )
        return Caller(row["name"], granted(row["roles"].split(",")), row["csrf"]) if row else None

    def log_out(self, cookie: str) -> None:
        with self._store.change() as db:
            db.execute("DELETE FROM sessions WHERE hash = ?", (_hash(cookie),))


def granted(roles: list[str]) -> frozenset[str]:
    """All that roles allow."""
    return frozenset(g for r in roles for g in _GRANTS.get(r, ()))


ANYONE = Caller("", granted(["admin"]))
"""Whoever asks a service without keys, which listens on loopback only."""


def is_loopback(host: str) -> bool:
    """Whether an address or name to listen on is this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
