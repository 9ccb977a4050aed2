"""Stands where an engine is wanted while only its questions are: for checks and plans before anything starts."""

from __future__ import annotations

from collections.abc import Sequence

from tenet.engines import Reply, Request


class Unasked:
    """An engine that has every ability and is never asked."""

    name, fingerprint, family = "(not started)", "", ""
    has_choices = has_scores = True

    async def generate(self, requests: Sequence[Request]) -> list[Reply]:
        raise AssertionError(f"a plan makes no call, but {len(requests)} were made")

    async def close(self) -> None:
        return None
