"""PPO's rollouts through transformers: replies drawn from the policy itself, batched, with left padding and a KV cache.

Nothing but the temperature shapes the draws: the policy whose log-probabilities enter the loss is the one drawn from.
"""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from trainers._ppo_batch import Sample
from trainers._ppo_networks import Networks

Ids = tuple[int, ...]


class Rollouts(Protocol):
    """Draws one reply to each prompt."""

    def draw(self, prompts: Sequence[Ids], seed: int) -> list[Sample]: ...

    def close(self) -> None: ...


class OwnRollouts:
    """Draws with the networks in memory, at most `rows` replies at a time."""

    def __init__(self, networks: Networks, ends: Sequence[int], pad: int, max_tokens: int, rows: int) -> None:
        from transformers import GenerationConfig

        self._networks, self._ends, self._pad, self._rows = networks, frozenset(ends), pad, rows
        self._how = GenerationConfig(
            do_sample=True, temperature=networks.temperature, top_k=0, top_p=1.0, max_new_tokens=max_tokens,
            eos_token_id=sorted(self._ends), pad_token_id=pad, use_cache=True,
        )  # fmt: skip

    def draw(self, prompts: Sequence[Ids], seed: int) -> list[Sample]:
        """One reply per prompt, in order; the same for the same weights, prompts, rows and seed."""
        import torch

        torch.manual_seed(seed)
        # prompts of like length together: left padding costs at every step
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        drawn: dict[int, Sample] = {}
        self._networks.train(False)
        with torch.no_grad(), plain_generation(self._networks.policy, self._how):
            for i in range(0, len(order), self._rows):
                some = order[i : i + self._rows]
                drawn |= zip(some, self._some([prompts[j] for j in some]), strict=True)
        return [drawn[i] for i in range(len(prompts))]

    def _some(self, prompts: list[Ids]) -> list[Sample]:
        import torch

        widest = max(map(len, prompts))
        ids = torch.tensor([[self._pad] * (widest - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (widest - len(p)) + [1] * len(p) for p in prompts])
        device = self._networks.device
        with self._networks.cast():
            out = self._networks.policy.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=self._how
            )
        return [sample(p, row, self._ends) for p, row in zip(prompts, out[:, widest:].tolist(), strict=True)]

    def close(self) -> None:
        """Nothing to end."""


def sample(prompt: Ids, drawn: Sequence[int], ends: frozenset[int]) -> Sample:
    """The rollout up to and with its first end token."""
    end = next((i for i, token in enumerate(drawn) if token in ends), None)
    return Sample(prompt, tuple(drawn if end is None else drawn[: end + 1]), end is not None)


@contextmanager
def plain_generation(model: Any, how: Any) -> Generator[None]:
    """The model with no generation defaults of its own: `generate` mixes top_p, penalties and the like into `how`."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    kept, base.generation_config = base.generation_config, how
    try:
        yield
    finally:
        base.generation_config = kept
