"""How many calls may be in flight: more while the server copes, half and a pause when not."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

LONGEST_PAUSE = 30.0
"""Seconds; the longest pause that we choose ourselves. A server may ask for longer."""


class Limiter:
    """Additive increase, multiplicative decrease on calls in flight, one for the whole engine.

    It starts at `start` and gains one place per success (doubling each round trip) until the server
    first refuses. Then it halves, climbs quickly to four fifths of where it was refused, and creeps
    on from there. A burst of refusals of calls sent together counts once.
    """

    def __init__(self, most: int, *, start: int = 32, pause_s: float = 0.5) -> None:
        self.most = most
        self.limit = float(min(start, most))
        self.in_flight = 0
        self.storm_began: float | None = None
        """Monotonic seconds of the first refusal since the last success; None when all is well."""
        self._pause_s = pause_s
        self._paused_until = 0.0
        self._wake: asyncio.TimerHandle | None = None
        self._refused_at: float | None = None
        self._storms = 0
        self._round = 0
        self._waiting: deque[asyncio.Future[bool]] = deque()

    async def acquire(self, *, again: bool = False) -> int:
        """Wait for a place; the round to give back to `release`, or -1 if the storm was given up.

        A call that was refused before (`again`) goes to the front: no row waits twice in one queue.
        """
        if not (again or self.in_flight or self._waiting):
            self.storm_began = None  # whatever went wrong before this lull was long ago
        free = self.in_flight < int(self.limit) and not self._wake
        if free and (again or not self._waiting):
            self.in_flight += 1
            return self._round
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if again:
            self._waiting.appendleft(turn)
        else:
            self._waiting.append(turn)
        try:
            return self._round if await turn else -1
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.result():
                self.release()  # the place came together with the cancellation: pass it on
            raise

    def release(self) -> None:
        """Give the place back."""
        self.in_flight -= 1
        self._admit()

    def succeeded(self) -> None:
        """The server served a call: the storm, if any, is over, and there may be room for more."""
        self.storm_began = None
        self._storms = 0
        if self.limit < self.most and self.in_flight >= int(self.limit):  # only a full house proves
            if self._refused_at is None:
                gain = 1.0
            elif self.limit < 0.8 * self._refused_at:
                gain = 0.1
            else:
                gain = 1.0 / self.limit
            self.limit = min(self.limit + gain, float(self.most))

    def refused(self, round: int, pause: float | None) -> None:
        """The server refused a call of `round` for overload; `pause`: the seconds it asked for."""
        now = time.monotonic()
        if self.storm_began is None:
            self.storm_began = now
        if round == self._round:
            self._round += 1
            self._storms += 1
            self._refused_at = self.limit
            self.limit = max(1.0, self.limit / 2)
            # "Retry-After: 0" or a date gone by would make a busy loop: never less than our own.
            own = min(self._pause_s * 2 ** min(self._storms - 1, 16), LONGEST_PAUSE)
            pause = pause or own * random.uniform(0.75, 1.25)
        if pause:
            self._pause(now + pause)

    def give_up(self) -> None:
        """Send everyone who waits home: the server has refused all calls for too long."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(False)

    def close(self) -> None:
        """Stop the timer and let no one wait for ever."""
        if self._wake:
            self._wake.cancel()
            self._wake = None
        self.give_up()

    def _pause(self, until: float) -> None:
        if until <= self._paused_until:
            return
        self._paused_until = until
        if self._wake:
            self._wake.cancel()
        wait = until - time.monotonic()
        self._wake = asyncio.get_running_loop().call_later(wait, self._go_on)

    def _go_on(self) -> None:
        self._wake = None
        self._admit()

    def _admit(self) -> None:
        if self._wake:
            return
        while self._waiting and self.in_flight < int(self.limit):
            turn = self._waiting.popleft()
            if not turn.done():  # a caller that was cancelled while it waited left its turn behind
                self.in_flight += 1
                turn.set_result(True)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a reply's headers ask to wait (RFC 9110, 10.2.3: a number or a date); else None.

    A date is read against the server's own `Date`, so that a wrong clock here does no harm.
    """
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        try:
            seconds = float(value) * unit
        except ValueError:
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    until = _date(headers.get("retry-after", ""))
    if until is None:
        return None
    now = _date(headers.get("date", "")) or datetime.now(UTC)
    return max(0.0, (until - now).total_seconds())


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
