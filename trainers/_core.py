"""Next-token training in a few lines: Muon and AdamW on sequences of like length. nano is built with it."""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from tenet.engines import _model
from tenet.records import Frozen
from trainers.moe._coach import split

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from trainers.moe._coach import Coach


PAYS = 500_000
"""Tokens from which a minute of compiling is made good by a faster training."""


class Settings(Frozen):
    """How to train."""

    tokens: int
    """Tokens to see in all, padding left out."""
    batch_tokens: int = 8192
    """Tokens per step."""
    lr: float = 3e-3
    """Peak learning rate of AdamW (embeddings, norms)."""
    matrix_lr: float = 0.02
    """Peak learning rate of Muon (the layers' matrices), with updates scaled to the matrix's shape."""
    warmup: float = 0.02
    """Share of the training over which the rate rises from 0."""
    decay: float = 0.4
    """Share of the training, at its end, over which the rate falls linearly to 0."""
    weight_decay: float = 0.01
    compile: bool = True
    """Compile the model first, where a C++ compiler is at hand: about 1.4 times the speed on CPU. Trainings of less
    than `PAYS` tokens are not compiled."""
    seed: int = 0


class Example(NamedTuple):
    """Token ids, and for each id whether it is learnt (1) or only read (0)."""

    ids: list[int]
    learn: list[int]


class Step(NamedTuple):
    """Where a training stands."""

    tokens: int
    loss: float
    """Mean cross-entropy over the learnt tokens of the step, in nats."""
    router: Mapping[str, float] = MappingProxyType({})
    """What a mixture of experts' routers did in the step, see `trainers.moe`."""


def batches(examples: Iterable[Example], batch_tokens: int, seed: int) -> Iterator[list[Example]]:
    """Batches of examples of like length, so that padding wastes little; order shuffled within a window."""
    rng = random.Random(seed)
    window: list[Example] = []
    for example in examples:
        window.append(example)
        if len(window) == 4096:
            yield from _cut(window, batch_tokens, rng)
            window = []
    yield from _cut(window, batch_tokens, rng)


def _cut(window: list[Example], batch_tokens: int, rng: random.Random) -> list[list[Example]]:
    made: list[list[Example]] = []
    batch: list[Example] = []
    for example in sorted(window, key=lambda e: len(e.ids)):
        if batch and (len(batch) + 1) * len(example.ids) > batch_tokens:
            made.append(batch)
            batch = []
        batch.append(example)
    if batch:
        made.append(batch)
    rng.shuffle(made)
    return made


def rate(done: float, settings: Settings) -> float:
    """The share of the peak rate at a point of the training (0..1): up, flat, down to 0."""
    if done < settings.warmup:
        return done / settings.warmup
    return min(1.0, max(0.0, (1.0 - done) / settings.decay))


def loss_of(model: PreTrainedModel, batch: list[Example]) -> torch.Tensor:
    """Mean cross-entropy of the learnt tokens; the head runs on their positions only.

    Sequences are padded on the right, where causal attention never looks, so no mask is needed.
    """
    import torch

    longest = max(len(e.ids) for e in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    learn = torch.zeros(len(batch), longest, dtype=torch.bool)
    for row, example in enumerate(batch):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        learn[row, : len(example.ids)] = torch.tensor(example.learn, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not _model.slow_bf16()):
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        head = model.get_output_embeddings()
        assert head is not None
        logits = head(hidden[:, :-1][learn[:, 1:]])
    return torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][learn[:, 1:]])


def real(batch: list[Example]) -> torch.Tensor:
    """[B, T] which places of the padded batch hold a token."""
    import torch

    lengths = torch.tensor([[len(e.ids)] for e in batch])
    return torch.arange(int(lengths.max())) < lengths


def optimizers(model: PreTrainedModel, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices (Jordan et al. 2024), AdamW for embeddings and norms."""
    import torch

    from trainers._muon import Muon

    matrices, rest = [], []
    for name, weight in model.named_parameters():
        # A router's rows are E separate directions; a fused stack of experts is no matrix.
        matrix = weight.ndim == 2 and "embed" not in name and not name.endswith(".gate.weight")
        (matrices if matrix else rest).append(weight)
    return [
        Muon(matrices, lr=settings.matrix_lr, weight_decay=settings.weight_decay),
        torch.optim.AdamW(rest, lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(
    model: PreTrainedModel,
    examples: Iterable[Example],
    settings: Settings,
    progress: Callable[[Step], None] = lambda _: None,
    coach: Coach | None = None,
) -> None:
    """Trains the model in place until `settings.tokens` are seen or the examples end.

    With a coach, its router losses are added, and the model is not compiled: hooks would break the graphs.
    """
    import torch

    torch.manual_seed(settings.seed)
    model.train()
    pays = settings.compile and settings.tokens >= PAYS
    if pays and coach is None and (shutil.which("g++") or shutil.which("c++")):
        model.base_model.compile(dynamic=True)
    both = optimizers(model, settings)
    if coach is not None:
        split(both[1], coach.router_parameters())
    peaks = [group["lr"] for o in both for group in o.param_groups]
    seen = 0
    for batch in batches(examples, settings.batch_tokens, settings.seed):
        if seen >= settings.tokens:
            break
        share = rate(seen / settings.tokens, settings)
        for group, peak in zip((g for o in both for g in o.param_groups), peaks, strict=True):
            group["lr"] = peak * share
        with nullcontext() if coach is None else coach.recording(real(batch)):
            loss = loss_of(model, batch)
        (loss if coach is None else loss + coach.loss()).backward()
        if coach is not None:
            coach.before_step(both[1])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in both:
            optimizer.step()
            optimizer.zero_grad()
        seen += sum(len(e.ids) for e in batch)
        progress(Step(seen, float(loss.detach()), {} if coach is None else coach.after_step()))
    model.eval()
