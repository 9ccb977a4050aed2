"""The evaluator's script as one finds it: pandas, a majority of people, scikit-learn's kappa, a plain bootstrap."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, cohen_kappa_score

RESAMPLES = 1000
LABELS = ["A", "B", "tie"]


def main() -> None:
    votes = pd.read_json(sys.argv[1], lines=True)
    people = votes[votes.kind == "human"].groupby("item").verdict.agg(lambda v: v.mode())
    gold = people[people.map(lambda m: isinstance(m, str))]  # several modes: no majority
    found = {}
    for judge, asked in votes[votes.kind == "judge"].groupby("rater"):
        said = asked.groupby("item").verdict.agg(lambda v: v.iloc[0] if v.nunique() == 1 else "tie")
        both = pd.DataFrame({"gold": gold, "said": said[said != "invalid"]}).dropna()
        found[judge] = scores(*(pd.Categorical(both[c], LABELS).codes for c in both))
    print(json.dumps(found))


def scores(gold: Any, said: Any) -> dict[str, Any]:
    """Accuracy and kappa with 95% percentile intervals over resampled items."""
    draw, accuracy, kappa = np.random.default_rng(0), [], []
    for _ in range(RESAMPLES):
        at = draw.integers(len(gold), size=len(gold))
        accuracy.append(accuracy_score(gold[at], said[at]))
        kappa.append(cohen_kappa_score(gold[at], said[at]))
    ends = {"accuracy": np.percentile(accuracy, [2.5, 97.5]), "kappa": np.percentile(kappa, [2.5, 97.5])}
    return {
        "accuracy": accuracy_score(gold, said),
        "kappa": cohen_kappa_score(gold, said),
        "ends": {name: [round(float(x), 4) for x in pair] for name, pair in ends.items()},
        "n": len(gold),
    }


if __name__ == "__main__":
    main()
