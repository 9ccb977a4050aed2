"""The load of each expert on data, how far two states of a model route apart, and draws that reach rare experts."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from tenet.errors import DataError
from trainers.adapters._layout import Block, blocks


class Load(NamedTuple):
    """What passed through each expert; L mixtures, E experts each."""

    tokens: torch.Tensor
    """[L, E] picks."""
    gate: torch.Tensor
    """[L, E] sums of routing weights."""
    rows: torch.Tensor
    """[N, L, E] picks by example of the data."""


class Seen(NamedTuple):
    """One mixture's routing of one batch: picks and weights, [T, k]."""

    picks: torch.Tensor
    weights: torch.Tensor


@contextmanager
def watching(found: list[Block]) -> Generator[dict[int, Seen]]:
    """Layer -> what its experts were last called with."""
    last: dict[int, Seen] = {}

    def keep(layer: int) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            _, picks, weights = (*args, *kwargs.values())[:3]
            last[layer] = Seen(picks.detach(), weights.detach())

        return hook

    hooks = [b.experts.register_forward_pre_hook(keep(b.layer), with_kwargs=True) for b in found]
    try:
        yield last
    finally:
        for hook in hooks:
            hook.remove()


def measure(model: Any, batches: Iterable[Mapping[str, Any]]) -> Load:
    """The load on batches of model inputs (`input_ids`, `attention_mask`); padding is not counted.

    DataError if the batches hold nothing.
    """
    found = blocks(model, "measure")
    parts: list[torch.Tensor] = []
    gate = torch.zeros(len(found), found[0].E, dtype=torch.float64)
    was = model.training
    model.eval()
    try:
        with torch.no_grad(), watching(found) as last:
            for batch in batches:
                ids = batch["input_ids"]
                mask = batch.get("attention_mask")
                real = torch.ones_like(ids) if mask is None else mask
                model(**{k: v for k, v in batch.items() if k in ("input_ids", "attention_mask")})
                part = torch.zeros(ids.shape[0], len(found), found[0].E, dtype=torch.long)
                row = torch.arange(ids.shape[0]).repeat_interleave(ids.shape[1])[real.reshape(-1).bool().cpu()]
                for layer, seen in last.items():
                    keep = real.reshape(-1).bool()
                    picks, weights = seen.picks[keep].cpu(), seen.weights[keep].cpu().double()
                    at = (row[:, None].expand_as(picks) * found[0].E + picks).reshape(-1)
                    flat = torch.bincount(at, minlength=ids.shape[0] * found[0].E)
                    part[:, layer] = flat.view(ids.shape[0], found[0].E)
                    gate[layer].index_add_(0, picks.reshape(-1), weights.reshape(-1))
                parts.append(part)
    finally:
        model.train(was)
    if not parts:
        raise DataError("no batch to measure the load on", where="batches", fix="pass at least one")
    rows = torch.cat(parts)
    return Load(rows.sum(0), gate, rows)


def draw_weights(rows: torch.Tensor, floor: float, most: float = 20.0) -> torch.Tensor:
    """How often to draw each example [N], so that each expert gets at least `floor` of an even load, in expectation.

    Examples are weighed up by the rarest experts they reach, round after round, to at most `most` times their even
    share. An expert that no example reaches stays without tokens. `rows` [N, L, E] are `Load.rows`.
    """
    N = rows.shape[0]
    use = rows.reshape(N, -1).double()
    layer = rows.double().sum(2, keepdim=True).expand_as(rows).reshape(N, -1)
    even = 1.0 / rows.shape[2]
    weights = torch.ones(N, dtype=torch.float64)
    for _ in range(200):
        share = (weights @ use) / (weights @ layer).clamp(min=1e-12)
        lack = (floor * even / share.clamp(min=1e-12)).clamp(min=1.0, max=2.0)
        lack[share <= 0] = 1.0
        if bool((lack <= 1.0 + 1e-3).all()):
            break
        reach = use / layer.clamp(min=1.0)
        pull = (reach / reach.sum(1, keepdim=True).clamp(min=1e-12)) @ (lack - 1.0)
        weights = (weights * (1.0 + pull)).clamp(max=most * float(weights.mean()))
    return weights / weights.mean()


def moved(handle: Any, batches: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """How far the adapter moves routing and output on data.

    `picks_changed`: per mixture, the share of (token, pick) pairs that go to an expert the base would not have
    picked. `kl`: mean KL divergence, in nats a token, from the base's next-token distribution to the adapter's;
    null for a model without token logits.
    """
    model = handle.model
    found = blocks(model, "moved")
    changed = torch.zeros(len(found), dtype=torch.float64)
    total, kl, tokens, heads = 0, 0.0, 0, model.get_output_embeddings() is not None
    was = model.training
    model.eval()
    try:
        with torch.no_grad(), watching(found) as last:
            for batch in batches:
                given = {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask")}
                mask = given.get("attention_mask", torch.ones_like(given["input_ids"]))
                real = mask.reshape(-1).bool()
                on = model(**given).logits
                after = dict(last)
                with handle.disabled():
                    off = model(**given).logits
                for layer, seen in last.items():
                    kept = (after[layer].picks[:, :, None] == seen.picks[:, None, :]).any(2)
                    changed[layer] += float((~kept[real]).sum())
                total += int(real.sum()) * found[0].k
                tokens += int(real.sum())
                if heads:
                    p, q = off.flatten(0, -2)[real].double(), on.flatten(0, -2)[real].double()
                    p, q = p.log_softmax(-1), q.log_softmax(-1)
                    kl += float((p.exp() * (p - q)).sum())
    finally:
        model.train(was)
    if not total:
        raise DataError("no token to measure on", where="batches", fix="pass at least one batch")
    share = [round(float(c) / total, 6) for c in changed]
    return {"picks_changed": share, "kl": kl / tokens if heads else None, "tokens": tokens}
