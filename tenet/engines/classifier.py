"""Engine kind "classifier": a sequence-classification checkpoint, such as a reward model, scores conversations.

A request is a conversation that ends with the assistant's turn; the reply's text is that turn's score,
as Python writes a float, so that it reads back to the bit wherever replies are stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from tenet.engines import Engine, Reply, Request, _model
from tenet.engines._cluster import OnCluster
from tenet.engines._scaling import Range
from tenet.errors import SettingsError

_GATHER = 0.002
"""Seconds that requests may gather before they are scored together."""


class Settings(OnCluster):
    """Which reward model to serve, and on what. Code that comes with a model is never run."""

    model: str
    """A folder or a hub name; its architecture is "…ForSequenceClassification" with one label."""
    runner: Literal["transformers", "vllm"] = "transformers"
    """transformers in this process, or vLLM's pooling runner in a Ray actor."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """For transformers: "auto" is a GPU if there is one."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """"auto" is what the model was saved in; on x86 CPUs without AVX-512, where 16 bit is slow, it is float32."""
    max_length: int | None = Field(None, ge=1)
    """Longest conversation in tokens; unset: the model's own."""
    batch: int = Field(16, ge=1)
    """For transformers: conversations that are scored together."""
    replicas: Annotated[int, Field(ge=1)] | Range = 1
    """For vLLM: copies of the model, each an actor of its own; or {min: 1, max: 8}."""


class ClassifierEngine:
    """Scores in this process. The first `generate`, or `start`, loads the model."""

    has_choices, has_scores = False, True

    def __init__(self, settings: Settings, scorer: Any, *, name: str, fingerprint: str, family: str) -> None:
        self.settings, self._scorer = settings, scorer
        self.name, self.fingerprint, self.family = name, fingerprint, family
        self._waiting: list[tuple[Request, asyncio.Future[Reply]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Loads the model; EngineError if it cannot be loaded."""
        await asyncio.to_thread(self._scorer.load)

    async def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply per request, in order; concurrent callers share batches. EngineError if the model cannot load."""
        loop = asyncio.get_running_loop()
        if self._worker is None or self._worker.done() or self._worker.get_loop() is not loop:
            self._waiting = []  # what another loop waited for, nobody wants any more
            self._worker = loop.create_task(self._work())
        asked = [(r, loop.create_future()) for r in requests]
        self._waiting += asked
        return await asyncio.gather(*(future for _, future in asked))

    async def _work(self) -> None:
        await asyncio.sleep(_GATHER)
        waiting = self._waiting
        while waiting:
            batch = [x for x in waiting[: self.settings.batch] if not x[1].done()]
            del waiting[: self.settings.batch]
            try:
                replies = await asyncio.to_thread(self._scorer.score, [r for r, _ in batch])
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), reply in zip(batch, replies, strict=True):
                if not future.done():
                    future.set_result(reply)

    async def close(self) -> None:
        """Lets the model go. May be called again."""
        self._scorer.close()


def build(settings: Settings) -> Engine:
    """The engine, not yet started; SettingsError if the model is no reward model or cannot be served."""
    folder, _ = _model.locate(settings.model, "engine.model")
    config = _model.read_json(folder / "config.json", "engine.model")
    _check(folder, config)
    family = str(config.get("model_type", "unknown"))
    if settings.runner == "vllm":
        return _on_vllm(settings, str(config.get("dtype") or config.get("torch_dtype") or "auto"))
    from tenet.engines._scorer import Scorer

    own = config.get("max_position_embeddings")
    if settings.max_length and isinstance(own, int) and settings.max_length > own:
        what = f"{settings.max_length} tokens, but the model has positions for {own}"
        raise SettingsError(what, where="engine.max_length", fix=f"at most {own}")
    longest = settings.max_length or (own if isinstance(own, int) else None)
    print_ = _model.fingerprint(folder, settings.dtype, None).partition(":")[2]
    return ClassifierEngine(
        settings, Scorer(folder, settings.device, settings.dtype, longest),
        name=folder.name, fingerprint=f"classifier:{print_}", family=family,
    )  # fmt: skip


def _check(folder: Path, config: dict[str, Any]) -> None:
    """SettingsError unless the checkpoint holds one score a conversation, as safetensors, and a chat template."""
    _model.check_weights(folder, "engine.model")
    names = config.get("architectures") or ["nothing"]
    if not str(names[0]).endswith("ForSequenceClassification"):
        what = f"{folder.name} is {names[0]}, which scores nothing"
        raise SettingsError(what, where="engine.model", fix="a …ForSequenceClassification checkpoint")
    labels = config.get("id2label")
    n = config.get("num_labels") or (len(labels) if isinstance(labels, dict) else 2)  # pyright: ignore[reportUnknownArgumentType]
    if n != 1:
        what = f"{folder.name} has {n} labels: which of them is the reward is not known"
        raise SettingsError(what, where="engine.model", fix="a reward model with num_labels 1")
    told = _model.read_json(folder / "tokenizer_config.json", "engine.model")
    if not told.get("chat_template") and not any(
        (folder / name).exists() for name in ("chat_template.jinja", "chat_template.json")
    ):
        what = f"{folder.name} has no chat template, so how it saw conversations is not known"
        raise SettingsError(what, where="engine.model", fix="save the tokenizer with the template it was trained with")


def _on_vllm(settings: Settings, saved: str) -> Engine:
    from tenet.engines import vllm
    from tenet.engines._pooler import Pooler

    # vLLM would serve float32 in 16 bit, which is too coarse for the difference of two scores
    dtype = "float32" if settings.dtype == "auto" and saved == "float32" else settings.dtype
    own = {"model": settings.model, "dtype": dtype, "replicas": settings.replicas}
    placed = settings.model_dump(include=set(OnCluster.model_fields))
    served = vllm.Settings.model_validate({**own, **placed, "max_model_len": settings.max_length})
    pool, about = vllm.open_pool(served, Pooler, runner="pooling")
    print_ = about["fingerprint"].partition(":")[2]
    engine = vllm.VllmEngine(served, pool, **{**about, "fingerprint": f"classifier:vllm:{print_}"})
    engine.has_choices, engine.has_scores = False, True
    return engine
