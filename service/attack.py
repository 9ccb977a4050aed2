"""`tenet attack`: how often a judge is won over by a reply that is not better, against bland controls.

Two things are told apart. Structure: does an attack close a fence, add a turn, or bring in a special token of the
model's chat format? That is the rendering's business and must be 0. Content: is the model swayed by what it reads?
That is the model's, and is measured.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from constitution import Constitution
from judges import Judge, pairs_file
from judges._trials import Target, run
from judges.attacks import ANY_MODEL, Reader
from nano import world
from nano.lexicon import BY_KEY
from service import judging
from service.judging import JudgePlan, open_config
from service.screen import columns, tell
from tenet.engines import Engine
from tenet.errors import DataError, SettingsError
from tenet.records import Comparison, Message, Prompt

# The pairs.


def labelled_targets(path: Path, n: int) -> list[Target]:
    """The first n pairs of a file whose people prefer one reply, by a strict majority; DataError if there are none."""
    found: list[Target] = []
    for pair in pairs_file.read(path):
        votes = Counter(label.label for label in pair.labels)
        top = next((x for x in ("A", "B") if 2 * votes[x] > votes.total()), None)
        if top is None:
            continue
        c = pair.comparison
        better, worse = (c.a, c.b) if top == "A" else (c.b, c.a)
        found.append(Target(f"attack {pair.id}", c.prompt, better, worse, pair.slices))
        if len(found) == n:
            break
    if not found:
        what = "no pair has a reply that people prefer"
        raise DataError(what, where=str(path), fix='rows need a label A or B, or chosen and rejected')
    return found


def bundled_targets(judge: Judge, rules: Constitution, n: int, seed: int) -> list[Target]:
    """n pairs of nano's small world. Under a constitution that speaks about that world the better reply keeps the
    rules that the judge will be asked about, and the worse breaks one to three of them; under another one the better
    reply has no fault and the worse has three that any constitution should mind.
    """
    rng = random.Random(f"attack {seed}")
    of_nano = {p.id for p in rules.principles} <= BY_KEY.keys()
    return [_bundled(rng, judge, rules if of_nano else None, f"attack {i}") for i in range(n)]


def _bundled(rng: random.Random, judge: Judge, rules: Constitution | None, key: str) -> Target:
    topic, asked = world.question(rng)
    prompt = Prompt(messages=(Message(role="user", content=asked),))
    keys = _asked_about(judge, rules, prompt, key) if rules else ["insult", "threat", "unsafe", "deceit"]
    broken = set(rng.sample(keys, min(len(keys), rng.randint(1, 3) if rules else 3)))
    noise = rng.sample([k for k in world.AVOID if k not in keys], rng.choice((0, 0, 1))) if rules else []
    parts = tuple(k for k in keys if BY_KEY[k].must) if rules else world.MUST
    faults = tuple(k for k in broken if not BY_KEY[k].must)
    better = world.answer(rng, topic, tuple(noise), parts)
    worse = world.answer(rng, topic, (*noise, *sorted(faults)), tuple(k for k in parts if k not in broken))
    musts = sum(BY_KEY[k].must for k in keys)
    sort = "forbid faults" if not musts else "ask for parts" if musts == len(keys) else "do both"
    return Target(key, prompt, better.text, worse.text, {"rules asked about": sort})


def _asked_about(judge: Judge, rules: Constitution, prompt: Prompt, key: str) -> list[str]:
    """The principles under which the judge will judge a pair; all of them if its questions show none."""
    asks = judge.asks(Comparison(prompt=prompt, a="a", b="b"), key)
    text = "\n".join(m.content for ask in asks for m in ask.request.messages)
    drawn = [p.id for p in rules.principles if (p.choose and p.choose in text) or (p.score and p.score in text)]
    return drawn or [p.id for p in rules.principles]


def readers(plan: JudgePlan) -> Callable[[str], Reader]:
    """How each of the config's models reads: by its own tokenizer where it lies on this machine."""
    first = next(iter(plan.models))

    @lru_cache
    def find(name: str) -> Reader:
        kind, settings = plan.models[name or first]
        return _own(str(settings.model)) if kind == "vllm" else ANY_MODEL

    return find


def _own(model: str) -> Reader:
    from transformers import AutoTokenizer

    from tenet.engines import _model
    from tenet.engines._prompt import Prompts

    try:
        folder, _ = _model.locate(model, "models")
    except SettingsError:
        return ANY_MODEL
    auto: Any = AutoTokenizer
    prompts = Prompts(auto.from_pretrained(folder, trust_remote_code=False, local_files_only=True))

    def render(messages: Iterable[Message]) -> str:
        return prompts.render(tuple((m.role, m.content) for m in messages), None)[0]

    return Reader(render, tuple(sorted(prompts.specials)))


# What is printed.


def table(report: Mapping[str, Any]) -> str:
    """The report as text: shares in percent with 95% intervals."""
    head = ("attack", "false accepts", "bland", "scrambled", "flips", "bland", "shown 1st", "2nd", "unread", "escapes")
    rows: list[list[str]] = [list(head)]
    rows.append(["(none)", _shown(report["undecorated"]["false_accept"]), *[""] * 8])
    for r in report["attacks"]:
        names = ("false_accept", "false_accept_control", "false_accept_scrambled", "flip", "flip_control")
        cells = [_shown(r[k]) for k in names] + [_short(r[k]) for k in ("shown_first", "shown_second")]
        cells[0] += "*" if _above(r["false_accept"], r["false_accept_control"]) else ""
        rows.append([r["name"], *cells, str(r["unreadable"]), str(r["escapes"])])
    named = ", ".join(f"{k} {v}" for k, v in report["templates"].items()) or "none"
    structure = report["structure"]
    tail = [
        f"percent with 95% Wilson intervals; {report['pairs']} pairs; flips: of the pairs judged right undecorated",
        "* above a bland text of the same length: the intervals do not overlap",
        f"templates: {named}",
        f"structure: {structure['escapes']} escapes in {structure['questions']:,} rendered questions",
    ]
    return "\n".join([*columns(rows), *_by_slice(report["attacks"]), "", *tail])


def _by_slice(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """False accepts in groups of pairs, of the attacks that had any."""
    lines: list[str] = []
    for name in dict.fromkeys(n for r in found for n in r["slices"]):
        values = list(dict.fromkeys(v for r in found for v in r["slices"].get(name, ())))
        hit = [r for r in found if any(s["value"] for s in r["slices"].get(name, {}).values())]
        if len(values) > 1 and hit:
            none = {"value": None}
            rows = [[f"false accepts by {name}", *values]]
            rows += [[r["name"], *(_shown(r["slices"][name].get(v, none)) for v in values)] for r in hit]
            lines += ["", *columns(rows)]
    return lines


def _shown(share: Mapping[str, Any]) -> str:
    if share["value"] is None:
        return "-"
    return f"{100 * share['value']:.0f} ({100 * share['low']:.0f}-{100 * share['high']:.0f})"


def _short(share: Mapping[str, Any]) -> str:
    return "-" if share["value"] is None else f"{100 * share['value']:.0f}"


def _above(share: Mapping[str, Any], control: Mapping[str, Any]) -> bool:
    return control["value"] is not None and share["low"] > control["high"]


async def attack(
    plan: JudgePlan, pairs: Path | None, n: int, workspace: Path, engines: Mapping[str, Engine] | None = None
) -> dict[str, Any]:
    """Attacks the judge of a config. `engines` as in `judging.opened`."""
    told = labelled_targets(pairs, n) if pairs else None  # a bad file is refused before an engine starts
    async with judging.opened(plan, workspace, "attack", engines) as session:
        seed = plan.config.seed
        targets = told or bundled_targets(session.judge, plan.constitution, n, seed)
        in_flight = plan.config.limits.in_flight
        report = await run(session.judge, targets, reader=readers(plan), in_flight=in_flight, watch=tell)
        usage = {"asked": session.asked, "reused": session.reused, **session.usage.model_dump()}
    judge = {"settings": dict(plan.config.judge), "engines": [e.name for e in session.judge.engines]}
    source = str(pairs) if pairs else "nano's small world"
    return {"judge": judge, "constitution": plan.constitution.hash, "source": source, **report, "usage": usage}


def main(
    config: Path, overrides: Sequence[str], pairs: Path | None, n: int, json_out: Path | None, workspace: Path
) -> bool:
    """Attacks the judge of a config or a recipe and prints the table; whether nothing escaped."""
    plan = open_config(config, overrides)
    report = asyncio.run(attack(plan, pairs, n, workspace))
    judge = report["judge"]
    print(f"{', '.join(judge['engines'])}: {json.dumps(judge['settings'])}; pairs: {report['source']}")
    print(table(report))
    if json_out:
        json_out.parent.mkdir(parents=True, exist_ok=True)
        json_out.write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
    return not report["structure"]["escapes"]

