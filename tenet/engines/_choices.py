"""Scores of a closed set of continuations: a walk over the tree of their tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

Path = tuple[int, ...]


def tokens_in_context(encode: Callable[[str], list[int]], tail: str, choices: Sequence[str]) -> list[Path]:
    """The tokens that each choice adds behind `tail`.

    Where a tokenizer merges across the border, so that the tail's own tokens would change, the
    choice is tokenised by itself.
    """
    before = encode(tail)
    paths: list[Path] = []
    for choice in choices:
        both = encode(tail + choice)
        paths.append(tuple(both[len(before) :] if both[: len(before)] == before else encode(choice)))
    return paths


def told_apart(paths: Sequence[Path], end: int | None) -> list[Path]:
    """The paths, each closed by the end-of-turn token if one begins another ("1" and "10").

    Without that "1" would be credited with everything that starts with it, and the choices would
    not exclude each other.
    """
    distinct = sorted(set(paths))
    nested = any(b[: len(a)] == a for a, b in pairwise(distinct)) or () in distinct
    return [(*p, end) for p in paths] if nested and end is not None else list(paths)


def branches(paths: Iterable[Path]) -> dict[Path, list[int]]:
    """For every inner node, named by the tokens that lead to it, the tokens that may come next."""
    nodes: dict[Path, dict[int, None]] = {}
    for path in paths:
        for depth, token in enumerate(path):
            nodes.setdefault(path[:depth], {})[token] = None
    return {node: list(following) for node, following in nodes.items()}
