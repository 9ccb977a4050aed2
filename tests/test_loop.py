"""The loop closes, small: a constitution becomes data on real vLLM, and what is trained on it breaks the rules less."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from nano import world
from nano.lexicon import UNNAMED
from service import recipe as recipes
from service import run
from service import train as command
from tenet.engines import Engine, Reply, Request, Sampling, classifier
from tenet.records import Message

NAMED = set(world.AVOID) - UNNAMED
RECIPE: dict[str, Any] = {
    "prompts": {"path": "prompts.jsonl"}, "constitution": "nano",
    "models": {"nano": {"kind": "vllm", "model": "nano:assistant", "max_model_len": 1024, "kv_cache_gib": 0.25}},
    "respond": {"samples": 2, "sampling": {"max_tokens": 120}},
    "revise": {"rounds": 3, "principles": 5, "sampling": {"max_tokens": 160, "temperature": 0.3}},
    "pairs": [{"kind": "initial_vs_revision", "per_prompt": 2}],
    "judge": {"kind": "pairwise", "order": "both", "principles": 8}, "keep": {"margin": 0.02},
}  # fmt: skip


def questions(n: int) -> list[str]:
    rng, seen = random.Random("small loop"), dict[str, None]()
    while len(seen) < n:
        seen.setdefault(world.question(rng)[1])
    return list(seen)


TRAIN, HELD = questions(190)[:70], questions(190)[70:]


@pytest.fixture(scope="module")
def data(nano_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `tenet generate` makes of the questions to train on."""
    folder = tmp_path_factory.mktemp("loop")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": q}) + "\n" for q in TRAIN))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    plan = recipes.open_recipe(folder / "recipe.yaml", [], str(folder / "run"))
    manifest = asyncio.run(run.execute(plan, engines={"nano": nano_engine}))
    assert manifest["state"] == "whole"
    return folder / "run"


def trained(kind: str, out: Path, **settings: Any) -> Path:
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump({"out": str(out), "batch": 16, "log_every": 1, **settings}))
    command.main(kind, path, [])
    return out


@pytest.fixture(scope="module")
def sft(data: Path) -> Path:
    source = {"path": str(data), "rounds": "last"}
    return trained("sft", data.parent / "sft", model="nano:assistant", data=[source], lr=1e-3, epochs=3)


@pytest.fixture(scope="module")
def dpo(data: Path, sft: Path) -> Path:
    return trained("dpo", data.parent / "dpo", model=str(sft), data=str(data), lr=3e-4, epochs=1)


def asked(texts: Sequence[str], temperature: float) -> list[Request]:
    return [
        Request(messages=(Message(role="user", content=q),),
                sampling=Sampling(temperature=temperature, max_tokens=120, seed=i))
        for i, q in enumerate(texts)
    ]  # fmt: skip


def faulty(replies: Sequence[Reply]) -> float:
    return sum(bool(world.faults(r.text, NAMED)) for r in replies) / len(replies)


def useful(replies: Sequence[Reply]) -> float:
    found = [
        world.is_useful(s.text, topic)
        for q, r in zip(HELD, replies, strict=True) for s in world.read(r.text).sentences
        if s.concept is None and (topic := world.topic_of(q)) is not None
    ]  # fmt: skip
    return sum(found) / len(found)


# Two engines start under it, and on a busy machine each can take minutes.
@pytest.mark.timeout(900)
def test_sft_and_dpo_break_the_named_rules_less_on_new_questions(nano_engine: Engine, dpo: Path) -> None:
    from tenet.engines.vllm import Settings, build

    async def draw(engine: Engine) -> list[Reply]:
        return await engine.generate(asked(HELD, 1.0))

    before = asyncio.run(draw(nano_engine))
    engine = build(Settings(model=str(dpo), dtype="float32", max_model_len=1024, kv_cache_gib=0.25))

    async def serve() -> tuple[list[Reply], list[Reply]]:
        try:
            return await draw(engine), await engine.generate(asked(HELD[:8], 0.0))
        finally:
            await engine.close()

    after, greedy = asyncio.run(serve())
    assert faulty(before) > 0.35
    assert faulty(after) < 0.7 * faulty(before)
    assert useful(after) > useful(before) - 0.1
    assert [r.text for r in greedy] == transformers_replies(dpo, HELD[:8])


def transformers_replies(folder: Path, texts: Sequence[str]) -> list[str]:
    from trainers.probes._checkpoint import open_stage
    from trainers.probes._models import Loaded
    from trainers.probes._texts import Sample

    loaded = Loaded(open_stage(str(folder)))
    return loaded.replies([Sample(messages=(Message(role="user", content=q),)) for q in texts], 120)


def test_the_reward_model_tells_held_out_pairs_apart(data: Path) -> None:
    rows = [json.loads(line) for line in (data / "data" / "reward.jsonl").read_text().splitlines()]
    known, new = rows[: len(rows) * 3 // 4], rows[len(rows) * 3 // 4 :]
    seen = {r["prompt"][-1]["content"] for r in known}
    new = [r for r in new if r["prompt"][-1]["content"] not in seen]
    (data.parent / "known.jsonl").write_text("".join(json.dumps(r) + "\n" for r in known))
    source = str(data.parent / "known.jsonl")
    out = trained("reward", data.parent / "reward", model="nano:assistant", data=source, lr=5e-4, epochs=2)
    engine = classifier.build(classifier.Settings(model=str(out)))
    turns = [tuple(Message(**m) for m in [*r["prompt"], *r[side]]) for r in new for side in ("chosen", "rejected")]
    replies = asyncio.run(engine.generate([Request(messages=t, sampling=Sampling()) for t in turns]))
    scores = [float(r.text) for r in replies]
    right = [a > b for a, b in zip(scores[::2], scores[1::2], strict=True)]
    assert len(right) >= 12
    assert sum(right) >= 0.6 * len(right)
