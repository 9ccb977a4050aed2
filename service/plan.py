"""What a run would do: calls and tokens to expect per stage, and rendered prompts; nothing is called."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import judges
from generators import pairs, prompts, respond, revise
from judges import Ask
from service.pipeline import Window
from service.recipe import Plan
from tenet.engines import Engine, Request
from tenet.engines._unasked import Unasked
from tenet.records import Candidate, Comparison, Message, Prompt, Response, Revision

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
        examples=[(f"prompt {i + 1}: {a.step}", _render(a.request)) for i, walk in enumerate(walks) for a in walk],
    )


def _walk(plan: Plan, prompt: Prompt) -> list[Ask]:
    """The questions of one prompt's chain, with stand-ins where replies would be."""
    recipe = plan.recipe
    pool = recipe.respond.model or " | ".join(recipe.respond.pool)
    asked = [Ask("respond", pool, respond.request(prompt, 0, recipe.respond, recipe.seed))]
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
                    asked.append(Ask("critique", recipe.revise.model, chain.critique_ask(1, drawn)))
                said = "‹critique›" if recipe.revise.critique else None
                asked.append(Ask("revise", recipe.revise.model, chain.revise_ask(1, drawn, said)))
            made = (Revision(round=1, principles=(), text=f"‹revision {index + 1}›"),)
        candidates.append(Candidate(response=first, revisions=made))
    unasked: dict[str, Engine] = {name: Unasked() for name in plan.models}
    judge = judges.open_judge(dict(recipe.judge), unasked, plan.constitution, recipe.seed)
    for settings in recipe.pairs:
        if settings.kind != "best_of":
            for key, comparison in pairs.pairs(prompt, candidates, settings, recipe.seed):
                asked += judge.asks(comparison, key)
            continue
        given = dict(settings.scorer or recipe.judge)
        scorer = judges.open_scorer(given, unasked, plan.constitution, recipe.seed)
        for c in candidates:
            asked += scorer.score_asks(prompt, pairs.text_of(c, settings), f"best of {settings.of}")
        made_up = list(range(len(candidates)))
        for key, pair in pairs.best_of(prompt, candidates, made_up, settings, recipe.seed):
            asked += judge.asks(pair, key) if isinstance(pair, Comparison) else []
    return asked


def _stages(plan: Plan, usable: int, walks: list[list[Ask]]) -> list[Stage]:
    recipe = plan.recipe
    first = next(iter(plan.models))
    rounds = recipe.respond.samples * recipe.revise.rounds
    times = {"respond": recipe.respond.samples, "critique": rounds, "revise": rounds}
    shown: dict[tuple[str, str], list[Request]] = {}
    for ask in (a for walk in walks for a in walk):
        shown.setdefault((ask.step, ask.model or first), []).append(ask.request)
    made: list[Stage] = []
    for (step, model), requests in shown.items():
        # Of a judge's questions the walks hold every one; of the others, one for each stage.
        calls = round(usable * times.get(step, len(requests) / len(walks)))
        chars = sum(len(m.content) for r in requests for m in r.messages) / len(requests)
        out = 1 if requests[0].choices else requests[0].sampling.max_tokens
        made.append(Stage(step, model, calls, int(calls * chars / _CHARS_PER_TOKEN), calls * out))
    return made


def _render(request: Request) -> str:
    return "\n".join(f"[{m.role}] {m.content}" for m in _messages(request))


def _messages(request: Request) -> tuple[Message, ...]:
    return request.messages or (Message(role="user", content=request.text or ""),)
