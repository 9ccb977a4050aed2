"""Chat streams of the service beside `vllm serve` on the same model, machine and clients, in turns.

    python benchmarks/chat_service.py > docs/benchmarks/chat_service.json

The service's model is asked without a constitution, so that both do the same work: one reply. Tokens are those that the
servers report. Turns alternate, because a shared machine's load drifts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import aiohttp
import yaml

ROOT = Path(__file__).parent.parent
NANO = ROOT / "nano/models/assistant"
CONTEXT = 768


async def streams(port: int, model: str, prompts: list[str], clients: int, tokens: int) -> dict[str, Any]:
    """All prompts, `clients` of them at once; each is read to its end."""
    waiting = list(enumerate(prompts))
    written = errors = 0
    firsts: list[float] = []

    async def work(session: aiohttp.ClientSession) -> None:
        nonlocal written, errors
        while waiting:
            seed, prompt = waiting.pop()
            body = {
                "model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "seed": seed,
                "temperature": 1.0, "stream": True, "stream_options": {"include_usage": True},
            }  # fmt: skip
            begun, seen = time.perf_counter(), False
            async with session.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body) as answer:
                async for line in answer.content:
                    if not line.startswith(b"data: {"):
                        continue
                    event = json.loads(line[6:])
                    errors += "error" in event
                    choices = event.get("choices") or []
                    if choices and choices[0]["delta"].get("content") and not seen:
                        firsts.append(time.perf_counter() - begun)
                        seen = True
                    if event.get("usage"):
                        written += event["usage"]["completion_tokens"]

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as session:
        begun = time.perf_counter()
        await asyncio.gather(*(work(session) for _ in range(clients)))
        took = time.perf_counter() - begun
    firsts.sort()
    return {
        "seconds": round(took, 2), "tokens": written, "tokens_per_second": round(written / took, 1), "errors": errors,
        "first_text_p50_s": round(firsts[len(firsts) // 2], 3), "load": os.getloadavg()[0],
    }  # fmt: skip


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait(port: int) -> None:
    for _ in range(3000):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("a server did not start")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    lines = (ROOT / "service/demo_files/prompts.jsonl").read_text().splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines if "prompt" in json.loads(line)][: args.requests]
    ports = {"tenet serve": free_port(), "vllm serve": free_port()}
    models = {"tenet serve": "assistant", "vllm serve": "nano"}
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    with tempfile.TemporaryDirectory() as name:
        config = Path(name) / "service.yaml"
        model = {"kind": "vllm", "model": "nano:assistant", "max_model_len": CONTEXT}
        config.write_text(yaml.safe_dump({"workspace": f"{name}/runs", "models": {"assistant": model}}))
        commands = {
            "tenet serve": ["-m", "service", "serve", "--config", str(config), "--port", str(ports["tenet serve"])],
            "vllm serve": [
                "-m", "vllm.entrypoints.openai.api_server", "--model", str(NANO), "--served-model-name", "nano",
                "--host", "127.0.0.1", "--port", str(ports["vllm serve"]), "--max-model-len", str(CONTEXT),
                "--enforce-eager",
            ],
        }  # fmt: skip
        servers = [subprocess.Popen([sys.executable, *c], env=env, stdout=sys.stderr) for c in commands.values()]
        try:
            turns: dict[str, list[dict[str, Any]]] = {server: [] for server in ports}
            for port in ports.values():
                wait(port)
            for server, port in ports.items():  # the first questions start the engine and warm it
                asyncio.run(streams(port, models[server], prompts[:20], args.clients, 32))
            for _ in range(args.turns):
                for server, port in ports.items():
                    found = asyncio.run(streams(port, models[server], list(prompts), args.clients, args.tokens))
                    print(server, found, file=sys.stderr)
                    turns[server].append(found)
        finally:
            for child in servers:
                child.terminate()
            for child in servers:
                child.wait(60)
    rates = {server: statistics.median(t["tokens_per_second"] for t in found) for server, found in turns.items()}
    ratio = round(rates["tenet serve"] / rates["vllm serve"], 3)
    told = {"clients": args.clients, "requests": len(prompts), "max_tokens": args.tokens, "cpus": os.cpu_count()}
    print(json.dumps({**told, "median_tokens_per_second": rates, "ratio": ratio, "turns": turns}, indent=1))


if __name__ == "__main__":
    main()
