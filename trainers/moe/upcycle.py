"""Upcycling: a dense Qwen3 or Llama as a mixture of experts that computes the same function (arXiv 2212.05055).

Each expert is a copy of the dense MLP, or with granularity G one of the G shards of a copy along its inner size
("virtual groups", arXiv 2410.07524). Shards of a copy share their router row, so that a top-k with K divisible by G
takes whole copies. The chosen experts' weights are made to add up to 1 and every shard of a copy gets the same, so
the layer gives 1/G of the dense output: down_proj is scaled by G. SwiGLU is not homogeneous in its gate, therefore
nothing else is scaled.
"""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from tenet.errors import SettingsError
from tenet.records import Frozen
from trainers._common import quiet

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

TOKENIZER_FILES = ("tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_*")


class Settings(Frozen):
    """The shape of the new model."""

    experts: int = Field(gt=1)
    """E, routed experts a layer."""
    top_k: int = Field(gt=0)
    """K, experts that each token goes to; K/G times the dense MLP's compute."""
    granularity: int = Field(default=1, gt=0)
    """G: each expert is 1/G of the dense MLP's inner size; E and K are counted in such shards."""
    shared_expert: bool = False
    """Also an expert that every token goes to, with half of the output at the start: Qwen3 becomes dots1, and
    Llama Qwen2-MoE, since Qwen3-MoE and Mixtral know no such expert."""
    router_std: float = Field(default=0.02, gt=0)
    """Spread of the router's random rows."""
    noise: float = Field(default=0.0, ge=0)
    """Gaussian noise on every expert's weights, as a share of the matrix's own spread. 0 keeps the function."""
    reinit: float = Field(default=0.0, ge=0, le=1)
    """Share of each expert's inner units drawn anew (Drop-Upcycling, arXiv 2502.19261). 0 keeps the function."""
    seed: int = 0

    @model_validator(mode="after")
    def _whole_copies(self) -> Settings:
        if self.top_k > self.experts:
            raise ValueError(f"top_k {self.top_k} is more than there are experts ({self.experts})")
        for name in ("experts", "top_k"):
            if getattr(self, name) % self.granularity:
                what = f"{name} {getattr(self, name)} is not a multiple of granularity {self.granularity}"
                raise ValueError(f"{what}: a token must reach whole copies of the dense MLP")
        return self

    @property
    def keeps_function(self) -> bool:
        """Whether the new model starts as the dense one's equal."""
        return not self.noise and not self.reinit


def upcycle(dense: PreTrainedModel, settings: Settings, where: str = "model") -> PreTrainedModel:
    """The mixture of experts made from a dense Qwen3 or Llama in memory, in its dtype.

    SettingsError for another family, for attention or MLP biases the new family has not, for sliding windows, and
    where the MLP's inner size is not divisible by the granularity.
    """
    import torch

    check(dense.config, settings, where)
    made = _empty(dense, settings)
    weights = dense.state_dict()
    target = made.state_dict()
    rng = torch.Generator().manual_seed(settings.seed)
    with torch.no_grad():
        for name, value in target.items():
            if ".mlp." not in name:
                value.copy_(weights[name])
        blocks: Any = made.base_model.layers
        for i, layer in enumerate(blocks):
            prefix = f"model.layers.{i}.mlp."
            gate, up, down = (weights[f"{prefix}{part}_proj.weight"] for part in ("gate", "up", "down"))
            _fill(layer.mlp, gate, up, down, settings, rng)
    return made


def check(config: Any, settings: Settings, where: str = "model") -> None:
    """SettingsError unless the dense model can become what the settings ask for."""
    kind = config.model_type
    if kind not in ("qwen3", "llama"):
        raise SettingsError(f"{kind} cannot be upcycled", where=where, fix="a dense Qwen3 or Llama causal model")
    if not any(a.endswith("ForCausalLM") for a in config.architectures or ["ForCausalLM"]):
        raise SettingsError(f"{config.architectures} is no causal language model", where=where, fix="a language model")
    inner = config.intermediate_size
    if inner % settings.granularity:
        what = f"granularity {settings.granularity} does not divide the MLP's inner size {inner}"
        fix = "one of " + ", ".join(str(g) for g in range(1, 65) if inner % g == 0)
        raise SettingsError(what, where="granularity", fix=fix)
    if getattr(config, "use_sliding_window", False):
        raise SettingsError("has sliding-window layers, which the new family places elsewhere", where=where)
    if kind == "llama" and (config.attention_bias or config.mlp_bias):
        what = "has biases, which Mixtral and Qwen2-MoE have not"
        raise SettingsError(what, where=where, fix="a Llama without biases")


def _empty(dense: PreTrainedModel, s: Settings) -> PreTrainedModel:
    """The new family's model with weights still to be filled in."""
    import torch
    from transformers.initialization import no_init_weights

    old = dense.config
    kind = ("qwen3_moe", "dots1") if old.model_type == "qwen3" else ("mixtral", "qwen2_moe")
    family = kind[s.shared_expert]
    inner = old.intermediate_size // s.granularity
    shape = {
        "qwen3_moe": {
            "num_experts": s.experts, "moe_intermediate_size": inner, "norm_topk_prob": True, "decoder_sparse_step": 1,
        },
        "mixtral": {"num_local_experts": s.experts, "intermediate_size": inner, "sliding_window": None},
        "dots1": {
            "n_routed_experts": s.experts, "moe_intermediate_size": inner, "n_shared_experts": s.granularity,
            "norm_topk_prob": True, "routed_scaling_factor": 1.0, "first_k_dense_replace": 0, "sliding_window": None,
            "n_group": 1, "topk_group": 1,
        },
        "qwen2_moe": {
            "num_experts": s.experts, "moe_intermediate_size": inner, "norm_topk_prob": True, "qkv_bias": False,
            "shared_expert_intermediate_size": old.intermediate_size, "decoder_sparse_step": 1,
        },
    }[family]  # fmt: skip
    kept = {k: v for k, v in old.to_dict().items() if k not in ("architectures", "model_type", "transformers_version")}
    transformers: Any = import_module("transformers")
    config = transformers.AutoConfig.for_model(family, **{**kept, **shape, "num_experts_per_tok": s.top_k})
    config.architectures = None
    with no_init_weights():
        made = transformers.AutoModelForCausalLM.from_config(config, dtype=dense.dtype)
    made.generation_config = dense.generation_config
    with torch.no_grad():
        made.tie_weights()
    return made.eval()


def _fill(block: Any, gate: Any, up: Any, down: Any, s: Settings, rng: torch.Generator) -> None:
    """Writes a block's experts [E, 2I, H] and [E, H, I], its router [E, H] and its shared expert."""
    import torch

    size = gate.shape[0] // s.granularity
    # What a token gets from the routed experts: all of it, or half beside a shared expert.
    scale = s.granularity * (0.5 if s.shared_expert else 1.0)
    rows = torch.randn(s.experts // s.granularity, gate.shape[1], generator=rng) * s.router_std
    block.gate.weight.copy_(rows.repeat_interleave(s.granularity, dim=0))
    for e in range(s.experts):
        part = slice((e % s.granularity) * size, (e % s.granularity + 1) * size)
        matrices = _varied([gate[part], up[part], down[:, part].T], s, rng)
        block.experts.gate_up_proj[e].copy_(torch.cat(matrices[:2]))
        block.experts.down_proj[e].copy_(matrices[2].T * scale)
    if not s.shared_expert:
        return
    shared = getattr(block, "shared_experts", None) or block.shared_expert
    for name, value in (("gate_proj", gate), ("up_proj", up), ("down_proj", down)):
        getattr(shared, name).weight.copy_(value)
    if hasattr(block, "shared_expert_gate"):
        block.shared_expert_gate.weight.zero_()  # sigmoid(0) is the half
        return
    shared.down_proj.weight.mul_(0.5)
    block.gate.e_score_correction_bias.zero_()


def _varied(parts: list[torch.Tensor], s: Settings, rng: torch.Generator) -> list[torch.Tensor]:
    """[I, H] matrices of one expert, with noise, and with a share of their inner units drawn anew."""
    import torch

    if s.keeps_function:
        return parts
    units = torch.rand(parts[0].shape[0], generator=rng).argsort()[: round(s.reinit * parts[0].shape[0])]
    made: list[torch.Tensor] = []
    for part in parts:
        new = part.float().clone()
        mean, std = float(new.mean()), float(new.std())
        new += s.noise * std * torch.randn(new.shape, generator=rng)
        # The units of gate, up and down are the same ones: a unit that is half old would be neither.
        new[units] = mean + std * torch.randn(new[units].shape, generator=rng)
        made.append(new.to(part.dtype))
    return made


def difference(one: PreTrainedModel, other: PreTrainedModel, ids: torch.Tensor) -> float:
    """The largest absolute difference of the two models' logits on [B, T] token ids."""
    import torch

    with torch.no_grad():
        return float((one(input_ids=ids).logits.float() - other(input_ids=ids).logits.float()).abs().max())


def save(made: PreTrainedModel, source: Path, settings: Settings, out: Path) -> None:
    """Writes the model as transformers and vLLM load it, with the tokenizer of the folder it was made from.

    SettingsError if `out` holds something already.
    """
    refuse_full(out)
    beside = out.with_name(out.name + ".partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    made.save_pretrained(beside)
    for pattern in TOKENIZER_FILES:
        for path in source.glob(pattern):
            shutil.copy2(path, beside / path.name)
    note = {"kind": "upcycled", **settings.model_dump(), "from": source.name}
    (beside / "upcycle.json").write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    # Renamed last: a folder under this name is a whole one.
    if out.exists():
        out.rmdir()
    beside.rename(out)


def refuse_full(out: Path) -> None:
    """SettingsError if a folder holds something, or is a file."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError("holds something already", where=str(out), fix="name an empty or a new folder")


def main(
    source: Path, settings: Settings, out: Path, say: Callable[[str], None] = lambda _: None
) -> dict[str, float | int]:
    """Upcycles a model folder; gives sizes, and the largest difference of logits in float32 on 4 x 64 random tokens."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with quiet():
        check(AutoConfig.from_pretrained(source, trust_remote_code=False), settings, source.name)  # nosec B615 # a local folder
        refuse_full(out)
        dense = AutoModelForCausalLM.from_pretrained(  # nosec B615 # a local folder
            source, dtype="auto", use_safetensors=True, trust_remote_code=False, local_files_only=True
        )
        made = upcycle(dense, settings, source.name)
        say(f"{dense.num_parameters():,} weights become {made.num_parameters():,}")
        save(made, source, settings, out)
    ids = torch.randint(dense.config.vocab_size, (4, 64), generator=torch.Generator().manual_seed(settings.seed))
    apart = difference(dense.float().eval(), made.float(), ids)
    per_expert = 3 * dense.config.hidden_size * dense.config.intermediate_size // settings.granularity
    idle = (settings.experts - settings.top_k) * per_expert * dense.config.num_hidden_layers
    total = made.num_parameters()
    return {"dense": dense.num_parameters(), "weights": total, "active": total - idle, "difference": apart}
