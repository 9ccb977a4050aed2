"""What an engine may spend, and what it has spent: calls, tokens, money."""

from __future__ import annotations

from tenet.records import Usage


class Budget:
    """Refuses a call before it is sent, once what is spent and what is in flight reach a limit.

    Calls are exact. The tokens of a call are known only afterwards, so each call in flight is
    reckoned at the mean of those answered; the first calls, before any answer, may overshoot.
    Prices are per million tokens, in whatever currency `most_money` is in.
    """

    def __init__(
        self,
        *,
        most_calls: int | None,
        most_tokens: int | None,
        most_money: float | None,
        price_prompt: float = 0.0,
        price_completion: float = 0.0,
        price_cached: float | None = None,
    ) -> None:
        self.spent = Usage()
        self._most_calls, self._most_tokens, self._most_money = most_calls, most_tokens, most_money
        self._prices = (price_prompt, price_completion)
        self._price_cached = price_prompt if price_cached is None else price_cached
        self._limited = not (most_calls is None and most_tokens is None and most_money is None)
        self._needs_tokens = most_tokens is not None or most_money is not None
        self._blind = False
        self._in_flight = 0

    @property
    def money(self) -> float:
        """Money spent so far."""
        u = self.spent
        prompt, completion = self._prices
        fresh = u.prompt_tokens - u.cached_tokens
        paid = fresh * prompt + u.cached_tokens * self._price_cached
        return (paid + u.completion_tokens * completion) / 1e6

    def take(self) -> str:
        """Room for one call: "" if there is, else which budget is spent. `settle` ends it."""
        if self._limited and (why := self._spent()):
            return why
        self._in_flight += 1
        return ""

    def settle(self, usage: Usage) -> None:
        """The call came back (or never will, with an empty usage)."""
        self._in_flight -= 1
        if usage.calls:
            self.spent += usage
            self._blind = self._needs_tokens and not usage.prompt_tokens

    def _spent(self) -> str:
        if self._blind:  # going on would spend without end
            return "the server reports no usage, so only max_calls can limit it"
        u, flying = self.spent, self._in_flight
        ahead = 1.0 + flying / u.calls if u.calls else 1.0
        if (most := self._most_calls) is not None and u.calls + flying >= most:
            return f"the budget of {most} calls is spent ({u.calls} answered, {flying} in flight)"
        tokens = u.prompt_tokens + u.completion_tokens
        if (most := self._most_tokens) is not None and tokens * ahead >= most:
            return f"the budget of {most} tokens is spent ({tokens} used, {flying} calls in flight)"
        if (cap := self._most_money) is not None and self.money * ahead >= cap:
            return (
                f"the money budget of {cap:g} is spent ({self.money:.4g} used, "
                f"{flying} calls in flight)"
            )
        return ""
