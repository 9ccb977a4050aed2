"""Reward models as judges: real checkpoints against transformers, scores in the ledger, what is no reward model."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from constitution import Constitution, Principle
from judges import open_judge, open_scorer
from judges.rewards import reward_function
from tenet.engines import Reply, Request
from tenet.engines._cache import CachedEngine
from tenet.engines.classifier import Settings, build
from tenet.engines.scripted import ScriptedEngine
from tenet.errors import EngineError, SettingsError
from tenet.ledger import Calls
from tenet.records import Comparison, Message, Prompt

RULES = Constitution(name="one", principles=(Principle(id="kind", choose="Which is kinder?"),))
SAID = (("user", "bada kimo?"), ("assistant", "rigo"), ("user", "sute"))
TURNS = tuple(Message.model_validate({"role": role, "content": text}) for role, text in SAID)
PROMPT = Prompt(messages=TURNS)
REPLIES = ("bada", "nomi rigo sute " * 20, "A (B) <|end|><|assistant|>", "kimo kimo", "é 日本 🙂")


def make_reward_model(source: Path, folder: Path, pad: str = "") -> Path:
    """A random Qwen3 with a scalar head over the tiny model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(source)
    if pad:
        tokenizer.pad_token = pad
    config = Qwen3Config.from_pretrained(source, num_labels=1, pad_token_id=tokenizer.pad_token_id)
    torch.manual_seed(7)
    model = Qwen3ForSequenceClassification(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                weight.normal_(0, 0.3 if "embed" in name else 1.5 / weight.shape[1] ** 0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reward_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whose padding token is also the end of a turn, as it is in many a checkpoint."""
    return make_reward_model(tiny_model, tmp_path_factory.mktemp("rm") / "rm")


def conversation(reply: str) -> Request:
    return Request(messages=(*TURNS, Message(role="assistant", content=reply)))


def plain_score(folder: Path, reply: str) -> float:
    """What transformers gives for one conversation, by itself, in float32."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    # The engine puts a zero-width space into what looks like a special token; the reference says the same words.
    safe = reply.replace("<|end|>", "<\u200b|end|>").replace("<|assistant|>", "<\u200b|assistant|>")
    turns = [*(m.model_dump() for m in TURNS), {"role": "assistant", "content": safe}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    with torch.no_grad():
        return float(model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits[0, 0])


def ask(engine: Any, *requests: Request) -> list[Reply]:
    return asyncio.run(engine.generate(requests))


def test_scores_are_those_of_a_plain_forward_pass_whatever_the_batch(reward_model: Path) -> None:
    engine = build(Settings(model=str(reward_model), batch=3))
    expected = [plain_score(reward_model, r) for r in REPLIES]
    together = [float(r.text) for r in ask(engine, *map(conversation, REPLIES))]
    alone = [float(ask(engine, conversation(r))[0].text) for r in REPLIES]
    assert together == pytest.approx(expected, abs=2e-4)
    assert alone == pytest.approx(expected, abs=2e-4)
    assert max(expected) - min(expected) > 0.1
    asyncio.run(engine.close())


def test_a_separate_padding_token_changes_nothing_of_that(tiny_model: Path, tmp_path: Path) -> None:
    folder = make_reward_model(tiny_model, tmp_path / "rm", pad="<|system|>")
    engine = build(Settings(model=str(folder)))
    scores = [float(r.text) for r in ask(engine, *map(conversation, REPLIES))]
    assert scores == pytest.approx([plain_score(folder, r) for r in REPLIES], abs=2e-4)


def test_vllms_pooling_runner_gives_the_same_scores(reward_model: Path) -> None:
    engine = build(Settings(model=str(reward_model), runner="vllm", max_length=512))

    async def both() -> list[Reply]:
        try:
            return await engine.generate([*map(conversation, REPLIES), conversation("bada " * 600)])
        finally:
            await engine.close()

    *replies, long = asyncio.run(both())
    assert [float(r.text) for r in replies] == pytest.approx([plain_score(reward_model, r) for r in REPLIES], abs=1e-3)
    assert long.fault == "context_length"
    assert (engine.has_choices, engine.has_scores) == (False, True)


def test_the_judge_is_bradley_terry_on_the_scores(reward_model: Path) -> None:
    engine = build(Settings(model=str(reward_model)))
    judge = open_judge({"kind": "reward_model"}, engine, RULES)
    pair = Comparison(prompt=PROMPT, a=REPLIES[0], b=REPLIES[3])
    verdict = asyncio.run(judge.judge(pair))
    a, b = plain_score(reward_model, pair.a), plain_score(reward_model, pair.b)
    assert verdict.p_a == pytest.approx(1 / (1 + math.exp(b - a)), abs=1e-4)
    assert verdict.votes[0].scores == pytest.approx((a, b), abs=2e-4)
    assert (verdict.votes[0].order, verdict.votes[0].principle, verdict.consistent) == (None, "", None)
    swapped = asyncio.run(judge.judge(pair.swap()))
    assert swapped.p_a == pytest.approx(1 - verdict.p_a)
    assert verdict.usage.calls == 2


def test_too_long_and_empty_conversations_are_faults_of_their_own(reward_model: Path) -> None:
    engine = build(Settings(model=str(reward_model), max_length=64))
    long, nothing, fine = ask(engine, conversation("bada " * 100), Request(text=""), conversation("bada"))
    assert (long.fault, nothing.fault, fine.fault) == ("context_length", "refused", None)
    verdict = asyncio.run(open_judge({"kind": "reward_model"}, engine, RULES).judge(
        Comparison(prompt=PROMPT, a="bada", b="bada " * 100)))  # fmt: skip
    assert (verdict.label, verdict.votes[0].fault) == ("invalid", "context_length")
    assert verdict.why.startswith("b: context_length")


def test_stored_scores_are_reused_to_the_bit(reward_model: Path, tmp_path: Path) -> None:
    async def twice() -> tuple[list[Reply], list[Reply], int]:
        with Calls(tmp_path / "calls.sqlite") as calls:
            first = CachedEngine(build(Settings(model=str(reward_model))), calls, "one")
            said = await first.generate([*map(conversation, REPLIES)])
            again = CachedEngine(build(Settings(model=str(reward_model))), calls, "two")
            same = await again.generate([*map(conversation, REPLIES)])
            return said, same, again.asked

    said, same, asked = asyncio.run(twice())
    assert [r.text for r in said] == [r.text for r in same]
    assert asked == 0


def test_concurrent_callers_and_later_event_loops_are_served(reward_model: Path) -> None:
    engine = build(Settings(model=str(reward_model), batch=4))

    async def many() -> list[str]:
        said = await asyncio.gather(*(engine.generate([conversation(r)]) for r in REPLIES * 3))
        return [r[0].text for r in said]

    first = asyncio.run(many())
    assert [float(t) for t in asyncio.run(many())] == pytest.approx([float(t) for t in first], abs=2e-4)


def change(folder: Path, **config: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


def test_what_is_no_reward_model_is_refused_by_name(tiny_model: Path, reward_model: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="Qwen3ForCausalLM, which scores nothing"):
        build(Settings(model=str(tiny_model)))
    two = Path(shutil.copytree(reward_model, tmp_path / "two"))
    change(two, id2label={"0": "bad", "1": "good"})
    with pytest.raises(SettingsError, match="2 labels"):
        build(Settings(model=str(two)))
    bare = Path(shutil.copytree(reward_model, tmp_path / "bare"))
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(SettingsError, match="no chat template"):
        build(Settings(model=str(bare)))
    with pytest.raises(SettingsError, match="positions for 2048"):
        build(Settings(model=str(reward_model), max_length=1 << 20))


def test_a_head_that_was_never_trained_is_not_served(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "m"))
    change(folder, architectures=["Qwen3ForSequenceClassification"], id2label={"0": "reward"}, label2id={"reward": 0})
    with pytest.raises(EngineError, match="lacks weights"):
        ask(build(Settings(model=str(folder))), conversation("bada"))


def test_engine_and_judge_must_fit(reward_model: Path) -> None:
    words = ScriptedEngine(lambda _: "hello")
    with pytest.raises(SettingsError, match="no reward model"):
        open_judge({"kind": "reward_model"}, words, RULES)
    model = build(Settings(model=str(reward_model)))
    for kind in ({"kind": "pairwise"}, {"kind": "pairwise", "read": "text"}):
        with pytest.raises(SettingsError, match="is a reward model"):
            open_judge(kind, model, RULES)


@pytest.mark.parametrize("text", ["", "good", "nan", "inf", "1,5"])
def test_what_is_no_finite_number_is_invalid_and_never_zero(text: str) -> None:
    engine = ScriptedEngine(lambda r: text if r.messages[-1].content == "x" else "1.0", scores=True)
    verdict = asyncio.run(
        open_judge({"kind": "reward_model"}, engine, RULES).judge(Comparison(prompt=PROMPT, a="x", b="y"))
    )
    assert (verdict.label, verdict.p_a) == ("invalid", None)
    assert "a: the score is" in verdict.why


def test_equal_scores_are_a_tie_and_extremes_do_not_overflow() -> None:
    def judge(a: str, b: str, **settings: Any) -> Any:
        engine = ScriptedEngine(lambda r: a if r.messages[-1].content == "x" else b, scores=True)
        judge = open_judge({"kind": "reward_model", **settings}, engine, RULES)
        return asyncio.run(judge.judge(Comparison(prompt=PROMPT, a="x", b="y")))

    assert judge("0.0", "0.0").label == "tie"
    assert judge("1e6", "-1e6").p_a == 1.0
    assert judge("-1e6", "1e6").p_a == 0.0
    assert judge("1", "0.9", labels="hard").p_a == 1.0
    assert judge("0", "0", labels="hard").p_a == 0.5
    assert judge("2", "0", temperature=2.0).p_a == pytest.approx(1 / (1 + math.exp(-1)))


def test_a_reward_model_is_a_reward_function_too(reward_model: Path) -> None:
    f = reward_function(open_scorer({"kind": "reward_model"}, build(Settings(model=str(reward_model))), RULES))
    turns = [m.model_dump() for m in TURNS]
    scores = f(prompts=[turns] * 2, completions=[[{"role": "assistant", "content": r}] for r in REPLIES[:2]])
    assert scores == pytest.approx([plain_score(reward_model, r) for r in REPLIES[:2]], abs=2e-4)
