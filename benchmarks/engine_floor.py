"""A run's wall time over the floor: the same calls fed to plain vLLM as full batches.

The whole pipeline (prompts, critique and revision, judging in both orders, ledger on disk) works on
nano's questions through Ray and the engine; then plain `LLM.generate` gets each stage's calls as one
batch, already tokenised, and decodes as many tokens. Start of the engines and exports are in neither.
Prints JSON; the target is a `ratio` up to 1.10.

    python benchmarks/engine_floor.py [--model nano:assistant] [--prompts 1024] [--in-flight 512]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nano import world
from service import recipe, run
from tenet.engines import Reply, Request
from tenet.engines.vllm import Settings, VllmEngine, build
from tenet.records import Usage

RECIPE = """
prompts: {{path: prompts.jsonl, dedup: exact}}
constitution: nano
models: {{m: {{kind: vllm, model: "{model}"}}}}
respond: {{samples: 1, sampling: {{max_tokens: {most}}}}}
revise: {{rounds: 1, principles: 3, sampling: {{max_tokens: {most}}}}}
pairs: [{{kind: initial_vs_revision}}]
judge: {{kind: pairwise}}
limits: {{in_flight: {in_flight}}}
"""
STAGES = {"Critique your last reply.": "critique", "Rewrite your last reply.": "revision"}

Call = tuple[str, Request, Reply]


class Recorder:
    """The engine, with every call written down by its stage."""

    def __init__(self, engine: VllmEngine) -> None:
        self.engine, self.calls = engine, list[Call]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    async def generate(self, requests: Sequence[Request]) -> list[Reply]:
        replies = await self.engine.generate(requests)
        self.calls += [(_stage(q), q, a) for q, a in zip(requests, replies, strict=True)]
        return replies


def _stage(request: Request) -> str:
    said = request.messages[-1].content
    return "verdict" if request.choices else next((s for start, s in STAGES.items() if said.startswith(start)), "reply")


async def through_pipeline(engine: VllmEngine, given: argparse.Namespace) -> tuple[float, list[Call]]:
    """Seconds of the run from first to last prompt, and its calls."""
    await engine.start()
    rng = random.Random(7)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        text = RECIPE.format(model=given.model, most=given.max_tokens, in_flight=given.in_flight)
        (folder / "recipe.yaml").write_text(text)
        took, recorder = 0.0, Recorder(engine)
        for name, n in (("warm", 8), ("run", given.prompts)):
            asked = dict.fromkeys(world.question(rng)[1] + f" I have {i} of them." for i in range(n))
            (folder / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": q}) for q in asked))
            plan = recipe.open_recipe(folder / "recipe.yaml", [], str(folder / name / "r"))
            recorder = Recorder(engine)
            took = (await run.execute(plan, engines={"m": recorder}))["seconds"]
    await engine.close()
    return took, recorder.calls


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
    llm.llm_engine.engine_core.shutdown()  # else its processes keep this one from ending
    prompt = sum(len(o.prompt_token_ids or ()) for o in outs)
    drawn = sum(len(o.outputs[0].token_ids) for o in outs)
    return took, prompt, drawn, sum(o.num_cached_tokens or 0 for o in outs)


def bound(plan: dict[str, Any]) -> None:
    """Gives this process a replica's environment, thread binding included."""
    from tenet.engines._replica import cores

    os.environ |= plan["env"]
    if plan["cpu"]:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = cores((0, 1), plan["threads"], 1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="nano:assistant")
    parser.add_argument("--prompts", type=int, default=1024)
    parser.add_argument("--in-flight", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--replicas", type=int, default=1)
    given = parser.parse_args()
    engine = build(Settings(model=given.model, threads=given.threads, replicas=given.replicas))
    plan = engine.pool.plan
    ours, calls = asyncio.run(through_pipeline(engine, given))
    faults = [reply.detail for _, _, reply in calls if reply.fault]
    spent = sum((reply.usage for _, _, reply in calls), Usage())
    bound(plan)
    plain, prompt, drawn, cached = through_plain(plan, calls)
    report = {
        "model": engine.name,
        "calls": len(calls),
        "faults": len(faults),
        "pipeline": _line(ours, spent.prompt_tokens, spent.completion_tokens, spent.cached_tokens),
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
