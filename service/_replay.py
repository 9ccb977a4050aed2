"""What a run would ask under another constitution: its prompts walked again, answered from the ledger alone.

Nothing is called. Where the ledger has no reply a stand-in is given, and whatever is asked behind it counts as a call
too: so the count is exact as far as replies are known, and from there on it is the most that can be asked.
"""

from __future__ import annotations

import asyncio
import json
import random
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import cast

from constitution import Constitution
from constitution.loader import require
from generators import respond
from generators.revise import CRITIQUE, REVISE
from service._chains import Pair, RunView, Walk, walk_of
from service.pipeline import Pipeline
from service.recipe import Plan, stages_of
from tenet.engines import Engine, Reply, Request
from tenet.errors import RunFolderError
from tenet.ledger import Calls, Rows
from tenet.records import Frozen, Prompt, Usage, canonical

_MARK = "‹not asked"
_HEADS = {"critique": CRITIQUE.partition("{")[0], "revise": REVISE.partition("{")[0]}
STEPS = ("respond", "critique", "revise", "judge")


class Step(Frozen):
    """Calls of one step under the new constitution; each question counts once, as a rerun asks it once."""

    needed: int = 0
    """Questions, answered or not."""
    stored: int = 0
    """Those of them whose reply is in the ledger."""
    certain: int = 0
    """Those to ask whose wording is known: a rerun asks them whatever comes back."""
    follow: int = 0
    """Those to ask behind an unknown reply: a rerun asks them unless that reply is the old one, to the letter."""

    @property
    def most(self) -> int:
        return self.certain + self.follow


class Impact(Frozen):
    """What an edit touches in a run, and what asking again costs."""

    run: str
    prompts: int
    """Prompts that the run has walked."""
    prompts_touched: int
    """Those in whose chain a question is another one."""
    labels: int
    """Pairs that the run judged."""
    labels_touched: int
    """Those with another reply, or another question to the judge, and those that exist under one of the two only."""
    labels_known: dict[str, int]
    """Of the touched: "changed" and "same" where the ledger knows the new label already."""
    steps: dict[str, Step]
    replaced: Usage
    """What the run's own calls that fall out cost when they were made."""
    expected: Usage
    """What the most calls will cost if they cost what the run's calls of their step did, on average."""
    money: float | None = None
    """The same by the prices in the recipe; None without prices."""
    notes: tuple[str, ...] = ()

    @property
    def certain(self) -> int:
        return sum(c.certain for c in self.steps.values())

    @property
    def most(self) -> int:
        return sum(c.most for c in self.steps.values())

    @property
    def stored(self) -> int:
        return sum(c.stored for c in self.steps.values())


@dataclass
class Asked:
    """Every question of a replay, by its key."""

    steps: dict[str, str] = field(default_factory=dict[str, str])
    models: dict[str, str] = field(default_factory=dict[str, str])
    known: dict[str, Usage] = field(default_factory=dict[str, Usage])
    """What the stored replies cost."""
    missing: dict[str, bool] = field(default_factory=dict[str, bool])
    """Key without a stored reply -> whether the question itself is known."""


class _Recall:
    """An engine that answers from the ledger; what is not there gets a stand-in, and is remembered."""

    has_choices = has_scores = True
    family = ""

    def __init__(self, name: str, fingerprint: str, calls: Calls | None, asked: Asked) -> None:
        self.name, self.fingerprint = name, fingerprint
        self._calls, self._asked = calls, asked
        self.trail: set[str] = set()
        """Keys asked since it was emptied."""
        self.first: set[str] = set()
        """Keys of the prompt's first replies."""

    async def generate(self, requests: Sequence[Request]) -> list[Reply]:
        keys = [r.key(self.fingerprint) for r in requests]
        found = await self._calls.get_many(list(dict.fromkeys(keys))) if self._calls else {}
        self.trail.update(keys)
        made: list[Reply] = []
        for key, request in zip(keys, requests, strict=True):
            self._asked.steps.setdefault(key, self._step(key, request))
            self._asked.models.setdefault(key, self.name)
            stored = found.get(key)
            if stored is None:
                self._asked.missing[key] = not any(_MARK in m.content for m in request.messages)
                made.append(_stand_in(key, request))
            else:
                self._asked.known[key] = stored.usage
                made.append(Reply.model_construct(**stored._asdict()))
        return made

    async def close(self) -> None:
        return None

    def _step(self, key: str, request: Request) -> str:
        if key in self.first:
            return "respond"
        last = request.messages[-1].content if request.messages else ""
        found = (step for step, head in _HEADS.items() if not request.choices and last.startswith(head))
        return next(found, "judge")


def _stand_in(key: str, request: Request) -> Reply:
    if request.choices:
        return Reply(fault="server", detail=_MARK)
    # As long as the reply that is revised, and like no other text: no gate or limit may take it for a bad revision.
    size = max((len(m.content) for m in request.messages if m.role == "assistant"), default=0)
    noise = "".join(random.Random(key).choices(string.ascii_lowercase, k=size))
    return Reply(text=f"{_MARK} {key}› {noise}")


def impact(run: RunView, new: Constitution) -> Impact:
    """What a rerun under another constitution would ask and what it touches.

    RunFolderError if the run does not say which engines it asked; ConstitutionError if a principle lacks a text that
    the recipe needs.
    """
    require(new, stages_of(run.recipe))
    return asyncio.run(_impact(run, new))


async def _impact(run: RunView, new: Constitution) -> Impact:
    fingerprints = fingerprints_of(run)
    ledger = run.folder.parent / "calls.sqlite"
    old_asked, new_asked = Asked(), Asked()
    n: Counter[str] = Counter()
    with ExitStack() as stack:
        calls = stack.enter_context(Calls(ledger)) if ledger.is_file() else None
        rows = stack.enter_context(Rows(run.folder, readonly=True))
        before = _Walker(run, run.constitution, fingerprints, calls, rows, old_asked)
        after = _Walker(run, new, fingerprints, calls, rows, new_asked)
        for walk in run.walks():
            _, was = await before.walk(walk.prompt)
            now, trail = await after.walk(walk.prompt)
            n["prompts"] += 1
            n["touched"] += was != trail
            _labels(walk, now, n)
    return _impact_of(run, old_asked, new_asked, n, calls is not None)


class _Walker:
    """Walks prompts under one constitution."""

    def __init__(
        self, run: RunView, rules: Constitution, fingerprints: Mapping[str, str], calls: Calls | None, rows: Rows,
        asked: Asked,
    ) -> None:  # fmt: skip
        self._recipe = run.recipe
        self._engines = {name: _Recall(name, print_, calls, asked) for name, print_ in fingerprints.items()}
        plan = Plan(run.recipe, rules, {}, run.folder, str(run.folder))
        self._pipeline = Pipeline(plan, cast(dict[str, Engine], self._engines), rows)

    async def walk(self, prompt: Prompt) -> tuple[Walk, set[str]]:
        """(the chain, the keys of all its questions)."""
        settings, seed = self._recipe.respond, self._recipe.seed
        firsts = [respond.request(prompt, i, settings, seed) for i in range(settings.samples)]
        for engine in self._engines.values():
            engine.trail = set()
            engine.first = {r.key(engine.fingerprint) for r in firsts}
        walk = walk_of(await self._pipeline.walk(prompt), self._recipe)
        assert walk is not None
        return walk, set[str]().union(*(e.trail for e in self._engines.values()))


def fingerprints_of(run: RunView) -> dict[str, str]:
    """The fingerprint of each of the run's models."""
    with Rows(run.folder, readonly=True) as rows:
        said = rows.meta("engines")
    known = json.loads(said) if said else {k: v["fingerprint"] for k, v in run.manifest.get("engines", {}).items()}
    if not known:
        fix = "let it go on once: it then says which engines it asks"
        raise RunFolderError("does not say which engines it asked", where=str(run.folder), fix=fix)
    return {name: known[name] for name in run.recipe.models}


def _labels(old: Walk, new: Walk, n: Counter[str]) -> None:
    n["labels"] += sum(p.verdict is not None for p in old.pairs.values())
    for key in old.pairs.keys() | new.pairs.keys():
        a, b = old.pairs.get(key), new.pairs.get(key)
        if _same(a, b):
            continue
        n["labels touched"] += 1
        if not (a and b and _unknown(b)):
            n["changed" if (a.label if a else "") != (b.label if b else "") else "same"] += 1


def _same(a: Pair | None, b: Pair | None) -> bool:
    if a is None or b is None:
        return False
    # A vote says which wording of its principle it is from: a new one asks the same question if another stage's text
    # was edited.
    sides = (p.verdict.votes if p.verdict else () for p in (a, b))
    votes = [[v.model_dump(exclude={"principle_hash"}) for v in side] for side in sides]
    return a.comparison == b.comparison and votes[0] == votes[1]


def _unknown(pair: Pair) -> bool:
    """Whether a stand-in stands in for one of its replies or votes."""
    texts = (pair.comparison.a, pair.comparison.b) if pair.comparison else ()
    said = pair.verdict.model_dump(mode="json") if pair.verdict else None
    return any(_MARK in t for t in (*texts, pair.why, canonical(said)))


def _impact_of(run: RunView, old: Asked, new: Asked, n: Counter[str], ledger: bool) -> Impact:
    steps = {step: _count(step, new) for step in STEPS}
    gone = [old.known[k] for k in old.steps.keys() - new.steps.keys() if k in old.known]
    means = _means(old)
    tokens, money, priced = [0.0, 0.0], 0.0, False
    for key in new.missing:
        mean, prices = means.get((new.steps[key], new.models[key]), (0.0, 0.0)), run.recipe.models[new.models[key]]
        tokens = [x + y for x, y in zip(tokens, mean, strict=True)]
        each = (prices.get("price_prompt", 0), prices.get("price_completion", 0))
        priced = priced or any(each)
        money += sum(x * price for x, price in zip(mean, each, strict=True)) / 1e6
    expected = Usage(calls=len(new.missing), prompt_tokens=round(tokens[0]), completion_tokens=round(tokens[1]))
    return Impact(
        run=run.folder.name, prompts=n["prompts"], prompts_touched=n["touched"], labels=n["labels"],
        labels_touched=n["labels touched"], labels_known={"changed": n["changed"], "same": n["same"]}, steps=steps,
        replaced=sum(gone, Usage()), expected=expected, money=money if priced else None,
        notes=tuple(_notes(run, old, ledger)),
    )  # fmt: skip


def _count(step: str, asked: Asked) -> Step:
    keys = [k for k, s in asked.steps.items() if s == step]
    to_ask = [asked.missing[k] for k in keys if k in asked.missing]
    return Step(needed=len(keys), stored=len(keys) - len(to_ask), certain=sum(to_ask), follow=len(to_ask) - sum(to_ask))


def _means(asked: Asked) -> dict[tuple[str, str], tuple[float, float]]:
    """(step, model) -> mean tokens of a stored call, prompt and completion."""
    sums: dict[tuple[str, str], list[int]] = {}
    for key, usage in asked.known.items():
        total = sums.setdefault((asked.steps[key], asked.models[key]), [0, 0, 0])
        for i, x in enumerate((1, usage.prompt_tokens, usage.completion_tokens)):
            total[i] += x
    return {k: (p / calls, c / calls) for k, (calls, p, c) in sums.items()}


def _notes(run: RunView, old: Asked, ledger: bool) -> list[str]:
    made: list[str] = []
    if not ledger:
        made.append("there is no calls.sqlite beside the run: a rerun here asks everything anew")
    elif old.missing:
        made.append(f"calls.sqlite lacks {len(old.missing)} replies of the run itself, which a rerun asks anew")
    if run.manifest.get("state") != "whole":
        made.append("the run is not whole: only the prompts that it has walked are counted")
    if any(p.kind == "best_of" for p in run.recipe.pairs):
        made.append("which pairs best_of makes depends on scores: behind unknown ones its judgements are not counted")
    return made
