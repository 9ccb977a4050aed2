"""Critique and revision rounds (Constitutional AI, Bai et al. 2022, section 3.1).

A (prompt, revision) has the shape of the start, so the rounds loop; every round draws its principles
anew, and the critique's text and the revision's belong to the same principles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from constitution import Constitution, Principle
from constitution.draw import draw
from generators import filters
from generators.respond import Draw
from tenet.engines import Engine, Reply, Request
from tenet.records import Critique, Dropped, Frozen, Message, Prompt, Response, Revision, seed_of
from tenet.templates import fill, load

CRITIQUE = load("generators", "critique.txt")
REVISE = load("generators", "revise.txt")


class Settings(Frozen):
    """How replies are revised."""

    model: str = ""
    """Name of one of the recipe's models; empty: the one that replied."""
    rounds: Annotated[int, Field(ge=0, le=8)] = 1
    """Critique-revision rounds; the paper has 4. 0 revises nothing."""
    critique: bool = True
    """False revises directly, which serves large models as well."""
    principles: Annotated[int, Field(ge=1)] = 1
    """How many principles are drawn in a round."""
    exemplars: Annotated[int, Field(ge=0)] = 0
    """How many of the constitution's worked dialogues come first."""
    sampling: Draw = Draw()
    """How critiques and revisions are drawn."""
    gates: filters.Gates = filters.Gates()
    """What happens to a revision that is not what was asked for."""


def critique_request(texts: Sequence[str]) -> str:
    """The turn that asks for a critique under the given principles' texts."""
    return fill(CRITIQUE, critique=" ".join(texts))


def revise_request(texts: Sequence[str]) -> str:
    """The turn that asks for the reply anew under the given principles' texts."""
    return fill(REVISE, revise=" ".join(texts))


class Chain:
    """The rounds of one reply: what is asked in each, and what came of it."""

    def __init__(
        self,
        prompt: Prompt,
        messages: tuple[Message, ...],
        response: Response,
        constitution: Constitution,
        settings: Settings,
        seed: int,
    ) -> None:
        self.prompt, self.response, self.settings = prompt, response, settings
        self._messages, self._constitution, self._seed = messages, constitution, seed
        self.revisions: list[Revision] = []

    @property
    def text(self) -> str:
        """The reply as it stands."""
        return self.revisions[-1].text if self.revisions else self.response.text

    def principles(self, round: int) -> tuple[Principle, ...]:
        """The principles of a round (counted from 1), drawn from the prompt's own seed."""
        place = (self._seed, self.prompt.id, "revise", self.response.index, round)
        pool = self._constitution.principles
        return draw(pool, self.settings.principles, *place, tags=self.prompt.tags)

    def critique_ask(self, round: int, drawn: Sequence[Principle]) -> Request:
        """Asks for a critique of the reply as it stands."""
        turns = [("user", critique_request([p.critique for p in drawn]))]
        return self._request("critique", round, drawn, turns)

    def revise_ask(self, round: int, drawn: Sequence[Principle], critique: str | None) -> Request:
        """Asks for the reply anew, after its critique if there is one."""
        turns: list[tuple[str, str]] = []
        if critique is not None:
            turns = [("user", critique_request([p.critique for p in drawn])), ("assistant", critique)]
        turns.append(("user", revise_request([p.revise for p in drawn])))
        return self._request("revise", round, drawn, turns)

    async def run(self, engine: Engine) -> Dropped | None:
        """All rounds. If one fails, the rounds before it stay and the reason is returned."""
        for round in range(1, self.settings.rounds + 1):
            failed = await self._round(round, engine)
            if failed:
                return failed
        return None

    async def _round(self, round: int, engine: Engine) -> Dropped | None:
        drawn = self.principles(round)
        if not drawn:
            return self._drop("revise", "no principle applies", f"round {round}")
        names, hashes = tuple(p.id for p in drawn), tuple(p.hash for p in drawn)
        critique: Critique | None = None
        if self.settings.critique:
            reply = (await engine.generate([self.critique_ask(round, drawn)]))[0]
            if failed := self._failed("critique", reply):
                return failed
            critique = Critique(round=round, principles=names, text=reply.text.strip(), hashes=hashes)
        said = critique.text if critique else None
        reply = (await engine.generate([self.revise_ask(round, drawn, said)]))[0]
        if failed := self._failed("revise", reply):
            return failed
        return self._take(round, drawn, critique, reply)

    def _take(self, round: int, drawn: Sequence[Principle], critique: Critique | None, reply: Reply) -> Dropped | None:
        text = filters.strip_chatter(reply.text)
        found = filters.faults_of(text, self.text, critique.text if critique else "", reply.finish)
        if reason := filters.first_drop(found, self.settings.gates):
            return self._drop("revise", reason, f"round {round}: {text[:120]!r}")
        flags = filters.marks(found, self.settings.gates)
        if text != reply.text.strip():
            flags.append("chatter stripped")
        revision = Revision(
            round=round, principles=tuple(p.id for p in drawn), text=text, critique=critique, flags=tuple(flags),
            hashes=tuple(p.hash for p in drawn),
        )  # fmt: skip
        self.revisions.append(revision)
        return None

    def _failed(self, stage: str, reply: Reply) -> Dropped | None:
        if reply.fault is not None:
            return Dropped.from_fault(self.prompt.id, stage, reply.fault, reply.detail)
        if not reply.text.strip():
            return self._drop(stage, f"empty {'critique' if stage == 'critique' else 'revision'}", "")
        return None

    def _drop(self, stage: str, reason: str, detail: str) -> Dropped:
        return Dropped(prompt_id=self.prompt.id, unit="reply", stage=stage, reason=reason, detail=detail)

    def _request(self, role: str, round: int, drawn: Sequence[Principle], turns: list[tuple[str, str]]) -> Request:
        seed = seed_of(self._seed, self.prompt.id, role, self.response.index, round)
        now = [("assistant", self.text), *turns]
        return Request(
            # The conversation goes first and unchanged: critique extends respond's prefix, and
            # revise extends critique's, so the engine's prefix cache is hit.
            messages=(*self._system(), *self._before(drawn), *self._talk(), *map(_message, now)),
            sampling=self.settings.sampling.sampling(seed),
            affinity=self.prompt.id,
        )

    def _system(self) -> list[Message]:
        """The preamble and the prompt's own system message, as one: chat templates take it only in front."""
        own = [m.content for m in self._messages[:1] if m.role == "system"]
        said = [t for t in (self._constitution.preamble, *own) if t]
        return [Message(role="system", content="\n\n".join(said))] if said else []

    def _talk(self) -> tuple[Message, ...]:
        return self._messages[1:] if self._messages[0].role == "system" else self._messages

    def _before(self, drawn: Sequence[Principle]) -> list[Message]:
        """Worked dialogues, whole: they show that a critique and a revision are different things."""
        worked = [
            *((p, e) for p in drawn for e in p.exemplars if not e.is_choice),
            *((self._constitution.by_id.get(e.principle or ""), e) for e in self._constitution.dialogues),
        ]
        said: list[tuple[str, str]] = []
        for principle, e in worked[: self.settings.exemplars]:
            rule = principle or drawn[0]
            said += [("user", e.prompt), ("assistant", e.reply)]
            if self.settings.critique:
                said += [("user", critique_request([rule.critique])), ("assistant", e.critique)]
            said += [("user", revise_request([rule.revise])), ("assistant", e.revision)]
        return [_message(turn) for turn in said]


def _message(turn: tuple[str, str]) -> Message:
    return Message(role=turn[0], content=turn[1])  # pyright: ignore[reportArgumentType]
