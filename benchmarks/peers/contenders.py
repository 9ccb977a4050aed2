"""Who is compared at an endpoint: script, packages with their versions, environment, and the settings chosen."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Contender:
    """One row of the table. Without packages it runs in this environment."""

    name: str
    script: str
    packages: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict[str, str])
    how: str = ""
    """How it was told to run so many calls at once, and to go on after a kill."""
    floor: bool = False
    """It does less than a peer and shows what the machine allows."""


OPENAI = ("openai[aiohttp]==3.57.0",)
ENDPOINT = (
    Contender("tenet", "endpoint_tenet.py", how="concurrency, limits.in_flight; goes on by itself"),
    Contender("asyncio + openai", "endpoint_openai.py", OPENAI, how="a semaphore; finished records in a JSONL file"),
    Contender(
        "asyncio + openai, aiohttp transport",
        "endpoint_openai.py",
        OPENAI,
        {"OPENAI_TRANSPORT": "aiohttp"},
        how="DefaultAioHttpClient, a semaphore; finished records in a JSONL file",
    ),
    Contender(
        "litellm", "endpoint_litellm.py", ("litellm==1.110.2",), how="a semaphore; finished records in a JSONL file"
    ),
    Contender(
        "bespoke curator",
        "endpoint_curator.py",
        ("bespokelabs-curator==0.1.31",),
        how="max_concurrent_requests, limits by the minute out of the way; goes on from its working_dir",
    ),
    Contender(
        "Data Designer",
        "endpoint_designer.py",
        ("data-designer==0.9.7",),
        how="max_parallel_requests, row groups of 128, six at once; ResumeMode.IF_POSSIBLE",
    ),
    Contender(
        "distilabel",
        "endpoint_distilabel.py",
        ("distilabel[openai]==1.5.3", "requests==2.32.5"),
        how="four steps side by side with batches of a quarter of the concurrency; use_cache",
    ),
    Contender("bare aiohttp", "endpoint_aiohttp.py", OPENAI, how="a semaphore; keeps nothing", floor=True),
)
QUIET = {
    # No peer shall reach for the network: telemetry, price lists, hubs.
    "TELEMETRY_ENABLED": "false",
    "NEMO_TELEMETRY_ENABLED": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OPENAI_API_KEY": "none",
}
