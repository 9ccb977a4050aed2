"""PPO's networks over one transformers model: the policy, its frozen reference, and the value of a state.

The policy is the distribution that is drawn from: logits divided by the temperature, in rollouts, losses and KL alike.
"""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from trainers._ppo_adapters import Adapter, Peft
from trainers._ppo_batch import Batch

if TYPE_CHECKING:
    from torch import Tensor

@dataclass(frozen=True)
class Scored:
    """What a policy says of a batch's replies: [B, T] each, 0 where padded."""

    logp: Tensor
    entropy: Tensor
    """Of the whole distribution at each token, in nats."""
    values: Tensor | None
    """Where the value shares the policy's trunk."""


class Networks:
    """Policy, reference and value. Dropout is off: the ratio of new to old policy would see its noise.

    Full fine-tuning: the reference is a frozen copy of the policy as it starts, and a separate value network another
    copy. With an adapter, the reference is the policy with it switched off, and a separate value network is a second
    adapter on the same weights; neither costs a model's memory. `explore`: entropies have gradients.
    """

    def __init__(
        self,
        policy: Any,
        *,
        value: Literal["separate", "shared"] = "separate",
        reference: bool = True,
        temperature: float = 1.0,
        explore: bool = False,
        bf16: bool = False,
        adapter: Adapter | None = None,
    ) -> None:
        import torch

        self.policy, self.temperature, self._explore, self._bf16 = policy, temperature, explore, bf16
        self.shared = value == "shared"
        self.adapter: Adapter | None = Peft(policy) if hasattr(policy, "peft_config") else adapter
        self.base: Any = self.adapter.base if self.adapter else policy
        base = self.base
        self.device = next(policy.parameters()).device
        for module in policy.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        self.reference = copy.deepcopy(policy).eval().requires_grad_(False) if reference and not self.adapter else None
        self._with_reference = reference
        own = [p for p in policy.parameters() if p.requires_grad]
        self._trunk: Any = None
        valuing: list[Any] = []
        if not self.shared and self.adapter:
            self._trunk, valuing = base.base_model, self.adapter.value()
        elif not self.shared:
            self._trunk = copy.deepcopy(base.base_model)
            valuing = list(self._trunk.parameters())
        width = int(base.config.get_text_config().hidden_size)
        # It starts at 0, so that the first advantages are the rewards themselves. float32, whatever the policy is.
        self.head = torch.nn.Linear(width, 1, device=self.device, dtype=torch.float32)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)
        self.policy_weights: list[Any] = own
        self.value_weights: list[Any] = [*self.head.parameters(), *valuing]
        self._rest()

    def _rest(self) -> None:
        if self.adapter:
            self.adapter.on()

    def merged(self) -> dict[str, Any]:
        """The policy's weights under the base model's names, an adapter's change added; the model stays as it is."""
        state = {n: w for n, w in self.base.state_dict().items() if ".lora_" not in n}
        if not self.adapter:
            return state
        for name, module in self.base.named_modules():
            if hasattr(module, "get_delta_weight"):
                key = f"{name}.base_layer.weight"
                state[key] = state[key] + module.get_delta_weight("default").detach().to(state[key].dtype)
        return {n.replace(".base_layer.", "."): w for n, w in state.items()}

    def value_parameters(self) -> Iterator[tuple[str, Any]]:
        """(name, weight) of a separate value network's trunk."""
        yield from self._trunk.named_parameters()

    def finished(self) -> Any:
        """The policy alone; a value network's adapter goes."""
        return self.adapter.finished() if self.adapter else self.policy

    def train(self, on: bool = True) -> None:
        """Training mode, which gradient checkpointing wants, or evaluation mode, for rollouts."""
        self.policy.train(on)
        if self._trunk is not None:
            self._trunk.train(on)

    @contextmanager
    def cast(self) -> Generator[None]:
        """bf16 where it is wanted; weights stay as they are."""
        import torch

        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bf16):
            yield

    def score(self, batch: Batch) -> Scored:
        """The policy's log-probabilities and entropies, with gradients where they are wanted."""
        logp, entropy, hidden = self._read(self.policy, batch)
        return Scored(logp, entropy, self._value(hidden, batch) if self.shared else None)

    def reference_logp(self, batch: Batch) -> Tensor:
        """The reference's log-probabilities [B, T], without gradients; the policy's, if it has no reference."""
        import torch

        with torch.no_grad():
            if not self.adapter or not self._with_reference:
                return self._read(self.reference or self.policy, batch)[0]
            with self.adapter.off():
                return self._read(self.policy, batch)[0]

    @contextmanager
    def valuing(self) -> Generator[None]:
        """Where a separate value network is asked *and* its gradients are computed: its adapter is switched on."""
        if self.adapter and not self.shared:
            self.adapter.on(value=True)
        try:
            yield
        finally:
            self._rest()

    def values(self, batch: Batch) -> Tensor:
        """The separate network's values [B, T], 0 where padded; inside `valuing`."""
        with self.cast():
            hidden = self._trunk(
                input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.places, use_cache=False
            ).last_hidden_state
        rows, _ = batch.real.nonzero(as_tuple=True)
        return self._value(hidden[rows, batch.at[batch.real]], batch)

    def _value(self, hidden: Tensor, batch: Batch) -> Tensor:
        """[B, T] from the N real tokens' hidden states [N, H]."""
        return _spread(self.head(hidden.float())[:, 0], batch.real)

    def _read(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(log-probabilities, entropies, hidden states [N, H]) of a causal model at the reply's tokens."""
        import torch

        first = int(batch.at.min())
        keep = torch.arange(first, batch.ids.shape[1], device=self.device)
        seen: list[Tensor] = []
        # what goes into the head: the kept columns' hidden states, whatever the architecture does with its logits

        def see(_: Any, given: Any) -> None:
            seen.append(given[0])

        hook = model.get_output_embeddings().register_forward_pre_hook(see)
        try:
            with self.cast():
                logits = model(
                    input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.places, logits_to_keep=keep,
                    use_cache=False,
                ).logits  # fmt: skip
        finally:
            hook.remove()
        rows, _ = batch.real.nonzero(as_tuple=True)
        columns = batch.at[batch.real] - first
        flat = logits[rows, columns].float() / self.temperature
        logs = flat.log_softmax(-1)
        logp = logs.gather(1, batch.reply[batch.real][:, None])[:, 0]
        # where it is only read and no bonus is paid for it, its own [N, V] need not be kept for the backward pass
        with torch.set_grad_enabled(self._explore and torch.is_grad_enabled()):
            entropy = -(logs.exp() * logs).sum(-1)
        return _spread(logp, batch.real), _spread(entropy, batch.real), seen[0][rows, columns]


def _spread(flat: Tensor, real: Tensor) -> Tensor:
    """[B, T] with the N values at the real places and 0 elsewhere."""
    return flat.new_zeros(real.shape).masked_scatter(real, flat)
