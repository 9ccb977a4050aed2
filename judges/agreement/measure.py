"""All figures of a set of votes in one object, which the JSON, the report and the terminal show."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from judges.agreement import bias, ceiling, metrics
from judges.agreement._fields import empty, figure
from judges.agreement.between import between
from judges.agreement.calibration import calibration
from judges.agreement.ceiling import AltTest, Crowd
from judges.agreement.people import People
from judges.agreement.rules import Rules, Undefined
from judges.agreement.view import View
from judges.agreement.votes import VERDICTS, Array, Votes
from tenet.errors import SettingsError
from tenet.settings import closest

SMALL = 30
"""A slice with fewer scored items is marked."""
MOST_VALUES = 50
"""A slice with more values than this is left out, unless it was asked for."""
_BIASES = ("longer_share", "longer_baseline", "first_baseline", "majority_baseline", "by_length_quartile")
_PEOPLE = ("pairwise_agreement", "cohen", "fleiss_kappa", "krippendorff_alpha", "gwet_ac1", "leave_one_out_ceiling")


@dataclass(frozen=True)
class Agreement:
    """What `measure` found: the figures, as the JSON holds them, and each judge's View behind them."""

    figures: dict[str, Any]
    views: tuple[View, ...]


def measure(votes: Votes, rules: Rules, judges: Sequence[str] = (), by: Sequence[str] = ()) -> Agreement:
    """{"rules", "input", "humans", "judges": {name: …}, "between"}; every undefined figure is null beside a "why".

    `judges` names raters (none: all of kind judge), `by` slices (none: all with at most 50 values).
    Raises SettingsError for a rater or slice that the votes lack.
    """
    people = People.of(votes)
    views = [View(votes, people, r, rules) for r in _chosen(votes, judges)]
    for name in by:
        if name not in votes.slices:
            fix = closest(name, votes.slices) or "the votes have no slices"
            raise SettingsError(f"no vote has a slice {name!r}", where="--by", fix=fix)
    crowd = _crowd(votes, people)
    figures: dict[str, Any] = {
        "rules": rules.model_dump(),
        "input": {
            "votes": len(votes.item),
            "items": len(votes.items),
            "graded": votes.graded,
            "classes": list(people.classes),
            "ignored_columns": list(votes.ignored),
        },
        "humans": _humans(votes, people, crowd),
        "judges": {view.name: _judge(view, crowd, by) for view in views},
        "between": between(views, rules) if people.classes else _no_between(people),
    }
    return Agreement(figures, tuple(views))


def known_metrics() -> dict[str, Callable[[View], Any]]:
    """Every public function that `metrics` defines, by name, in the order in which they stand there."""
    found = inspect.getmembers(metrics, lambda f: inspect.isfunction(f) and f.__module__ == metrics.__name__)
    public = [(name, f) for name, f in found if not name.startswith("_")]
    return dict(sorted(public, key=lambda x: x[1].__code__.co_firstlineno))


def _chosen(votes: Votes, names: Sequence[str]) -> list[int]:
    judges = votes.of_kind(judges=True)
    known = [votes.raters[r] for r in judges]
    for name in names:
        if name not in known:
            what = f"{name!r} is a person" if name in votes.raters else f"no vote is by {name!r}"
            fix = closest(name, known) or "the votes have no rater of kind judge"
            raise SettingsError(what, where="--judge", fix=fix)
    return [r for r in judges if not names or votes.raters[r] in names]


def _crowd(votes: Votes, people: People) -> Crowd | str:
    try:
        return Crowd(votes, people)
    except Undefined as e:
        return str(e)


def _humans(votes: Votes, people: People, crowd: Crowd | str) -> dict[str, Any]:
    import numpy as np

    labels = np.bincount(votes.rater[people.votes], minlength=len(votes.raters))
    raters = {votes.raters[r]: int(labels[r]) for r in votes.of_kind(judges=False)}
    made: dict[str, Any] = {"raters": raters, "items": len(np.unique(votes.item[people.votes]))}
    states = np.bincount(people.majority + 1, minlength=len(people.classes) + 1)
    made["majority"] = dict(zip((*people.classes,), map(int, states[1:]), strict=True))
    made["no_majority"] = made["items"] - sum(made["majority"].values())
    why: dict[str, str] = {}
    asked = _Never(crowd) if isinstance(crowd, str) else crowd
    for name in _PEOPLE:
        made[name], said = figure(getattr(Crowd, name), asked)
        if said:
            why[name] = said
    return made | {"why": why}


class _Never:
    """Stands for people among whom no figure exists: whatever is asked of it is undefined, for one reason."""

    def __init__(self, why: str) -> None:
        self._why = why

    def __getattr__(self, name: str) -> Any:
        raise Undefined(self._why)


def _judge(view: View, crowd: Crowd | str, by: Sequence[str]) -> dict[str, Any]:
    import numpy as np

    why: dict[str, str] = {}
    labelled = np.zeros(len(view.votes.items), dtype=bool)
    labelled[view.votes.item[view.people.votes]] = True
    judged = np.zeros(len(labelled), dtype=bool)
    judged[view.votes.item[view.cast]] = True
    both = labelled & judged
    gold = (view.gold.sum(axis=1) > 0) if view.classes else labelled
    made: dict[str, Any] = {
        "n": view.n,
        "coverage": {
            "both": int(both.sum()),
            "judge_only": int((judged & ~labelled).sum()),
            "human_only": int((labelled & ~judged).sum()),
            "no_gold": int((both & ~gold).sum()),
        },
        "states": _states(view),
    }
    for name, metric in known_metrics().items():
        made[name], said = figure(metric, view)
        if said:
            why[name] = said
    made["alt_test"] = _alt_test(view, crowd)
    made["calibration"] = calibration(view)
    made["bias"] = _bias(view)
    made["by_rule"] = _by_rule(view)
    made["slices"] = _slices(view, by)
    made["disagreements"] = disagreements(view)
    return made | {"why": why}


def _states(view: View) -> dict[str, int]:
    """How many of the judge's votes are in each state, whatever the rules make of them."""
    import numpy as np

    if view.votes.graded:
        return dict.fromkeys(VERDICTS, 0) | {"graded": len(view.cast)}
    counts = np.bincount(view.votes.verdict[view.cast], minlength=len(VERDICTS))
    return dict(zip(VERDICTS, map(int, counts), strict=True))


def _alt_test(view: View, crowd: Crowd | str) -> dict[str, Any]:
    try:
        if isinstance(crowd, str):
            raise Undefined(crowd)
        return dict(ceiling.alt_test(view, crowd, view.rules))
    except Undefined as e:
        return empty(AltTest, str(e))


def _bias(view: View) -> dict[str, Any]:
    made: dict[str, Any] = {}
    why: dict[str, str] = {}
    for name in (*_BIASES, "same_slot_share", "self_family"):
        made[name], said = figure(getattr(bias, name), view)
        if said:
            why[name] = said
    return made | ({"why": why} if why else {})


def _by_rule(view: View) -> dict[str, dict[str, Any]]:
    """Accuracy with one rule changed at a time: how far each of them moves the figure."""
    made: dict[str, dict[str, Any]] = {}
    for rule in ("tie", "swap", "invalid", "gold"):
        made[rule] = {}
        for value in get_args(Rules.model_fields[rule].annotation):
            other = View(view.votes, view.people, view.judge, view.rules.model_copy(update={rule: value}), view.among)
            try:
                made[rule][value] = float((other.table * other.credit).sum() / other.table.sum())
            except Undefined as e:
                made[rule] |= {value: None, "why": str(e)}
    return made


def _slices(view: View, by: Sequence[str]) -> dict[str, Any]:
    """Slice name -> value -> n, accuracy and kappa; `small` marks n < 30."""
    import numpy as np

    made: dict[str, Any] = {}
    for name, values in view.votes.slices.items():
        if by and name not in by:
            continue
        groups: dict[str, list[int]] = {}
        for item, value in values.items():
            groups.setdefault(value, []).append(item)
        if len(groups) > MOST_VALUES and not by:
            made[name] = {"why": f"{len(groups)} values; ask for it with --by {name}"}
            continue
        made[name] = {}
        for value, items in sorted(groups.items()):
            mask: Array = np.zeros(len(view.votes.items), dtype=bool)
            mask[items] = True
            part = view.where(mask)
            found = {key: figure(getattr(metrics, key), part)[0] for key in ("accuracy", "cohen_kappa")}
            made[name][value] = {"n": part.n, "small": part.n < SMALL, **found}
    return made


def confidence(view: View) -> Array:
    """[I] |p - 0.5|, with p averaged over the item's votes; -1 where no vote has one."""
    import numpy as np

    votes = view.cast[np.isfinite(view.votes.p_a[view.cast])]
    size = len(view.votes.items)
    total, n = (np.bincount(view.votes.item[votes], w, size) for w in (view.votes.p_a[votes], None))
    return np.where(n > 0, np.abs(total / np.maximum(n, 1) - 0.5), -1.0)


def disagreements(view: View) -> list[str]:
    """Ids of the items on which the judge is not more right than wrong, the most confident first."""
    import numpy as np

    try:
        wrong = np.flatnonzero(np.nan_to_num(view.right, nan=1.0) <= 0.5)
    except Undefined:
        return []
    sure = np.round(confidence(view)[wrong], 9)
    return [view.votes.items[i] for i in wrong[np.argsort(-sure, kind="stable")]]


def _no_between(people: People) -> dict[str, Any]:
    why = "scores have too many values to be classes"
    ranks = {"order": None, "kept": None, "first": None, "n": 0, "why": why}
    return {"mcnemar": [], "difference": [], "rank_stability": ranks}
