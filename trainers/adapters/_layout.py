"""Where a model keeps its experts, routers and attention projections, and the fingerprint of its base weights."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tenet.errors import SettingsError

if TYPE_CHECKING:
    import torch

_SAMPLES = 64


@dataclass(frozen=True)
class Block:
    """One layer's mixture of experts."""

    name: str
    """Module path of the experts, such as "model.layers.3.mlp.experts"."""
    layer: int
    """Position among the model's mixtures, from 0."""
    experts: Any
    router_name: str
    """Module path of the router, "" if none was found."""
    router: Any
    E: int
    k: int

    @property
    def up(self) -> torch.Tensor:
        return self.experts.gate_up_proj if self.experts.has_gate else self.experts.up_proj

    @property
    def up_name(self) -> str:
        return "gate_up_proj" if self.experts.has_gate else "up_proj"

    @property
    def down(self) -> torch.Tensor:
        return self.experts.down_proj

    def sizes(self, weight: torch.Tensor) -> tuple[int, int]:
        """(in, out) of a projection."""
        _, first, second = weight.shape
        return (first, second) if self.experts.is_transposed else (second, first)


def kind_of(model: Any) -> str:
    return str(getattr(model.config, "model_type", type(model).__name__))


def blocks(model: Any, mode: str) -> list[Block]:
    """The model's mixtures, in order. SettingsError if it is dense, or keeps its experts in a way we do not know."""
    found: list[Block] = []
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if not _is_experts(module):
            continue
        parent = name.rpartition(".")[0]
        router_name = _router(modules[parent], name.rpartition(".")[2], int(module.down_proj.shape[0]))
        full = f"{parent}.{router_name}" if router_name else ""
        router = modules[full] if full else None
        k = getattr(router, "top_k", None) or _from_config(module.config, "num_experts_per_tok", "moe_topk", "top_k")
        E = int(module.down_proj.shape[0])
        found.append(Block(name, len(found), module, full, router, E, int(k or 0)))
    if found:
        return found
    where, kind = "adapter.mode", kind_of(model)
    if experts_in(model.config):
        what = f"{mode!r} cannot be used on {kind}: its experts do not use transformers' experts interface"
        raise SettingsError(what, where=where, fix="use mode attention or full, or a family with fused experts")
    what = f"{mode!r} needs experts, and {kind} is a dense model: no layer of it routes tokens"
    raise SettingsError(what, where=where, fix="use mode attention or full, or make it a mixture with tenet upcycle")


def experts_in(config: Any) -> int | None:
    """How many experts a transformers config speaks of; None for a dense model."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return _from_config(text, "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def _is_experts(module: Any) -> bool:
    weight = getattr(module, "down_proj", None)
    has_shape = getattr(weight, "ndim", 0) == 3 and hasattr(module, "has_gate") and hasattr(module, "is_transposed")
    return has_shape and hasattr(module, "gate_up_proj" if module.has_gate else "up_proj")


def _router(parent: Any, experts: str, E: int) -> str:
    """The child (or grandchild) of the mixture that holds a weight [E, H]."""
    for name, module in parent.named_modules():
        if not name or name == experts or name.startswith(experts + "."):
            continue
        weight = module._parameters.get("weight")
        if weight is not None and weight.ndim == 2 and weight.shape[0] == E:
            return name
    return ""


def _from_config(config: Any, *names: str) -> int | None:
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 1:
            return value
    return None


def attention(model: Any, targets: tuple[str, ...] | None) -> list[tuple[str, Any]]:
    """The linear layers of the model's attention, or those whose name ends as one of `targets`."""
    import torch

    found: list[tuple[str, Any]] = []
    for name, module in model.named_modules():
        parts = name.split(".")
        if not isinstance(module, torch.nn.Linear):
            continue
        if targets is None:
            wanted = len(parts) > 1 and any("attn" in p or "attention" in p for p in parts[:-1])
        else:
            wanted = any(name == t or name.endswith("." + t) for t in targets)
        if wanted:
            found.append((name, module))
    if not found:
        asked = "its attention" if targets is None else ", ".join(targets)
        fix = "name linear layers of the model, such as q_proj"
        raise SettingsError(f"{kind_of(model)} has no linear layers in {asked}", where="adapter.attention", fix=fix)
    return found


def heads(model: Any) -> dict[str, torch.nn.Parameter]:
    """Weights outside the base model and its output embeddings: the score of a reward model, a value head."""
    base = {id(p) for p in model.base_model.parameters()} if getattr(model, "base_model", model) is not model else None
    if base is None:
        return {}
    out = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    known = base | ({id(p) for p in out.parameters()} if out is not None else set())
    return {name: p for name, p in model.named_parameters() if id(p) not in known}


def base_parameters(model: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The base model's own weights, adapters left out, named from the base model down."""
    for name, p in model.base_model.named_parameters():
        if "tenet" not in name.split("."):
            yield name, p


def fingerprint(model: Any) -> str:
    """A hash of the base weights' names, shapes and 64 evenly spaced values each, rounded to bfloat16.

    It is the same for a causal model and a classifier on one base, and in float32 and bfloat16.
    """
    import torch

    hashed = hashlib.blake2b(digest_size=12)
    for name, p in sorted(base_parameters(model)):
        flat = p.detach().reshape(-1)
        at = torch.linspace(0, flat.numel() - 1, min(_SAMPLES, flat.numel()), dtype=torch.float64).long()
        values = flat[at.to(flat.device)].to(torch.bfloat16).view(torch.int16).cpu()
        hashed.update(f"{name}{tuple(p.shape)}".encode())
        hashed.update(values.numpy().tobytes())
    return hashed.hexdigest()
