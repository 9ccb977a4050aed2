"""Which two replies to a prompt become a comparison; the slots are filled by the prompt's own coin."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tenet.records import Candidate, Comparison, Dropped, Frozen, Prompt, seed_of


class Settings(Frozen):
    """Which pairs are made of a prompt's replies."""

    kind: Literal["samples", "initial_vs_revision", "best_of"] = "samples"
    """Two samples of the policy; a first reply and its last revision; best and worst by score."""
    of: Literal["first", "last"] = "first"
    """For samples and best_of: compare first replies, or last revisions."""
    per_prompt: Annotated[int, Field(ge=1)] = 1
    """Most pairs of this kind that a prompt gives; for best_of also second best and second worst, and so on."""
    scorer: dict[str, Any] = Field(default_factory=dict[str, Any])
    """For best_of: the judge that scores single replies (`kind`, …); empty: the recipe's own judge."""

    @model_validator(mode="after")
    def _scores_best(self) -> Settings:
        if self.scorer and self.kind != "best_of":
            raise ValueError(f"pairs of kind {self.kind} are not scored: leave scorer out, or use kind: best_of")
        return self


def pairs(
    prompt: Prompt, candidates: Sequence[Candidate], settings: Settings, seed: int
) -> list[tuple[str, Comparison]]:
    """(key, comparison) for each pair of a kind that needs no scores; the key names the pair's place in the run."""
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


def best_of(
    prompt: Prompt, candidates: Sequence[Candidate], scores: Sequence[float | None], settings: Settings, seed: int
) -> list[tuple[str, Comparison | Dropped]]:
    """Best and worst of the candidates by their scores, then second best and second worst.

    A candidate without a score takes no part. Replies whose scores are equal make no pair: which of them came
    first would decide the label.
    """
    ranked = sorted(
        ((score, c) for c, score in zip(candidates, scores, strict=True) if score is not None),
        key=lambda x: (-x[0], x[1].response.index),
    )
    made: list[tuple[str, Comparison | Dropped]] = []
    for i in range(min(settings.per_prompt, max(1, len(ranked) // 2))):
        key = f"best of {settings.of}" + (f", {i + 1}" if i else "")
        if len(ranked) < 2:
            why = "too few scored replies"
        elif ranked[i][0] == ranked[-1 - i][0]:
            why = "equal best and worst scores"
        else:
            best, worst = _end(ranked[i][1], settings), _end(ranked[-1 - i][1], settings)
            made.append((key, _slots(prompt, best, worst, seed_of(seed, prompt.id, "slots", key))))
            continue
        made.append((key, Dropped(prompt_id=prompt.id, unit="pair", stage="pairs", reason=why, detail=key)))
    return made


def text_of(candidate: Candidate, settings: Settings) -> str:
    """The text that stands for a candidate in pairs of this kind."""
    return _end(candidate, settings)[0]


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
