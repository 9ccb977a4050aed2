"""The one seam to models: a Request asks, an Engine generates, a Reply answers; each engine is a kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from tenet.records import Frozen, Message, Usage, digest

Fault = Literal["context_length", "refused", "server", "rate_limit", "timeout", "bad_reply", "budget"]
"""Why a reply failed. context_length and refused: asking again cannot help. The others were tried again first."""


class Sampling(Frozen):
    """How to draw a reply."""

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    seed: int | None = None


class Request(Frozen):
    """One question to a model: a conversation or raw text, and how to draw the answer."""

    messages: tuple[Message, ...] = ()
    text: str | None = None
    """Raw text for a model without a chat template; exclusive with `messages`."""
    sampling: Sampling = Sampling()
    choices: tuple[str, ...] = ()
    """If given, nothing is drawn: the reply holds the log-probability of each of these continuations."""
    affinity: str = ""
    """Requests with one affinity go to one replica, so that its prefix cache is hit. Not part of the key."""

    def key(self, fingerprint: str) -> str:
        """Names the answer: model, what is asked, how it is drawn. The seed is left out where nothing is drawn."""
        s = self.sampling
        drawn = not self.choices
        return digest(
            fingerprint,
            [(m.role, m.content) for m in self.messages],
            self.text,
            [s.temperature, s.top_p, s.max_tokens, s.stop, s.seed if s.temperature > 0 else None] if drawn else None,
            self.choices,
            length=32,
        )


class Reply(Frozen):
    """What came back. A failed call is a reply with a fault: data, never stored, and no harm to its neighbours."""

    text: str = ""
    finish: Literal["stop", "length"] = "stop"
    choice_logprobs: tuple[float | None, ...] = ()
    """One per choice: log-probability of the whole continuation, in nats; None if the engine could not tell."""
    usage: Usage = Usage()
    served: str = ""
    """What the server calls the model that answered: replies under two names are not stored together."""
    fault: Fault | None = None
    detail: str = ""
    """What the engine said about the fault; never holds a key or an address with credentials."""


class Engine(Protocol):
    """Serves one model. `generate` gives one reply per request, in order; it raises only EngineError, for all."""

    name: str
    """Short, for reports: such as "nano:assistant"."""
    fingerprint: str
    """Names model and weights: two engines with the same fingerprint answer alike."""
    has_choices: bool
    """Whether it can score `choices`; if not, a judge must read text verdicts."""
    has_scores: bool
    """Whether it is a reward model: its reply to a conversation is not a text but the score of the last turn,
    written as Python writes a float, so that it reads back to the bit."""
    family: str
    """The model's family, such as "qwen3", to flag a judge of the generator's own kin."""

    async def generate(self, requests: Sequence[Request]) -> list[Reply]: ...

    async def close(self) -> None: ...
