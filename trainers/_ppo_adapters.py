"""Adapters in PPO: the reference is the policy with its adapter off, the value network a second adapter beside it.

PEFT's LoRA and tenet's own modes for mixtures of experts, behind one set of verbs.
"""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from trainers import adapters

_VALUE = "value"
"""Name of the value network's adapter."""


class Adapter(Protocol):
    """What PPO asks of the adapter that its policy is."""

    base: Any
    """The causal model that carries it."""

    def value(self) -> list[Any]:
        """Adds the value network's adapter; its weights."""
        ...

    def on(self, value: bool = False) -> None:
        """Switches the policy's adapter on, or the value network's; only its weights take gradients."""
        ...

    def off(self) -> AbstractContextManager[Any]:
        """The base alone: the reference."""
        ...

    def guard(self, optimizer: Any) -> None:
        """Sets the rules that its weights want from the optimizer."""
        ...

    def save(self, folder: Path) -> None:
        """Writes the policy's adapter."""
        ...

    def load(self, folder: Path) -> None:
        """Takes the policy's adapter up again."""
        ...

    def finished(self) -> Any:
        """The policy with its adapter alone."""
        ...


class Peft:
    """LoRA by PEFT."""

    def __init__(self, policy: Any) -> None:
        self._policy, self.base = policy, policy.get_base_model()
        self._two = False

    def value(self) -> list[Any]:
        """A second LoRA of the same settings."""
        self._two = True
        self._policy.add_adapter(_VALUE, copy.deepcopy(self._policy.peft_config["default"]))
        return [p for n, p in self._policy.named_parameters() if f".{_VALUE}." in n]

    def on(self, value: bool = False) -> None:
        """See Adapter."""
        self._policy.set_adapter(_VALUE if value else "default")

    def off(self) -> AbstractContextManager[Any]:
        """See Adapter."""
        return self._policy.disable_adapter()

    def guard(self, optimizer: Any) -> None:
        """Nothing: its weights all take gradients."""

    def save(self, folder: Path) -> None:
        """See Adapter."""
        self._policy.save_pretrained(folder, selected_adapters=["default"])

    def load(self, folder: Path) -> None:
        """See Adapter."""
        peft: Any = import_module("peft")
        weights: Any = import_module("safetensors.torch").load_file(folder / "adapter_model.safetensors")
        peft.set_peft_model_state_dict(self._policy, weights, adapter_name="default")

    def finished(self) -> Any:
        """See Adapter."""
        if self._two:
            self._policy.delete_adapter(_VALUE)
            self.on()
        return self._policy


class Mixture:
    """One of the modes for mixtures of experts. Says what it trains, and at the end what each expert learnt."""

    def __init__(self, model: Any, settings: dict[str, Any], batches: Iterable[dict[str, Any]] | None) -> None:
        self.base, self._settings = model, settings
        self._load = adapters.measure(model, batches) if batches is not None else None
        self._policy = adapters.attach(model, settings, load=self._load)
        self._two: Any = None

    def value(self) -> list[Any]:
        """A second adapter of the same mode."""
        self._two = adapters.attach(self.base, self._settings, name=_VALUE, load=self._load)
        weights = [p for _, p in self._two.named_parameters()]
        self.on()
        return weights

    def on(self, value: bool = False) -> None:
        """See Adapter."""
        (self._two if value else self._policy).activate()

    def off(self) -> AbstractContextManager[Any]:
        """See Adapter."""
        return self._policy.disabled()

    def guard(self, optimizer: Any) -> None:
        """See `watch`."""
        watch(self._policy, optimizer)
        if self._two is not None:
            self._two.guard(optimizer)

    def save(self, folder: Path) -> None:
        """See Adapter."""
        self._policy.save(folder / "adapter")

    def load(self, folder: Path) -> None:
        """See Adapter."""
        self._policy.load(folder / "adapter")

    def finished(self) -> Any:
        """See Adapter."""
        if self._two is not None:
            self._two.remove()
            self.on()
        return self.base


def watch(handle: Any, optimizer: Any) -> None:
    """Prints what is trained and guards the optimizer; the first step stops if nothing of the mode has a gradient."""
    print(handle.audit().text())
    handle.guard(optimizer)

    first = [True]

    def check(*_: Any) -> None:
        if first:
            first.clear()
            print(handle.check_gradients().text())

    optimizer.register_step_pre_hook(check)
