"""What routers do, seen through forward hooks: logits, chosen experts, and which tokens are padding."""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tenet.errors import SettingsError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Layer:
    """One MoE block of a model."""

    name: str
    """The block's name in the model, such as "model.layers.3.mlp"."""
    router: torch.nn.Module
    experts: torch.nn.Module
    count: int
    """E, its routed experts."""
    top_k: int
    """K, the experts that each token goes to."""
    sigmoid: bool
    """Whether each expert has a score of its own (DeepSeek-V3's routers) instead of a softmax over all."""

    @property
    def bias(self) -> torch.Tensor | None:
        """[E] what is added to the scores for the choice alone; None if the router has no such buffer."""
        return getattr(self.router, "e_score_correction_bias", None)


def has_routers(model: torch.nn.Module) -> bool:
    """Whether the model is a mixture of experts."""
    return bool(_found(model))


def layers(model: torch.nn.Module, where: str = "model") -> list[Layer]:
    """The MoE blocks of a transformers model, in order; SettingsError if it is dense."""
    found = _found(model)
    if not found:
        kind = getattr(_config(model), "model_type", type(model).__name__)
        fix = "an MoE model, such as `tenet upcycle` makes from a dense one"
        raise SettingsError(f"{kind} is dense: it has no router", where=where, fix=fix)
    return found


def _config(model: torch.nn.Module) -> Any:
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _found(model: torch.nn.Module) -> list[Layer]:
    found: list[Layer] = []
    config = _config(model)
    for name, block in model.named_modules():
        experts = getattr(block, "experts", None)
        router = getattr(block, "gate", getattr(block, "router", None))
        if experts is None or router is None or not hasattr(router, "weight"):
            continue
        top_k = int(getattr(router, "top_k", 0) or getattr(config, "num_experts_per_tok", 0))
        count = int(router.weight.shape[0])
        found.append(Layer(name, router, experts, count, top_k, hasattr(router, "e_score_correction_bias")))
    return found


@dataclass
class Forward:
    """One forward pass: by layer, in order, [N, E] logits and [N, K] chosen experts; [N] whether a token is real."""

    logits: list[torch.Tensor] = field(default_factory=list["torch.Tensor"])
    chosen: list[torch.Tensor] = field(default_factory=list["torch.Tensor"])
    real: torch.Tensor | None = None
    """None where no token is padding."""


class Tap:
    """Hooks on a model's routers and experts, which note passes inside `recording()`.

    Passes without gradients (a reference model under `no_grad`, generation) are left out unless asked for, and so
    is what gradient checkpointing runs again in the backward pass, which lies outside `recording()`.
    """

    def __init__(self, model: torch.nn.Module, where: str = "model") -> None:
        self.layers = layers(model, where)
        self.passes: list[Forward] = []
        self._open: Forward | None = None
        self._on = self._without_gradients = False
        decoder = model.get_submodule(_decoder(self.layers[0].name))
        self._handles = [decoder.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for layer in self.layers:
            self._handles.append(layer.router.register_forward_hook(self._routed))
            self._handles.append(layer.experts.register_forward_pre_hook(self._sent, with_kwargs=True))

    def close(self) -> None:
        """Takes the hooks off."""
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def recording(self, real: torch.Tensor | None = None, without_gradients: bool = False) -> Generator[list[Forward]]:
        """The passes made inside; `real` [B, T] marks the tokens where the model is called without a mask."""
        self.passes, self._on, self._real, self._without_gradients = [], True, real, without_gradients
        try:
            yield self.passes
        finally:
            self._on, self._open = False, None

    def _begin(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        import torch

        self._open = None
        if not self._on or not (torch.is_grad_enabled() or self._without_gradients):
            return
        mask = self._real if self._real is not None else kwargs.get("attention_mask")
        if mask is not None and mask.ndim == 2:
            given = (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args[:1])
            ids = next((x for x in given if x is not None), None)
            # With cached keys the mask is longer than what is run now.
            mask = mask if ids is None else mask[:, -ids.shape[1] :]
            self._open = Forward(real=mask.reshape(-1).bool())
        else:
            self._open = Forward()
        self.passes.append(self._open)

    def _routed(self, _: Any, __: Any, output: Any) -> None:
        if self._open is not None:
            logits = output[0] if isinstance(output, tuple) else output
            self._open.logits.append(logits.reshape(-1, logits.shape[-1]))

    def _sent(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._open is not None:
            chosen = kwargs["top_k_index"] if "top_k_index" in kwargs else args[1]
            self._open.chosen.append(chosen.detach().reshape(-1, chosen.shape[-1]))


def _decoder(name: str) -> str:
    """The module that holds the list of layers: "model.layers.3.mlp" -> "model"."""
    parts = name.split(".")
    first = next((i for i, part in enumerate(parts) if part.isdecimal()), 1)
    return ".".join(parts[: first - 1])
