"""The rules that move every figure of agreement: how ties, swapped orders, unreadable verdicts and gold count."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tenet.records import Frozen


class Rules(Frozen):
    """Printed with every figure; see each field."""

    tie: Literal["three-class", "half", "drop"] = "three-class"
    """A tie is a class of its own; or half right against A and B (accuracy only); or its item is left out."""
    swap: Literal["both", "mean", "first", "signed-sum"] = "both"
    """An item judged in both slot orders is right if both verdicts are; or counts the mean of the two orders'
    accuracies; or only the order that shows A first; or is right if +1 (right), -1 (wrong), 0 (tie or none) sum
    to more than 0."""
    invalid: Literal["tie", "wrong", "drop"] = "wrong"
    """A judge's invalid or refused verdict counts as a tie, is wrong, or is left out. A person's is no label."""
    gold: Literal["majority", "each", "leave-one-out"] = "majority"
    """The label that most people gave (an item without one is left out); or every person's label by itself; or,
    for each person in turn, the majority of the others, so that the figure stands beside the human ceiling."""
    epsilon: Annotated[float, Field(ge=0, le=1)] = 0.15
    """The alt-test's allowance for the judge's lower cost: 0.2 against experts, 0.15 skilled people, 0.1 crowds."""
    duplicates: Literal["refuse", "last", "majority"] = "refuse"
    """What becomes of two votes by one rater on one item (and order)."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Decides the draws of the bootstrap."""
    resamples: Annotated[int, Field(ge=100, le=100_000)] = 1000
    """How many times the items are resampled for an interval."""


class Undefined(Exception):
    """A figure that does not exist for these votes; its text says why."""
