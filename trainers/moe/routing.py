"""Where tokens go: load, entropy, specialisation and co-activation of experts, and how two models differ in them."""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tenet.errors import SettingsError
from trainers.moe import losses
from trainers.moe._hooks import Forward, Layer, Tap
from trainers.moe._texts import CLASSES, Row

if TYPE_CHECKING:
    import numpy as np
    import torch

SHOWN = 12
"""Topics that are told apart, the most frequent; the others are one."""
_SHUFFLES = 5


@dataclass(frozen=True)
class Seen:
    """What a model's routers did on some texts."""

    layers: list[Layer]
    chosen: np.ndarray[Any, Any]
    """[L, N, K] the experts of each token."""
    entropy: list[float]
    """[L] mean entropy of the routers' probabilities, in nats."""
    logits: list[float]
    """[L] root mean square of the routers' logits."""


def batches(rows: Sequence[Row], tokens: int = 4096) -> Iterator[list[Row]]:
    """The rows in their order, so many tokens with padding at a time."""
    batch: list[Row] = []
    for row in rows:
        longest = max(len(r.ids) for r in [*batch, row])
        if batch and (len(batch) + 1) * longest > tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def passes(model: Any, tap: Tap, rows: Sequence[Row]) -> Iterator[Forward]:
    """One forward pass a batch, without gradients; logits and choices hold the real tokens only, in the rows' order."""
    import torch

    model.eval()
    for batch in batches(rows):
        longest = max(len(r.ids) for r in batch)
        ids = torch.tensor([r.ids + [0] * (longest - len(r.ids)) for r in batch])
        mask = torch.tensor([[1] * len(r.ids) + [0] * (longest - len(r.ids)) for r in batch])
        with torch.no_grad(), tap.recording(without_gradients=True) as seen:
            model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
            real = mask.reshape(-1).bool()
            made = Forward([x[real] for x in seen[0].logits], [x[real] for x in seen[0].chosen])
        # Not from within `no_grad`: two of these side by side would each restore what the other had set.
        yield made


def look(model: Any, rows: Sequence[Row]) -> Seen:
    """Runs the model over the rows; SettingsError if it is dense."""
    import numpy as np
    import torch

    tap = Tap(model)
    chosen: list[list[Any]] = [[] for _ in tap.layers]
    sums = torch.zeros(len(tap.layers), 2, dtype=torch.float64)
    for seen in passes(model, tap, rows):
        for i, (layer, logits) in enumerate(zip(tap.layers, seen.logits, strict=True)):
            chosen[i].append(seen.chosen[i].numpy().astype(np.int16))
            entropy = torch.special.entr(losses.probabilities(logits, layer.sigmoid)).sum()
            sums[i] += torch.stack([entropy, logits.float().square().mean(dim=-1).sum()])
    tap.close()
    stacked = np.stack([np.concatenate(c) for c in chosen])
    means = (sums / stacked.shape[1]).tolist()
    return Seen(tap.layers, stacked, [m[0] for m in means], [math.sqrt(m[1]) for m in means])


def measure(model: Any, rows: Sequence[Row], seed: int = 0) -> dict[str, Any]:
    """Figures by layer, as plain data; null where a figure does not exist, with the reason beside it.

    Loads are shares of the layer's assignments, so they add up to 1. Specialisation is the mutual information of
    expert and token class (or topic) as a share of the experts' entropy, beside what shuffled labels give by chance.
    """
    import numpy as np

    seen = look(model, rows)
    classes = np.concatenate([r.classes for r in rows])
    names, topics = _topics(rows)
    of_row = np.repeat(np.arange(len(rows)), [len(r.ids) for r in rows])
    first = seen.layers[0]
    rng = np.random.RandomState(seed)
    found: dict[str, Any] = {
        "rows": len(rows), "tokens": int(seen.chosen.shape[1]), "experts": first.count, "top_k": first.top_k,
        "classes": {c: int((classes == i).sum()) for i, c in enumerate(CLASSES) if (classes == i).any()},
        "topics": {t: int((topics[of_row] == i).sum()) for i, t in enumerate(names)} or None,
        "topics_why": "" if names else "no row names a topic", "layers": [],
    }  # fmt: skip
    for i, layer in enumerate(seen.layers):
        chosen = seen.chosen[i]
        load = _load(chosen, layer.count)
        by_class = {c: _load(chosen[classes == CLASSES.index(c)], layer.count) for c in found["classes"]}
        by_topic = {t: _load(chosen[topics[of_row] == j], layer.count) for j, t in enumerate(names)}
        swapped = [rng.permutation(classes) for _ in range(_SHUFFLES)]
        moved = [rng.permutation(topics)[of_row] for _ in range(_SHUFFLES)]
        found["layers"].append(
            {
                "name": layer.name,
                "load": load,
                "load_entropy": entropy(load) / math.log(layer.count),
                "token_entropy": seen.entropy[i] / math.log(layer.count),
                "max_load": max(load) * layer.count,
                "dead": [e for e, f in enumerate(load) if f == 0],
                "logits": seen.logits[i],
                "similarity": similarity(layer),
                "by_class": by_class,
                "by_topic": by_topic or None,
                "specialisation": {
                    "class": _special(chosen, classes, swapped, layer.count),
                    "topic": _special(chosen, topics[of_row], moved, layer.count) if len(names) > 1 else None,
                },
                "coactivation": together(chosen, layer.count) if layer.top_k > 1 else None,
            }
        )
    return found


def _topics(rows: Sequence[Row]) -> tuple[list[str], np.ndarray[Any, Any]]:
    """(names, [rows] index of each row's topic); rows of rare topics and of none are "other"."""
    import numpy as np

    counts: dict[str, int] = {}
    for row in rows:
        if row.topic:
            counts[row.topic] = counts.get(row.topic, 0) + len(row.ids)
    names = sorted(counts, key=lambda t: (-counts[t], t))[:SHOWN]
    at = [names.index(r.topic) if r.topic in names else len(names) for r in rows]
    if names and len(names) in at:
        names = [*names, "other"]
    return names, np.array(at)


def _load(chosen: np.ndarray[Any, Any], experts: int) -> list[float]:
    """[E] shares of the assignments."""
    import numpy as np

    counts = np.bincount(chosen.reshape(-1), minlength=experts)
    return (counts / max(counts.sum(), 1)).tolist()


def entropy(shares: Sequence[float]) -> float:
    """Entropy in nats of shares that add up to 1."""
    from scipy import stats

    return float(stats.entropy(shares))


def _special(chosen: Any, labels: Any, shuffled: list[Any], experts: int) -> dict[str, float | None]:
    """Mutual information of expert and label as a share of the experts' entropy, and by chance."""
    import numpy as np

    def information(of: Any) -> float:
        width = int(of.max()) + 1
        pairs = np.repeat(of, chosen.shape[1]) * experts + chosen.reshape(-1)
        table = np.bincount(pairs, minlength=width * experts).reshape(width, experts) / chosen.size
        return entropy(table.sum(0)) + entropy(table.sum(1)) - entropy(table.reshape(-1))

    whole = entropy(_load(chosen, experts))
    if not whole:
        return {"share": None, "chance": None}
    return {"share": information(labels) / whole, "chance": sum(map(information, shuffled)) / len(shuffled) / whole}


def together(chosen: np.ndarray[Any, Any], experts: int) -> list[list[float | None]]:
    """[E, E] how often two experts get the same token, relative to even routing (K(K-1) / E(E-1)); null for i = i."""
    import numpy as np

    n, k = chosen.shape
    hit = np.zeros((n, experts), dtype=np.float32)
    np.put_along_axis(hit, chosen.astype(np.int64), 1.0, axis=1)
    lift = (hit.T @ hit) / n / (k * (k - 1) / (experts * (experts - 1)))
    return [[None if i == j else float(x) for j, x in enumerate(row)] for i, row in enumerate(lift)]


def compare(one: Any, other: Any, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """How the second model routes the same tokens, by layer. SettingsError if their layers or experts differ.

    `dropped` is the share of the first model's choices that the second no longer makes; `dropped_even` is what two
    unrelated routers with these loads would show. `kl` is KL(first || second) of the routers' probabilities, in nats.
    """
    import torch

    first, second = Tap(one), Tap(other)
    if [(x.name, x.count, x.top_k) for x in first.layers] != [(x.name, x.count, x.top_k) for x in second.layers]:
        raise SettingsError("has other MoE layers or experts", where="--compare", fix="two models of one shape")
    sums = torch.zeros(len(first.layers), 4, dtype=torch.float64)
    loads = torch.zeros(2, len(first.layers), first.layers[0].count, dtype=torch.float64)
    tokens = 0
    for a, b in zip(passes(one, first, rows), passes(other, second, rows), strict=True):
        tokens += a.chosen[0].shape[0]
        for i, layer in enumerate(first.layers):
            same = (a.chosen[i][:, :, None] == b.chosen[i][:, None, :]).any(-1).sum(-1)
            p = losses.probabilities(a.logits[i], layer.sigmoid)
            q = losses.probabilities(b.logits[i], layer.sigmoid)
            kl = (p * (p.clamp(min=1e-30).log() - q.clamp(min=1e-30).log())).sum()
            top = (p.argmax(-1) == q.argmax(-1)).sum()
            sums[i] += torch.stack([same.sum() / layer.top_k, (same == layer.top_k).sum(), top, kl]).double()
            for side, seen in enumerate((a, b)):
                loads[side, i] += torch.bincount(seen.chosen[i].reshape(-1), minlength=layer.count)
    first.close()
    second.close()
    shares = loads / tokens / first.layers[0].top_k
    rows_: list[dict[str, Any]] = []
    for i, layer in enumerate(first.layers):
        kept, whole, top, kl = (sums[i] / tokens).tolist()
        f, g = shares[0, i], shares[1, i]
        rows_.append(
            {
                "name": layer.name,
                "dropped": 1 - kept,
                "dropped_even": 1 - min(1.0, float((f * g).sum()) * layer.top_k),
                "same_set": whole,
                "same_first": top,
                "kl": kl,
                "load_moved": float((f - g).abs().sum() / 2),
                "load_change": (g - f).tolist(),
                "load_entropy_change": (entropy(g.tolist()) - entropy(f.tolist())) / math.log(layer.count),
                "router_change": _change(layer.router, second.layers[i].router),
                "experts_change": _change(layer.experts, second.layers[i].experts),
            }
        )
    return rows_


def _change(one: torch.nn.Module, other: torch.nn.Module) -> float | None:
    """|b - a| / |a| over the modules' weights in float32; None if the first's are all 0."""
    pairs = list(zip(one.parameters(), other.parameters(), strict=True))
    size = math.sqrt(sum(float(a.detach().float().square().sum()) for a, _ in pairs))
    moved = math.sqrt(sum(float((b.detach().float() - a.detach().float()).square().sum()) for a, b in pairs))
    return moved / size if size else None


def similarity(layer: Layer) -> float:
    """Mean pairwise cosine of the layer's experts' weights, each expert taken as one vector: 1 for copies."""
    import torch

    with torch.no_grad():
        flat = torch.cat([p.float().flatten(1) for p in layer.experts.parameters() if p.ndim == 3], dim=1)
        return _pairwise(torch.nn.functional.normalize(flat, dim=1)[:, None])


def answers(layer: Layer, inputs: torch.Tensor) -> float:
    """Mean pairwise cosine of what the layer's experts give for the same [N, H] inputs: 1 for copies."""
    import torch

    with torch.no_grad():
        n = inputs.shape[0]
        ones = torch.ones(n, 1, dtype=inputs.dtype, device=inputs.device)
        given = [
            layer.experts(inputs, torch.full((n, 1), e, device=inputs.device), ones).float() for e in range(layer.count)
        ]
        return _pairwise(torch.nn.functional.normalize(torch.stack(given), dim=-1))


def _pairwise(unit: torch.Tensor) -> float:
    """The mean of u_i . u_j over pairs i < j and over the middle axis, from [E, N, D] unit vectors."""
    total = unit.sum(dim=0).square().sum(dim=-1)  # the sum over all i and j of u_i . u_j
    own = unit.square().sum(dim=(0, 2))
    e = unit.shape[0]
    return float(((total - own) / (e * (e - 1))).mean())
