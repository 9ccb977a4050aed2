"""The engine's wall time over the floor: the same calls fed to plain vLLM as full batches.

Chains like the pipeline's (reply, critique, revision, a verdict in both orders) advance one call
at a time through Ray and the engine; then plain `LLM.generate` gets each stage as one batch,
already tokenised, and decodes as many tokens. Prints JSON; the target is a `ratio` up to 1.10.

    python benchmarks/engine_floor.py [--model nano:assistant] [--chains 1024] [--in-flight 512]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from typing import Any

from tenet.engines import Reply, Request, Sampling
from tenet.engines.vllm import Settings, VllmEngine, build
from tenet.records import Message, Usage, seed_of

ASK = "How do I {}? Say it in a few sentences, and name what could go wrong."
TOPICS = ("clean a kettle", "plant tomatoes", "fix a flat tyre", "write a letter", "boil an egg")
CRITIQUE = "Point out where the reply above breaks this rule, quoting it: a reply names its doubts."
REVISE = "Write the reply again so that it keeps the rule, and change nothing else."
JUDGE = "Question: {}\n\nReply A: {}\n\nReply B: {}\n\nWhich reply is better? Answer A or B: "

Call = tuple[str, Request, Reply]


async def chain(engine: VllmEngine, index: int, most: int, calls: list[Call]) -> None:
    """One prompt's way; every call is written down with its stage."""
    name = f"{index} {TOPICS[index % len(TOPICS)]}"
    turns = [Message(role="user", content=ASK.format(name))]

    async def say(stage: str, messages: list[Message]) -> str:
        sampling = Sampling(max_tokens=most, seed=seed_of(name, stage))
        request = Request(messages=tuple(messages), sampling=sampling, affinity=name)
        [reply] = await engine.generate([request])
        calls.append((stage, request, reply))
        return reply.text

    async def judge(stage: str, a: str, b: str) -> None:
        text = JUDGE.format(turns[0].content, a, b)
        messages = (Message(role="user", content=text),)
        request = Request(messages=messages, choices=("A", "B"), affinity=name)
        [reply] = await engine.generate([request])
        calls.append((stage, request, reply))

    first = await say("reply", turns)
    turns += [Message(role="assistant", content=first), Message(role="user", content=CRITIQUE)]
    turns.append(Message(role="assistant", content=await say("critique", turns)))
    turns.append(Message(role="user", content=REVISE))
    last = await say("revision", turns)
    await asyncio.gather(judge("verdict ab", first, last), judge("verdict ba", last, first))


async def through_engine(
    engine: VllmEngine, chains: int, in_flight: int, most: int
) -> tuple[float, list[Call]]:
    await engine.start()
    await asyncio.gather(*(chain(engine, -1 - i, most, []) for i in range(8)))
    calls: list[Call] = []
    room = asyncio.Semaphore(in_flight)

    async def one(index: int) -> None:
        async with room:
            await chain(engine, index, most, calls)

    begun = time.perf_counter()
    await asyncio.gather(*(one(i) for i in range(chains)))
    took = time.perf_counter() - begun
    await engine.close()
    return took, calls


def through_plain(plan: dict[str, Any], calls: list[Call]) -> tuple[float, int, int, int]:
    """(seconds, prompt, completion, cached tokens) of plain vLLM with the same engine arguments."""
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams

    from tenet.engines._prompt import Prompts

    llm = LLM(**plan["args"])
    prompts = Prompts(AutoTokenizer.from_pretrained(plan["args"]["model"]))
    batches: dict[str, tuple[list[Any], list[SamplingParams]]] = {}
    for stage, request, reply in calls:
        rendered, ids = prompts.render(tuple((m.role, m.content) for m in request.messages), None)
        s = request.sampling
        if request.choices:
            asked = [path[0] for path in prompts.paths(rendered, request.choices)]
            how = SamplingParams(temperature=0.0, max_tokens=1, logprob_token_ids=asked)
        else:
            # as many tokens as were drawn before, whatever the sampler does this time
            how = SamplingParams(
                temperature=s.temperature,
                seed=s.seed,
                max_tokens=max(1, reply.usage.completion_tokens),
                ignore_eos=True,
            )
        stage = stage.split()[0]
        inputs, params = batches.setdefault(stage, ([], []))
        inputs.append({"prompt_token_ids": ids})
        params.append(how)
    llm.generate(
        [{"prompt_token_ids": [5, 6, 7]}] * 8, SamplingParams(max_tokens=8), use_tqdm=False
    )
    begun = time.perf_counter()
    outs = [
        o
        for inputs, params in batches.values()
        for o in llm.generate(inputs, params, use_tqdm=False)
    ]
    took = time.perf_counter() - begun
    prompt = sum(len(o.prompt_token_ids or ()) for o in outs)
    drawn = sum(len(o.outputs[0].token_ids) for o in outs)
    return took, prompt, drawn, sum(o.num_cached_tokens or 0 for o in outs)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="nano:assistant")
    parser.add_argument("--chains", type=int, default=1024)
    parser.add_argument("--in-flight", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--replicas", type=int, default=1)
    given = parser.parse_args()
    engine = build(Settings(model=given.model, threads=given.threads, replicas=given.replicas))
    plan = engine.pool.plan
    work = through_engine(engine, given.chains, given.in_flight, given.max_tokens)
    ours, calls = asyncio.run(work)
    faults = [reply.detail for _, _, reply in calls if reply.fault]
    spent = sum((reply.usage for _, _, reply in calls), Usage())
    # the same environment as a replica's, thread binding included
    from tenet.engines._replica import cores

    os.environ |= plan["env"]
    if plan["cpu"]:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = cores((0, 1), plan["threads"], 1)
    plain, prompt, drawn, cached = through_plain(plan, calls)
    report = {
        "model": engine.name,
        "calls": len(calls),
        "faults": len(faults),
        "engine": _line(ours, spent.prompt_tokens, spent.completion_tokens, spent.cached_tokens),
        "plain_vllm": _line(plain, prompt, drawn, cached),
        "ratio": round(ours / plain, 3),
        "load": round(os.getloadavg()[0], 1),
        "cores": os.cpu_count(),
    }
    print(json.dumps(report, indent=2))


def _line(seconds: float, prompt: int, drawn: int, cached: int) -> dict[str, float]:
    return {
        "seconds": round(seconds, 2),
        "prompt_tokens": prompt,
        "drawn_tokens": drawn,
        "tokens_per_s": round((prompt + drawn) / seconds),
        "drawn_per_s": round(drawn / seconds),
        "prefix_hit_rate": round(cached / max(1, prompt), 3),
    }


if __name__ == "__main__":
    main()
