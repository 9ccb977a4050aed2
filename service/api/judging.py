"""Routes that judge: pairs become verdicts, replies become scores, and trainers elsewhere get their rewards."""

from __future__ import annotations

import asyncio
import math
import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field, model_validator

from judges.pairs_file import LabelledPair
from service import judging
from service.api.context import Runs, Service, The
from service.api.problems import Refusal
from tenet.errors import TenetError
from tenet.records import Comparison, Message, Prompt, Score

router = APIRouter(tags=["judge"])
Said = Annotated[str, Field(max_length=1_000_000)]
Asked = Said | Annotated[list[Message], Field(min_length=1, max_length=200)]
_CHATML = re.compile(r"<\|im_start\|>(system|user|assistant)\n(.*?)(?:<\|im_end\|>\n?|\Z)", re.DOTALL)
_ENDS = re.compile(r"(?:<\|im_end\|>|<\|eot_id\|>|<\|endoftext\|>|<\|end_of_text\|>|<\|end\|>|</s>|<pad>|\s)+\Z")


class PairIn(BaseModel, extra="forbid"):
    """Two replies to one prompt."""

    id: Annotated[str, Field(max_length=200)] = ""
    prompt: Asked
    a: Said
    b: Said


class JudgeIn(BaseModel, extra="forbid"):
    """Pairs for a judge."""

    judge: Annotated[str, Field(max_length=64)] = ""
    """One of the service's judges; empty: its first."""
    pairs: Annotated[list[PairIn], Field(min_length=1)]


class VerdictOut(BaseModel, extra="allow"):
    """What a judge said of a pair, with every vote; an unreadable verdict is `invalid`, a refusal `refused`."""

    id: str
    comparison_id: str
    verdict: Literal["A", "B", "tie", "invalid", "refused"]
    p_a: float | None
    """Probability that a is better: the soft label."""
    consistent: bool | None
    """Whether each slot order alone gives the same label."""
    orders: dict[str, dict[str, Any]]
    """What each slot order says by itself: {"ab": {"verdict", "p_a"}, "ba": …}."""
    votes: list[dict[str, Any]]
    why: str


class JudgeOut(BaseModel):
    """Verdicts in the order of the pairs."""

    judge: str
    verdicts: list[VerdictOut]


class ReplyIn(BaseModel, extra="forbid"):
    """A reply to a prompt."""

    prompt: Asked
    reply: Said


class ScoreIn(BaseModel, extra="forbid"):
    """Replies for a judge that scores."""

    judge: Annotated[str, Field(max_length=64)] = ""
    items: Annotated[list[ReplyIn], Field(min_length=1)]


class ScoreOut(BaseModel):
    """Scores in the order of the replies."""

    judge: str
    scale: str
    """`unit`: -1 to 1; `reward`: a reward model's own."""
    scores: list[dict[str, Any]]
    """`label`, `value` (null where it cannot be read), `ratings`, `why`."""


class RewardIn(BaseModel):
    """What trainers send. OpenRLHF: `query`, `prompts`, `labels`, lists of one length. verl's reward functions:
    `solution_str` with `extra_info.prompt` (or `question`), one at a time."""

    query: Annotated[list[Said], Field(min_length=1)] | None = None
    """Prompt and reply as one text each."""
    prompts: list[Said] | None = None
    labels: list[Any] | None = None
    """Taken, and not looked at: the judge's rules are the constitution's."""
    solution_str: Said | None = None
    ground_truth: Any = None
    data_source: Any = None
    extra_info: dict[str, Any] | None = None
    judge: Annotated[str, Field(max_length=64)] = ""
    unreadable: Literal["fail", "null"] = "fail"
    """Where a score cannot be read: fail the call, or null in its place. It is never 0."""

    @model_validator(mode="after")
    def _one_shape(self) -> RewardIn:
        if (self.query is None) == (self.solution_str is None):
            raise ValueError("give query with prompts, or solution_str with extra_info.prompt")
        if self.query is not None and (self.prompts is None or len(self.prompts) != len(self.query)):
            raise ValueError("prompts are needed beside query, one each: without them nobody knows where replies begin")
        return self


class RewardOut(BaseModel):
    """Rewards in the order of the queries; `score` where one solution was sent."""

    rewards: list[float | None]
    scores: list[float | None]
    """The same between 0 and 1: rescaled from -1 to 1, or the logistic function of a reward model's score."""
    score: float | None = None
    extra_logs: dict[str, list[float]]


@router.post("/v1/judge")
async def judge(body: JudgeIn, service: The, _: Runs) -> JudgeOut:
    """A verdict for every pair. The same pair again costs nothing: replies are stored."""
    _fits(service, len(body.pairs))
    pairs = [pair_of(p, i) for i, p in enumerate(body.pairs)]
    async with service.engines.turn():
        asked = service.engines.judge(body.judge)
        found = [await _told(j) async for j in judging.judge_pairs(asked, pairs, in_flight=len(pairs))]
    name = body.judge or service.config.judge or next(iter(service.config.judges))
    return JudgeOut(judge=name, verdicts=found)


@router.post("/v1/score")
async def score(body: ScoreIn, service: The, _: Runs) -> ScoreOut:
    """A score for every reply, by itself."""
    _fits(service, len(body.items))
    asked = [(_prompt(i.prompt), i.reply) for i in body.items]
    name, scale, scores = await _score(service, body.judge, asked)
    return ScoreOut(judge=name, scale=scale, scores=[s.model_dump(mode="json") for s in scores])


@router.post("/get_reward")
async def get_reward(body: RewardIn, service: The, _: Runs) -> RewardOut:
    """Rewards for trainers that ask over HTTP. All replies to one prompt are scored under the same principles."""
    if body.solution_str is not None:
        info = body.extra_info or {}
        given: Any = info.get("prompt") or info.get("question")
        if not isinstance(given, str | list) or not given:
            raise Refusal(422, "extra_info.prompt is needed: a text or a list of messages")
        asked = [(_conversation(given), _ENDS.sub("", body.solution_str))]
    else:
        assert body.query is not None
        assert body.prompts is not None
        asked = [_split(q, p) for q, p in zip(body.query, body.prompts, strict=True)]
    _fits(service, len(asked))
    scale, found = (await _score(service, body.judge, asked))[1:]
    bad = [i for i, s in enumerate(found) if s.value is None]
    if bad and body.unreadable == "fail":
        some = "; ".join(f"{i}: {found[i].label}, {found[i].why}"[:120] for i in bad[:3])
        raise Refusal(502, f"{len(bad)} of {len(found)} scores cannot be read ({some})")
    rewards = [s.value for s in found]
    shares = [None if r is None else (r + 1) / 2 if scale == "unit" else _logistic(r) for r in rewards]
    logs = {"unreadable": [float(r is None) for r in rewards]}
    single = rewards[0] if body.solution_str is not None else None
    return RewardOut(rewards=rewards, scores=shares, score=single, extra_logs=logs)


async def _score(service: Service, judge: str, asked: list[tuple[Prompt, str]]) -> tuple[str, str, list[Score]]:
    async with service.engines.turn():
        name, scorer = service.engines.scorer(judge)

        async def one(prompt: Prompt, reply: str) -> Score:
            try:
                return await scorer.score(prompt, reply, "reward")
            except TenetError:
                raise
            except Exception as error:  # one reply that we cannot handle must not stop the others
                return Score(label="invalid", why=f"internal error: {type(error).__name__}: {error}"[:300])

        scores = await asyncio.gather(*(one(p, r) for p, r in asked))
        return name, service.engines.judge(name).scale, list(scores)


async def _told(judged: judging.Judged) -> VerdictOut:
    await asyncio.sleep(0)  # a long list must not keep the loop from others
    said = judging.line_of(judged)
    orders = {order: {"verdict": v.label, "p_a": v.p_a} for order, v in judged.orders.items() if order}
    return VerdictOut.model_validate({**said, "orders": orders})


def pair_of(given: PairIn, row: int) -> LabelledPair:
    """A pair as judges take it. Refusal 422 for a prompt that is none."""
    comparison = Comparison(prompt=_prompt(given.prompt), a=given.a, b=given.b)
    return LabelledPair(id=given.id or comparison.id, comparison=comparison, row=row + 1)


def _prompt(given: str | list[Message]) -> Prompt:
    messages = (Message(role="user", content=given),) if isinstance(given, str) else tuple(given)
    return Prompt(messages=_checked(messages))


def _checked(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    if messages[-1].role != "user" or any(m.role == "system" for m in messages[1:]):
        raise Refusal(422, "a prompt ends with a user's message, and only its first may be the system's")
    return messages


def _conversation(given: Any) -> Prompt:
    if isinstance(given, list):
        try:
            return _prompt([Message.model_validate(m) for m in given])  # pyright: ignore[reportUnknownVariableType]
        except ValueError as error:
            raise Refusal(422, f"extra_info.prompt is no list of messages: {str(error)[:200]}") from None
    return _rendered(str(given))


def _rendered(text: str) -> Prompt:
    """A prompt as a chat template wrote it: ChatML's turns are read back, any other text is the user's."""
    turns = [Message(role=r, content=c) for r, c in _CHATML.findall(text)]  # pyright: ignore[reportArgumentType]
    while turns and turns[-1].role == "assistant" and not turns[-1].content.strip():
        turns.pop()  # the opening of the reply that was asked for
    said = tuple(turns) if turns and turns[-1].role == "user" else (Message(role="user", content=text),)
    return Prompt(messages=_checked(said))


def _split(query: str, prompt: str) -> tuple[Prompt, str]:
    """The prompt, and the reply that follows it in the query, less the tokens that end it."""
    return _rendered(prompt), _ENDS.sub("", query.removeprefix(prompt))


def _fits(service: Service, n: int) -> None:
    if n > service.config.limits.pairs:
        raise Refusal(413, f"{n} at once; at most {service.config.limits.pairs} are judged in one call")


def _logistic(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-max(-700.0, min(700.0, x))))
