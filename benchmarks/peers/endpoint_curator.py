"""Bespoke Curator: an LLM object a stage over the whole dataset, its cache folder kept for going on."""

from __future__ import annotations

from typing import Any

import chain
from bespokelabs import curator


class Stage(curator.LLM):
    """One of the four calls; `stage` says which."""

    stage = ""

    def prompt(self, row: dict[str, Any]) -> list[dict[str, str]]:
        return chain.ENDPOINT.messages(self.stage, row)

    def parse(self, row: dict[str, Any], response: str) -> dict[str, Any]:
        return {**row, self.stage: response}


# A class a stage: the cache is keyed by the code of prompt and parse, not by what an object holds.
class Reply(Stage):
    stage = "reply"


class Critique(Stage):
    stage = "critique"


class Revision(Stage):
    stage = "revision"


class Verdict(Stage):
    stage = "verdict"


def main() -> None:
    given = chain.arguments()
    limits = {
        "base_url": given.base_url,
        "api_key": "none",
        "max_concurrent_requests": given.concurrency,
        # Its own limits by the minute would hold it back; these do not.
        "max_requests_per_minute": 10_000_000,
        "max_tokens_per_minute": 10_000_000_000,
        "request_timeout": 600,
    }
    rows: Any = [{"prompt": p} for p in chain.prompts(given.records)]
    for kind in (Reply, Critique, Revision, Verdict):
        llm = kind(
            model_name="stub",
            backend="openai",
            backend_params=limits,
            generation_params=chain.ENDPOINT.sampling(kind.stage),
        )
        rows = llm(rows, working_dir=str(given.folder / "curator")).dataset
    chain.tell(row["verdict"] for row in rows)


if __name__ == "__main__":
    main()
