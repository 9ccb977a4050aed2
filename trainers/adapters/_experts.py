"""The experts implementation "tenet": frozen experts and low-rank pairs in one pass over tokens sorted by expert.

Registered with transformers' experts interface, so that it serves every family with fused experts and leaves their
classes alone. The pass is one autograd node. It saves the input, the output of the first projection and the rank-wide
products, and gathers or recomputes everything else when the gradient comes: no delta of the weights, no copy of
the sorted rows outlives the call.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from tenet.errors import SettingsError
from trainers.adapters._sorted import Order, Rows, add, sort

NAME = "tenet"


class Factors(NamedTuple):
    """What one adapter adds to one projection (K in, N out); None where it adds nothing of that kind."""

    a: torch.Tensor | None = None
    """[E, r, K], one per expert."""
    b: torch.Tensor | None = None
    """[E, r, N]."""
    shared_a: torch.Tensor | None = None
    """[R, K], for all experts of the layer."""
    shared_b: torch.Tensor | None = None
    """[R, N]."""
    chosen: torch.Tensor | None = None
    """[C, …] trained copies of some experts' weights, in the layer's own layout."""
    scale: float = 1.0
    shared_scale: float = 1.0


@dataclass(frozen=True)
class Frozen:
    """The frozen experts of a layer, seen as [E, K, N] whatever their layout."""

    layer: Any
    up: torch.Tensor
    down: torch.Tensor
    up_bias: torch.Tensor | None
    down_bias: torch.Tensor | None
    swiglu: bool
    """SiLU(gate) * up on concatenated halves, which has a gradient written out below; others go through autograd."""

    @staticmethod
    def of(layer: Any) -> Frozen:
        up = layer.gate_up_proj if layer.has_gate else layer.up_proj
        name = "gate_up_proj_bias" if layer.has_gate else "up_proj_bias"
        return Frozen(
            layer=layer,
            up=facing(layer, up),
            down=facing(layer, layer.down_proj),
            up_bias=getattr(layer, name) if layer.has_bias else None,
            down_bias=layer.down_proj_bias if layer.has_bias else None,
            swiglu=_is_swiglu(layer),
        )

    def gate(self, g: torch.Tensor) -> torch.Tensor:
        return self.layer._apply_gate(g) if self.layer.has_gate else self.layer.act_fn(g)


def facing(layer: Any, weight: torch.Tensor) -> torch.Tensor:
    """The weight seen as [E, in, out]."""
    return weight if layer.is_transposed else weight.transpose(-2, -1)


def _is_swiglu(layer: Any) -> bool:
    from transformers.integrations.moe import _default_apply_gate  # pyright: ignore[reportPrivateUsage]

    default = getattr(type(layer), "_apply_gate", None) is _default_apply_gate
    return bool(default and layer.has_gate and isinstance(layer.act_fn, torch.nn.SiLU))


class Pass(NamedTuple):
    """What one call needs besides tensors that autograd knows."""

    frozen: Frozen
    picks: torch.Tensor
    """[T, k] expert ids."""
    chosen: torch.Tensor | None
    """[C] ids of the experts that have weights of their own."""
    scales: tuple[float, float, float, float]
    """Of the first projection's pairs and shared pair, of the second's."""
    loop: bool
    seen: Any
    """Called in the backward pass with the tokens [E] that carried a gradient."""


class Experts(torch.autograd.Function):
    """x [T, H], routing weights [T, k], then a, b, shared_a, shared_b, chosen of both projections -> [T, H].

    The backward pass is one long function on purpose: each large tensor is freed where its last reader stands.
    """

    @staticmethod
    def forward(ctx: Any, run: Pass, x: torch.Tensor, w: torch.Tensor, *factors: torch.Tensor | None) -> torch.Tensor:
        a1, b1, sa1, sb1, c1, a2, b2, sa2, sb2, c2 = factors
        base, (s1, t1, s2, t2) = run.frozen, run.scales
        order = sort(run.picks, base.up.shape[0], run.chosen)
        with torch.autocast(x.device.type, enabled=False):
            rows = Rows.of(order.sizes, run.chosen, run.loop)
            xs = x[order.token]
            g = rows.mm(xs, base.up, _faced(base, c1))
            xa = ta = ha = u = None
            if base.up_bias is not None:
                g += base.up_bias[order.expert]
            if a1 is not None and b1 is not None:
                xa = rows.frozen.mm(xs, a1.mT)
                rows.frozen.addmm_(g, xa, b1, s1)
            if sa1 is not None and sb1 is not None:
                ta = x @ sa1.T
                g.addmm_(ta[order.token], sb1, alpha=t1)
            h = base.gate(g)
            del xs
            z = rows.mm(h, base.down, _faced(base, c2))
            if base.down_bias is not None:
                z += base.down_bias[order.expert]
            if a2 is not None and b2 is not None:
                ha = rows.frozen.mm(h, a2.mT)
                rows.frozen.addmm_(z, ha, b2, s2)
            out = add(z, order.row, w)
            if sa2 is not None and sb2 is not None:
                # the sum over a token's picks commutes with the shared pair's second factor: T rows instead of S
                u = add(h @ sa2.T, order.row, w)
                out.addmm_(u, sb2, alpha=t2)
        ctx.save_for_backward(x, w, g, xa, ta, ha, u, *order, *factors)
        ctx.run, ctx.rows = run, rows
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        saved = ctx.saved_tensors  # once: under checkpointing a second look is an error
        (x, w, g, xa, ta, ha, u), order = saved[:7], Order(*saved[7:11])
        a1, b1, sa1, sb1, c1, a2, b2, sa2, sb2, c2 = saved[11:]
        run, rows = ctx.run, ctx.rows
        base, (s1, t1, s2, t2) = run.frozen, run.scales
        da1 = db1 = dsa1 = dsb1 = dc1 = da2 = db2 = dsa2 = dsb2 = dc2 = dx = dw = None
        with torch.autocast(x.device.type, enabled=False):
            dout = grads[0].contiguous()
            if run.seen is not None:
                run.seen(_alive(dout, order))
            ws = torch.empty_like(w).view(-1)
            ws[order.row.view(-1)] = w.reshape(-1)
            ws = ws[:, None]
            # -- second projection: q is the gradient of h before the routing weight
            dz = dout[order.token]
            q = rows.mm(dz, base.down.mT, _turned(base, c2))
            zb = ub = None
            if a2 is not None and b2 is not None:
                zb = rows.frozen.mm(dz, b2.mT)
                rows.frozen.addmm_(q, zb, a2, s2)
            if sa2 is not None and sb2 is not None:
                ub = dout @ sb2.T
                q.addmm_(ub[order.token], sa2, alpha=t2)
            h, pull = _gate_gradient(base, g)
            if ctx.needs_input_grad[2]:
                inner = (q * h).sum(-1)
                if base.down_bias is not None:
                    inner += (dz * base.down_bias[order.expert]).sum(-1)
                dw = inner[order.row]
            if zb is not None and ha is not None:
                da2 = rows.frozen.outer(zb.mul_(ws), h).mul_(s2)
                db2 = rows.frozen.outer(ha * ws, dz).mul_(s2)
            if sa2 is not None and ub is not None:
                dsa2 = (ub[order.token] * ws).T @ h * t2
                dsb2 = u.T @ dout * t2
            if c2 is not None:
                dc2 = _unfaced(base, rows.chosen.outer(h[rows.first :], (dz * ws)[rows.first :]))
            # -- the gate, then the first projection
            del dz, h
            dg = pull(q.mul_(ws))
            del q
            need_xs = a1 is not None or c1 is not None
            xs = x[order.token] if need_xs else None
            gb = None
            if a1 is not None and b1 is not None:
                gb = rows.frozen.mm(dg, b1.mT)
                da1 = rows.frozen.outer(gb, xs).mul_(s1)
                db1 = rows.frozen.outer(xa, dg).mul_(s1)
            if c1 is not None and xs is not None:
                dc1 = _unfaced(base, rows.chosen.outer(xs[rows.first :], dg[rows.first :]))
            del xs
            tb = None
            if sa1 is not None and sb1 is not None:
                tb = add(dg @ sb1.T, order.row, None)
                dsa1 = tb.T @ x * t1
                dsb1 = ta[order.token].T @ dg * t1
            if ctx.needs_input_grad[1]:
                dxs = rows.mm(dg, base.up.mT, _turned(base, c1))
                if gb is not None:
                    rows.frozen.addmm_(dxs, gb, a1, s1)
                dx = add(dxs, order.row, None)
                if tb is not None and sa1 is not None:
                    dx.addmm_(tb, sa1, alpha=t1)
        return None, dx, dw, da1, db1, dsa1, dsb1, dc1, da2, db2, dsa2, dsb2, dc2


def _faced(base: Frozen, own: torch.Tensor | None) -> torch.Tensor | None:
    return None if own is None else facing(base.layer, own)


def _turned(base: Frozen, own: torch.Tensor | None) -> torch.Tensor | None:
    return None if own is None else facing(base.layer, own).mT


def _unfaced(base: Frozen, gradient: torch.Tensor) -> torch.Tensor:
    """A gradient [C, in, out] in the layout of the layer's own weights."""
    return gradient if base.layer.is_transposed else gradient.mT


def _alive(dout: torch.Tensor, order: Order) -> torch.Tensor:
    alive = (dout != 0).any(1)[order.token]
    return torch.zeros_like(order.sizes).index_add_(0, order.expert, alive.to(order.sizes.dtype))


def _gate_gradient(base: Frozen, g: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """The gate's value again, and the function that takes its gradient back to the gradient of g."""
    if not base.swiglu:
        with torch.enable_grad():
            leaf = g.detach().requires_grad_()
            value = base.gate(leaf)

        def through(dh: torch.Tensor) -> torch.Tensor:
            return torch.autograd.grad(value, leaf, dh)[0]

        return value.detach(), through
    gate, up = g.chunk(2, -1)
    opened = F.silu(gate)

    def pull(dh: torch.Tensor) -> torch.Tensor:
        dg = torch.empty_like(g)
        left, right = dg.chunk(2, -1)
        torch.mul(dh, opened, out=right)
        torch.ops.aten.silu_backward.grad_input(dh * up, gate, grad_input=left)
        return dg

    return opened * up, pull


def loops_on(device: str) -> bool:
    """Whether groups are multiplied in a loop there: it accumulates in place and needs no aligned ranks."""
    return device == "cpu"


def forward(layer: Any, x: torch.Tensor, picks: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The registered function: what the layer's classes call in place of their own experts' forward."""
    from transformers.integrations.moe import grouped_mm_experts_forward

    slot = layer._modules.get("tenet")
    piece = slot.active() if slot is not None else None
    if piece is None and (slot is None or layer.down_proj.requires_grad):
        # a config that names this implementation may be shared with a model that has no adapter
        return grouped_mm_experts_forward(layer, x, picks, weights)
    if layer.down_proj.requires_grad and torch.is_grad_enabled():
        what = "the experts' own weights take gradients, which an adapter on them would leave out"
        raise SettingsError(what, where="adapter", fix="freeze them, or use mode full or experts")
    up, down = piece.factors(loops_on(x.device.type)) if piece is not None else (Factors(), Factors())
    base = Frozen.of(layer)
    dtype = base.up.dtype
    run = Pass(
        frozen=base,
        picks=picks,
        chosen=piece.ids if piece is not None else None,
        scales=(up.scale, up.shared_scale, down.scale, down.shared_scale),
        loop=loops_on(x.device.type),
        seen=piece.see if piece is not None else None,
    )
    flat = [None if t is None else t.to(dtype) for f in (up, down) for t in f[:5]]
    out = Experts.apply(run, x.to(dtype), weights.to(dtype), *flat)
    return out.to(x.dtype)


def register() -> None:
    """Makes the implementation known to transformers, once."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    if NAME not in ALL_EXPERTS_FUNCTIONS:
        ALL_EXPERTS_FUNCTIONS.register(NAME, forward)


def fit(factor: torch.Tensor, experts: int, slots: torch.Tensor | None, rank: int) -> torch.Tensor:
    """[R, N] rows of all experts as [E, rank, N], with zeros where an expert has fewer."""
    if slots is None and factor.shape[0] == experts * rank:
        return factor.view(experts, rank, -1)
    if slots is None:
        own = factor.view(experts, -1, factor.shape[1])
        return F.pad(own, (0, 0, 0, rank - own.shape[1]))
    wide = factor.new_zeros(experts * rank, factor.shape[1])
    return wide.index_copy(0, slots, factor).view(experts, rank, -1)
