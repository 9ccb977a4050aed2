"""PPO's rollouts through real vLLM: weights that are handed over are the weights that answer."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tenet.engines import _model
from tenet.engines.vllm import Settings, build
from tenet.errors import SettingsError, TrainingError
from trainers._ppo_networks import Networks
from trainers._ppo_update import Objective, experience


def policy(folder: Path, noise: float = 0.0) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(3)
    with torch.no_grad():
        for w in model.parameters():
            if w.ndim == 2:
                w.add_(torch.randn_like(w), alpha=noise * float(w.std()))
    return model


def test_tied_weights_are_not_changed_under_a_running_engine(tiny_model: Path) -> None:
    """vLLM 0.31 on CPU then answers with new embeddings and the old output layer, and reports success."""
    if not _model.on_cpu():
        pytest.skip("a GPU build serves them")
    engine = build(Settings.model_validate({"model": str(tiny_model)}))
    with pytest.raises(SettingsError, match="ties its output layer"):
        asyncio.run(engine.reload(tiny_model))


def test_rollouts_come_from_the_policy_as_it_is_now(tiny_model: Path) -> None:
    """The canary: what vLLM says of its own draws is what the policy says, before and after the policy changed."""
    from transformers import AutoTokenizer

    from trainers._ppo_engine import EngineRollouts
    from trainers._ppo_loop import gap_of

    tok = AutoTokenizer.from_pretrained(tiny_model)
    networks = Networks(policy(tiny_model), temperature=0.7)
    rollouts = EngineRollouts(networks, tok, [tok.eos_token_id], 8, context=256, dtype="float32")
    prompts = [tuple(tok(f"bo da {i}").input_ids) for i in range(6)] * 2
    try:
        for noise in (0.0, 0.5):
            networks.policy.load_state_dict(policy(tiny_model, noise).state_dict())
            samples = rollouts.draw(prompts, 1)
            assert len({s.reply for s in samples}) > 6
            assert all(s.ended == (s.reply[-1] == tok.eos_token_id) for s in samples)
            seen = experience(networks, samples, [0.0] * 12, 0.0, Objective(), 12)
            gap = gap_of(rollouts, seen, range(12))["engine_gap"]
            assert gap < 1e-3
        stale = Networks(policy(tiny_model), temperature=0.7)
        seen = experience(stale, samples, [0.0] * 12, 0.0, Objective(), 12)
        with pytest.raises(TrainingError, match="serves other weights"):
            gap_of(rollouts, seen, range(12))
    finally:
        rollouts.close()
