"""tenet: `tenet generate` on a recipe of four calls a record, everything included that the command does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import chain

RECIPE = """
prompts: {{path: prompts.jsonl, dedup: exact}}
constitution: one.yaml
models:
  stub: {{kind: openai, model: stub, base_url: "{base_url}", concurrency: {concurrency}, key_env: ""}}
respond: {{samples: 1}}
revise: {{rounds: 1}}
pairs: [{{kind: initial_vs_revision}}]
judge: {{kind: pairwise, order: given}}
limits: {{in_flight: {concurrency}}}
"""


def main() -> None:
    given = chain.arguments()
    prompts = given.folder / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": p}) for p in chain.prompts(given.records)))
    (given.folder / "one.yaml").write_text(chain.ENDPOINT.constitution())
    recipe = given.folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(base_url=given.base_url, concurrency=given.concurrency))
    out = given.folder / "runs" / "r"
    command = [sys.executable, "-m", "service", "generate", str(recipe), "--out", str(out)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL)
    manifest = json.loads((out / "manifest.json").read_text())
    chain.tell([True] * manifest["prompts"]["kept"])


if __name__ == "__main__":
    main()
