"""What an adapter adds to one module of the model: to its experts, to its router, to a linear layer."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from trainers.adapters._experts import Factors, facing, fit
from trainers.adapters._grouped import aligned
from trainers.adapters._layout import Block


class Switch:
    """Which of a model's adapters is on; None: the base alone."""

    def __init__(self) -> None:
        self.on: str | None = None


class Slot(nn.Module):
    """The place on a module that holds each adapter's piece under its name."""

    def __init__(self, switch: Switch) -> None:
        super().__init__()
        self.switch = switch
        self.pieces = nn.ModuleDict()

    def active(self) -> Any:
        """The piece of the adapter that is on, or None."""
        name = self.switch.on
        return self.pieces[name] if name is not None and name in self.pieces else None


def drawn(rows: int, width: int, like: torch.Tensor, draw: torch.Generator) -> nn.Parameter:
    """A first factor as LoRA draws it (Kaiming uniform, a = sqrt 5), in at least float32."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    bound = 1 / math.sqrt(width)
    values = torch.empty(rows, width, dtype=dtype).uniform_(-bound, bound, generator=draw)
    return nn.Parameter(values.to(like.device))


def empty(rows: int, width: int, like: torch.Tensor) -> nn.Parameter:
    """A second factor: zeros, so that the adapter starts as the base."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return nn.Parameter(torch.zeros(rows, width, dtype=dtype, device=like.device))


class ExpertPiece(nn.Module):
    """One layer's experts: pairs of their own, a shared pair, copies of chosen experts, or only a count of tokens.

    Factors lie flat, [R, in] and [R, out]; R holds the experts' ranks one after another.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = (block,)  # in a tuple: the experts are not to become a child of their own child
        self.E = block.E
        self.ranks: list[int] = []
        self.scale = self.shared_scale = 1.0
        self.ids: torch.Tensor | None = None
        # No buffer: DistributedDataParallel would write the first process's count over everyone's.
        self.tokens = torch.zeros(block.E, dtype=torch.long, device=block.up.device)
        self.register_buffer("slots", None, persistent=False)

    def add_own(self, ranks: list[int], scale: float, targets: tuple[str, ...], draw: torch.Generator) -> None:
        """A pair per expert and projection; the rank of each expert."""
        self.ranks, self.scale = ranks, scale
        if len(set(ranks)) > 1:
            widest = max(ranks)
            at = [e * widest + i for e, r in enumerate(ranks) for i in range(r)]
            self.slots = torch.tensor(at, device=self.tokens.device)
        for target, weight, K, N in self._projections(targets):
            setattr(self, f"{target}_a", drawn(sum(ranks), K, weight, draw))
            setattr(self, f"{target}_b", empty(sum(ranks), N, weight))

    def add_shared(self, rank: int, scale: float, targets: tuple[str, ...], draw: torch.Generator) -> None:
        self.shared_scale = scale
        for target, weight, K, N in self._projections(targets):
            setattr(self, f"shared_{target}_a", drawn(rank, K, weight, draw))
            setattr(self, f"shared_{target}_b", empty(rank, N, weight))

    def add_chosen(self, ids: list[int]) -> None:
        """Trainable copies of these experts' weights."""
        block = self.block[0]
        self.ids = torch.tensor(sorted(ids), device=block.up.device)
        for target, weight, _, _ in self._projections(("gate_up", "down")):
            dtype = torch.promote_types(weight.dtype, torch.float32)
            setattr(self, f"chosen_{target}", nn.Parameter(weight.detach()[self.ids].to(dtype).clone()))

    def _projections(self, targets: tuple[str, ...]) -> Iterator[tuple[str, torch.Tensor, int, int]]:
        block = self.block[0]
        for target, weight in (("gate_up", block.up), ("down", block.down)):
            if target in targets:
                yield target, weight, *block.sizes(weight)

    def factors(self, loop: bool) -> tuple[Factors, Factors]:
        """What the pass over the experts takes, for both projections."""
        made: list[Factors] = []
        for target in ("gate_up", "down"):
            a, b = getattr(self, f"{target}_a", None), getattr(self, f"{target}_b", None)
            if a is not None and b is not None:
                rank = max(self.ranks)
                if not loop:
                    rank = aligned(rank, self.block[0].up.dtype)
                a, b = fit(a, self.E, self.slots, rank), fit(b, self.E, self.slots, rank)
            shared_a, shared_b = (getattr(self, f"shared_{target}_{f}", None) for f in "ab")
            own = getattr(self, f"chosen_{target}", None)
            made.append(Factors(a, b, shared_a, shared_b, own, self.scale, self.shared_scale))
        return made[0], made[1]

    def see(self, tokens: torch.Tensor) -> None:
        """Counts tokens [E] whose gradient came through."""
        self.tokens = self.tokens.to(tokens.device) + tokens

    def all_tokens(self) -> torch.Tensor:
        """The count [E] over all processes; every process must ask."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self.tokens
        total = self.tokens.clone()
        torch.distributed.all_reduce(total)
        return total

    def owners(self, name: str) -> torch.Tensor | None:
        """The expert of each row (of dimension 0) of a parameter; None if all experts share it."""
        if name.startswith("shared_"):
            return None
        if name.startswith("chosen_"):
            return self.ids
        return torch.repeat_interleave(torch.arange(self.E), torch.tensor(self.ranks)).to(self.tokens.device)

    def delta(self, target: str, expert: int) -> torch.Tensor | None:
        """What merging adds to one expert's projection, [in, out] in float32 or wider; None for nothing."""
        made = None
        a, b = getattr(self, f"{target}_a", None), getattr(self, f"{target}_b", None)
        if a is not None and b is not None:
            start = sum(self.ranks[:expert])
            rows = slice(start, start + self.ranks[expert])
            made = self.scale * a[rows].detach().T @ b[rows].detach()
        a, b = getattr(self, f"shared_{target}_a", None), getattr(self, f"shared_{target}_b", None)
        if a is not None and b is not None:
            shared = self.shared_scale * a.detach().T @ b.detach()
            made = shared if made is None else made + shared
        chosen = getattr(self, f"chosen_{target}", None)
        if chosen is not None and self.ids is not None and expert in self.ids.tolist():
            block = self.block[0]
            weight = block.up if target == "gate_up" else block.down
            own = chosen.detach()[self.ids.tolist().index(expert)]
            made = facing(block.experts, own - weight.detach()[expert].to(own.dtype))
        return made

    def own_change_norms(self) -> dict[int, float]:
        """Expert -> Frobenius norm of the change by weights of its own; experts without any are left out."""
        if self.ranks:
            squares = torch.zeros(self.E, dtype=torch.float64)
            start = 0
            for e, r in enumerate(self.ranks):
                for target in ("gate_up", "down"):
                    if hasattr(self, f"{target}_a"):
                        a, b = (getattr(self, f"{target}_{f}").detach()[start : start + r] for f in "ab")
                        squares[e] += _square(a, b) * self.scale**2
                start += r
            return {e: math.sqrt(max(0.0, float(s))) for e, s in enumerate(squares)}
        if self.ids is None:
            return {}
        block, made = self.block[0], dict[int, float]()
        for i, e in enumerate(self.ids.tolist()):
            owned: tuple[Any, Any] = (self.chosen_gate_up, self.chosen_down)
            pairs = zip(owned, (block.up, block.down), strict=True)
            change = [own.detach()[i] - weight.detach()[e] for own, weight in pairs]
            made[e] = math.sqrt(sum(float(c.double().square().sum()) for c in change))
        return made

    def shared_change_norm(self) -> float | None:
        """The same for the shared pairs; None if there are none."""
        pairs = [t for t in ("gate_up", "down") if hasattr(self, f"shared_{t}_a")]
        if not pairs:
            return None
        squares = (_square(*(getattr(self, f"shared_{t}_{f}").detach() for f in "ab")) for t in pairs)
        return self.shared_scale * math.sqrt(max(0.0, sum(squares)))

    def merge(self) -> None:
        """Adds the adapter to the experts' weights for good, an expert at a time."""
        block = self.block[0]
        with torch.no_grad():
            for target, weight in (("gate_up", block.up), ("down", block.down)):
                for e in range(self.E):
                    delta = self.delta(target, e)
                    if delta is not None:
                        view = facing(block.experts, weight[e])
                        view.copy_(view.to(delta.dtype) + delta)


class RouterPiece(nn.Module):
    """One router: a full copy of its weight, a low-rank pair beside it, or jitter on its input alone."""

    def __init__(self, router: Any, full: bool, rank: int, scale: float, jitter: float, draw: torch.Generator) -> None:
        super().__init__()
        self.router = (router,)
        self.scale, self.jitter = scale, jitter
        weight = router.weight
        if full:
            dtype = torch.promote_types(weight.dtype, torch.float32)
            self.weight = nn.Parameter(weight.detach().to(dtype).clone())
        elif rank:
            self.a, self.b = drawn(rank, weight.shape[1], weight, draw), empty(rank, weight.shape[0], weight)

    def now(self) -> torch.Tensor | None:
        """The router's weight [E, H] with the adapter on; None if the adapter leaves it alone."""
        base = self.router[0]._parameters["weight"]
        if hasattr(self, "weight"):
            return self.weight.to(base.dtype)
        if hasattr(self, "a"):
            return base + (self.scale * self.b.T @ self.a).to(base.dtype)
        return None

    def change_norm(self) -> float | None:
        if not list(self.parameters()):
            return None
        if hasattr(self, "a"):
            return self.scale * math.sqrt(max(0.0, _square(self.a.detach(), self.b.detach())))
        return float((self.weight.detach().double() - self.router[0]._parameters["weight"].detach().double()).norm())

    def merge(self) -> None:
        with torch.no_grad():
            now = self.now()
            if now is not None:
                self.router[0]._parameters["weight"].copy_(now)


class LinearPiece(nn.Module):
    """A low-rank pair beside a linear layer (Hu et al. 2021)."""

    def __init__(self, linear: Any, rank: int, scale: float, draw: torch.Generator) -> None:
        super().__init__()
        self.linear, self.scale = (linear,), scale
        self.a = drawn(rank, linear.in_features, linear.weight, draw)
        self.b = empty(rank, linear.out_features, linear.weight)

    def beside(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y + self.scale * F.linear(F.linear(x, self.a.to(x.dtype)), self.b.T.to(x.dtype)).to(y.dtype)

    def change_norm(self) -> float | None:
        return self.scale * math.sqrt(max(0.0, _square(self.a.detach(), self.b.detach())))

    def merge(self) -> None:
        weight = self.linear[0].weight
        with torch.no_grad():
            weight.copy_(weight.to(self.a.dtype) + self.scale * self.b.T @ self.a)


def _square(a: torch.Tensor, b: torch.Tensor) -> float:
    """The squared Frobenius norm of a.T @ b for a [r, K], b [r, N], without the product."""
    a, b = a.double(), b.double()
    return float(((a @ a.T) * (b @ b.T)).sum())


def seat(host: Any, switch: Switch) -> Slot:
    """The slot of a module, made at the first call."""
    slot = host._modules.get("tenet")
    if slot is None:
        slot = Slot(switch)
        host.add_module("tenet", slot)
    return slot


def watch(host: Any) -> list[Any]:
    """The hooks that a router or a linear layer needs; experts need none, since the experts interface calls ours.

    A hook finds the slot through its module and not through a closure, so that a deep copy of the model works.
    """
    if isinstance(host, nn.Linear):
        return [host.register_forward_hook(_beside)]
    return [host.register_forward_pre_hook(_put), host.register_forward_hook(_take_back, always_call=True)]


def _beside(module: Any, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    piece = module.tenet.active()
    return output if piece is None else piece.beside(args[0], output)


def _put(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    piece = module.tenet.active()
    if piece is None:
        return None
    weight = piece.now()
    if weight is not None:
        # An entry of the instance hides the parameter of the same name, which stays what and where it is.
        module.__dict__["weight"] = weight
    if piece.jitter and module.training and args:
        noise = torch.empty_like(args[0]).uniform_(1 - piece.jitter, 1 + piece.jitter)
        return (args[0] * noise, *args[1:])
    return None


def _take_back(module: Any, args: tuple[Any, ...], output: Any) -> None:
    module.__dict__.pop("weight", None)
