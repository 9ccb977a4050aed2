"""The selftest's workshop: one planted case's folder, its scripted model, and the ways its runs are driven."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import judges
from constitution import Constitution
from generators import respond
from judges import _planted as planted
from judges._planted import Asked, Planted, Play
from judges.selftest import Case, Traits
from service import recipe as recipes
from service import run
from service._planted_server import BusyServer
from service.judging import JudgePlan
from service.recipe import Plan
from tenet.engines import Engine, Reply, Request
from tenet.engines._unasked import Unasked
from tenet.engines.openai import OpenAIEngine
from tenet.engines.openai import Settings as Endpoint
from tenet.engines.scripted import ScriptedEngine
from tenet.errors import EngineUnreachable
from tenet.ledger import Rows
from tenet.records import Comparison, Prompt, Usage

_POLICY = "planted-policy"
"""The model that gives the planted replies."""


@dataclass(frozen=True)
class Subject:
    """The judge under test: its settings as the user wrote them, and what they make of it."""

    judge: Mapping[str, Any]
    constitution: Constitution
    models: tuple[str, ...] = ("planted-judge",)
    """The names under which the settings may ask for a model; all are the scripted one."""
    seed: int = 0

    @property
    def rewards(self) -> frozenset[str]:
        """Those of the models that are asked as reward models."""
        return frozenset(_reward_models(self.judge, self.models[0]))

    @classmethod
    def of(cls, plan: JudgePlan) -> Subject:
        """The judge of a config file."""
        return cls(plan.config.judge, plan.constitution, tuple(plan.models), plan.config.seed)


def probe(subject: Subject) -> list[Asked]:
    """What the judge would ask about one planted pair. SettingsError if its settings cannot be used."""
    pair = planted.clear(1)[0]
    engines: dict[str, Engine] = {name: Unasked() for name in subject.models}
    judge = judges.open_judge(dict(subject.judge), engines, subject.constitution, subject.seed)
    prompt = Prompt(messages=pair.messages, tags=_tags(subject.constitution))
    comparison = Comparison(prompt=prompt, a=pair.replies[0], b=pair.replies[1])
    first, rewards = subject.models[0], subject.rewards
    found = (
        planted.read(ask.request, {pair.number: pair}, (ask.model or first) in rewards)
        for ask in judge.asks(comparison, "probe")
    )
    return [asked for asked in found if asked is not None]


def _tags(rules: Constitution) -> tuple[str, ...]:
    """Tags under which every principle applies."""
    return tuple(sorted({t for p in rules.principles for t in p.applies_when}))


def traits_of(subject: Subject, seen: Sequence[Asked]) -> Traits:
    """What can be asked of the judge: the orders by its settings, the forms by its questions."""
    forms = frozenset(a.form for a in seen)
    if all(len(a.shown) == 1 for a in seen):
        return Traits("none", forms)
    orders = set(_orders(subject.judge)) or {"both"}
    return Traits("both" if orders == {"both"} else "one", forms, any(len(a.shown) == 1 for a in seen))


def _orders(settings: Any) -> list[str]:
    """Every `order` that the settings name, those of a panel's members too; unnamed it is "both"."""
    return [str(m["order"]) for m in _mappings(settings) if "order" in m]


def _reward_models(settings: Any, first: str) -> list[str]:
    return [str(m.get("model") or first) for m in _mappings(settings) if m.get("kind") == "reward_model"]


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    """A mapping and all that it holds, however deep."""
    if isinstance(value, Mapping):
        found = cast("Mapping[str, Any]", value)
        yield found
        value = list(found.values())
    if isinstance(value, list | tuple):
        for part in cast("list[Any]", value):
            yield from _mappings(part)


class Model:
    """The scripted models: give the planted replies to the planted prompts, and play the judge."""

    def __init__(self, pairs: Sequence[Planted], plan: Plan, prompts: Mapping[int, Prompt], play: Play) -> None:
        self.play = play
        self.paid: Counter[str] = Counter()
        """How often each question was answered without a fault."""
        self.complaints: list[str] = []
        self.asked: list[Asked] = []
        self._pairs = {p.number: p for p in pairs}
        self._replies: dict[str, Reply] = {}
        for pair in pairs:
            for index, text in enumerate(pair.replies):
                asked = respond.request(prompts[pair.number], index, plan.recipe.respond, plan.recipe.seed)
                usage = Usage(calls=1, prompt_tokens=1, completion_tokens=1)
                self._replies[asked.key("")] = Reply(text=text, finish="length" if pair.cut else "stop", usage=usage)

    def __call__(self, request: Request, reward: bool = False) -> Reply:
        key = request.key("")
        reply = self._replies.get(key) or self._judge(request, reward)
        if reply.fault is None:
            self.paid[key] += 1
        return reply

    def _judge(self, request: Request, reward: bool) -> Reply:
        asked = planted.read(request, self._pairs, reward)
        if asked is None:
            self.complaints.append(f"a question that shows no planted text: {request.messages[-1].content[:60]!r}")
            return Reply(text="What do you mean?")
        self.asked.append(asked)
        # What fences need may be put inside a text; nothing may be taken out of it.
        seen = "\n".join(m.content for m in request.messages).replace("\u200b", "")
        whole = [*(m.content for m in asked.pair.messages), *(asked.pair.replies[i] for i in asked.shown)]
        if gone := [text for text in whole if text not in seen]:
            self.complaints.append(f"the judge was not shown the whole of {gone[0][:60]!r}")
        return self.play(asked)


class Workshop:
    """One case's folder: its files, its plan, and the runs in it."""

    def __init__(self, folder: Path, case: Case, subject: Subject) -> None:
        self.case, self.folder, self.subject = case, folder, subject
        tags = _tags(subject.constitution)
        lines = [json.dumps({**_row(p), "tags": list(tags)}, ensure_ascii=False) for p in case.pairs]
        (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        rules = subject.constitution.model_dump(mode="json", exclude={"extends"}, exclude_defaults=True)
        (folder / "constitution.yaml").write_text(json.dumps(rules, ensure_ascii=False), encoding="utf-8")
        self.prompts = {p.number: Prompt(messages=p.messages, tags=tags) for p in case.pairs}
        self.complaints: list[str] = []
        self.model = Model(case.pairs, self.plan("first"), self.prompts, case.play)

    def plan(self, name: str, **changed: Any) -> Plan:
        """A recipe of the subject's judge, checked as a user's would be."""
        recipe: dict[str, Any] = {
            "prompts": {"path": "prompts.jsonl", "kind": "jsonl"},
            "constitution": "./constitution.yaml",
            "models": {m: {"kind": "scripted"} for m in (*self.subject.models, _POLICY)},
            "respond": {"samples": 2, "model": _POLICY},
            "revise": {"rounds": 0},
            "pairs": [{"kind": "samples"}],
            "judge": dict(self.subject.judge),
            "limits": {"max_failures": 1.0},
            "seed": self.subject.seed,
            **changed,
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(recipe, ensure_ascii=False), encoding="utf-8")  # YAML too, and quicker written
        return recipes.open_recipe(path, [], str(self.folder / "runs" / name))

    async def go(self, plan: Plan, engine: Engine | None = None) -> dict[str, Any]:
        """One start of a run."""
        text = engine or ScriptedEngine(self.model, name="planted")
        number = ScriptedEngine(partial(self.model, reward=True), name="planted-reward", scores=True)
        names = (*self.subject.models, _POLICY)
        return await run.execute(plan, engines={m: number if m in self.subject.rewards else text for m in names})


def _row(pair: Planted) -> dict[str, Any]:
    if pair.dialogue:
        names = {"user": "Human", "assistant": "Assistant"}
        return {"chosen": "".join(f"\n\n{names[m.role]}: {m.content}" for m in pair.messages)}
    return {"messages": [m.model_dump() for m in pair.messages]}


# How a case's runs are driven. Each returns the plan whose rows count, and the last manifest.

Driven = tuple[Plan, dict[str, Any]]


async def _once(shop: Workshop) -> Driven:
    plan = shop.plan("first")
    return plan, await shop.go(plan)


async def _heal(shop: Workshop) -> Driven:
    """All judgements fail; then the same command is given again, and the model is well."""
    plan = shop.plan("first")
    sick = await shop.go(plan)
    if sick["pairs"]["preferences"]:
        shop.complaints.append("labels although every call failed")
    shop.model.play = planted.honest
    return plan, await shop.go(plan)


async def _crash(shop: Workshop) -> Driven:
    """The engine dies in the middle; then the same command is given again."""
    plan = shop.plan("first", limits={"max_failures": 1.0, "in_flight": 2})
    try:
        await shop.go(plan)
        shop.complaints.append("the run did not end with the engine's error")
    except EngineUnreachable:
        pass
    shop.model.play = planted.honest
    return plan, await shop.go(plan)


async def _twice(shop: Workshop) -> Driven:
    """Two runs of one recipe that share nothing."""
    plan = shop.plan("first")
    manifest = await shop.go(plan)
    other = replace(plan, folder=shop.folder / "elsewhere" / "first")
    again = await shop.go(other)
    if stored(plan.folder) != stored(other.folder) or manifest["files"] != again["files"]:
        shop.complaints.append("two runs of one recipe gave different rows")
    shop.model.paid.clear()
    return plan, manifest


async def _resume(shop: Workshop) -> Driven:
    """A start that runs out of budget; then one with other limits, in the same folder."""
    short = shop.plan("first", limits={"max_failures": 1.0, "max_calls": 30, "in_flight": 2})
    first = await shop.go(short)
    if not first["state"].startswith("budget spent"):
        shop.complaints.append(f"the first start should run out of its budget, but is {first['state']}")
    plan = shop.plan("first", limits={"max_failures": 1.0, "in_flight": 3})
    return plan, await shop.go(plan)


async def _endpoint(shop: Workshop) -> Driven:
    """Through the HTTP engine, from a server that turns every call away once, and answers some with null."""
    options = {len(a.shown): a.request.choices for a in probe(shop.subject) if a.request.choices}
    pairs = {p.number: p for p in shop.case.pairs}

    def choices(request: Request) -> Sequence[str]:
        asked = planted.read(request, pairs)
        return options[len(asked.shown)] if asked else ()

    plan = shop.plan("first")
    async with BusyServer(shop.model, choices) as server:
        engine = OpenAIEngine(
            Endpoint(model="planted", base_url=server.base_url, key_env="TENET_SELFTEST_KEY", backoff_s=0.01)
        )
        try:
            manifest = await shop.go(plan, engine)
        finally:
            await engine.close()
        if not (server.turned_away and server.nulls):
            shop.complaints.append("the server was never busy")
    return plan, manifest


DRIVES: dict[str, Callable[[Workshop], Awaitable[Driven]]] = {
    "once": _once, "heal": _heal, "crash": _crash, "twice": _twice, "resume": _resume, "endpoint": _endpoint,
}  # fmt: skip


def stored(folder: Path) -> list[tuple[Any, ...]]:
    """A run's rows."""
    with Rows(folder, readonly=True) as rows:
        return [tuple(r) for r in rows.iterate()]
