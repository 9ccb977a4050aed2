"""distilabel's vLLM class: four TextGeneration steps, one engine at a time, each a process of its own."""

from __future__ import annotations

import time

import chain
import engine
from distilabel.models import vLLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration
from endpoint_distilabel import COLUMNS


def main() -> None:
    given = engine.arguments()
    args = {key: value for key, value in given.args.items() if key not in ("model", "dtype")}
    begun = time.time()
    with Pipeline(name="peers", cache_dir=given.folder / "distilabel") as pipeline:
        step = LoadDataFromDicts(name="load", data=[{"prompt": p} for p in given.prompts], batch_size=512)
        for stage in chain.STAGES:
            asked = engine.sampling(stage)
            asked["max_new_tokens"] = asked.pop("max_tokens")
            step = step >> TextGeneration(
                name=stage,
                llm=vLLM(
                    model=given.args["model"],
                    dtype=given.args["dtype"],
                    extra_kwargs=args,
                    generation_kwargs=asked,
                    disable_cuda_device_placement=True,
                ),
                template=chain.NANO.template(stage),
                columns=COLUMNS[stage],
                output_mappings={"generation": stage},
                input_batch_size=512,
            )
    made = pipeline.run(use_cache=False, load_groups="sequential_step_execution")
    engine.tell(list(made["default"]["train"]), time.time() - begun, calls=4 * len(given.prompts))


if __name__ == "__main__":
    main()
