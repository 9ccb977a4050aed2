"""distilabel: four TextGeneration steps, each a process of its own; batches flow from step to step."""

from __future__ import annotations

import chain
from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration

COLUMNS = {
    "reply": ["prompt"],
    "critique": ["prompt", "reply"],
    "revision": ["prompt", "reply", "critique"],
    "verdict": ["prompt", "reply", "revision"],
}


def task(given: chain.argparse.Namespace, stage: str) -> TextGeneration:
    """A stage; a step has one batch in flight, so the four together make up the concurrency."""
    asked = chain.ENDPOINT.sampling(stage)
    asked["max_new_tokens"] = asked.pop("max_tokens")
    llm = OpenAILLM(model="stub", base_url=given.base_url, api_key="none", timeout=600, generation_kwargs=asked)
    return TextGeneration(
        name=stage,
        llm=llm,
        template=chain.ENDPOINT.template(stage),
        columns=COLUMNS[stage],
        output_mappings={"generation": stage},
        input_batch_size=max(1, given.concurrency // len(chain.STAGES)),
        add_raw_output=False,
        add_raw_input=False,
    )


def main() -> None:
    given = chain.arguments()
    batch = max(1, given.concurrency // len(chain.STAGES))
    with Pipeline(name="peers", cache_dir=given.folder / "distilabel") as pipeline:
        rows = [{"prompt": p} for p in chain.prompts(given.records)]
        step = LoadDataFromDicts(name="load", data=rows, batch_size=batch)
        for stage in chain.STAGES:
            step = step >> task(given, stage)
    made = pipeline.run(use_cache=True)
    chain.tell(made["default"]["train"]["verdict"])


if __name__ == "__main__":
    main()
