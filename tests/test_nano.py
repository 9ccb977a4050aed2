"""Nano's world and the bundled weights: the oracle is right by construction, and the models are what they claim."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import constitution
from nano import build, tasks, world
from nano.constitution import text
from nano.lexicon import CONCEPTS, TOPICS, UNNAMED

MODELS = Path(build.__file__).parent / "models"


def test_the_world_is_as_large_as_promised() -> None:
    assert len(TOPICS) >= 40
    assert len(CONCEPTS) >= 16
    assert sum(c.must for c in CONCEPTS) >= 3
    assert all(len(set(c.wordings)) == 10 and len(c.held_out) == 2 for c in CONCEPTS)


def test_every_sentence_shows_its_own_marker_and_no_other() -> None:
    rng = random.Random(0)
    for concept in CONCEPTS:
        for _ in range(100):
            said = world.sentence(rng, concept)
            assert [s.concept for s in world.read(said).sentences] == [concept.key]
    for topic in range(len(TOPICS)):
        for _ in range(30):
            said = world.useful(rng, topic)
            assert world.read(said).sentences[0].concept is None
            assert world.is_useful(said, topic)


def test_held_out_wordings_are_never_trained_on() -> None:
    rng = random.Random(1)
    held_out = [w for c in CONCEPTS for w in c.held_out]
    for _ in range(3000):
        said = " ".join(t for _, t in tasks.exercise(rng)) + tasks.plain(rng)
        assert not any(w in said for w in held_out)


def test_a_revision_breaks_no_rule_it_was_given() -> None:
    rng = random.Random(2)
    for _ in range(500):
        rules = tasks.draw_rules(rng)
        before = world.spoiled(rng, 3)
        after = tasks.revised(rng, before, rules)
        assert not any(after.breaks(r.concept) for r in rules)
        assert world.read(after.text) == after


def test_the_bundled_constitution_is_the_lexicons() -> None:
    assert (Path(constitution.__file__).parent / "files/nano.yaml").read_text() == text()
    assert {p.id for p in constitution.load("nano").principles} == {c.key for c in CONCEPTS} - UNNAMED


def test_the_trainers_rendering_is_the_chat_templates() -> None:
    from transformers import AutoTokenizer

    tok = AutoTokenizer.from_pretrained(MODELS / "assistant")
    rng = random.Random(3)
    dialogues = [tasks.exercise(rng) for _ in range(50)]
    for dialogue, example in zip(dialogues, build.Coder(tok).dialogues(dialogues), strict=True):
        turns = [{"role": "assistant" if r == "given" else r, "content": t} for r, t in dialogue]
        made = tok.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
        assert made["input_ids"] == example.ids
        if all(r != "given" for r, _ in dialogue):
            assert made["assistant_masks"] == example.learn


def test_the_bundled_weights_are_small_and_bf16() -> None:
    from safetensors import safe_open

    assert sum(p.stat().st_size for p in MODELS.rglob("*") if p.is_file()) <= 24 * 2**20
    for stage in ("base", "assistant", "assistant-moe"):
        with safe_open(MODELS / stage / "model.safetensors", "pt") as weights:
            assert {weights.get_slice(k).get_dtype() for k in weights.keys()} == {"BF16"}  # noqa: SIM118


@pytest.mark.filterwarnings("ignore")
def test_a_short_training_learns_and_is_saved_as_transformers_loads_it(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    losses: list[float] = []
    build.build(tmp_path, scale=0.003, watch=lambda _n, _m, step: losses.append(step.loss))
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "assistant").num_parameters() < 2_000_000


def test_the_bundled_mixture_spreads_tokens_over_experts_that_differ() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trainers.moe import routing
    from trainers.moe._texts import Row, kinds_of

    tok = AutoTokenizer.from_pretrained(MODELS / "assistant-moe")
    model = AutoModelForCausalLM.from_pretrained(MODELS / "assistant-moe", dtype=torch.float32)
    rng, kinds = random.Random(4), kinds_of(tok)
    made = [e.ids for e in build.Coder(tok).dialogues([tasks.exercise(rng) for _ in range(20)])]
    found = routing.measure(model, [Row(ids, [kinds[i] for i in ids], None) for ids in made])
    assert (found["experts"], found["top_k"]) == (8, 2)
    for layer in found["layers"]:
        assert not layer["dead"]
        assert layer["load_entropy"] > 0.95
        assert layer["similarity"] < 0.7
        special = layer["specialisation"]["class"]
        assert special["share"] > 5 * special["chance"]
