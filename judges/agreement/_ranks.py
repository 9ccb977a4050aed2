"""Wilcoxon's signed-rank test for few differences, exact also where they are tied."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from importlib import import_module
from typing import Any

from judges.agreement.votes import Array

MOST = 13
"""Up to so many differences, scipy tries all 2^n signs where some are tied: ten seconds and more."""


def signed_rank(differences: Array) -> float:
    """p of "they lie below 0" (Wilcoxon 1945); differences of 0 are left out.

    The same as scipy.stats.wilcoxon(differences, alternative="less").pvalue, to rounding. There must be one that is
    not 0.
    """
    import numpy as np

    stats: Any = import_module("scipy.stats")
    if len(differences) > MOST:
        return float(stats.wilcoxon(differences, alternative="less").pvalue)
    held = differences[differences != 0]
    doubled = np.rint(2 * stats.rankdata(np.abs(held))).astype(np.int64)  # a tied rank may end in a half
    ways = np.zeros(int(doubled.sum()) + 1)  # sum of the positive ranks -> in how many of the 2^n choices of signs
    ways[0] = 1.0
    for rank in doubled:
        ways[rank:] = ways[rank:] + ways[:-rank]
    return float(ways[: int(doubled[held > 0].sum()) + 1].sum() / 2.0 ** len(held))
