"""Constitutional chat through the openai client, and what judges and scores over HTTP say."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from constitution import load
from judges import open_judge
from tenet.engines import Reply, Request
from tenet.engines.scripted import ScriptedEngine
from tenet.records import Comparison, Message, Prompt, Usage
from tests import oracle_script
from tests.api_server import serving

QUESTION = [{"role": "user", "content": "Can you help me sew a button at the lake?"}]
NANO = load("nano")


class Recorder:
    """The oracle's script, with a memory and a way to fail; scores every reply by its length."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.bad_revisions = 0
        self.fault = False
        self.hold = threading.Event()
        self.hold.set()

    def __call__(self, request: Request) -> Reply:
        self.asked.append(request)
        last = request.messages[-1].content
        if self.fault:
            return Reply(fault="server", detail="out of order")
        if len(request.choices) == 10:  # a score from 1 to 10: all weight on the number of words, up to 10
            words = len(last.partition("<reply>")[2].partition("</reply>")[0].split())
            at = min(9, max(0, words - 1))
            logprobs = tuple(0.0 if i == at else -50.0 for i in range(10))
            return Reply(choice_logprobs=logprobs, usage=Usage(calls=1, prompt_tokens=5, completion_tokens=1))
        if last.startswith("Rewrite") and self.bad_revisions:
            self.bad_revisions -= 1
            return Reply(text="Critique: the reply insults.", usage=Usage(calls=1))
        return oracle_script.play(request)


recorder = Recorder()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    judges = {
        "pairwise": {"kind": "pairwise", "constitution": "nano", "principles": 2},
        "pointwise": {"kind": "pointwise", "constitution": "nano"},
    }
    engine = ScriptedEngine(recorder, name="oracle")
    with serving(tmp_path_factory.mktemp("chat"), {"assistant": engine}, judges=judges) as made:
        yield made


@pytest.fixture(autouse=True)
def _fresh() -> None:
    recorder.__init__()


def ask(client: httpx.Client, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{client.base_url}/v1", api_key=key, max_retries=0)


def test_the_openai_client_gets_a_revised_answer_with_its_critiques(client: httpx.Client) -> None:
    with ask(client) as ai:
        made = ai.chat.completions.create(
            model="assistant@nano", messages=QUESTION, seed=3, extra_body={"tenet": {"critiques": True}}  # type: ignore[arg-type]
        )
        again = ai.chat.completions.create(model="assistant@nano", messages=QUESTION, seed=3)  # type: ignore[arg-type]
        plain = ai.chat.completions.create(model="assistant", messages=QUESTION, seed=3)  # type: ignore[arg-type]
    choice = made.choices[0]
    story: dict[str, Any] = choice.model_extra["tenet"]  # type: ignore[index]
    assert story["first"] == plain.choices[0].message.content
    assert choice.message.content == story["rounds"][-1]["revision"] == again.choices[0].message.content
    principle = NANO.by_id[story["rounds"][0]["principles"][0]]
    steps = [r.messages[-1].content for r in recorder.asked[:3]]
    assert steps[0] == QUESTION[0]["content"]
    assert principle.critique in steps[1]
    assert principle.revise in steps[2]
    assert made.usage is not None
    assert plain.usage is not None
    assert made.usage.prompt_tokens > plain.usage.prompt_tokens
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens
    assert "tenet" not in (again.choices[0].model_extra or {})


def test_a_stream_says_the_same_and_ends_with_its_usage(client: httpx.Client) -> None:
    with ask(client) as ai:
        whole = ai.chat.completions.create(model="assistant@nano", messages=QUESTION, seed=5, n=2)  # type: ignore[arg-type]
        stream = ai.chat.completions.create(
            model="assistant@nano", messages=QUESTION, seed=5, n=2, stream=True, stream_options={"include_usage": True}  # type: ignore[arg-type]
        )
        chunks = list(stream)
    for i in (0, 1):
        said = [c.choices[0].delta.content or "" for c in chunks if c.choices and c.choices[0].index == i]
        assert "".join(said) == whole.choices[i].message.content
        assert len(said) > 4
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["stop", "stop"]
    assert chunks[-1].usage == whole.usage


def test_an_answer_that_was_not_revised_is_never_given_out(client: httpx.Client) -> None:
    with ask(client) as ai:
        recorder.bad_revisions = 1
        made = ai.chat.completions.create(model="assistant@nano", messages=QUESTION, seed=1)  # type: ignore[arg-type]
        assert "Critique:" not in (made.choices[0].message.content or "")
        recorder.bad_revisions = 99
        with pytest.raises(openai.InternalServerError) as failed:
            ai.chat.completions.create(model="assistant@nano", messages=QUESTION, seed=1)  # type: ignore[arg-type]
        assert failed.value.code == "no_revised_answer"
        recorder.fault = True
        with pytest.raises(openai.APIError):
            list(ai.chat.completions.create(model="assistant@nano", messages=QUESTION, stream=True))  # type: ignore[arg-type]


def test_what_cannot_be_honoured_is_refused_in_openais_shape(client: httpx.Client) -> None:
    with ask(client) as ai:
        for model in ("nobody", "assistant@nobody", "assistant@../nano", "assistant@"):
            with pytest.raises(openai.NotFoundError) as unknown:
                ai.chat.completions.create(model=model, messages=QUESTION)  # type: ignore[arg-type]
            assert unknown.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError):
            ai.chat.completions.create(model="assistant", messages=QUESTION, logprobs=True)  # type: ignore[arg-type]
        with pytest.raises(openai.BadRequestError):
            ai.chat.completions.create(model="assistant", messages=QUESTION, max_tokens=10**6)  # type: ignore[arg-type]
        names = [m.id for m in ai.models.list()]
    assert {"assistant", "assistant@nano", "assistant@harmless"} <= set(names)


def test_verdicts_over_http_are_the_judges_own(client: httpx.Client) -> None:
    kind, rude = "Choose a hole that fits the button.", "You should be ashamed of your habits."
    pairs = [{"id": "x", "prompt": "How?", "a": rude, "b": kind}, {"prompt": QUESTION, "a": kind, "b": rude}]
    told = client.post("/v1/judge", json={"pairs": pairs}).raise_for_status().json()["verdicts"]
    import asyncio

    judge = open_judge({"kind": "pairwise", "principles": 2}, ScriptedEngine(oracle_script.play), NANO)
    from service.judging import key_of

    for given, said in zip(pairs, told, strict=True):
        asked = given["prompt"] if isinstance(given["prompt"], str) else given["prompt"][0]["content"]  # type: ignore[index]
        prompt = Prompt(messages=(Message(role="user", content=asked),))  # type: ignore[arg-type]
        c = Comparison(prompt=prompt, a=str(given["a"]), b=str(given["b"]))
        verdict = asyncio.run(judge.judge(c, key_of(c)))
        assert (said["verdict"], said["p_a"], said["consistent"]) == (verdict.label, verdict.p_a, verdict.consistent)
        assert set(said["orders"]) == {"ab", "ba"}
        assert {v["order"] for v in said["votes"]} == {"ab", "ba"}
    assert told[0]["id"] == "x"
    before = len(recorder.asked)
    client.post("/v1/judge", json={"pairs": pairs}).raise_for_status()
    assert len(recorder.asked) == before  # stored replies are never paid twice


def test_openrlhf_and_verl_get_their_rewards(client: httpx.Client) -> None:
    chatml = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    body = {
        "query": [f"{chatml}One two three.<|im_end|>\n", "Why?One."], "prompts": [chatml, "Why?"], "labels": ["", ""],
    }  # fmt: skip
    told = client.post("/get_reward", json=body).raise_for_status().json()
    score = client.post("/v1/score", json={"items": [{"prompt": "Why?", "reply": "One two three."}]}).json()
    assert (score["scale"], score["scores"][0]["label"]) == ("unit", "scored")
    assert told["rewards"][0] == score["scores"][0]["value"]  # the template's marks were taken off
    assert told["rewards"][0] > told["rewards"][1]
    assert told["scores"] == [(r + 1) / 2 for r in told["rewards"]]
    one = {"data_source": "x", "solution_str": "One two three.", "ground_truth": "", "extra_info": {"prompt": "Why?"}}
    assert client.post("/get_reward", json=one).json()["score"] == told["rewards"][0]
    assert client.post("/get_reward", json={"query": ["Why? Because."]}).status_code == 422


def test_a_reward_that_cannot_be_read_is_never_zero(client: httpx.Client) -> None:
    recorder.fault = True
    body = {"query": ["Q? New words here."], "prompts": ["Q?"]}
    failed = client.post("/get_reward", json=body)
    assert failed.status_code == 502
    assert "cannot be read" in failed.json()["detail"]
    told = client.post("/get_reward", json={**body, "unreadable": "null"}).json()
    assert (told["rewards"], told["extra_logs"]["unreadable"]) == ([None], [1.0])
    body = {"judge": "pairwise", "items": [{"prompt": "a", "reply": "b"}]}
    assert client.post("/v1/score", json=body).status_code == 422


def test_metrics_count_what_was_asked(client: httpx.Client) -> None:
    with ask(client) as ai:
        ai.chat.completions.create(model="assistant", messages=QUESTION)  # type: ignore[arg-type]
    text = client.get("/metrics").text
    assert 'tenet_engine_queue{engine="oracle"} 0.0' in text
    found = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}
    assert found['tenet_engine_requests_total{engine="oracle"}'] >= 1
    assert found['tenet_engine_tokens_total{engine="oracle",side="prompt"}'] >= 1
    assert found['tenet_http_requests_total{method="POST",route="/v1/chat/completions",status="200"}'] >= 1
    assert json.loads(client.get("/ready").text)["status"] == "ready"
