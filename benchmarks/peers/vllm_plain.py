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
    for stage in ("reply", "verdict"):  # what is compiled or loaded at the first call is no stage's cost
        some = {"reply": "One.", "revision": "Two."}
        asked = [chain.NANO.messages(stage, {**row, **some}) for row in rows[:8]]
        llm.chat(asked, SamplingParams(**{**engine.sampling(stage), "max_tokens": 1}), use_tqdm=False)
    begun, done = time.time(), []
    for stage in chain.STAGES:
        going = [row for row in rows if stage != "verdict" or engine.differ(row)]
        asked = [chain.NANO.messages(stage, row) for row in going]
        outs = llm.chat(asked, SamplingParams(**engine.sampling(stage)), use_tqdm=False)
        for row, out in zip(going, outs, strict=True):
            row[stage] = out.outputs[0].text
        done += outs
    work_s = time.time() - begun
    prompt, drawn = sum(len(o.prompt_token_ids) for o in done), sum(len(o.outputs[0].token_ids) for o in done)
    engine.tell(rows, work_s, len(done), prompt, drawn)
    llm.llm_engine.engine_core.shutdown()  # else its processes keep this one from ending


if __name__ == "__main__":
    main()
