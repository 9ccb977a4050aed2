"""What a mode builds on: the model's mixtures, measured loads, and places for pieces."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tenet.errors import SettingsError
from trainers.adapters import _layout
from trainers.adapters._layout import Block
from trainers.adapters._settings import Attention, scale

if TYPE_CHECKING:
    from trainers.adapters._load import Load
    from trainers.adapters._pieces import ExpertPiece, Slot, Switch


class Place:
    """One adapter's way into one model."""

    def __init__(
        self,
        model: Any,
        name: str,
        mode: str,
        switch: Switch,
        seed: int,
        load: Load | None = None,
        ranks: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        import torch

        self.model, self.name, self.mode, self.switch = model, name, mode, switch
        self.draw = torch.Generator().manual_seed(seed)
        self.whole = False
        self.pieces: dict[str, Any] = {}
        """Module path -> piece."""
        self.jitter = 0.0
        self._load, self._ranks = load, ranks
        self._blocks: list[Block] | None = None

    def blocks(self) -> list[Block]:
        """The model's mixtures; SettingsError if there are none."""
        if self._blocks is None:
            self._blocks = _layout.blocks(self.model, self.mode)
            for b in self._blocks:
                for weight in (b.up, b.down):
                    if not weight.dtype.is_floating_point or weight.dtype.itemsize < 2:
                        what = f"{b.name} holds quantised weights ({weight.dtype})"
                        raise SettingsError(what, where="adapter.mode", fix="load the model in bfloat16 or float32")
        return self._blocks

    def load(self, where: str) -> Load:
        """The measured load of each expert; SettingsError if none was given."""
        if self._load is None:
            what = "experts are to be weighed by their load, and no data to measure it on was given"
            raise SettingsError(what, where=where, fix="pass batches=… to attach, or name experts and ranks")
        return self._load

    def ranks(self, block: Block, r: int, power: float) -> list[int]:
        """The rank of each expert: r, or r times its relative load to a power, the sum kept."""
        if self._ranks is not None:
            return list(self._ranks[block.name])
        if not power:
            return [r] * block.E
        load = self.load("adapter.rank_by_load").tokens[block.layer].double()
        relative = (load / load.mean()).clamp(min=1e-3) ** power
        return spread([float(x) for x in relative], r * block.E)

    def check_rank(self, r: int, block: Block, targets: tuple[str, ...]) -> None:
        if not targets:
            raise SettingsError("no projection is named", where="adapter.targets", fix="gate_up, down or both")
        for target, weight in (("gate_up", block.up), ("down", block.down)):
            widest = min(block.sizes(weight))
            if target in targets and r > widest:
                what = f"rank {r} is above the {widest} that {block.name}'s {target} can have"
                raise SettingsError(what, where="adapter.r", fix=f"at most {widest}")

    def experts(self, block: Block) -> ExpertPiece:
        """A new piece on a mixture's experts."""
        from trainers.adapters._pieces import ExpertPiece

        piece = ExpertPiece(block)
        self._seat(block.name, block.experts, piece)
        return piece

    def router(self, block: Block, r: int | None, scale: float, only_jitter: bool = False) -> None:
        """A piece on a mixture's router; r None for the whole weight."""
        from trainers.adapters._pieces import RouterPiece

        if block.router is None:
            what = f"no router weight [{block.E}, hidden] beside {block.name}"
            raise SettingsError(what, where="adapter.mode", fix="use a mode that leaves routers alone")
        widest = min(block.router.weight.shape)
        if r is not None and r > widest:
            what = f"rank {r} is above the {widest} that {block.router_name} can have"
            raise SettingsError(what, where="adapter.r", fix=f"at most {widest}")
        full = r is None and not only_jitter
        piece = RouterPiece(block.router, full, r or 0, scale, self.jitter, self.draw)
        self._seat(block.router_name, block.router, piece)

    def attention(self, settings: Attention) -> None:
        """Pieces beside the attention's linear layers."""
        from trainers.adapters._pieces import LinearPiece

        for name, linear in _layout.attention(self.model, settings.targets):
            widest = min(linear.in_features, linear.out_features)
            if settings.r > widest:
                what = f"rank {settings.r} is above the {widest} that {name} can have"
                raise SettingsError(what, where="adapter.attention.r", fix=f"at most {widest}")
            piece = LinearPiece(linear, settings.r, scale(settings.alpha, settings.r), self.draw)
            self._seat(name, linear, piece)

    def all(self) -> None:
        """Every weight is to be trained in place."""
        self.whole = True

    def _seat(self, path: str, host: Any, piece: Any) -> Slot:
        from trainers.adapters._pieces import seat, watch

        new = "tenet" not in host._modules
        slot = seat(host, self.switch)
        slot.pieces[self.name] = piece
        self.pieces[path] = piece
        if new and not hasattr(host, "down_proj"):
            host.__dict__["_tenet_hooks"] = watch(host)
        return slot


def spread(shares: list[float], total: int) -> list[int]:
    """Whole numbers from 1 in proportion to the shares, summing to `total` (largest remainders first)."""
    spare = total - len(shares)
    exact = [spare * s / sum(shares) for s in shares]
    made = [int(x) for x in exact]
    order = sorted(range(len(shares)), key=lambda i: (made[i] - exact[i], i))
    for i in order[: spare - sum(made)]:
        made[i] += 1
    return [1 + m for m in made]
