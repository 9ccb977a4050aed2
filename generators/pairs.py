"""Which two replies to a prompt become a comparison; the slots are filled by the prompt's own coin."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Annotated, Literal

from pydantic import Field, field_validator

from tenet.records import Candidate, Comparison, Frozen, Prompt, seed_of


class Settings(Frozen):
    """Which pairs are made of a prompt's replies."""

    kind: Literal["samples", "initial_vs_revision", "best_of"] = "samples"
    """Two samples of the policy; a first reply and its last revision; best and worst by score."""
    of: Literal["first", "last"] = "first"
    """For samples: compare first replies, or last revisions."""
    per_prompt: Annotated[int, Field(ge=1)] = 1
    """Most pairs of this kind that a prompt gives."""

    @field_validator("kind")
    @classmethod
    def _can_score(cls, kind: str) -> str:
        if kind == "best_of":
            raise ValueError("best_of needs a judge that scores single replies, and there is none yet")
        return kind


def pairs(
    prompt: Prompt, candidates: Sequence[Candidate], settings: Settings, seed: int
) -> list[tuple[str, Comparison]]:
    """(key, comparison) for each pair; the key names the pair's place in the run."""
    if settings.kind == "samples":
        made = [
            (f"{settings.of} {x.response.index}-{y.response.index}", _end(x, settings), _end(y, settings))
            for x, y in combinations(candidates, 2)
        ]
    else:
        made = [
            (f"revision {c.response.index}", (c.response.text, _name(c, 0)), (c.last, _name(c, -1)))
            for c in candidates
            if c.revisions
        ]
    return [
        (key, _slots(prompt, x, y, seed_of(seed, prompt.id, "slots", key))) for key, x, y in made[: settings.per_prompt]
    ]


def _end(candidate: Candidate, settings: Settings) -> tuple[str, str]:
    if settings.of == "last":
        return candidate.last, _name(candidate, -1)
    return candidate.response.text, _name(candidate, 0)


def _name(candidate: Candidate, which: int) -> str:
    start = f"sample {candidate.response.index}"
    if which == 0 or not candidate.revisions:
        return start
    return f"{start}, round {candidate.revisions[-1].round}"


def _slots(prompt: Prompt, x: tuple[str, str], y: tuple[str, str], coin: int) -> Comparison:
    # Else "the revision is always B" would be confounded with a judge's taste for slot B.
    (a, a_from), (b, b_from) = (x, y) if coin & 1 else (y, x)
    return Comparison(prompt=prompt, a=a, b=b, a_from=a_from, b_from=b_from)
