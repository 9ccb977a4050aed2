"""NeMo Data Designer: four LLM columns over a seed of prompts."""

from __future__ import annotations

import chain
import data_designer.config as dd
import pandas as pd
from data_designer.config.run_config import ResumeMode
from data_designer.interface import DataDesigner

ROWS = 128
"""Records of a row group: what a kill loses. Its default, 1,000, would lose all of a run this small."""


def config(given: chain.argparse.Namespace) -> dd.DataDesignerConfigBuilder:
    """The four columns; each stage's sampling is a model of its own, all at the same endpoint."""
    models = []
    for stage in chain.STAGES:
        asked = chain.ENDPOINT.sampling(stage)
        usual = {key: asked.pop(key) for key in ("max_tokens", "temperature")}
        parameters = dd.ChatCompletionInferenceParams(
            max_parallel_requests=given.concurrency, timeout=600, extra_body=asked or None, **usual
        )
        models.append(dd.ModelConfig(alias=stage, model="stub", provider="stub", inference_parameters=parameters))
    builder = dd.DataDesignerConfigBuilder(model_configs=models)
    seed = given.folder / "prompts.parquet"
    if not seed.exists():
        pd.DataFrame({"prompt": chain.prompts(given.records)}).to_parquet(seed)
    builder.with_seed_dataset(dd.LocalFileSeedSource(path=str(seed)))
    for stage in chain.STAGES:
        builder.add_column(dd.LLMTextColumnConfig(name=stage, model_alias=stage, prompt=chain.ENDPOINT.template(stage)))
    return builder


def main() -> None:
    given = chain.arguments()
    provider = dd.ModelProvider(name="stub", endpoint=given.base_url, provider_type="openai", api_key="none")
    designer = DataDesigner(artifact_path=given.folder / "artifacts", model_providers=[provider])
    designer.set_run_config(dd.RunConfig(buffer_size=ROWS, max_concurrent_row_groups=2 + given.concurrency // ROWS * 2))
    made = designer.create(
        config(given), num_records=given.records, dataset_name="peers", resume=ResumeMode.IF_POSSIBLE
    )
    chain.tell(made.load_dataset()["verdict"])


if __name__ == "__main__":
    main()
