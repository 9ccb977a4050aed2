"""What an adapter trains: counted before training, checked after the first step, and what each expert learnt."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Literal

from tenet.errors import SettingsError
from tenet.records import Frozen

if TYPE_CHECKING:
    from trainers.adapters._handle import Handle


class Matrix(Frozen):
    """One trainable matrix."""

    name: str
    shape: tuple[int, ...]
    trainable: int
    """Weights that are trained."""
    active: float
    """Of these, how many one token meets, on average over experts."""
    gradient: Literal["", "yes", "zero", "none"] = ""
    """After the first step; first factors are "zero" there, since second factors start at zero."""


class Audit(Frozen):
    """All trainable matrices of a model."""

    mode: str
    matrices: tuple[Matrix, ...]
    trainable: int
    active: float
    frozen: int
    """Weights that are not trained."""
    bytes: int
    """Memory of the trained weights, their gradients and two moments in float32."""

    def text(self) -> str:
        """A table; matrices that differ only in their layer's number share a line."""
        rows: dict[tuple[str, tuple[int, ...]], list[Matrix]] = defaultdict(list)
        for m in self.matrices:
            rows[re.sub(r"\.\d+\.", ".*.", m.name), m.shape].append(m)
        counts = f"{self.trainable:,} trainable weights, {self.active:,.0f} active per token, {self.frozen:,} frozen"
        lines = [f"adapter {self.mode}: {counts}, {self.bytes / 2**20:,.1f} MiB with gradients and Adam's moments"]
        for (name, shape), found in rows.items():
            said = f"  {name} {list(shape)} x {len(found)}: {sum(m.trainable for m in found):,} trainable"
            said += f", {sum(m.active for m in found):,.0f} active"
            states = {m.gradient for m in found if m.gradient}
            lines.append(said + (f", gradient: {' and '.join(sorted(states))}" if states else ""))
        return "\n".join(lines)


class Expert(Frozen):
    """What one expert got and learnt."""

    layer: int
    expert: int
    tokens: int | None
    """Picks of it by tokens that carried a gradient."""
    grad_norm: float | None
    """Root mean square over the steps in which it had a gradient; null if it has no weights of its own."""
    change_norm: float | None
    """Frobenius norm of the change of its weights by weights of its own; null if it has none."""


class Report(Frozen):
    """What training did, by layer and expert."""

    mode: str
    experts: tuple[Expert, ...]
    shared: tuple[tuple[str, float], ...]
    """Change norm of what a layer's experts share, of routers, of linear layers."""
    note: str = ""

    @property
    def idle(self) -> tuple[tuple[int, int], ...]:
        """(layer, expert) of those whose own weights did not change."""
        return tuple((e.layer, e.expert) for e in self.experts if e.change_norm == 0)

    def text(self) -> str:
        own = [e for e in self.experts if e.change_norm is not None]
        lines: list[str] = []
        for layer in sorted({e.layer for e in self.experts}):
            here = [e for e in self.experts if e.layer == layer]
            tokens = sorted(e.tokens for e in here if e.tokens is not None)
            said = f"  layer {layer}: "
            if tokens:
                said += f"tokens per expert {tokens[0]:,} to {tokens[-1]:,}"
            norms = sorted(e.change_norm for e in here if e.change_norm is not None)
            if norms:
                said += f", change {norms[0]:.3g} to {norms[-1]:.3g}"
            lines.append(said)
        for name, norm in self.shared:
            lines.append(f"  {name}: change {norm:.3g}")
        if own:
            listed = ", ".join(f"{layer}:{e}" for layer, e in self.idle)
            lines.append(f"  experts that learnt nothing ({len(self.idle)} of {len(own)}): {listed or 'none'}")
        return "\n".join([f"adapter {self.mode}: what was learnt", *lines, *([self.note] if self.note else [])])


def count(handle: Handle) -> Audit:
    """The audit before training. SettingsError if nothing is trainable."""
    found: list[Matrix] = []
    for name, p, share in handle.shares():
        if p.requires_grad:
            found.append(Matrix(name=name, shape=tuple(p.shape), trainable=p.numel(), active=p.numel() * share))
    if not any(not m.name.startswith("head.") for m in found):
        what = f"mode {handle.mode!r} would train nothing of this model"
        raise SettingsError(what, where="adapter", fix="choose experts, targets or another mode")
    total = sum(m.trainable for m in found)
    frozen = sum(p.numel() for p in handle.model.parameters() if not p.requires_grad)
    return Audit(
        mode=handle.mode,
        matrices=tuple(found),
        trainable=total,
        active=sum(m.active for m in found),
        frozen=frozen,
        bytes=16 * total,
    )


def check_gradients(handle: Handle) -> Audit:
    """The audit with the gradients of a step. SettingsError if the step reached nothing that the mode trains."""
    import torch

    audit, by_name = count(handle), {name: p for name, p, _ in handle.shares()}
    marked: list[Matrix] = []
    for m in audit.matrices:
        grad = by_name[m.name].grad
        state = "none" if grad is None else ("yes" if bool(torch.any(grad != 0)) else "zero")
        marked.append(m.model_copy(update={"gradient": state}))
    if not any(m.gradient == "yes" and not m.name.startswith("head.") for m in marked):
        what = f"after the first step no weight of mode {handle.mode!r} has a gradient"
        fix = "is the loss computed on this model, and does any token count in it?"
        raise SettingsError(what, where="adapter", fix=fix)
    return audit.model_copy(update={"matrices": tuple(marked)})


def report(handle: Handle) -> Report:
    """What was learnt so far, against the base."""
    from trainers.adapters._pieces import ExpertPiece

    experts: list[Expert] = []
    shared: list[tuple[str, float]] = []
    for path, piece in handle.pieces.items():
        if not isinstance(piece, ExpertPiece):
            norm = piece.change_norm()
            if norm is not None:
                shared.append((path, norm))
            continue
        layer = handle.layers.get(path)
        own, tokens = piece.own_change_norms(), piece.all_tokens().tolist()
        shared += [(f"{path} (shared)", n) for n in [piece.shared_change_norm()] if n is not None]
        for e in range(piece.E):
            change = own.get(e)
            grad = None
            if change is not None and layer is not None and int(layer.steps[e]):
                grad = float((layer.square[e] / layer.steps[e]).sqrt())
            elif change is not None:
                grad = 0.0
            at = piece.block[0].layer
            experts.append(Expert(layer=at, expert=e, tokens=tokens[e], grad_norm=grad, change_norm=change))
    note = "" if handle.pieces else "mode full keeps no copy of the base: compare checkpoints with tenet inspect"
    return Report(mode=handle.mode, experts=tuple(experts), shared=tuple(shared), note=note)
