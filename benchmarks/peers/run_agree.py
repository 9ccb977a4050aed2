"""Compares `tenet agree` with the scripts that evaluators use, on the same votes; writes "agree" in a JSON file.

python benchmarks/peers/run_agree.py --venvs /tmp/peers [--votes 1000000] [--only tenet]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from contenders import QUIET, Contender
from run import HERE, end_of, python_of
from watch import Watched

from benchmarks.agree import write as write_votes

CONTENDERS = (
    Contender("tenet agree", ""),
    Contender("pandas + scikit-learn", "agree_typical.py"),
    Contender("alpaca_eval's Analyzer", "agree_alpaca.py", ("alpaca-eval==0.6.6", "setuptools<81")),
)


def measure(contender: Contender, votes: Path, given: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        command = [str(python_of(contender, given.venvs)), str(HERE / contender.script), str(votes)]
        if not contender.script:
            more = ["--json", str(folder / "agree.json"), "--report", place]
            command = [sys.executable, "-m", "service", "agree", str(votes), *more]
        begun = time.time()
        cwd = HERE.parents[1] if not contender.script else folder
        watched = Watched(command, env={**os.environ, **QUIET}, cwd=cwd, log=folder / "log.txt")
        code = watched.wait(given.timeout)
        seconds, said = time.time() - begun, end_of(watched)
        if code != 0:
            why = f"not done after {given.timeout:.0f} s, {watched.cpu_s:.0f} s of CPU" if code is None else said
            return {"failed": why}
        if not contender.script:
            judged = json.loads((folder / "agree.json").read_text())["judges"]
            said = json.dumps({name: {k: j[k] for k in ("accuracy", "cohen_kappa")} for name, j in judged.items()})
    used = {"seconds": round(seconds, 1), "cpu_s": round(watched.cpu_s, 1), "peak_mib": round(watched.peak / 2**20)}
    return {**used, "load": round(os.getloadavg()[0], 1), "said": json.loads(said)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--venvs", type=Path, required=True, help="folder of the peers' environments, made if missing")
    options.add_argument("--votes", type=int, default=1_000_000)
    options.add_argument("--timeout", type=float, default=1200, help="seconds one may take")
    options.add_argument("--only", default="", help="names, separated by commas")
    options.add_argument("--out", type=Path, default=Path("docs/benchmarks/peers.json"))
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as place:
        votes = Path(place) / "votes.jsonl"
        items = write_votes(votes, given.votes)
        for contender in CONTENDERS:
            if given.only and contender.name not in given.only.split(","):
                continue
            said = measure(contender, votes, given)
            print(contender.name, said, file=sys.stderr, flush=True)
            before: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
            found = {**before.get("agree", {}).get("found", {}), contender.name: said}
            told = {"votes": given.votes, "items": items, "resamples": 1000, "cores": os.cpu_count(), "found": found}
            given.out.write_text(json.dumps({**before, "agree": told}, indent=1) + "\n")


if __name__ == "__main__":
    main()
