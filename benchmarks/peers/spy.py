"""Where `tenet generate` spends its time against the stub: py-spy's samples of whoever holds the interpreter, as text.

python benchmarks/peers/spy.py [--records 2000] > docs/benchmarks/profile.txt
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import chain
from endpoint_tenet import RECIPE
from run import HERE, stub

OURS = ("tenet/", "service/", "generators/", "judges/", "constitution/", "aiohttp/", "asyncio/", "pandas/", "pydantic/")
Samples = list[tuple[list[str], int]]


def record(records: int, folder: Path) -> Samples:
    """(stack of "function (file", number of samples) pairs of one run."""
    with stub(0.05) as base_url:
        (folder / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": p}) for p in chain.prompts(records)))
        (folder / "one.yaml").write_text(chain.ENDPOINT.constitution())
        (folder / "recipe.yaml").write_text(RECIPE.format(base_url=base_url, concurrency=256))
        spied = folder / "spied.txt"
        command = ["py-spy", "record", "--gil", "--rate", "200", "--format", "raw", "-o", str(spied), "--"]
        command += [sys.executable, "-m", "service", "generate", str(folder / "recipe.yaml"), "--out", f"{folder}/r/r"]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        subprocess.run(command, cwd=HERE.parents[1], env={**os.environ, "PATH": path}, check=True, capture_output=True)
    return read(spied.read_text().splitlines())


def read(lines: Iterable[str]) -> Samples:
    """py-spy's raw format: frames from the outermost, joined by ";", and a count; line numbers are left out."""
    pairs = (line.rsplit(" ", 1) for line in lines)
    return [([frame.rsplit(":", 1)[0] for frame in stack.split(";")], int(n)) for stack, n in pairs]


def show(samples: Samples, rows: int = 40) -> None:
    total = sum(n for _, n in samples)
    alone, within = collections.Counter[str](), collections.Counter[str]()
    for stack, n in samples:
        alone[stack[-1]] += n
        for frame in set(stack):
            within[frame] += n
    print(f"{total} samples\n\nin the function and what it calls")
    named = [(frame, n) for frame, n in within.most_common() if any(f"({home}" in frame for home in OURS)]
    imports = sum(n for stack, n in samples if any("_find_and_load " in frame for frame in stack))
    print(f"{imports / total:6.1%}  imports")
    for frame, n in named[:rows]:
        print(f"{n / total:6.1%}  {frame})")
    print("\nin the function itself")
    for frame, n in alone.most_common(rows // 2):
        print(f"{n / total:6.1%}  {frame or '(not in Python)'}{')' if frame else ''}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--records", type=int, default=2000)
    given = options.parse_args()
    setting = f"{given.records} records of four calls, stub of 50 ms, 256 at once"
    print(f"tenet generate, {setting}; load {os.getloadavg()[0]:.0f}")
    with tempfile.TemporaryDirectory() as folder:
        show(record(given.records, Path(folder)))


if __name__ == "__main__":
    main()
