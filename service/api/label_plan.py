"""Which pairs of a label set go to how many people, which checks are planted among them, and who sees what where."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from tenet.records import Comparison, digest, seed_of

EVERYONE = 1_000_000_000
"""`wanted` of an attention check: every rater gets it."""


@dataclass(frozen=True)
class Item:
    """A pair of a set. `judge` holds rows of a votes file, which no rater sees."""

    id: str
    comparison: Comparison
    judge: tuple[dict[str, Any], ...] = ()
    slices: tuple[tuple[str, str], ...] = ()


def plan(items: list[Item], seed: int, overlap: float, raters: int, attention: float) -> list[tuple[Any, ...]]:
    """(item, place, wanted, planted, content) of every pair and attention check, in the order of labelling.

    A share `overlap` of the pairs goes to `raters` people each, so that a human ceiling can be told; they are spread
    over the whole set. A check shows a reply beside its own words in another order: nobody who reads misses it.
    """
    rng = random.Random(seed_of("label set", seed, len(items)))
    shared = set(rng.sample(range(len(items)), round(overlap * len(items))))
    rows = [
        (_masked(item.id), i, raters if i in shared else 1, "", _content(item.id, item.comparison, item))
        for i, item in enumerate(items)
    ]
    # A text of few words may read the same in any order.
    long = [x for x in items if len(set(x.comparison.a.split())) >= 6]
    for k, item in enumerate(rng.sample(long, min(len(long), round(attention * len(items))))):
        c = item.comparison
        words = c.a.split()
        while words == c.a.split():
            rng.shuffle(words)
        good_first = rng.random() < 0.5
        texts = (c.a, " ".join(words)) if good_first else (" ".join(words), c.a)
        planted = Comparison(prompt=c.prompt, a=texts[0], b=texts[1])
        good = "A" if good_first else "B"
        rows.append((_masked(planted.id), k, EVERYONE, good, _content(planted.id, planted, None)))
    return rows


def _masked(id: str) -> str:
    """What raters' programs call a pair: a check must not be known by its name."""
    return digest("label item", id)


def _content(id: str, c: Comparison, item: Item | None) -> str:
    messages = [m.model_dump() for m in c.prompt.messages]
    told = {"id": id, "messages": messages, "a": c.a, "b": c.b}
    told |= {"judge": list(item.judge) if item else [], "slices": dict(item.slices) if item else {}}
    return json.dumps(told, ensure_ascii=False)


def is_swapped(name: str, rater: str, item: str) -> bool:
    """Whether this rater sees b on the left."""
    return bool(seed_of("side", name, rater, item) & 1)
