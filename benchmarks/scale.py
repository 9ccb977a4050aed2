"""A run's memory and speed by its number of prompts: the whole pipeline on the scripted engine, exports included.

    python benchmarks/scale.py --prompts 10000 1000000 > docs/benchmarks/scale.json

Each size runs in a process of its own, so that its peak memory is its own. Every prompt costs two
replies and a judgement in both orders, so four calls; two of a thousand prompts repeat another.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tenet.engines import Reply, Request
from tenet.records import Usage

RECIPE = """
prompts: {path: prompts.jsonl, dedup: exact}
constitution: helpful
models:
  m: {kind: scripted, script: "benchmarks.scale:play"}
revise: {rounds: 0}
judge: {kind: pairwise, order: both}
"""
ANSWER = "Rinse the brush under warm water, and let it dry flat on a towel. "


def play(request: Request) -> Reply:
    """A reply of 60 to 600 characters, or a verdict, both decided by the request alone."""
    name = int(request.key("")[:8], 16)
    usage = Usage(calls=1, prompt_tokens=40, completion_tokens=20)
    if request.choices:
        p = 0.05 + 0.9 * (name % 997) / 997
        return Reply(choice_logprobs=(math.log(p), math.log(1 - p)), usage=usage)
    return Reply(text=f"{name} " + ANSWER * (1 + name % 9), usage=usage)


def one(prompts: int, folder: Path) -> dict[str, Any]:
    """Makes the prompts and runs the command on them, as a user would."""
    with (folder / "prompts.jsonl").open("w") as file:
        for i in range(prompts):
            asked = f"How do I clean brush number {i - i % 500 if i % 500 == 1 else i}?"
            file.write(json.dumps({"prompt": asked}) + "\n")
    (folder / "recipe.yaml").write_text(RECIPE)
    root = Path(__file__).parent.parent
    where = [str(folder / "recipe.yaml"), "--out", str(folder / "runs/r")]
    command = [sys.executable, "-m", "service", "generate", *where]
    begun = time.perf_counter()
    env = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        said, wrong = process.communicate()
    if process.returncode:
        raise SystemExit(said.decode() + wrong.decode())
    wall = time.perf_counter() - begun
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    manifest = json.loads((folder / "runs/r/manifest.json").read_text())
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    return {
        "prompts": prompts,
        "kept": manifest["prompts"]["kept"],
        "dropped": manifest["prompts"]["dropped"],
        "state": manifest["state"],
        "calls": manifest["asked"],
        "wall_seconds": round(wall, 1),
        "generating_seconds": manifest["seconds"],
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "cpu_microseconds_a_prompt": round((used.ru_utime + used.ru_stime) / prompts * 1e6),
        "peak_memory_megabytes": used.ru_maxrss >> 10,
        "megabytes_on_disk": size >> 20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--prompts", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--folder", default=None, help="where to write, about 5 kB a prompt")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        with tempfile.TemporaryDirectory(dir=given.folder) as place:
            print(json.dumps(one(given.one, Path(place))))
        return
    found: list[Any] = []
    for n in given.prompts:  # each in a process of its own: getrusage tells the largest child there was
        more = ["--folder", given.folder] if given.folder else []
        done = subprocess.run([sys.executable, __file__, "--one", str(n), *more], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        found.append(json.loads(done.stdout))
        print(f"{n} prompts done", file=sys.stderr)
    machine = {
        "cores": os.cpu_count(), "processor": platform.processor() or platform.machine(),
        "load_average": [round(x, 1) for x in os.getloadavg()], "nice": os.nice(0),
        "python": platform.python_version(), "system": f"{platform.system()} {platform.release()}",
    }  # fmt: skip
    print(json.dumps({"machine": machine, "runs": found}, indent=2))


if __name__ == "__main__":
    main()
