"""One adapter on one model: what trainers and commands hold on to."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tenet.errors import SettingsError
from trainers.adapters import _experts, _layout, audit
from trainers.adapters._guard import Layer, Owned, guard
from trainers.adapters._pieces import ExpertPiece, RouterPiece
from trainers.adapters._place import Place


class Handle:
    """An attached adapter. Its weights live in the model, under `tenet.pieces.<name>` of the modules it serves."""

    def __init__(self, place: Place, settings: dict[str, Any], fingerprint: str, was: Any) -> None:
        self.model, self.name, self.mode, self.settings = place.model, place.name, place.mode, settings
        self.pieces, self.switch, self._place = place.pieces, place.switch, place
        others = place.model.__dict__.get("_tenet_adapters", {}).values()
        learnt = {id(p) for p in place.model.parameters() if p.requires_grad}
        self._learnt: set[int] = next((h._learnt for h in others if h._live), learnt)
        self.fingerprint = fingerprint
        """Of the base weights, before any training."""
        self._was = was
        self.layers: dict[str, Layer] = {}
        self._hooks: list[Any] = []
        self._live = True

    @property
    def whole(self) -> bool:
        """Whether the model's own weights are trained."""
        return self._place.whole

    # -- what is trained ---------------------------------------------------------------------------

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """The adapter's own weights, named by where they act; every weight of the model in mode full."""
        if self.whole:
            heads = _layout.heads(self.model)
            yield from ((n, p) for n, p in self.model.named_parameters() if n not in heads)
        for path, piece in self.pieces.items():
            yield from ((f"{path}.{n}", p) for n, p in piece.named_parameters())

    def heads(self) -> dict[str, torch.nn.Parameter]:
        """The model's heads (a reward model's score, a value head), trained in every mode."""
        return {f"head.{n}": p for n, p in _layout.heads(self.model).items() if "tenet" not in n.split(".")}

    def shares(self) -> Iterator[tuple[str, torch.nn.Parameter, float]]:
        """Each trained weight with the share of it that one token meets."""
        experts = {id(w): b.k / b.E for b in self._blocks() for w in b.experts.parameters(recurse=False)}
        pieces = dict(self.pieces)
        for name, p in self.named_parameters():
            share = experts.get(id(p), 1.0)
            path, _, own = name.rpartition(".")
            piece = pieces.get(path)
            if isinstance(piece, ExpertPiece) and piece.owners(own) is not None:
                share = piece.block[0].k / piece.E
            yield name, p, share
        for name, p in self.heads().items():
            yield name, p, 1.0

    def _blocks(self) -> list[_layout.Block]:
        try:
            return _layout.blocks(self.model, self.mode)
        except SettingsError:
            return []

    def activate(self) -> None:
        """Switches this adapter on and any other off; only its weights and the heads take gradients."""
        self._check()
        self.switch.on = self.name
        for p in self.model.parameters():
            p.requires_grad_(False)
        for _, p in self.named_parameters():
            p.requires_grad_(True)
        for p in self.heads().values():
            p.requires_grad_(True)
        if any(isinstance(p, ExpertPiece) for p in self.pieces.values()):
            _experts.register()
            self.model.set_experts_implementation(_experts.NAME)

    @contextmanager
    def disabled(self) -> Generator[None]:
        """The base alone, such as a reference model needs. SettingsError in mode full, which has no base left."""
        self._check()
        if self.whole:
            what = "mode full trains the base itself, so there is no adapter to switch off"
            raise SettingsError(what, where="adapter.mode", fix="load a second model as the reference")
        was, self.switch.on = self.switch.on, None
        try:
            yield
        finally:
            self.switch.on = was

    # -- training ----------------------------------------------------------------------------------

    def guard(self, optimizer: Any) -> None:
        """Experts without tokens are not moved by this optimizer, and `lr_by_load` is applied. Call it once."""
        self._check()
        power = float(self.settings.get("lr_by_load") or 0.0)
        for path, piece in self.pieces.items():
            if isinstance(piece, ExpertPiece):
                named = ((p, piece.owners(n)) for n, p in piece.named_parameters())
                owned = [Owned(p, owner) for p, owner in named if owner is not None]
                if owned:
                    self.layers[path] = Layer(owned, piece.E, piece.all_tokens, power)
        if self.whole:
            for b in self._blocks():
                owner = torch.arange(b.E, device=b.up.device)
                owned = [Owned(p, owner) for p in b.experts.parameters(recurse=False)]
                self.layers[b.name] = Layer(owned, b.E, None, 0.0)
        self._hooks += guard(optimizer, list(self.layers.values()))

    def audit(self) -> audit.Audit:
        """What is trainable. SettingsError if that is nothing."""
        return audit.count(self)

    def check_gradients(self) -> audit.Audit:
        """The audit after the first backward pass. SettingsError if nothing of the mode got a gradient."""
        return audit.check_gradients(self)

    def report(self) -> audit.Report:
        """What each expert got and learnt."""
        return audit.report(self)

    def moved(self, batches: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """How far routing and output are from the base's on batches of model inputs."""
        from trainers.adapters import _load

        return _load.moved(self, batches)

    def callback(self, say: Any = print, checkpoint: Path | None = None) -> Any:
        """A transformers TrainerCallback: prints the audit, checks the first step, guards the optimizer, reports.

        It saves the adapter into each checkpoint, and takes up the one in `checkpoint`.
        """
        from trainers.adapters._callback import Watch

        return Watch(self, say, checkpoint)

    # -- keeping -----------------------------------------------------------------------------------

    def state(self) -> dict[str, torch.Tensor]:
        """The adapter's weights and the heads', by name; what `load_state` takes."""
        named = [*self.named_parameters(), *self.heads().items()]
        return {name: p.detach().clone() for name, p in named}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Puts weights in place. SettingsError if names or shapes are not this adapter's."""
        own = dict([*self.named_parameters(), *self.heads().items()])
        required = {n for n in own if not n.startswith("head.")}
        missing, strange = sorted(required - state.keys()), sorted(state.keys() - own.keys())
        if missing or strange:
            what = f"the weights are not this adapter's: {len(missing)} missing, {len(strange)} unknown"
            first = (missing or strange)[0]
            raise SettingsError(f"{what}, such as {first}", where="adapter", fix="use the adapter's own settings")
        for name, value in state.items():
            if value.shape != own[name].shape:
                what = f"{name} has shape {list(value.shape)}, and this model needs {list(own[name].shape)}"
                raise SettingsError(what, where="adapter", fix="use the model that the adapter was made for")
        with torch.no_grad():
            for name, value in state.items():
                own[name].copy_(value)

    def save(self, folder: Path | str) -> Path:
        """Writes the adapter, its settings and its base's fingerprint into a folder."""
        from trainers.adapters import _save

        return _save.save(self, Path(folder))

    def load(self, folder: Path | str) -> None:
        """Takes the weights of a saved adapter with the same settings, to go on training it."""
        from trainers.adapters import _save

        _save.load_into(self, Path(folder))

    def export_peft(self, folder: Path | str) -> Path:
        """Writes PEFT's format. SettingsError if PEFT has no way to say this mode."""
        from trainers.adapters import _export

        return _export.peft(self, Path(folder))

    def export_vllm(self, folder: Path | str) -> Path:
        """Writes the layout that vLLM's MoE-LoRA loader takes (a pair per expert and matrix)."""
        from trainers.adapters import _export

        return _export.vllm(self, Path(folder))

    def merge(self) -> Any:
        """The model with the adapter added to its weights for good and every trace of adapters removed.

        SettingsError if the weights are quantised.
        """
        self._check()
        for path, piece in self.pieces.items():
            _refuse_quantised(path, piece)
        for piece in self.pieces.values():
            piece.merge()
        return self.remove()

    def remove(self) -> Any:
        """The model without this adapter; the last to go takes the hooks and the experts implementation with it."""
        self._check()
        self._live = False
        for hook in self._hooks:
            hook.remove()
        modules = dict(self.model.named_modules())
        for path in self.pieces:
            host = modules[path]
            del host.tenet.pieces[self.name]
            if not len(host.tenet.pieces):
                for hook in host.__dict__.pop("_tenet_hooks", []):
                    hook.remove()
                del host._modules["tenet"]
        if self.switch.on == self.name:
            self.switch.on = None
        if not any("tenet" in n.split(".") for n, _ in self.model.named_modules()):
            if self._was is not None:
                self.model.set_experts_implementation(self._was)
            self.model.__dict__.pop("_tenet_adapters", None)
            for p in self.model.parameters():
                p.requires_grad_(id(p) in self._learnt)
        return self.model

    def _check(self) -> None:
        if not self._live:
            what = f"adapter {self.name!r} was merged or removed"
            raise SettingsError(what, where="adapter", fix="attach it again")


def _refuse_quantised(path: str, piece: Any) -> None:
    if isinstance(piece, ExpertPiece):
        weights = [piece.block[0].up, piece.block[0].down]
    elif isinstance(piece, RouterPiece):
        weights = [piece.router[0]._parameters["weight"]]
    else:
        weights = [piece.linear[0].weight]
    for weight in weights:
        if not weight.dtype.is_floating_point or weight.dtype.itemsize < 2 or hasattr(weight, "quant_state"):
            what = f"{path} holds quantised weights ({weight.dtype}), and a merge would round the adapter away"
            fix = "load the base in bfloat16 or float32, attach the saved adapter and merge there"
            raise SettingsError(what, where="adapter", fix=fix)
