"""Critique and revision."""

from __future__ import annotations

from collections.abc import Sequence

from tenet.templates import fill, load

CRITIQUE = load("generators", "critique.txt")
REVISE = load("generators", "revise.txt")


def critique_request(texts: Sequence[str]) -> str:
    """The turn that asks for a critique under the given principles' texts."""
    return fill(CRITIQUE, critique=" ".join(texts))


def revise_request(texts: Sequence[str]) -> str:
    """The turn that asks for the reply anew under the given principles' texts."""
    return fill(REVISE, revise=" ".join(texts))
