"""Judge kind "pairwise": which of two replies follows a principle better.

The model is asked for the log-probabilities of the two options in one decoded token, and asked again
with the replies in each other's slots; the two distributions are averaged (RLAIF, Lee et al. 2023,
section 2.1; soft labels: Constitutional AI, Bai et al. 2022, section 4.1). With chain of thought it
first says what it sees (a rationale), and the options are scored behind that (Lee et al., section 2.1.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from constitution import Constitution, Principle
from constitution.draw import draw
from judges import Ask, Scale, _parse, _render
from judges._engines import Engines, pick, require_text
from judges._votes import combine, cost, distribution, failed, label_of, split
from tenet.engines import Engine, Reply, Request, Sampling
from tenet.errors import SettingsError
from tenet.records import Comparison, Frozen, Label, Message, Verdict, Vote, seed_of

__all__ = ["PairwiseJudge", "Settings", "build", "combine"]

Order = Literal["ab", "ba"]
CUT = "rationale cut at max_tokens"
"""Said of a vote whose rationale did not end by itself; it can be read all the same."""


class Settings(Frozen):
    """How to judge a pair."""

    model: str = ""
    """Name of one of the recipe's models; empty: the first."""
    order: Literal["both", "given", "swapped", "random"] = "both"
    """Which reply is shown first. With "both" a label cannot depend on the slots."""
    principles: Annotated[int, Field(ge=1)] | Literal["all"] = 1
    """How many principles are drawn for a comparison; each casts its own vote."""
    read: Literal["logprobs", "text"] = "logprobs"
    """Log-probabilities of the options, or a text verdict for endpoints that have none."""
    labels: Literal["soft", "hard"] = "soft"
    """Keep probabilities, or round each vote to 0 or 1."""
    exemplars: Annotated[int, Field(ge=0)] = 0
    """How many of the constitution's worked choices are shown before the question."""
    cot: bool = False
    """Chain of thought: a rationale first, then the choice behind it."""
    samples: Annotated[int, Field(ge=1, le=64)] = 1
    """How often each question is drawn, from seeds of its own, and averaged; needs a temperature above 0."""
    temperature: Annotated[float, Field(ge=0, le=5)] = 0.0
    """Of rationales and text verdicts; 0 is greedy. Log-probabilities are those at 1, whatever this is."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longest rationale (unset: 512) or, without one, longest text verdict (unset: 64)."""
    clamp: tuple[Annotated[float, Field(ge=0, lt=0.5)], Annotated[float, Field(gt=0.5, le=1)]] | None = None
    """Bounds on each vote's probability, such as [0.4, 0.6]; only with chain of thought."""
    tie: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """A verdict with |p - 0.5| up to this is a tie."""
    quorum: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of samples, and of principles, that must be readable; with fewer the verdict is invalid."""


class Question(NamedTuple):
    """One vote's place: the principle, the reply shown first, the sample."""

    principle: Principle
    order: Order
    sample: int


class PairwiseJudge:
    """Asks an engine; see Settings."""

    scale: Scale = ""

    def __init__(self, settings: Settings, engine: Engine, constitution: Constitution, seed: int):
        self.settings, self.engines = settings, (engine,)
        self._engine, self._constitution, self._seed = engine, constitution, seed

    def questions(self, comparison: Comparison, key: str = "") -> list[Question]:
        """Every vote that will be cast."""
        place = (self._seed, comparison.prompt.id, "judge", key)
        return [
            Question(principle, order, sample)
            for principle in self._principles(comparison, place)
            for order in self._orders(place)
            for sample in range(self.settings.samples)
        ]

    def asks(self, comparison: Comparison, key: str = "") -> list[Ask]:
        """Every question that a comparison costs; stand-ins are where rationales would be."""
        questions, model = self.questions(comparison, key), self.settings.model
        asked = [Ask("judge", model, self._choice(comparison, key, q, "‹rationale›")) for q in questions]
        if self.settings.cot:
            asked = [*(Ask("reason", model, self._reason(comparison, key, q)) for q in questions), *asked]
        return asked

    async def judge(self, comparison: Comparison, key: str = "") -> Verdict:
        """The verdict on a comparison, from one vote per principle, slot order and sample."""
        questions = self.questions(comparison, key)
        if not questions:
            return Verdict(label="invalid", why="no principle applies to this prompt")
        rationales: list[Reply] = []
        votes: dict[Question, Vote] = {}
        if self.settings.cot:
            rationales = await self._engine.generate([self._reason(comparison, key, q) for q in questions])
            for q, rationale in zip(questions, rationales, strict=True):
                if (bad := _no_rationale(q, rationale)) is not None:
                    votes[q] = bad
        said = dict(zip(questions, rationales, strict=True)) if rationales else {}
        left = [q for q in questions if q not in votes]
        replies = await self._engine.generate([self._choice(comparison, key, q, _text(said.get(q))) for q in left])
        shown = _render.shown(comparison.prompt, comparison.a, comparison.b)
        votes |= {q: self._vote(q, reply, said.get(q), shown) for q, reply in zip(left, replies, strict=True)}
        verdict = combine(tuple(votes[q] for q in questions), self.settings.tie, self.settings.quorum)
        return verdict.model_copy(update={"usage": cost([*rationales, *replies])})

    def split(self, verdict: Verdict) -> dict[str, Verdict]:
        """What each slot order says by itself."""
        return split(verdict, self.settings.tie, self.settings.quorum)

    def _principles(self, comparison: Comparison, place: tuple[object, ...]) -> Sequence[Principle]:
        tags = comparison.prompt.tags
        pool = self._constitution.principles
        if self.settings.principles == "all":
            return [p for p in pool if p.applies_to(tags)]
        return draw(pool, self.settings.principles, *place, tags=tags)

    def _orders(self, place: tuple[object, ...]) -> tuple[Order, ...]:
        coin: tuple[Order, ...] = ("ba",) if seed_of(*place, "order") & 1 else ("ab",)
        orders: dict[str, tuple[Order, ...]] = {
            "both": ("ab", "ba"), "given": ("ab",), "swapped": ("ba",), "random": coin,
        }  # fmt: skip
        return orders[self.settings.order]

    def _reason(self, comparison: Comparison, key: str, q: Question) -> Request:
        """Asks for a rationale."""
        return Request(
            messages=(*self._before(q.principle), _shown(comparison, q, _render.REASON)),
            sampling=self._sampling(comparison, key, q, "reason", self.settings.max_tokens or 512),
            affinity=comparison.prompt.id,
        )

    def _choice(self, comparison: Comparison, key: str, q: Question, rationale: str) -> Request:
        """Asks for the choice, behind the rationale if there is one."""
        if self.settings.cot:
            turns = (
                _shown(comparison, q, _render.REASON),
                Message(role="assistant", content=rationale),
                Message(role="user", content=_render.ANSWER),
            )
        else:
            turns = (_shown(comparison, q, _render.PAIRWISE),)
        if self.settings.read == "logprobs":
            sampling = Sampling(temperature=0.0, max_tokens=1)
            choices = ("A", "B")
        else:
            most = 64 if self.settings.cot else self.settings.max_tokens or 64
            sampling = self._sampling(comparison, key, q, "choose", most)
            choices = ()
        return Request(
            messages=(*self._before(q.principle), *turns),
            sampling=sampling,
            choices=choices,
            # Principles share all but the question, so a pair's calls belong to one prefix cache.
            affinity=comparison.prompt.id,
        )

    def _sampling(self, comparison: Comparison, key: str, q: Question, role: str, most: int) -> Sampling:
        place = (self._seed, comparison.prompt.id, "judge", key)
        seed = seed_of(*place, q.principle.id, q.order, role, q.sample)
        return Sampling(temperature=self.settings.temperature, max_tokens=most, seed=seed)

    def _before(self, principle: Principle) -> tuple[Message, ...]:
        said: list[Message] = []
        if self._constitution.preamble:
            said.append(Message(role="system", content=self._constitution.preamble))
        worked = [*(e for e in principle.exemplars if e.is_choice), *self._constitution.choices]
        for e in worked[: self.settings.exemplars]:
            rule = self._constitution.by_id.get(e.principle or principle.id, principle)
            asked = (Message(role="user", content=e.prompt),)
            text = _render.pairwise(asked, e.a, e.b, rule.choose)
            said.append(Message(role="user", content=text))
            said.append(Message(role="assistant", content=str(e.answer)))
        return tuple(said)

    def _vote(self, q: Question, reply: Reply, rationale: Reply | None, shown: Sequence[str]) -> Vote:
        if (bad := failed(reply)) is not None:
            vote = _blank(q, *bad, reply.fault or "")
        else:
            # Read as the slots were shown, then turned back to the comparison's own a and b.
            blank = _blank(q, "invalid", "").model_copy(update={"order": "ab"})
            by_odds = self.settings.read == "logprobs"
            vote = self._by_logprobs(blank, reply) if by_odds else self._by_text(blank, reply, shown)
            vote = vote if q.order == "ab" else vote.flip()
        if rationale is None:
            return vote
        cut = CUT if rationale.finish == "length" else ""
        why = "; ".join(t for t in (vote.why, cut) if t)
        return vote.model_copy(update={"rationale": rationale.text.strip(), "why": why})

    def _by_logprobs(self, blank: Vote, reply: Reply) -> Vote:
        found = distribution(reply.choice_logprobs, 2)
        if isinstance(found, str):
            return blank.model_copy(update={"why": found})
        a, b = (float("-inf") if x is None else x for x in reply.choice_logprobs)
        p = found[0]
        if self.settings.labels == "hard" and p != 0.5:
            p = float(p > 0.5)
        if self.settings.clamp is not None:
            p = min(max(p, self.settings.clamp[0]), self.settings.clamp[1])
        return blank.model_copy(update={"label": label_of(p), "p_a": p, "logprobs": (a, b)})

    def _by_text(self, blank: Vote, reply: Reply, shown: Sequence[str]) -> Vote:
        label = _parse.verdict(reply.text, shown, reply.finish == "length")
        if label in ("invalid", "refused"):
            cut = "cut at max_tokens; " if reply.finish == "length" else ""
            return blank.model_copy(update={"label": label, "why": f"{cut}said {reply.text[:80]!r}"})
        p = {"A": 1.0, "B": 0.0, "tie": 0.5}[label]
        if self.settings.clamp is not None:
            p = min(max(p, self.settings.clamp[0]), self.settings.clamp[1])
        return blank.model_copy(update={"label": label, "p_a": p})


def _blank(q: Question, label: Label, why: str, fault: str = "") -> Vote:
    p = q.principle
    return Vote(
        principle=p.id, order=q.order, sample=q.sample, label=label, why=why, fault=fault, principle_hash=p.hash
    )


def _no_rationale(q: Question, reply: Reply) -> Vote | None:
    """The vote that stands where there is no rationale to choose by; None if there is one.

    One that was cut at max_tokens is a rationale still, as in the paper, and its vote says so.
    """
    if (bad := failed(reply)) is not None:
        return _blank(q, bad[0], f"rationale: {bad[1]}", reply.fault or "")
    text = reply.text.strip()
    if not text:
        return _blank(q, "invalid", "empty rationale")
    if _parse.is_refusal(text):
        vote = _blank(q, "refused", f"rationale: said {text[:80]!r}")
        return vote.model_copy(update={"rationale": text})
    return None


def _text(reply: Reply | None) -> str:
    return reply.text.strip() if reply else ""


def _shown(comparison: Comparison, q: Question, template: str) -> Message:
    shown = comparison if q.order == "ab" else comparison.swap()
    text = _render.pairwise(shown.prompt.messages, shown.a, shown.b, q.principle.choose, template)
    return Message(role="user", content=text)


def build(settings: Settings, engines: Engines, constitution: Constitution, seed: int = 0) -> PairwiseJudge:
    """The judge; SettingsError if settings contradict one another, or the engine cannot give what `read` needs."""
    from constitution.loader import require

    _check(settings)
    require(constitution, ["choose"])
    engine = pick(engines, settings.model)
    require_text(engine, settings.read)
    return PairwiseJudge(settings, engine, constitution, seed)


def _check(s: Settings) -> None:
    """What no single field can tell."""
    if s.clamp is not None and not s.cot:
        raise SettingsError(
            "clamping is for chain of thought alone, which drives probabilities to 0 and 1; plain log-probabilities "
            "are calibrated, and clamped they lose what makes soft labels better than hard ones (Bai et al. 2022)",
            where="judge.clamp", fix="cot: true, or no clamp",
        )  # fmt: skip
    if s.clamp is not None and abs(sum(s.clamp) - 1.0) > 1e-9:
        raise SettingsError(
            f"{list(s.clamp)} is not even-handed: a label would depend on the slots",
            where="judge.clamp", fix="bounds that add up to 1, such as [0.4, 0.6]",
        )  # fmt: skip
    if s.clamp is not None and s.labels == "hard":
        raise SettingsError(
            "hard labels are 0 or 1; a clamp takes that back", where="judge.clamp", fix="labels: soft, or no clamp"
        )
    if s.samples > 1 and not (s.cot or s.read == "text"):
        raise SettingsError(
            "log-probabilities without a rationale are the same in every sample",
            where="judge.samples", fix="cot: true or read: text, or samples: 1",
        )  # fmt: skip
    if s.temperature > 0 and not (s.cot or s.read == "text"):
        raise SettingsError(
            "log-probabilities are read, nothing is drawn", where="judge.temperature", fix="cot: true or read: text"
        )
    if s.samples > 1 and s.temperature == 0:
        raise SettingsError(
            "at temperature 0 every sample is the same", where="judge.samples", fix="temperature: 1.0, or samples: 1"
        )
