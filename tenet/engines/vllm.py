"""Engine kind "vllm": Ray actors with a vLLM engine each, on CPU cores, GPUs or a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from tenet.engines import Reply, Request, _model
from tenet.engines._cluster import OnCluster
from tenet.engines._pool import Pool
from tenet.engines._pooled import PooledEngine
from tenet.engines._replica import Replica
from tenet.engines._scaling import Range
from tenet.errors import SettingsError

_CPU_CONTEXT = 8192


class Settings(OnCluster):
    """Which model to serve, and on what. Code that comes with a model is never run."""

    model: str
    """A folder, a hub name, or a bundled model: "nano:assistant", "nano:base"."""
    replicas: Annotated[int, Field(ge=1)] | Range = 1
    """Copies of the model, each an actor of its own; or {min: 1, max: 8}: more when questions pile up."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs (or core groups, on CPU) that one replica is spread over."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """"auto" is what the model was saved in, with float32 served as 16 bit; on x86 CPUs without AVX-512, where 16 bit
    is slow, it is float32."""
    max_model_len: int | None = Field(None, ge=1)
    """Context length in tokens; unset: the model's own, at most 8192 on CPU."""
    eager: bool = True
    """False compiles the model first: slower to start, faster to run on large models."""
    lora: str | None = None
    """Folder of a LoRA adapter that every request uses."""
    kv_cache_gib: float | None = Field(None, gt=0)
    """GiB for one replica's keys and values; unset: 1 on CPU, else what the next field leaves."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Share of a GPU's memory that vLLM may use."""
    max_num_seqs: int = Field(256, ge=1)
    """Sequences that one replica decodes at the same time."""
    threads: int | None = Field(None, ge=1)
    """CPU only: cores that one replica computes on; unset: an even share of the machine's."""


class VllmEngine(PooledEngine):
    """Serves one model. The first `generate`, or `start`, takes 20 seconds or more."""

    def __init__(self, settings: Settings, pool: Pool, *, name: str, fingerprint: str, family: str):
        super().__init__(pool, name=name, fingerprint=fingerprint, family=family)
        self.settings = settings

    async def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply per request, in order; concurrent callers share vLLM's batches.

        A prompt that fills the context is a "context_length" fault; one that leaves less room than
        `max_tokens` is answered within that room, with finish "length" if the answer fills it.
        Special tokens in messages are defused; raw `text` is taken as it stands, so whoever puts it
        together defuses its parts. Where one choice begins another, every choice is closed by the
        end-of-turn token. A request with choices counts as one call, however many tokens it takes.
        EngineError if no replica is left, or if two event loops use the engine at once.
        """
        return await super().generate(requests)

    async def reload(self, folder: Path) -> None:
        """Serves the weights of a folder, of the same architecture, from here on; `fingerprint` follows.

        SettingsError on CPU for a mixture of experts, and for a model that ties its output to its embeddings: vLLM
        reports success there and serves wrong weights. EngineError if calls are under way, or a replica cannot load.
        """
        config = _model.read_json(folder / "config.json", "engine.model")
        refuse_stale(config)
        if _model.on_cpu() and config.get("tie_word_embeddings"):
            raise SettingsError(
                f"{folder.name} ties its output layer to its embeddings; vLLM on CPU keeps the old output layer, whose "
                "weights it has packed, when the embeddings change under it",
                where="engine.model",
                fix="start and reload with a copy whose config says tie_word_embeddings: false, with lm_head.weight",
            )
        _model.check_weights(folder, "engine.model")
        await self.pool.reload(str(folder))
        self.fingerprint = _model.fingerprint(folder, self.settings.dtype, None)


def refuse_stale(config: dict[str, Any]) -> None:
    """SettingsError if a model's weights cannot be changed under a running engine."""
    if _model.on_cpu() and (experts := _model.experts_of(config)):
        raise SettingsError(
            f"{config.get('model_type', 'the model')} has {experts} experts a layer; vLLM on CPU serves wrong weights "
            "after they are changed under it",
            where="engine.model",
            fix="start a new engine for changed weights; for PPO, rollout.engine: transformers",
        )


def build(settings: Settings) -> VllmEngine:
    """The engine, not yet started; SettingsError if model or adapter cannot be served."""
    pool, about = open_pool(settings, Replica)
    return VllmEngine(settings, pool, **about)


def open_pool(settings: Settings, replica: type[Replica], **more: Any) -> tuple[Pool, dict[str, str]]:
    """Replicas of a model, not yet started, with `more` of vLLM's own arguments; and its name, fingerprint, family."""
    cpu = _model.on_cpu()
    folder, revision = _model.locate(settings.model, "engine.model")
    config = _model.read_json(folder / "config.json", "engine.model")
    _model.check_weights(folder, "engine.model")
    family = str(config.get("model_type", "unknown"))
    adapter = _adapter(settings, cpu, family, config)
    own = config.get("max_position_embeddings")
    longest = int(own) if isinstance(own, int) else None
    if longest and settings.max_model_len and settings.max_model_len > longest:
        raise SettingsError(
            f"{settings.max_model_len} tokens, but the model has positions for {longest}",
            where="engine.max_model_len",
            fix=f"at most {longest}",
        )
    args: dict[str, Any] = {
        # a hub name stays a name, since each node of a cluster has a cache of its own
        "model": str(folder) if revision is None else settings.model, "revision": revision,
        "dtype": settings.dtype, "max_model_len": settings.max_model_len,
        "enforce_eager": settings.eager, "tensor_parallel_size": settings.tensor_parallel,
        "max_num_seqs": settings.max_num_seqs,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "load_format": "safetensors", "trust_remote_code": False, "disable_log_stats": True,
        "distributed_executor_backend": "mp", "enable_prefix_caching": True,
        "logprobs_mode": "raw_logprobs", **more,
    }  # fmt: skip
    env = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if settings.kv_cache_gib or cpu:
        args["kv_cache_memory_bytes"] = int((settings.kv_cache_gib or 1) * 2**30)
    if cpu and settings.tensor_parallel == 1:
        # The model in vLLM's engine process: one process less to start and to feed, a third of the start's CPU. vLLM
        # takes "uni" on CPU only where this variable says that somebody else binds OpenMP, which the replica does.
        args["distributed_executor_backend"] = "uni"
        env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if cpu:
        length = settings.max_model_len or min(longest or _CPU_CONTEXT, _CPU_CONTEXT)
        # A prompt read in chunks rewinds its seeded generator, which vLLM 0.31 cannot do on CPU:
        # the engine would die. Its blocks of 128 tokens leave short prompts no prefix to share.
        args |= {
            "max_model_len": length,
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(4096, length),
            "block_size": 32,
            "worker_extension_cls": "tenet.engines._worker.WorkerExtension",
        }
    if adapter:
        rank = int(_model.read_json(adapter / "adapter_config.json", "engine.lora").get("r", 8))
        args |= {
            "enable_lora": True,
            "max_loras": 1,
            "max_lora_rank": next((r for r in (8, 16, 32, 64, 128, 256) if r >= rank), 512),
        }
    if revision is None:
        env["HF_HUB_OFFLINE"] = "1"
    plan = {
        "args": args,
        "env": env,
        "cpu": cpu,
        "threads": settings.threads,
        "lora": str(adapter) if adapter else None,
    }
    pool = settings.pool(
        plan, replica, settings.replicas, full=settings.max_num_seqs,
        cpus=(settings.threads or 1) * settings.tensor_parallel if cpu else 0,
        gpus=0 if cpu else settings.tensor_parallel,
    )  # fmt: skip
    name = settings.model if revision or settings.model.startswith("nano:") else folder.name
    return pool, {
        "name": f"{name}+{adapter.name}" if adapter else name,
        "fingerprint": _model.fingerprint(folder, settings.dtype, adapter),
        "family": family,
    }


def _adapter(settings: Settings, cpu: bool, family: str, config: dict[str, Any]) -> Path | None:
    if settings.lora is None:
        return None
    folder = Path(settings.lora).expanduser().resolve()
    if not folder.is_dir():
        raise SettingsError(
            f"no adapter folder {settings.lora!r}",
            where="engine.lora",
            fix="a folder with adapter_config.json and adapter_model.safetensors",
        )
    _model.read_json(folder / "adapter_config.json", "engine.lora")
    _model.check_weights(folder, "engine.lora")
    if cpu and (experts := _model.experts_of(config)):
        raise SettingsError(
            f"{family} has {experts} experts a layer; vLLM on CPU serves no LoRA on a mixture",
            where="engine.lora",
            fix="merge the adapter into the weights and serve the merged model",
        )
    return folder
