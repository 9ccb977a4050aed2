"""A reward model in this process, through transformers: conversations in, scores out."""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import gc
import importlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tenet.engines import Reply, Request, _model
from tenet.engines._prompt import Fault, Prompts
from tenet.errors import EngineError
from tenet.records import Usage


class Scorer:
    """Loads a model once and scores batches, one at a time. Blocks: call it from a thread."""

    def __init__(self, folder: Path, device: str, dtype: str, longest: int | None) -> None:
        self._folder, self._device, self._dtype, self._longest = folder, device, dtype, longest
        self._model: Any = None
        self._lock = threading.Lock()

    def load(self) -> None:
        """EngineError if the model cannot be loaded whole."""
        with self._lock:
            if self._model is None:
                self._load()

    def _load(self) -> None:
        torch, hub = importlib.import_module("torch"), importlib.import_module("transformers")
        if self._device == "auto":
            self._device = "cuda" if torch.cuda.is_available() else "cpu"
        named = "float32" if self._dtype == "auto" and self._device == "cpu" and _model.slow_bf16() else self._dtype
        dtype = named if named == "auto" else getattr(torch, named)
        at: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
        try:
            tokenizer = hub.AutoTokenizer.from_pretrained(self._folder, **at)
            model, told = hub.AutoModelForSequenceClassification.from_pretrained(
                self._folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **at
            )
            self._model = model.to(self._device).eval()
        except Exception as error:
            raise EngineError(f"the reward model {self._folder.name} did not load: {error}"[:500]) from None
        if told["missing_keys"]:
            self._model = None
            lacking = ", ".join(sorted(told["missing_keys"])[:3])
            raise EngineError(f"{self._folder.name} lacks weights ({lacking}): its scores would be random")
        self._prompts = Prompts(tokenizer)
        self._pad: int | None = model.config.get_text_config().pad_token_id
        self._torch: Any = torch

    def score(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply per request, in order."""
        self.load()
        with self._lock:
            said: dict[int, Reply] = {}
            rows: list[tuple[int, list[int]]] = []
            for i, request in enumerate(requests):
                try:
                    rows.append((i, self._tokens(request)))
                except Fault as fault:
                    kind, detail = fault.args
                    said[i] = Reply(fault=kind, detail=detail)
            said |= self._scored(rows)
            return [said[i] for i in range(len(requests))]

    def _tokens(self, request: Request) -> list[int]:
        turns = tuple((m.role, m.content) for m in request.messages)
        _, ids = self._prompts.render(turns, request.text, answered=True)
        if not ids:
            raise Fault("refused", "nothing is to be scored: neither messages nor text")
        if self._longest is not None and len(ids) > self._longest:
            raise Fault("context_length", f"the conversation has {len(ids)} tokens; the model takes {self._longest}")
        return ids

    def _scored(self, rows: list[tuple[int, list[int]]]) -> dict[int, Reply]:
        if not rows:
            return {}
        # Without a padding token transformers cannot tell where a padded row ends.
        parts = [rows] if self._pad is not None else [[row] for row in rows]
        said: dict[int, Reply] = {}
        for part in parts:
            try:
                values = self._forward([ids for _, ids in part])
            except self._torch.OutOfMemoryError as error:
                if len(part) == 1:
                    said[part[0][0]] = Reply(fault="server", detail=f"out of memory: {error}"[:300])
                    continue
                half = len(part) // 2
                said |= self._scored(part[:half]) | self._scored(part[half:])
                continue
            for (i, ids), value in zip(part, values, strict=True):
                said[i] = Reply(text=repr(value), usage=Usage(calls=1, prompt_tokens=len(ids)))
        return said

    def _forward(self, rows: list[list[int]]) -> list[float]:
        torch, longest = self._torch, max(map(len, rows))
        ids = torch.tensor([row + [self._pad or 0] * (longest - len(row)) for row in rows], device=self._device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self._device)
        with torch.inference_mode():
            return self._model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()

    def close(self) -> None:
        """Lets the model go."""
        with self._lock:
            self._model = None
        gc.collect()
