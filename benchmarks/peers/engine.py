"""What the contenders on real vLLM share: prompts, engine arguments, sampling, and the last line they print."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import chain


def arguments() -> argparse.Namespace:
    """The command line, with `prompts` (texts) and `args` (of vLLM's engine, the same for all) read from the folder."""
    options = argparse.ArgumentParser()
    options.add_argument("--folder", type=Path, required=True)
    given = options.parse_args()
    told = json.loads((given.folder / "engine.json").read_text())
    given.prompts, given.args = told["prompts"], told["args"]
    return given


def sampling(stage: str) -> dict[str, Any]:
    """vLLM's sampling parameters; the verdict is one token with the likeliest twenty beside it."""
    if stage == "verdict":
        return {"max_tokens": 1, "temperature": 0.0, "logprobs": 20}
    return {"max_tokens": chain.NANO.max_tokens, "temperature": 1.0}


def differ(row: Mapping[str, Any]) -> bool:
    """Whether there is something to judge; tenet asks no verdict on two identical replies, so nobody does."""
    return row["reply"] != row["revision"]


def tell(
    rows: Sequence[Mapping[str, Any]], work_s: float | None, calls: int = 0, prompt: int = 0, drawn: int = 0
) -> None:
    """The last line: whole records, seconds of work without the engine's start (None: not known), calls and tokens."""
    stages = chain.STAGES[:3]
    whole = [row for row in rows if all(isinstance(row.get(stage), str) for stage in stages)]
    told = {"done": time.time(), "records": len(whole), "work_s": work_s, "calls": calls}
    print(json.dumps({**told, "prompt_tokens": prompt, "drawn_tokens": drawn}), flush=True)
