"""PPO's rollouts through vLLM in Ray actors: the policy's weights are handed over before every draw.

vLLM draws; the log-probabilities of the loss are recomputed by transformers. How far the two disagree on the drawn
tokens is measured at every update: weights that did not arrive show there.
"""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import copy
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tenet.engines import _model, vllm
from tenet.engines._roller import Roller
from tenet.errors import EngineError
from trainers._common import quiet
from trainers._ppo_batch import Sample
from trainers._ppo_networks import Networks
from trainers._ppo_rollout import Ids, sample


class EngineRollouts:
    """Draws with vLLM. Its processes start with the first draw (20 seconds or more) and end with `close`."""

    def __init__(
        self,
        networks: Networks,
        tok: Any,
        ends: Sequence[int],
        max_tokens: int,
        *,
        context: int,
        dtype: str = "auto",
        replicas: int = 1,
    ) -> None:
        vllm.refuse_stale(networks.base.config.to_dict())
        self._networks, self._tok, self._ends, self._most = networks, tok, tuple(sorted(set(ends))), max_tokens
        self._own = {"dtype": dtype, "replicas": replicas, "max_model_len": context}
        self._home = Path(tempfile.mkdtemp(prefix="tenet-weights-"))
        self._handed = 0
        self._engine: vllm.VllmEngine | None = None
        self.logp: list[tuple[float, ...]] = []
        """vLLM's log-probabilities of the last draw's tokens, reply by reply."""

    def draw(self, prompts: Sequence[Ids], seed: int) -> list[Sample]:
        """One reply per prompt, in order, from the weights as they are now. EngineError if one cannot be drawn."""
        return asyncio.run(self._draw(prompts, seed))

    async def _draw(self, prompts: Sequence[Ids], seed: int) -> list[Sample]:
        engine = await self._fresh()
        how = (self._networks.temperature, self._most, self._ends)
        # replies to the same prompt must differ, so each has a seed of its own
        asked = [((p, *how, (seed + i) & 0x7FFF_FFFF), "") for i, p in enumerate(prompts)]
        answers = await engine.pool.ask(asked)
        bad = next((a for a in answers if a[4]), None)
        if bad is not None:
            raise EngineError(f"vLLM drew no reply: {bad[5]}")
        self.logp = [a[2] for a in answers]
        ends = frozenset(self._ends)
        return [sample(p, a[0], ends) for p, a in zip(prompts, answers, strict=True)]

    async def _fresh(self) -> vllm.VllmEngine:
        """The engine, serving the weights as they are now."""
        self._handed += 1
        folder = self._home / str(self._handed)
        self._hand_over(folder)
        if self._engine is None:
            settings = vllm.Settings.model_validate({"model": str(folder), **self._own})
            pool, about = vllm.open_pool(settings, Roller, logprobs_mode="processed_logprobs")
            self._engine = vllm.VllmEngine(settings, pool, **about)
            await self._engine.start()
        else:
            # a replica that is replaced later loads this folder, so it stays until the next one is served
            await self._engine.reload(folder)
            shutil.rmtree(self._home / str(self._handed - 1), ignore_errors=True)
        return self._engine

    def _hand_over(self, folder: Path) -> None:
        """Writes the policy with an output layer of its own: one tied to the embeddings stays behind in vLLM on CPU."""
        base, state = self._networks.base, self._networks.merged()
        head = next(n for n, module in base.named_modules() if module is base.get_output_embeddings())
        state[f"{head}.weight"] = state[f"{head}.weight"].clone()
        kept, base.config = base.config, copy.deepcopy(base.config)
        base.config.tie_word_embeddings = False
        try:
            with quiet():
                base.save_pretrained(folder, state_dict=state)
                self._tok.save_pretrained(folder)
        finally:
            base.config = kept

    def close(self) -> None:
        """Ends the engine's processes and lets the handed-over weights go."""
        if self._engine is not None:
            asyncio.run(self._engine.close())
        shutil.rmtree(self._home, ignore_errors=True)


def check(model: str) -> None:
    """SettingsError, before anything is loaded, if vLLM cannot take new weights for a model."""
    folder, _ = _model.locate(model, "model")
    vllm.refuse_stale(_model.read_json(folder / "config.json", "model"))
