"""Compares tenet with other ways to run the critique-revise-judge chain on real vLLM; writes "vllm" in a JSON file.

The same prompts, the same toy model, the same engine arguments (tenet's own, prefix caching on) for all; each contender
is a process of its own with an engine of its own, in turn. `work_s` is without the engine's start, `whole_s` with it.

    python benchmarks/peers/run_vllm.py --venvs /tmp/peers [--prompts 300] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from contenders import QUIET
from run import HERE, end_of, told
from watch import Watched

from nano import world
from tenet.engines import _model

CONTENDERS = {
    "tenet": ("vllm_tenet.py", 0),
    "LLM.chat, stage by stage": ("vllm_plain.py", 1),
    "LLM.chat, stage by stage, two threads": ("vllm_plain.py", 2),
    "Ray Data LLM": ("vllm_ray.py", 1),
    "distilabel's vLLM": ("vllm_distilabel.py", 1),
}
"""Script, and the threads that its model gets; tenet binds its own, one of two cores."""
ARGS = {
    # What tenet gives its own engine on CPU; without block_size 32 vLLM's blocks of 128 tokens leave short prompts no
    # prefix to share, and chunked prefill ends the engine where a sampled prompt is read in chunks.
    # On an x86 CPU that only emulates bfloat16 tenet's "auto" is float32; vLLM's own would be far slower there.
    "dtype": "float32" if _model.slow_bf16() else "auto",
    "max_model_len": 2048,
    "enforce_eager": True,
    "max_num_seqs": 256,
    "max_num_batched_tokens": 4096,
    "kv_cache_memory_bytes": 2**30,
    "block_size": 32,
    "enable_prefix_caching": True,
    "enable_chunked_prefill": False,
    "distributed_executor_backend": "uni",
    "load_format": "safetensors",
    "disable_log_stats": True,
}
DISTILABEL = ("distilabel==1.5.3", "orjson", "tblib", "universal-pathlib", "pathlib-abc", "portalocker", "nest-asyncio")


def prepare(folder: Path, prompts: int) -> None:
    """Writes prompts and engine arguments into the folder."""
    rng = random.Random(7)
    asked = [world.question(rng)[1] + f" I have {i} of them." for i in range(prompts)]
    args = {**ARGS, "model": str(Path(world.__file__).parent / "models" / "assistant")}
    (folder / "engine.json").write_text(json.dumps({"prompts": asked, "args": args}))


def environment(threads: int) -> dict[str, str]:
    """vLLM's model in the engine's own process, its threads bound to the first cores."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    places = ",".join(map(str, cores))
    return {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": places,
        "OMP_NUM_THREADS": str(threads),
        "OMP_PLACES": f"{{{places}}}",
        "OMP_PROC_BIND": "true",
    }


def extras(venvs: Path) -> str:
    """A folder with distilabel for PYTHONPATH: vLLM for CPUs is only in this environment."""
    folder = venvs / "distilabel-beside-vllm"
    if not folder.exists():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *DISTILABEL]
        subprocess.run(command, check=True)
    return str(folder)


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder, given.prompts)
        script, threads = CONTENDERS[name]
        env = {**os.environ, **QUIET, **(environment(threads) if threads else {})}
        if "distilabel" in name:
            env["PYTHONPATH"] = extras(given.venvs)
        begun = time.time()
        command = [sys.executable, str(HERE / script), "--folder", place]
        watched = Watched(command, env=env, cwd=folder, log=folder / "log.txt", period=3.0)
        code, said = watched.wait(given.timeout), told(watched)
        if code is None or not said.get("records"):
            (given.venvs / f"{script}.log").write_text(watched.log.read_text(errors="replace"))
            return {"failed": "time" if code is None else "no record came out" if said else end_of(watched)}
    said.pop("done")
    return {
        **said,
        "whole_s": time.time() - begun,
        "cpu_s": watched.cpu_s,
        "peak_mib": watched.peak / 2**20,
        "load": os.getloadavg()[0],
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--venvs", type=Path, required=True, help="folder of the peers' environments, made if missing")
    options.add_argument("--prompts", type=int, default=300)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--timeout", type=float, default=900, help="seconds one run may take")
    options.add_argument("--only", default="", help="names, separated by semicolons")
    options.add_argument("--out", type=Path, default=Path("docs/benchmarks/peers.json"))
    given = options.parse_args()
    chosen = [name for name in CONTENDERS if not given.only or name in given.only.split(";")]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for turn in range(given.repeats):
        for name in chosen[:: 1 if turn % 2 == 0 else -1]:
            if any("failed" in run for run in runs[name]):
                continue  # it would fail again
            runs[name].append(measure(name, given))
            print(name, runs[name][-1], file=sys.stderr, flush=True)
            write(given, runs)


def write(given: argparse.Namespace, runs: dict[str, list[dict[str, Any]]]) -> None:
    before: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    found: dict[str, Any] = before.get("vllm", {}).get("found", {})
    for name, tried in runs.items():
        whole = [run for run in tried if "failed" not in run]
        if whole:
            known = [key for key, value in whole[0].items() if value is not None]
            middle = {key: round(statistics.median(run[key] for run in whole), 2) for key in known}
            found[name] = {**middle, "all_whole_s": [round(run["whole_s"], 1) for run in whole]}
            if "work_s" in known:
                found[name]["all_work_s"] = [round(run["work_s"], 1) for run in whole]
        elif tried:
            found[name] = tried[0]
    setting = {"model": "nano:assistant", "prompts": given.prompts, "calls_a_record": 4, "cores": os.cpu_count()}
    given.out.write_text(json.dumps({**before, "vllm": {**setting, "found": found}}, indent=1) + "\n")


if __name__ == "__main__":
    main()
