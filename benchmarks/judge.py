"""Pairs judged per second: by log-probabilities, against plain vLLM's full batch, and against text verdicts behind
a rationale.

Pairs of nano's small world, four principles each, both slot orders: eight calls of one decoded token a pair. The
judge's wall time (rendering, tokenising, ledger on disk, parsing included) stands over what plain `LLM.generate`
needs for the same calls as one batch, already tokenised. Prints JSON; the target is a `ratio` up to 1.10.

    python benchmarks/judge.py [--model nano:assistant] [--pairs 2000]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from engine_floor import Call, Recorder, bound, through_plain

from judges import pairs_file
from nano import pairs
from service import judging
from tenet.engines.vllm import Settings, VllmEngine, build
from tenet.records import Usage

CONFIG = """
constitution: nano
models: {{m: {{kind: vllm, model: "{model}"}}}}
judge: {{kind: pairwise, principles: {principles}}}
"""


async def judged(
    engine: VllmEngine, given: argparse.Namespace, folder: Path, n: int, *overrides: str
) -> tuple[float, list[Call]]:
    """Seconds for n pairs, and the calls that they took; the ledger starts empty."""
    (folder / "judge.yaml").write_text(CONFIG.format(model=given.model, principles=given.principles))
    lines = (json.dumps(row) for row in pairs.rows(n, seed=5))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    plan = judging.open_config(folder / "judge.yaml", overrides)
    recorder = Recorder(engine)
    workspace = Path(tempfile.mkdtemp(dir=folder))
    async with judging.opened(plan, workspace, "bench", {"m": recorder}) as session:
        read = list(pairs_file.read(str(folder / "pairs.jsonl")))
        begun = time.perf_counter()
        async for one in judging.judge_pairs(session.judge, read, in_flight=512):
            assert one.verdict.p_a is not None, one.verdict.why
        return time.perf_counter() - begun, recorder.calls


async def through_judge(engine: VllmEngine, given: argparse.Namespace) -> tuple[float, list[Call], float, list[Call]]:
    await engine.start()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        await judged(engine, given, folder, 8)
        fast, calls = await judged(engine, given, folder, given.pairs)
        slow, said = await judged(engine, given, folder, given.pairs // 4, "judge.cot=true", "judge.read=text")
    await engine.close()
    return fast, calls, slow, said


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="nano:assistant")
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--principles", type=int, default=4)
    given = parser.parse_args()
    engine = build(Settings(model=given.model))
    plan = engine.pool.plan
    fast, calls, slow, said = asyncio.run(through_judge(engine, given))
    bound(plan)
    plain, prompt, _, cached = through_plain(plan, calls)
    spent = sum((reply.usage for _, _, reply in calls), Usage())
    report: dict[str, Any] = {
        "model": engine.name,
        "pairs": given.pairs,
        "calls_a_pair": len(calls) / given.pairs,
        "decoded_tokens_a_call": spent.completion_tokens / len(calls),
        "judge": {
            "seconds": round(fast, 2),
            "pairs_per_s": round(given.pairs / fast, 1),
            "prompt_tokens": spent.prompt_tokens,
            "prefix_hit_rate": round(spent.cached_tokens / spent.prompt_tokens, 3),
        },
        "plain_vllm": {
            "seconds": round(plain, 2),
            "pairs_per_s": round(given.pairs / plain, 1),
            "prompt_tokens": prompt,
            "prefix_hit_rate": round(cached / prompt, 3),
        },
        "ratio": round(fast / plain, 3),
        "rationale_and_text": {
            "pairs": given.pairs // 4,
            "calls_a_pair": len(said) / (given.pairs // 4),
            "pairs_per_s": round(given.pairs // 4 / slow, 1),
            "times_slower": round(slow / (given.pairs // 4) / (fast / given.pairs), 1),
        },
        "load": round(os.getloadavg()[0], 1),
        "cores": os.cpu_count(),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
