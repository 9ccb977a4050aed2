"""One PPO update by TRL 1.12 and one by tenet, from the same weights on the same rollouts, and how far apart they are.

Run with a folder that holds TRL 1.12 first on PYTHONPATH: TRL has had no PPO since. Replies run to their full length:
where one ends early, TRL puts the score one place behind the end token, and tenet on it.
"""

from __future__ import annotations

import copy
import json
import sys
from importlib.metadata import version
from typing import Any

import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from trainers._ppo_batch import Sample
from trainers._ppo_networks import Networks
from trainers._ppo_update import Learner, Objective, experience

B, REPLY, PAD, RATE = 8, 5, 0, 0.1


def config(**more: Any) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=24, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=64, tie_word_embeddings=False, eos_token_id=1,
        pad_token_id=PAD, bos_token_id=None, **more,
    )  # fmt: skip


def causal(seed: int) -> Any:
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(config())
    torch.nn.init.normal_(model.lm_head.weight, std=0.3)
    return model


def scorer(seed: int, trunk: Any = None) -> Any:
    torch.manual_seed(seed)
    model = Qwen3ForSequenceClassification(config(num_labels=1))
    torch.nn.init.normal_(model.score.weight, std=0.2)
    if trunk is not None:
        model.model.load_state_dict(trunk.state_dict())
    return model.eval()


def main(whiten: bool, estimator: str) -> dict[str, Any]:
    policy, reference, reward = causal(0), causal(7), scorer(2)
    value = scorer(3, policy.model)
    ours, head = copy.deepcopy(policy), value.score.weight.detach().clone()
    draw = torch.Generator().manual_seed(4)
    prompts = [torch.randint(2, 24, (3 + i % 3,), generator=draw).tolist() for i in range(B)]
    replies = {tuple(p): torch.randint(2, 24, (REPLY,), generator=draw) for p in prompts}

    def given(model: Any, queries: Any, _rows: int, pad: int, how: Any) -> tuple[Any, Any]:
        """Instead of drawing: the replies, and the logits that drawing would have seen."""
        drawn = torch.stack([replies[tuple(t for t in q.tolist() if t != pad)] for q in queries])
        whole = torch.cat([queries, drawn], 1)
        logits = ppo_trainer.forward(model, whole, pad).logits[:, queries.shape[1] - 1 : -1]
        return whole, logits / how.temperature

    ppo_trainer.batch_generation = given
    tok = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({f"t{i}": i for i in range(24)}, unk_token="t2")), pad_token="t0",
        eos_token="t1", padding_side="left",
    )  # fmt: skip
    how = PPOConfig(
        output_dir=sys.argv[1], use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[],
        save_strategy="no", num_sample_generations=0, per_device_train_batch_size=B, gradient_accumulation_steps=1,
        num_mini_batches=1, num_ppo_epochs=2, total_episodes=B, response_length=REPLY, temperature=0.7, kl_coef=0.1,
        kl_estimator=estimator, whiten_rewards=whiten, logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    sgd = torch.optim.SGD([*policy.parameters(), *value.parameters()], lr=RATE)
    flat = torch.optim.lr_scheduler.LambdaLR(sgd, lambda _: 1.0)
    theirs = PPOTrainer(
        args=how, processing_class=tok, model=policy, ref_model=reference, reward_model=reward, value_model=value,
        train_dataset=Dataset.from_list([{"input_ids": p} for p in prompts]), optimizers=(sgd, flat),
    )  # fmt: skip
    theirs.train()

    networks = Networks(ours, temperature=0.7)
    networks.reference = reference.eval()
    samples = [Sample(tuple(p), tuple(replies[tuple(p)].tolist()), False) for p in prompts]
    with torch.no_grad():
        networks.head.weight.copy_(head)
        scores = [float(reward(torch.tensor([[*s.prompt, *s.reply]])).logits[0, 0]) for s in samples]
    bias = networks.head.bias  # TRL's value head has none
    weights = [w for w in (*networks.policy_weights, *networks.value_weights) if w is not bias]
    update = Objective(epochs=2, minibatches=1, whiten_rewards=whiten, kl_estimator=estimator)  # pyright: ignore
    seen = experience(networks, samples, scores, 0.1, update, B)
    told = Learner(networks, torch.optim.SGD(weights, lr=RATE), update, B, longest=0.0).learn(seen, 0)

    log = next(h for h in theirs.state.log_history if "objective/kl" in h)
    pairs = {
        "kl": ((seen.logp - seen.ref).sum(1).mean().item() if estimator == "k1" else None, log["objective/kl"]),
        "score": (sum(scores) / B, log["objective/scores"]),
        "policy_loss": (told["policy_loss"], log["loss/policy_avg"]),
        "value_loss": (told["value_loss"], log["loss/value_avg"]),
        "clip_fraction": (told["clip_fraction"], log["policy/clipfrac_avg"]),
        "value_clip_fraction": (told["value_clip_fraction"], log["val/clipfrac_avg"]),
    }
    torch.set_grad_enabled(False)
    start = dict(causal(0).named_parameters())
    mine = dict(ours.named_parameters())
    apart = max(float((mine[n] - w).abs().max()) for n, w in policy.named_parameters())
    moved = max(float((start[n] - w).abs().max()) for n, w in policy.named_parameters())
    trunk = dict(networks.value_parameters())
    apart_value = max(float((trunk[n] - w).abs().max()) for n, w in value.model.named_parameters())
    figures = {k: {"tenet": a, "trl": b} for k, (a, b) in pairs.items() if a is not None}
    found = {"trl": trl.__version__, "torch": version("torch"), "whiten_rewards": whiten, "kl_estimator": estimator}
    return {**found, "figures": figures, "apart": apart, "apart_value": apart_value, "moved": moved}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[2] == "whiten", sys.argv[3])))
