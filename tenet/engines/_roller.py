"""A replica that draws rollouts for training: token ids in, token ids and their log-probabilities out."""

from __future__ import annotations

from typing import Any

from tenet.engines._prompt import Fault
from tenet.engines._replica import Replica

Roll = tuple[tuple[int, ...], float, int, tuple[int, ...], int]
"""What it is asked, without the number: (prompt, temperature, max_tokens, end tokens, seed)"""


class Roller(Replica):
    """Answers with (drawn ids, finish, log-probability of each, usage), nothing turned into text on the way.

    Text would lose which tokens were drawn: the same words can be spelt in several ways.
    """

    async def _answer(self, asked: tuple[Any, ...]) -> tuple[Any, ...]:
        prompt, temperature, most, ends, seed = asked
        self._fit(len(prompt) + most)
        out = await self._ask(
            list(prompt), temperature=temperature, max_tokens=most, stop_token_ids=list(ends), seed=seed, logprobs=0,
            detokenize=False,
        )  # fmt: skip
        drawn = out.outputs[0]
        ids = tuple(drawn.token_ids)
        if drawn.logprobs is None or len(drawn.logprobs) != len(ids):
            raise Fault("server", "vLLM gave no log-probabilities")
        told = tuple(float(at[token].logprob) for token, at in zip(ids, drawn.logprobs, strict=True))
        return ids, drawn.finish_reason, told, (len(prompt), len(ids), out.num_cached_tokens or 0)
