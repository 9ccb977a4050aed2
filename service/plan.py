"""What a run would do: calls and tokens to expect per stage, and rendered prompts; nothing is called."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import judges
from generators import pairs, prompts, respond, revise
from judges.pairwise import PairwiseJudge
from service.pipeline import Window
from service.recipe import Plan
from tenet.engines import Engine, Reply, Request
from tenet.records import Candidate, Message, Prompt, Response, Revision

_CHARS_PER_TOKEN = 4
"""A rule of thumb for English; the plan is an estimate and says so."""


@dataclass(frozen=True)
class Stage:
    """Calls of one stage, and tokens by a rule of thumb."""

    name: str
    model: str
    calls: int
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True)
class Description:
    """A plan in words and numbers."""

    folder: Path
    constitution: str
    lines: list[str]
    stages: list[Stage]
    examples: list[tuple[str, str]]
    """(title, rendered text)."""


class _Unasked:
    """Stands where a judge wants an engine while only its questions are wanted."""

    name, fingerprint, family, has_choices = "(not started)", "", "", True

    async def generate(self, requests: list[Request]) -> list[Reply]:
        raise AssertionError("a plan makes no call")

    async def close(self) -> None:
        return None


def describe(plan: Plan, window: Window) -> Description:
    """The plan of a run. Raises DataError if the prompts cannot be read."""
    census = prompts.check(plan.recipe.prompts)
    rows = window.size(census.rows, plan.recipe.limits.max_prompts)
    usable = min(rows, census.usable)
    stream = prompts.stream(plan.recipe.prompts, plan.recipe.seed)
    firsts = list(islice((p for _, p in stream if isinstance(p, Prompt)), 3))
    walks = [_walk(plan, p) for p in firsts]
    c = plan.constitution
    lines = [
        f"{rows} rows, of which {usable} hold a prompt (duplicates are dropped as the run meets them)",
        f"{plan.recipe.respond.samples} samples, {plan.recipe.revise.rounds} rounds, seed {plan.recipe.seed}",
        "tokens are a rule of thumb: 4 characters each, replies as long as max_tokens allows",
    ]
    return Description(
        folder=plan.folder,
        constitution=f"{c.name} ({len(c.principles)} principles, hash {c.hash})",
        lines=lines,
        stages=_stages(plan, usable, walks),
        examples=[
            (f"prompt {i + 1}: {name}", _render(request)) for i, walk in enumerate(walks) for name, request in walk
        ],
    )


def _walk(plan: Plan, prompt: Prompt) -> list[tuple[str, Request]]:
    """The questions of one prompt's chain, with stand-ins where replies would be."""
    recipe = plan.recipe
    asked = [("respond", respond.request(prompt, 0, recipe.respond, recipe.seed))]
    messages = respond.conversation(prompt, recipe.respond.system)
    candidates: list[Candidate] = []
    for index in range(recipe.respond.samples):
        first = Response(prompt_id=prompt.id, index=index, text=f"‹reply {index + 1}›", model="", finish="stop")
        made: tuple[Revision, ...] = ()
        if recipe.revise.rounds:
            chain = revise.Chain(prompt, messages, first, plan.constitution, recipe.revise, recipe.seed)
            drawn = chain.principles(1)
            if index == 0 and drawn:
                if recipe.revise.critique:
                    asked.append(("critique", chain.critique_ask(1, drawn)))
                said = "‹critique›" if recipe.revise.critique else None
                asked.append(("revise", chain.revise_ask(1, drawn, said)))
            made = (Revision(round=1, principles=(), text=f"‹revision {index + 1}›"),)
        candidates.append(Candidate(response=first, revisions=made))
    engine: Engine = _Unasked()  # pyright: ignore[reportAssignmentType]
    judge = judges.open_judge(dict(recipe.judge), engine, plan.constitution, recipe.seed)
    for settings in recipe.pairs:
        for key, comparison in pairs.pairs(prompt, candidates, settings, recipe.seed):
            if isinstance(judge, PairwiseJudge):
                asked += [("judge", r) for _, _, r in judge.requests(comparison, key)]
    return asked


def _stages(plan: Plan, usable: int, walks: list[list[tuple[str, Request]]]) -> list[Stage]:
    recipe = plan.recipe
    first = next(iter(plan.models))
    rounds = recipe.respond.samples * recipe.revise.rounds
    times = {
        "respond": (recipe.respond.samples, recipe.respond.model or " | ".join(recipe.respond.pool)),
        "critique": (rounds if recipe.revise.critique else 0, recipe.revise.model),
        "revise": (rounds, recipe.revise.model),
        "judge": (0, plan.judge_model),
    }
    made: list[Stage] = []
    for name, (per_prompt, model) in times.items():
        shown = [r for walk in walks for n, r in walk if n == name]
        if not shown:
            continue
        if name == "judge":
            per_prompt = len(shown) // len(walks)
        chars = sum(len(m.content) for r in shown for m in r.messages) / len(shown)
        calls = usable * per_prompt
        out = 1 if shown[0].choices else shown[0].sampling.max_tokens
        made.append(Stage(name, model or first, calls, int(calls * chars / _CHARS_PER_TOKEN), calls * out))
    return made


def _render(request: Request) -> str:
    return "\n".join(f"[{m.role}] {m.content}" for m in _messages(request))


def _messages(request: Request) -> tuple[Message, ...]:
    return request.messages or (Message(role="user", content=request.text or ""),)
