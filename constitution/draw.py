"""Draws principles: weighted, seeded, and stable when the constitution is edited."""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterable
from typing import Any

from constitution.schema import Principle
from tenet.records import canonical


def draw(
    principles: Iterable[Principle], k: int, *key_parts: Any, tags: tuple[str, ...] = ()
) -> tuple[Principle, ...]:
    """k principles without replacement, in order of their draw; fewer if fewer apply to the tags.

    `key_parts` (seed, prompt id, round, …) decide the draw; the same parts draw the same again.
    Weighted rendezvous hashing (Efraimidis and Spirakis 2006, with hashes for random numbers):
    every principle gets -ln(u) / weight from the parts and its own id alone, and the k smallest
    win. So to add or remove a principle, or to reword one, never reshuffles the others.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    # Keyed by id, not by text: a reworded principle stays with the prompts it had.
    start = hashlib.blake2b(canonical(key_parts).encode(), digest_size=8)
    ranked: list[tuple[float, str, Principle]] = []
    for p in principles:
        if not p.applies_to(tags):
            continue
        h = start.copy()
        h.update(b"\x00" + p.id.encode())
        # 53 bits and a half: u is never 0 or 1, so the logarithm is finite and not 0.
        u = ((int.from_bytes(h.digest(), "big") >> 11) + 0.5) / 2**53
        ranked.append((-math.log(u) / p.weight, p.id, p))
    return tuple(p for _, _, p in heapq.nsmallest(k, ranked, key=lambda r: r[:2]))
