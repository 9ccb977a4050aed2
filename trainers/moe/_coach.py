"""Carries router losses through a training: recording, weights by step, warm-up, bias balancing, and what is logged."""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import logging
import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from tenet.errors import SettingsError
from trainers.moe import losses
from trainers.moe._hooks import Tap, has_routers
from trainers.moe.losses import Settings, Tally
from trainers.moe.schedule import balance_weight

if TYPE_CHECKING:
    import torch

log = logging.getLogger("tenet.moe")
_ALL = 0.99
"""An expert that gets this share of the tokens has, for practical purposes, got them all."""
_ENOUGH = 4
"""Tokens per expert below which a share of the tokens says little."""


class Coach:
    """One training's router losses. The order at each optimizer step: for every micro-batch `recording()` around
    the forward pass and `loss()`; then `before_step(optimizer)`, the optimizer's step, `after_step()`.
    """

    def __init__(self, model: torch.nn.Module, settings: Settings, where: str = "moe") -> None:
        self.settings = settings
        self.tap = Tap(model, where)
        self.layers = self.tap.layers
        self.step = 0
        if settings.bias_balancing and any(layer.bias is None for layer in self.layers):
            what = "the routers keep no bias, so a saved model would not route as the trained one"
            fix = "the balance loss; or a family with e_score_correction_bias, such as `tenet upcycle --shared-expert`"
            raise SettingsError(what, where=f"{where}.bias_balancing", fix=f"{fix} makes from Qwen3")
        self._tally: Tally | None = None
        self._said: set[str] = set()
        self._rates: dict[int, float] = {}

    @property
    def weight(self) -> float:
        """The balance loss's weight now, in the settings' units."""
        s = self.settings
        return balance_weight(s.balance, s.schedule, s.warmup, self.step)

    @property
    def warming(self) -> bool:
        """Whether the warm-up stage lasts."""
        return self.settings.warmup is not None and self.step < self.settings.warmup.steps

    @contextmanager
    def recording(self, real: torch.Tensor | None = None) -> Generator[None]:
        """Notes the routers' work inside; `real` [B, T] marks the tokens where the model is called without a mask."""
        with self.tap.recording(real):
            yield

    def loss(self) -> torch.Tensor:
        """The weighted balance and z-loss of what was recorded, the mean of its passes; TrainingError on NaN."""
        import torch

        passes = self.tap.passes
        if not passes:
            raise SettingsError("no pass through the routers was seen", where="moe", fix="train the model it was given")
        if self._tally is None:
            self._tally = Tally.empty(self.layers, passes[0].logits[0].device)
        units = self.settings.units
        weight = self.weight * losses.convert(1.0, "one", units, self.layers[0].top_k)
        parts: list[torch.Tensor] = []
        for seen in passes:
            spread, z = losses.of_pass(seen, self.layers, self._tally, self.settings.scope)
            parts.append(weight * spread + self.settings.z * z)
        passes.clear()
        return torch.stack(parts).mean()

    def router_parameters(self) -> list[torch.nn.Parameter]:
        """The routers' own weights that are trained."""
        return [p for layer in self.layers for p in layer.router.parameters() if p.requires_grad]

    def before_step(self, optimizer: Any = None) -> None:
        """In the warm-up stage: lets the experts stand still, and gives the routers their own rate.

        The rate needs the routers in a parameter group of their own, marked {"router": True}: see `split`.
        """
        warmup = self.settings.warmup
        if warmup is None or not self.warming:
            return
        if warmup.freeze_experts:
            # No gradient, no step: Adam and weight decay leave such a parameter alone.
            for layer in self.layers:
                for parameter in layer.experts.parameters():
                    parameter.grad = None
        if warmup.router_lr is not None and optimizer is not None:
            for group in optimizer.param_groups:
                if group.get("router"):
                    group["lr"] = warmup.router_lr

    def after_step(self) -> dict[str, float]:
        """Moves the biases, ends the step, and gives what there is to log."""
        assert self._tally is not None, "a step without a pass"
        tally, self._tally = self._tally, None
        if self.settings.scope == "global" or self.settings.bias_balancing:
            tally.counts, tally.tokens = losses.everywhere(tally.counts, tally.tokens)
        if self.settings.bias_balancing:
            self._move_biases(tally, self.settings.bias_balancing.rate)
        logged = {"moe/balance_weight": self.weight, **figures(tally, self.layers[0].top_k)}
        self._watch(tally)
        self.step += 1
        return logged

    def _move_biases(self, tally: Tally, rate: float) -> None:
        import torch

        with torch.no_grad():
            for layer, counts in zip(self.layers, tally.counts, strict=True):
                bias = layer.bias
                assert bias is not None
                bias.add_(rate * torch.sign(counts.mean() - counts).to(bias))

    def _watch(self, tally: Tally) -> None:
        """Says so, once for each layer and expert, when an expert gets all of a layer's tokens."""
        tokens = float(tally.tokens)
        if tokens < _ENOUGH * tally.counts.shape[1]:
            return
        for layer, counts in zip(self.layers, tally.counts.tolist(), strict=True):
            for expert, n in enumerate(counts):
                name = f"{layer.name}: expert {expert}"
                if n < _ALL * tokens or layer.count == layer.top_k:
                    self._said.discard(name)
                elif name not in self._said:
                    self._said.add(name)
                    log.warning(
                        "step %d, %s gets %.1f%% of the tokens: the router has collapsed on it; raise moe.balance "
                        "(%.4g now) or warm the router up",
                        self.step, name, 100 * n / tokens, self.weight,
                    )  # fmt: skip

    def close(self) -> None:
        """Takes the hooks off the model."""
        self.tap.close()


def coach_of(model: torch.nn.Module, asked: Settings | Literal["off"] | None) -> Coach | None:
    """The coach of a training whose setting `moe` is this; None: the defaults if the model has routers.

    SettingsError where settings are given and the model is dense.
    """
    if asked == "off" or (asked is None and not has_routers(model)):
        return None
    return Coach(model, asked or Settings())


def figures(tally: Tally, top_k: int) -> dict[str, float]:
    """What a step's routing was like: means over layers, and the worst layer where the mean would hide it.

    Balance loss in units "one"; entropies as shares of ln E; load relative to the mean load; logit size as root mean
    square; dead experts are those without a token, collapsed layers those with an expert that got all of them.
    """
    count = tally.counts.shape[1]
    tokens = max(float(tally.tokens), 1.0)
    sums: list[list[float]] = (tally.sums / tokens).tolist()
    loads: list[list[float]] = (tally.counts / tokens / top_k).tolist()
    tops = [max(load) * count for load in loads]
    spread = [-sum(f * math.log(f) for f in load if f > 0) / math.log(count) for load in loads]
    balances, zs, entropies, squares = zip(*sums, strict=True)
    n = len(loads)
    return {
        "moe/balance": sum(balances) / n,
        "moe/balance_worst": max(balances),
        "moe/z": sum(zs) / n,
        "moe/entropy": sum(entropies) / n / math.log(count),
        "moe/load_entropy": sum(spread) / n,
        "moe/max_load": sum(tops) / n,
        "moe/max_load_worst": max(tops),
        "moe/dead": float(sum(f == 0 for load in loads for f in load)),
        "moe/collapsed": float(sum(max(load) * top_k >= _ALL for load in loads) if count > top_k else 0),
        "moe/logits": sum(math.sqrt(s) for s in squares) / n,
    }


def split(optimizer: torch.optim.Optimizer, routers: list[torch.nn.Parameter]) -> None:
    """Moves the routers' weights into parameter groups of their own with the options that they had.

    To be called before a learning-rate scheduler is made, which counts the groups.
    """
    ours = {id(p) for p in routers}
    for group in list(optimizer.param_groups):
        moved = [p for p in group["params"] if id(p) in ours]
        if moved and len(moved) < len(group["params"]):
            group["params"] = [p for p in group["params"] if id(p) not in ours]
            options = {k: v for k, v in group.items() if k != "params"}
            optimizer.add_param_group({**options, "params": moved, "router": True})
        elif moved:
            group["router"] = True
