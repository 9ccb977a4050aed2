"""Plain vLLM: `LLM.chat` a stage at a time over all prompts, each stage a barrier; prefix caching is on."""

from __future__ import annotations

import time

import chain
import engine


def main() -> None:
    given = engine.arguments()
    from vllm import LLM, SamplingParams

    llm = LLM(**given.args)
    rows = [{"prompt": p} for p in given.prompts]
    llm.chat([chain.NANO.messages("reply", row) for row in rows[:8]], SamplingParams(max_tokens=8), use_tqdm=False)
    begun = time.time()
    for stage in chain.STAGES:
        asked = [chain.NANO.messages(stage, row) for row in rows]
        outs = llm.chat(asked, SamplingParams(**engine.sampling(stage)), use_tqdm=False)
        for row, out in zip(rows, outs, strict=True):
            row[stage] = out.outputs[0].text
    engine.tell(rows, begun)
    llm.llm_engine.engine_core.shutdown()  # else its processes keep this one from ending


if __name__ == "__main__":
    main()
