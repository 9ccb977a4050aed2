"""Labelled pairs of nano's small world, as a pairs file: the oracle prefers the reply that keeps more of the rules."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nano import world
from nano.lexicon import BY_KEY, UNNAMED

NAMED = frozenset(BY_KEY) - UNNAMED
"""The rules of the constitution `nano`."""


def rows(n: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """n pairs of replies as the assistant gives them; pairs that keep equally many rules are left out.

    The label is the oracle's, under all rules at once. A judge that is asked about one rule cannot know it on every
    pair, so what an ensemble of principles is worth can be seen on these pairs.
    """
    rng = random.Random(f"pairs {seed}")
    made = 0
    while made < n:
        topic, asked = world.question(rng)
        a, b = world.spoiled(rng, topic), world.spoiled(rng, topic)
        edge = len(world.faults(b.text, NAMED)) - len(world.faults(a.text, NAMED))
        if not edge or a.text == b.text:
            continue
        yield {
            "id": f"nano-{seed}-{made}",
            "prompt": asked,
            "a": a.text,
            "b": b.text,
            "labels": {"oracle": "A" if edge > 0 else "B"},
            "slices": {"rules between them": str(min(abs(edge), 3)) + ("+" if abs(edge) >= 3 else "")},
        }
        made += 1


def main(n: int, out: Path, seed: int) -> None:
    """Writes the pairs as JSONL and says how many."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(n, seed))
    print(f"{n} pairs with the oracle's labels: {out}")
