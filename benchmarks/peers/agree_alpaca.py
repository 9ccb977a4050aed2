"""alpaca_eval's own analysis of evaluators: each judge's agreement with people, people's variance; no intervals."""

from __future__ import annotations

import json
import sys

import pandas as pd
from alpaca_eval.analyze import Analyzer


def main() -> None:
    votes = pd.read_json(sys.argv[1], lines=True)
    votes["preference"] = votes.verdict.map({"A": 1.0, "B": 2.0, "tie": 1.5})
    votes = votes.dropna(subset=["preference"])
    people = votes[votes.kind == "human"][["item", "preference"]]
    analyzer = Analyzer(gold_crossannotations=people, gold_annotations=people, keys=("item",), n_annotators=3)
    found = {"people": float(analyzer.estimate_variance(analyzer.df_gold_crossannotations))}
    for judge, asked in votes[votes.kind == "judge"].groupby("rater"):
        agreed = analyzer.agreement_of_annotations(asked[["item", "preference"]], n_majority_vote_1=1)
        found[judge] = float(agreed["score"])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
