"""Ray Data LLM: a vLLM processor a stage; two cores have place for one engine at a time, so stages are barriers."""

from __future__ import annotations

from typing import Any

import chain
import engine
import ray
from ray.data.llm import build_processor, vLLMEngineProcessorConfig


def processor(args: dict[str, Any], stage: str) -> Any:
    """One stage."""
    config = vLLMEngineProcessorConfig(
        model_source=args["model"],
        engine_kwargs={key: value for key, value in args.items() if key != "model"},
        batch_size=64,
        max_concurrent_batches=8,
        concurrency=1,
        log_engine_metrics=False,  # they need ray[serve]
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
            "tokens": (row["num_input_tokens"], row["num_generated_tokens"]),
        },
    )


def main() -> None:
    given = engine.arguments()
    ray.init(
        address="local", num_cpus=8, include_dashboard=False, log_to_driver=False
    )  # more logical cores than there are: no deadlock
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows: list[dict[str, Any]] = [{"prompt": p} for p in given.prompts]
    tokens: list[tuple[int, int]] = []
    for stage in chain.STAGES:
        going = [row for row in rows if stage != "verdict" or engine.differ(row)]
        done = processor(given.args, stage)(ray.data.from_items(going)).take_all()
        tokens += [row["tokens"] for row in done]
        rows = done if stage != "verdict" else rows
    # each stage starts an engine of its own, whose start cannot be told apart from outside: no seconds of work
    engine.tell(rows, None, len(tokens), sum(t[0] for t in tokens), sum(t[1] for t in tokens))
    ray.shutdown()


if __name__ == "__main__":
    main()
