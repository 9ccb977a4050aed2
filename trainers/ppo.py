"""Trainer kind "ppo": proximal policy optimisation against a reward model, a judge or any function.

Ziegler et al. 2019 (arXiv 1909.08593), Stiennon et al. 2020 (2009.01325) and Ouyang et al. 2022 (2203.02155) on top of
Schulman et al. 2017 (1707.06347): a per-token KL penalty to the model it starts from, the score at the last token,
GAE, clipped policy and value losses. TRL's own PPO is gone since 1.13, and its online trainers (GRPO, RLOO) have a
ratio per sequence and no place for a value, so this is a loop of its own over pure functions.
"""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from tenet.errors import SettingsError
from tenet.records import Frozen, digest
from trainers import _common, _ppo_state, _reporters, _rows, _run, _save, adapters
from trainers._common import Common, Outcome, Trainer
from trainers._ppo_adapters import Mixture, watch
from trainers._ppo_loop import Ask, Loop, Parts, Plan
from trainers._ppo_math import KLController
from trainers._ppo_networks import Networks
from trainers._ppo_prompts import end_tokens, prompts
from trainers._ppo_reward import Reward, RewardFunction, Scorer, open_scorer
from trainers._ppo_rollout import OwnRollouts, Rollouts
from trainers._ppo_screen import Screen
from trainers._ppo_update import Learner, NotNegative, Objective, Positive
from trainers._rows import Rows
from trainers.moe._coach import coach_of, split


class KL(Frozen):
    """The penalty for leaving the model that the training starts from."""

    weight: NotNegative = 0.05
    """beta, per nat; 0 leaves the policy free."""
    target: Positive | None = None
    """Nats of KL per reply that the weight is steered to (Ziegler et al. 2019, section 2.2); null: the weight stays."""
    rate: Positive = 0.1
    """How fast it is steered: at most 0.2 of this per update."""


class Rollout(Frozen):
    """How replies are drawn."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """transformers with the policy in memory, or vLLM, which gets the new weights before every update."""
    max_tokens: Annotated[int, Field(ge=1)] = 128
    temperature: Positive = 1.0
    """Of the policy itself: draws, losses and KL all take logits divided by it."""
    rows: Annotated[int, Field(ge=1)] = 64
    """Replies drawn together by transformers, and read together where nothing is learnt."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """What vLLM computes in; "auto" is 16 bit where the machine computes fast in it, else float32."""
    replicas: Annotated[int, Field(ge=1)] = 1
    """Copies of the model that vLLM serves."""


class Value(Frozen):
    """The network that says how much reward is still to come."""

    network: Literal["separate", "shared"] = "separate"
    """A network of its own (an adapter of its own under LoRA), or a head on the policy's trunk."""
    lr: Positive | None = None
    """Peak learning rate; unset: the policy's."""


class Settings(Common):
    """How to train. `epochs` are passes over the prompts; `update.epochs` are passes over an update's rollouts."""

    reward: Reward
    batch: int = Field(default=64, ge=1)
    """Rollouts per update; `update.minibatches` optimizer steps each, which `accumulation` cuts into passes."""
    lr: float = Field(default=3e-6, gt=0)
    """Peak learning rate of AdamW."""
    schedule: _common.Schedule = "constant"
    log_every: int = Field(default=1, ge=1)
    """Updates between lines of metrics.jsonl."""
    save_every: int = Field(default=20, ge=1)
    """Updates between checkpoints."""
    rollout: Rollout = Rollout()
    kl: KL = KL()
    value: Value = Value()
    update: Objective = Objective()


def build(settings: Settings, reward: RewardFunction | None = None) -> Trainer:
    """The trainer; `reward` is the function of a judge that `settings.reward.judge` names, already opened.

    SettingsError if the settings cannot go together, or the reward cannot be opened.
    """
    if settings.workers > 1:
        fix = "workers: 1; rollouts on several GPUs: rollout.engine: vllm with rollout.replicas"
        raise SettingsError("ppo learns in one process", where="workers", fix=fix)
    if (settings.adapter or {}).get("minimum_load"):
        fix = "leave it out: ppo draws replies, not rows"
        raise SettingsError("minimum_load draws rows by what they reach", where="adapter.minimum_load", fix=fix)
    if settings.rollout.engine == "vllm":
        from trainers._ppo_engine import check

        check(settings.model)
    return PpoTrainer(settings, open_scorer(settings.reward, reward))


class PpoTrainer:
    """See Settings."""

    def __init__(self, settings: Settings, scorer: Scorer) -> None:
        self._settings, self._scorer = settings, scorer

    def rows(self) -> Rows:
        """The prompts that the settings name."""
        return _rows.read(self._settings.sources, "prompts", self._settings.seed)

    def train(self, rows: Rows) -> Outcome:
        """Trains, or goes on from the last checkpoint. InputError before it starts, TrainingError after."""
        s, out = self._settings, Path(self._settings.out)
        folder = _common.locate(s.model)
        done = _run.finished(s, "ppo", folder)
        if done is not None:
            return Outcome(out, done, fresh=False)
        reporters = _reporters.opened(s)
        tok = _common.tokenizer_of(folder)
        context = _common.context_of(s, folder)
        asks = prompts(rows, tok, context - s.rollout.max_tokens)
        checkpoint = _run.begun(s, digest(rows.census.files))
        networks = self._networks(folder, tok, asks)
        steps = s.steps or math.ceil(s.epochs * len(asks) / s.batch)
        # A checkpoint is named after its step.
        done_steps = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
        parts = self._parts(networks, tok, context, steps, done_steps)
        at, controller = 0, KLController(s.kl.weight, s.kl.target, s.kl.rate)
        clock = time.monotonic()
        try:
            if checkpoint is not None:
                at, controller = _ppo_state.restore(
                    checkpoint, networks, parts.optimizer, parts.scheduler, tok, controller
                )
            for name in ("metrics.jsonl", "samples.jsonl"):
                _ppo_state.rewind(out / name, at)
            plan = Plan(
                asks=asks, batch=s.batch, rows=s.rollout.rows, steps=steps, seed=s.seed, update=s.update,
                reward=s.reward, out=out, save_every=s.save_every, keep=s.keep, log_every=s.log_every,
            )  # fmt: skip
            with Screen(s, reporters, networks.policy, steps, at) as screen:
                Loop(parts, plan, controller, at, screen.show).run()
        finally:
            parts.rollouts.close()
            self._scorer.close()
        facts: dict[str, Any] = {
            "steps": steps,
            "context": context,
            "prompts": len(asks),
            "reward": self._scorer.name,
            "figures": _save.last_figures(_save.read_metrics(out / "metrics.jsonl")),
            "seconds": round(time.monotonic() - clock, 3),
            "resumed_from_step": at or None,
            "trainable": sum(p.numel() for p in networks.policy_weights),
            "value_trainable": sum(p.numel() for p in networks.value_weights),
            "device": _save.device_name(s.on_cpu),
        }
        model = networks.finished()
        for handle in adapters.of(model):
            print(handle.report().text())
        _save.model_folder(model, tok, out, s.save_as)
        manifest = _save.finish(s, "ppo", rows.census, facts)
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        return Outcome(out, manifest, fresh=True)

    def _networks(self, folder: Path, tok: Any, asks: Sequence[Ask]) -> Networks:
        s = self._settings
        adapter: Any = None
        model = _common.load(folder, tok, seed=s.seed).to("cpu" if s.on_cpu else "cuda")
        if s.lora is not None:
            peft: Any = import_module("peft")
            model = peft.get_peft_model(model, _common.peft_config(s.lora, "causal"))
        elif s.adapter is not None and s.adapter["mode"] != "full":
            torch: Any = import_module("torch")
            inputs = ({"input_ids": torch.tensor([a.ids], device=model.device)} for a in asks[: _common.PROBE])
            adapter = Mixture(model, s.adapter, inputs if _common.WEIGHED & s.adapter.keys() else None)
        if s.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return Networks(
            model, value=s.value.network, temperature=s.rollout.temperature, explore=s.update.entropy_weight > 0,
            bf16=s.bf16, adapter=adapter,
        )  # fmt: skip

    def _parts(self, networks: Networks, tok: Any, context: int, steps: int, at: int = 0) -> Parts:
        import torch

        s = self._settings
        groups = [
            {"params": networks.policy_weights, "lr": s.lr},
            {"params": networks.value_weights, "lr": s.value.lr or s.lr},
        ]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-5, weight_decay=s.weight_decay)
        if networks.adapter:
            networks.adapter.guard(optimizer)
        elif s.adapter is not None:
            # mode full: attached only now, since reference and value network are plain copies
            watch(adapters.attach(networks.policy, s.adapter), optimizer)
        coach = coach_of(networks.policy, s.moe)
        if coach is not None:
            split(optimizer, coach.router_parameters())
            coach.step = at * s.update.epochs * min(s.update.minibatches, s.batch)
        schedules: Any = import_module("transformers")
        warmup = int(s.warmup if s.warmup >= 1 else s.warmup * steps)
        scheduler = schedules.get_scheduler(s.schedule, optimizer, warmup, steps)
        rows = math.ceil(s.batch / s.update.minibatches / s.accumulation)
        learner = Learner(networks, optimizer, s.update, rows, s.max_grad_norm, coach)
        return Parts(networks, learner, optimizer, scheduler, tok, self._rollouts(networks, tok, context), self._scorer)

    def _rollouts(self, networks: Networks, tok: Any, context: int) -> Rollouts:
        s, ends = self._settings.rollout, end_tokens(networks.base, tok)
        if s.engine == "transformers":
            return OwnRollouts(networks, ends, tok.pad_token_id, s.max_tokens, s.rows)
        from trainers._ppo_engine import EngineRollouts

        own: dict[str, Any] = {"context": context, "dtype": s.dtype, "replicas": s.replicas}
        return EngineRollouts(networks, tok, ends, s.max_tokens, **own)
