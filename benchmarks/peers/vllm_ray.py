"""Ray Data LLM: a vLLM processor a stage; two cores have place for one engine at a time, so stages are barriers."""

from __future__ import annotations

import time
from typing import Any

import chain
import engine
import ray
from ray.data.llm import build_processor, vLLMEngineProcessorConfig


def processor(args: dict[str, Any], stage: str) -> Any:
    """One stage. The postprocess stamps each row, since the engine's start cannot be told apart from outside."""
    config = vLLMEngineProcessorConfig(
        model_source=args["model"],
        engine_kwargs={key: value for key, value in args.items() if key != "model"},
        batch_size=64,
        max_concurrent_batches=8,
        concurrency=1,
        placement_group_config={"bundles": [{"CPU": 1}]},
    )
    return build_processor(
        config,
        preprocess=lambda row: {
            **row,
            "messages": chain.NANO.messages(stage, row),
            "sampling_params": engine.sampling(stage),
        },
        postprocess=lambda row: {
            **{key: row[key] for key in ("prompt", *chain.STAGES) if key in row},
            stage: row["generated_text"],
            "at": time.time(),
        },
    )


def main() -> None:
    given = engine.arguments()
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)  # more logical cores than there are: no deadlock
    ray.data.DataContext.get_current().enable_progress_bars = False
    dataset, worked = ray.data.from_items([{"prompt": p} for p in given.prompts]), 0.0
    for stage in chain.STAGES:
        dataset = processor(given.args, stage)(dataset).materialize()
        at = [row["at"] for row in dataset.take_all()]
        worked += max(at) - min(at)  # from the first batch's end on: a little less than the stage took
    engine.tell(dataset.take_all(), time.time() - worked)
    ray.shutdown()


if __name__ == "__main__":
    main()
