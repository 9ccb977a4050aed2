"""A replica whose model scores conversations: vLLM's pooling runner in a Ray actor."""

from __future__ import annotations

from typing import Any

from tenet.engines._prompt import Fault
from tenet.engines._replica import Draw, Replica


class Pooler(Replica):
    """Answers with the score of a conversation's last turn, as text."""

    answered = True

    def _load(self) -> None:
        from vllm import PoolingParams

        super()._load()
        # the raw score: vLLM would put it through a sigmoid, and sigmoids of two scores have no Bradley-Terry odds
        self._how: Any = PoolingParams(task="classify", use_activation=False)
        self._pad = getattr(self._engine.model_config.hf_text_config, "pad_token_id", None)

    async def _draw(self, ids: list[int], draw: Draw) -> tuple[Any, ...]:
        # transformers scores at the last token that is no padding; where the end of a turn pads too, that is not the
        # last of all, which vLLM takes
        while len(ids) > 1 and ids[-1] == self._pad:
            ids = ids[:-1]
        self._calls += 1
        out: Any = None
        async for part in self._engine.encode(self._input(ids), self._how, str(self._calls)):
            out = part
        if out is None or out.outputs.data.numel() != 1:
            raise Fault("server", "vLLM gave no score")
        return repr(float(out.outputs.data)), "stop", (), (len(ids), 0, out.num_cached_tokens or 0)
