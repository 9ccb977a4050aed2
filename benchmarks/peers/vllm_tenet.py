"""tenet on real vLLM: `tenet generate`, everything included that the command does."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import chain
import engine

RECIPE = """
prompts: {{path: prompts.jsonl, dedup: exact}}
constitution: one.yaml
models: {{m: {{kind: vllm, model: "nano:assistant", dtype: {dtype}}}}}
respond: {{samples: 1, sampling: {{max_tokens: {most}}}}}
revise: {{rounds: 1, sampling: {{max_tokens: {most}}}}}
pairs: [{{kind: initial_vs_revision}}]
judge: {{kind: pairwise, order: given}}
limits: {{in_flight: 512}}
"""


def main() -> None:
    given = engine.arguments()
    (given.folder / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": p}) for p in given.prompts))
    (given.folder / "one.yaml").write_text(chain.NANO.constitution())
    recipe, out = given.folder / "recipe.yaml", given.folder / "runs" / "r"
    recipe.write_text(RECIPE.format(most=chain.NANO.max_tokens, dtype=given.args["dtype"]))
    command = [sys.executable, "-m", "service", "generate", str(recipe), "--out", str(out)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL)
    manifest = json.loads((out / "manifest.json").read_text())
    used = manifest["usage"].values()
    told = {
        "done": time.time(),
        "records": manifest["prompts"]["rows"],
        "work_s": manifest["seconds"],
        "calls": manifest["asked"],
        "prompt_tokens": sum(u["prompt_tokens"] for u in used),
        "drawn_tokens": sum(u["completion_tokens"] for u in used),
    }
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
