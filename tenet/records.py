"""The records that flow through a run: frozen, and named by a hash of their content."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Role = Literal["system", "user", "assistant"]
Label = Literal["A", "B", "tie", "invalid", "refused"]


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: the same value gives the same text everywhere."""
    return _encode(value)


def digest(*parts: Any, length: int = 20) -> str:
    """Hex hash of the parts (BLAKE2b); parts are kept apart, so ("ab", "c") differs from ("a", "bc")."""
    return hashlib.blake2b(canonical(parts).encode("utf-8", "surrogatepass"), digest_size=length // 2).hexdigest()


def seed_of(*parts: Any) -> int:
    """A 31-bit seed that depends on nothing but the parts."""
    return int(digest(*parts, length=16), 16) & 0x7FFF_FFFF


class Frozen(BaseModel):
    """Immutable, and strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(Frozen):
    """One turn of a conversation."""

    role: Role
    content: str


class Usage(Frozen):
    """What calls cost, in tokens; `cached_tokens` is the part of the prompt that a prefix cache served."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            calls=self.calls + other.calls,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
        )


class Prompt(Frozen):
    """A conversation that waits for the assistant's next turn; it ends with a user message."""

    messages: tuple[Message, ...]
    copy_index: int = 0
    """0, or the how-manieth copy of the same conversation this is, where duplicates are kept."""
    tags: tuple[str, ...] = ()
    """Matched against a principle's `applies_when`."""
    name: str = ""
    """The id that the user's file gave it, if any."""

    @cached_property
    def id(self) -> str:
        """Hash of the conversation: the same question has the same id in every file and run."""
        return digest("prompt", [(m.role, m.content) for m in self.messages], self.copy_index)


class Response(Frozen):
    """A first reply to a prompt."""

    prompt_id: str
    index: int
    text: str
    model: str
    finish: Literal["stop", "length"] = "stop"


class Critique(Frozen):
    """What a model says of a reply under the principles of one round."""

    round: int
    principles: tuple[str, ...]
    text: str
    hashes: tuple[str, ...] = ()
    """Content hash of each principle: which wording it was."""


class Revision(Frozen):
    """A reply rewritten in one round; `flags` names what the gates marked."""

    round: int
    principles: tuple[str, ...]
    text: str
    critique: Critique | None = None
    flags: tuple[str, ...] = ()
    hashes: tuple[str, ...] = ()
    """Content hash of each principle: which wording it was."""


class Candidate(Frozen):
    """A first reply with all its revisions, in order."""

    response: Response
    revisions: tuple[Revision, ...] = ()

    @property
    def last(self) -> str:
        return self.revisions[-1].text if self.revisions else self.response.text


class Comparison(Frozen):
    """Two replies to one prompt; which comes first says nothing about which is better."""

    prompt: Prompt
    a: str
    b: str
    a_from: str = ""
    """Where `a` came from, such as "sample 0" or "sample 1, round 2"."""
    b_from: str = ""

    @cached_property
    def id(self) -> str:
        return digest("comparison", self.prompt.id, self.a, self.b)

    def swap(self) -> Comparison:
        """The same comparison with the slots exchanged."""
        # Built anew: a copied record would carry the cached id of the first along.
        return Comparison(
            prompt=self.prompt, a=self.b, b=self.a, a_from=self.b_from, b_from=self.a_from
        )


_FLIP: dict[Label, Label] = {"A": "B", "B": "A", "tie": "tie", "invalid": "invalid", "refused": "refused"}


class Vote(Frozen):
    """One answer of a judge. `p_a`, `logprobs`, `scores` name the comparison's own a and b, whichever came first."""

    principle: str
    """The principle it was asked under; empty where a judge knows none, as a reward model does."""
    order: Literal["ab", "ba"] | None = None
    """Which reply was shown first; None where each reply was looked at alone."""
    label: Label
    p_a: float | None = None
    logprobs: tuple[float, float] | None = None
    """Log-probability of the option that stands for a, and for b, in nats, before normalising."""
    scores: tuple[float | None, float | None] | None = None
    """Where each reply got a score of its own: a's and b's; None for one that cannot be read."""
    sample: int = 0
    """Which of several samples of one question this is."""
    member: str = ""
    """The member of a panel that cast it."""
    rationale: str = ""
    """What the judge said before it chose, where it was asked to reason."""
    principle_hash: str = ""
    """The principle's content hash: which wording it was asked under."""
    why: str = ""
    """Why it cannot be read; or what to know of it although it can."""
    fault: str = ""
    """The engine's fault, if the call failed."""

    def flip(self) -> Vote:
        turned: dict[Any, Any] = {"ab": "ba", "ba": "ab", None: None}
        return self.model_copy(
            update={
                "order": turned[self.order],
                "label": _FLIP[self.label],
                "p_a": None if self.p_a is None else 1.0 - self.p_a,
                "logprobs": None if self.logprobs is None else (self.logprobs[1], self.logprobs[0]),
                "scores": None if self.scores is None else (self.scores[1], self.scores[0]),
            }
        )


class Member(Frozen):
    """What one member of a panel said of a comparison; its votes are among the verdict's, under its name."""

    name: str
    label: Label
    p_a: float | None = None
    weight: float = 1.0
    consistent: bool | None = None
    why: str = ""
    model: str = ""
    """The name of the engine that it asked."""
    family: str = ""
    """That engine's family, to be held against the generator's."""

    def flip(self) -> Member:
        p = None if self.p_a is None else 1.0 - self.p_a
        return self.model_copy(update={"label": _FLIP[self.label], "p_a": p})


class Verdict(Frozen):
    """A judge's word on a comparison, from all its votes."""

    label: Label
    p_a: float | None = None
    """Probability that a is better; None where the label is invalid or refused."""
    votes: tuple[Vote, ...] = ()
    members: tuple[Member, ...] = ()
    """For a panel: each member's own word, those that could not be read too."""
    consistent: bool | None = None
    """Whether each slot order alone gives the same label; None if one was asked or a vote is unreadable."""
    why: str = ""
    usage: Usage = Usage()
    """What the calls behind it cost when they were made; stored replies cost nothing again."""

    def flip(self) -> Verdict:
        """The verdict on the swapped comparison."""
        return self.model_copy(
            update={
                "label": _FLIP[self.label],
                "p_a": None if self.p_a is None else 1.0 - self.p_a,
                "votes": tuple(v.flip() for v in self.votes),
                "members": tuple(m.flip() for m in self.members),
            }
        )


class Rating(Frozen):
    """A judge's score of one reply under one principle."""

    principle: str
    label: Literal["scored", "invalid", "refused"] = "scored"
    value: float | None = None
    """On the scale of the judge; None unless the label is "scored"."""
    distribution: tuple[float, ...] = ()
    """Probability of each score from 1 to 10, where the judge gives one."""
    member: str = ""
    """The member of a panel that gave it."""
    why: str = ""
    fault: str = ""
    """The engine's fault, if the call failed."""
    principle_hash: str = ""
    """The principle's content hash: which wording it was asked under."""


class Score(Frozen):
    """A judge's score of one reply, from all its ratings."""

    label: Literal["scored", "invalid", "refused"] = "scored"
    value: float | None = None
    """Pointwise judges: -1 (worst) to 1 (best). Reward models: their own, unbounded. None unless "scored"."""
    ratings: tuple[Rating, ...] = ()
    why: str = ""
    usage: Usage = Usage()
    """What the calls behind it cost when they were made."""


class Preference(Frozen):
    """A judged pair: `chosen` is the reply the judge held better, with probability `p_chosen` >= 0.5."""

    comparison: Comparison
    verdict: Verdict
    chosen: Literal["A", "B"]
    p_chosen: float

    @property
    def texts(self) -> tuple[str, str]:
        """(chosen, rejected)."""
        c = self.comparison
        return (c.a, c.b) if self.chosen == "A" else (c.b, c.a)


class HumanLabel(Frozen):
    """A person's word on a comparison."""

    comparison_id: str
    rater: str
    label: Label


def may_pass(fault: str) -> bool:
    """Whether a call that failed may succeed later: too long a prompt, or a refusal, stays what it is."""
    return fault not in ("context_length", "refused")


class Dropped(Frozen):
    """Something that went no further, and why: at which stage, for which reason."""

    prompt_id: str
    unit: Literal["prompt", "reply", "pair"] = "prompt"
    """What was dropped: a whole prompt, one of its replies, or one of its pairs."""
    stage: str
    reason: str
    detail: str = ""
    retry: bool = False
    """Whether the reason may pass (a busy server): the next start of the run tries again."""

    @classmethod
    def from_fault(cls, prompt_id: str, stage: str, fault: str, detail: str) -> Dropped:
        """A call that failed, after the engine's own retries."""
        return cls(
            prompt_id=prompt_id,
            unit="reply",
            stage=stage,
            reason=fault.replace("_", " "),
            detail=detail[:300],
            retry=may_pass(fault),
        )
