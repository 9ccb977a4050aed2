"""How long `tenet agree` takes on a million votes with 1,000 resamples, and how much memory; prints JSON."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VOTES = 1_000_000
PEOPLE, JUDGES = 3, 2


def write(path: Path, votes: int) -> int:
    """A file of votes: three people, and two judges asked in both orders; returns the number of items."""
    draw = random.Random(0)
    each = PEOPLE + 2 * JUDGES
    items = votes // each
    with path.open("w", encoding="utf-8") as file:
        for i in range(items):
            true = draw.choice("AB")
            facts = {"item": f"item-{i:07}", "len_a": draw.randrange(900), "len_b": draw.randrange(900)}
            facts["slices"] = {"topic": f"topic {i % 20}"}
            for k in range(PEOPLE):
                verdict = true if draw.random() < 0.85 else draw.choice(["A", "B", "tie"])
                file.write(json.dumps({**facts, "rater": f"person {k}", "kind": "human", "verdict": verdict}) + "\n")
            for k in range(JUDGES):
                for order in ("ab", "ba"):
                    p = min(1.0, max(0.0, draw.gauss(0.7 - 0.05 * k if true == "A" else 0.3 + 0.05 * k, 0.2)))
                    verdict = "invalid" if draw.random() < 0.01 else "A" if p > 0.5 else "B"
                    vote = {
                        "rater": f"judge {k}",
                        "kind": "judge",
                        "verdict": verdict,
                        "order": order,
                        "p_a": round(p, 4),
                    }
                    file.write(json.dumps({**facts, **vote}) + "\n")
    return items


def main() -> None:
    votes = int(sys.argv[1]) if len(sys.argv) > 1 else VOTES
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "votes.jsonl", Path(folder) / "agree.json"
        items = write(path, votes)
        size = path.stat().st_size
        begun = time.perf_counter()
        command = [sys.executable, "-m", "service", "agree", str(path), "--json", str(out), "--report", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parent.parent)
        seconds = time.perf_counter() - begun
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        judged = json.loads(out.read_text())["judges"]["judge 0"]
        told = {
            "votes": items * (PEOPLE + 2 * JUDGES),
            "items": items,
            "resamples": 1000,
            "file_mib": round(size / 2**20, 1),
            "seconds": round(seconds, 1),
            "peak_mib": round(peak / 2**20),
            "accuracy": judged["accuracy"],
        }
        print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
