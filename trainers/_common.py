"""What every trainer shares: settings, the models and tokenizers it starts from, and what it gives back."""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self

from pydantic import Field, model_validator

from tenet.engines import _model
from tenet.errors import SettingsError
from tenet.records import Frozen, digest
from trainers import adapters
from trainers._rows import Rows, Source
from trainers.moe import losses

WEIGHED = frozenset({"rank_by_load", "by", "n", "share"})
"""Settings of adapters that go by the load of experts."""
PROBE = 64
"""Rows on which that load is measured."""
Schedule = Literal["constant", "constant_with_warmup", "linear", "cosine", "inverse_sqrt"]


class Lora(Frozen):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) instead of full fine-tuning."""

    r: int = Field(default=16, ge=1)
    """Rank."""
    alpha: float = Field(default=32.0, gt=0)
    """The adapter's output is scaled by alpha / r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: str | tuple[str, ...] = "all-linear"
    """Names of the layers to adapt; "all-linear" is every matrix but the head."""


class Common(Frozen):
    """How to train, whatever the kind."""

    model: str
    """What to start from: a folder, a hub name, or "nano:base", "nano:assistant"."""
    data: str | tuple[Source, ...]
    """A run's folder, a file, a folder of files; or a mixture of them."""
    out: str
    """The folder for the model, its checkpoints, metrics and card."""
    epochs: float = Field(default=1.0, gt=0)
    steps: int | None = Field(default=None, ge=1)
    """Stop after so many optimizer steps; `epochs` then counts for nothing."""
    batch: int = Field(default=16, ge=1)
    """Rows per optimizer step, over all workers and passes (packed sequences, where rows are packed)."""
    accumulation: int = Field(default=1, ge=1)
    """Passes that each worker's share of a batch is cut into, to save memory."""
    lr: float = Field(gt=0)
    """Peak learning rate of AdamW."""
    schedule: Schedule = "linear"
    warmup: float = Field(default=0.0, ge=0)
    """Share of the steps over which the rate rises from 0, or from 1 up a number of steps."""
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients longer than this are shortened to it; 0 leaves them."""
    context: int | None = Field(default=None, ge=8)
    """Most tokens of a row; unset: 1,024, or the model's own if that is less."""
    bf16: bool = False
    """Compute in bfloat16, with weights and optimizer in float32."""
    gradient_checkpointing: bool = False
    """Trade a third more time for activations that need not be kept."""
    lora: Lora | None = None
    """Adapters instead of all weights; they are saved beside the merged model."""
    adapter: dict[str, Any] | None = None
    """An adapter for a mixture of experts, `{mode: hybrid, …}`: docs/moe-adapters.md; saved and merged as lora is."""
    moe: losses.Settings | Literal["off"] | None = None
    """Router losses of a mixture of experts, see docs/moe.md; unset: their defaults if the model is one."""
    save_as: Literal["bfloat16", "float32"] = "bfloat16"
    """What the finished model's weights are rounded to; checkpoints on the way stay float32."""
    seed: int = Field(default=0, ge=0)
    save_every: int = Field(default=100, ge=1)
    """Steps between checkpoints, from which the same command goes on after a crash."""
    keep: int = Field(default=2, ge=1)
    """Checkpoints that stay."""
    log_every: int = Field(default=10, ge=1)
    """Steps between lines of metrics.jsonl."""
    report_to: tuple[str, ...] = ()
    """Trackers, by transformers' names: tensorboard, wandb, trackio, …"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """"auto" is a GPU if there is one."""
    workers: int = Field(default=1, ge=1)
    """Processes that share each batch, started through Ray Train where there are several."""
    address: str | None = None
    """A Ray cluster to join for several workers; unset: a local one."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.batch % (self.workers * self.accumulation):
            what = f"batch {self.batch} is no multiple of workers x accumulation = {self.workers * self.accumulation}"
            raise ValueError(what)
        return self

    @model_validator(mode="after")
    def _adapts(self) -> Self:
        if self.adapter is not None:
            if self.lora is not None:
                raise ValueError("lora and adapter exclude each other: an adapter has its own `attention: {r: …}`")
            try:
                adapters.check(self.adapter)
            except SettingsError as error:
                raise ValueError(str(error)) from None
        return self

    @property
    def sources(self) -> tuple[Source, ...]:
        """The data, as a mixture."""
        return (Source(path=self.data),) if isinstance(self.data, str) else self.data

    @property
    def on_cpu(self) -> bool:
        """Whether to train on the CPU; SettingsError if a GPU was asked for and there is none."""
        import torch

        if self.device == "cuda" and not torch.cuda.is_available():
            raise SettingsError("no GPU is at hand", where="device", fix="device: cpu, or auto")
        return self.device == "cpu" or not torch.cuda.is_available()

    @property
    def identity(self) -> str:
        """Hash of what decides the result; how often to save or log, and where, does not."""
        free = {"out", "save_every", "keep", "log_every", "report_to", "workers", "accumulation", "address"}
        return digest(type(self).__module__, self.model_dump(mode="json", exclude=free))


class Outcome(NamedTuple):
    """What a training came to."""

    folder: Path
    """Holds the model, as transformers and vLLM load it."""
    manifest: dict[str, Any]
    """Also manifest.json in the folder."""
    fresh: bool
    """False if it had been finished before and nothing was done."""


class Trainer(Protocol):
    """Every kind's `build(settings)` gives one."""

    def rows(self) -> Rows:
        """The rows that the settings name."""
        ...

    def train(self, rows: Rows) -> Outcome:
        """Trains, or goes on where an earlier start was stopped. InputError before it starts, TrainingError after."""
        ...


def locate(model: str, weights: bool = True) -> Path:
    """The folder of a model to start from; SettingsError if there is none, or its weights are pickled."""
    folder, _ = _model.locate(model, "model")
    if weights:
        _model.check_weights(folder, "model")
    return folder


def architecture(folder: Path) -> str:
    """The model's class by its config, such as "Qwen3ForCausalLM"."""
    config = _model.read_json(folder / "config.json", "model")
    named: list[str] = config.get("architectures") or ["nothing"]
    return str(named[0])


def tokenizer_of(folder: Path, chat: bool = True) -> Any:
    """The model's tokenizer, with a padding token; SettingsError if it has no chat template where one is needed."""
    hub: Any = import_module("transformers")
    try:
        tok = hub.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        what = f"the tokenizer of {folder.name} does not load: {str(error).splitlines()[0]}"
        raise SettingsError(what, where="model", fix="a folder with tokenizer.json") from None
    if chat and not tok.chat_template:
        fix = "save the tokenizer with the template that the model is to be served with"
        raise SettingsError(f"the tokenizer of {folder.name} has no chat template", where="model", fix=fix)
    if tok.eos_token is None:
        what = f"the tokenizer of {folder.name} has no end-of-text token"
        raise SettingsError(what, where="model", fix="set eos_token")
    if tok.pad_token is None:
        tok.pad_token = tok.eos_token
    return tok


def context_of(settings: Common, folder: Path) -> int:
    """Most tokens of a row: as set, else 1,024, never more than the model has positions for."""
    config = _model.read_json(folder / "config.json", "model")
    text = config.get("text_config")
    own = config.get("max_position_embeddings") or (text or {}).get("max_position_embeddings")
    if settings.context and isinstance(own, int) and settings.context > own:
        what = f"{settings.context} tokens, but the model has positions for {own}"
        raise SettingsError(what, where="context", fix=f"at most {own}")
    return settings.context or (min(1024, own) if isinstance(own, int) else 1024)


def load(folder: Path, tok: Any, kind: Literal["causal", "reward"] = "causal", seed: int = 0) -> Any:
    """The model in float32; for "reward" with a head of one score, a fresh one if the checkpoint has none.

    SettingsError if the checkpoint is of another architecture, lacks weights, or knows fewer tokens than its tokenizer.
    """
    import torch

    hub: Any = import_module("transformers")
    name = architecture(folder)
    wanted = ("ForCausalLM",) if kind == "causal" else ("ForCausalLM", "ForSequenceClassification")
    if not name.endswith(wanted):
        fix = "a checkpoint of " + " or ".join(f"a …{w}" for w in wanted)
        raise SettingsError(f"{folder.name} is {name}, another architecture", where="model", fix=fix)
    loads = hub.AutoModelForCausalLM if kind == "causal" else hub.AutoModelForSequenceClassification
    own: dict[str, Any] = {} if kind == "causal" else {"num_labels": 1}
    torch.manual_seed(seed)
    try:
        with quiet():
            model, told = loads.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True,
                trust_remote_code=False, local_files_only=True, **own,
            )  # fmt: skip
    except Exception as error:
        what = f"{folder.name} does not load as {name}: {str(error).splitlines()[0]}"[:400]
        raise SettingsError(what, where="model", fix="a checkpoint whose config and weights belong together") from None
    new_head = {"score.weight"} if name.endswith("ForCausalLM") and kind == "reward" else set[str]()
    lacking = sorted(set(told["missing_keys"]) - new_head)
    if lacking:
        what = f"{folder.name} lacks weights ({', '.join(lacking[:3])}): they would be random"
        raise SettingsError(what, where="model", fix="a complete checkpoint of this architecture")
    if len(tok) > model.get_input_embeddings().weight.shape[0]:
        what = f"the tokenizer of {folder.name} has {len(tok)} tokens, more than the model knows"
        raise SettingsError(what, where="model", fix="the tokenizer that the model was trained with")
    if new_head:
        # A head at the scale of a linear layer's start gives scores of the size of the hidden state: too far from 0.
        torch.nn.init.normal_(model.score.weight, std=1.0 / (model.config.get_text_config().hidden_size + 1) ** 0.5)
    model.config.get_text_config().pad_token_id = tok.pad_token_id
    return model


@contextmanager
def quiet() -> Generator[None]:
    """transformers and datasets without their bars and notices; what matters is in our own errors."""
    logging: Any = import_module("transformers.utils.logging")
    bars: Any = import_module("datasets.utils.logging")
    was, shown, drawn = logging.get_verbosity(), logging.is_progress_bar_enabled(), bars.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(was)
        if shown:
            logging.enable_progress_bar()
        if drawn:
            bars.enable_progress_bar()


def peft_config(lora: Lora | None, kind: Literal["causal", "reward"]) -> Any:
    """PEFT's settings, or None; a reward model's head is always trained whole, or it would stay random."""
    if lora is None:
        return None
    peft: Any = import_module("peft")
    return peft.LoraConfig(
        task_type="CAUSAL_LM" if kind == "causal" else "SEQ_CLS",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        modules_to_save=["score"] if kind == "reward" else None,
    )


def plain(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures as JSON takes them: what is not finite is null."""
    return {k: None if isinstance(v, float) and not -1e300 < v < 1e300 else v for k, v in figures.items()}
