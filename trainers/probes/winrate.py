"""Win rates of a stage over the one before: raw, and as if both had written replies of one length."""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from trainers.probes._stats import weighted

RULE = (
    "raw: mean of the wins (1 won, 0 lost, the judge's probability where it gives one, a tie 0.5) with a 95% bootstrap "
    "interval over prompts. Length-controlled (after Dubois et al., arXiv 2404.04475, without their term for a "
    "prompt's difficulty, which takes many models): a binomial GLM with logit p = theta + phi tanh(d / s), where d is "
    "the difference in length (characters, after less before) and s the standard deviation of d; the figure is "
    "1 / (1 + exp(-theta)), its 95% interval from theta's robust (HC1) standard error. Unreadable verdicts are left "
    "out and counted."
)
_LEAST = 10


class Duel(NamedTuple):
    """One prompt's verdict."""

    won: float
    """1 where the later stage won, 0 where it lost; between them, a probability or a tie."""
    before: int
    """Length of the earlier stage's reply, in characters."""
    after: int


def measure(duels: Sequence[Duel], unread: int = 0) -> dict[str, Any]:
    """Raw and length-controlled win rate of the later stage."""
    return {
        "rule": RULE,
        "n": len(duels),
        "unreadable": unread,
        "raw": weighted([d.won for d in duels], [1.0] * len(duels)),
        "length_controlled": controlled(duels),
        "mean_length": {
            "before": float(np.mean([d.before for d in duels])) if duels else None,
            "after": float(np.mean([d.after for d in duels])) if duels else None,
        },
    }


def controlled(duels: Sequence[Duel]) -> dict[str, Any]:
    """The length-controlled win rate; null with the reason where the model cannot be fitted."""

    def nothing(why: str) -> dict[str, Any]:
        return {"value": None, "low": None, "high": None, "n": len(duels), "why": why}

    if len(duels) < _LEAST:
        return nothing(f"fewer than {_LEAST} verdicts")
    won = np.asarray([d.won for d in duels], dtype=float)
    apart = np.asarray([d.after - d.before for d in duels], dtype=float)
    spread = float(apart.std())
    if spread == 0:
        return nothing("all differences in length are the same, so length cannot be told from quality")
    if won.max() == 0 or won.min() == 1:
        return nothing("one stage won every time")
    lost, gained = apart[won < 1], apart[won > 0]
    if lost.max() <= gained.min() or gained.max() <= lost.min():
        return nothing("length alone separates wins from losses")
    import statsmodels.api as sm
    from statsmodels.tools.sm_exceptions import PerfectSeparationWarning

    design = np.column_stack([np.ones(len(duels)), np.tanh(apart / spread)])
    with warnings.catch_warnings():
        # It warns of any fit without error, which soft verdicts may allow; separation was looked for above.
        warnings.simplefilter("ignore", PerfectSeparationWarning)
        fit: Any = sm.GLM(won, design, family=sm.families.Binomial()).fit(cov_type="HC1")
    theta, phi = (float(x) for x in fit.params)
    error = float(fit.bse[0])
    if not math.isfinite(error) or not math.isfinite(theta):
        return nothing("the fit does not converge")
    low, value, high = (1 / (1 + math.exp(-t)) for t in (theta - 1.959964 * error, theta, theta + 1.959964 * error))
    return {"value": value, "low": low, "high": high, "n": len(duels), "theta": theta, "phi": phi, "scale": spread}
