"""Losses held against TRL's own: the same ids, the same loss at certain labels, the exact expectation at soft ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from trainers import _rows, dpo, reward, sft
from trainers._common import load, tokenizer_of
from trainers._encode import Coder, written
from trainers._run import Start, TrlTrainer

TALK = [{"role": "user", "content": "bada kilo?"}]
LONGER = [*TALK, {"role": "assistant", "content": "no"}, {"role": "user", "content": "so?"}]
PAIRS = [
    {
        "prompt": TALK if i % 2 else LONGER,
        "chosen": [{"role": "assistant", "content": f"mote {i} lana"}],
        "rejected": [{"role": "assistant", "content": "rupo " * (i + 1)}],
        "p_chosen": p,
    }
    for i, p in enumerate((1.0, 0.9, 0.55, 0.7))
]


def begin(module: Any, model: Path, out: Path, rows: list[dict[str, Any]], **settings: Any) -> Any:
    """The transformers trainer of a kind, ready, with a policy that has moved away from the model it started from."""
    import torch

    said = {"model": str(model), "data": "rows", "out": str(out), "batch": 4, "lr": 1e-3, **settings}
    trainer = module.build(module.Settings.model_validate(said))
    assert isinstance(trainer, TrlTrainer)
    tok = tokenizer_of(model)
    given = _rows.given(rows, trainer.shape)
    encoded = written(given, trainer.encode(Coder(tok, 256, given.census)), trainer.sequence)
    policy = load(model, tok, trainer.head)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(torch.randn_like(weight) * 0.02)
    return trainer.start(Start(trainer.settings, model, tok, policy, encoded, 256))


def loss_of(trainer: Any, which: list[int] | None = None) -> float:
    data = trainer.train_dataset
    batch = trainer.data_collator([data[i] for i in which or range(len(data))])
    trainer.model.train()
    return float(trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch)).detach())


def trls(kind: str, trainer: Any, out: Path, rows: list[dict[str, Any]], reference: Any = None, **own: Any) -> Any:
    """TRL's own trainer on the same model and the raw rows."""
    import datasets
    import trl

    classes = {
        "sft": (trl.SFTTrainer, trl.SFTConfig),
        "reward": (trl.RewardTrainer, trl.RewardConfig),
        "dpo": (trl.DPOTrainer, trl.DPOConfig),
    }
    made, config = classes[kind]
    args = config(
        output_dir=str(out), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[],
        dataloader_pin_memory=False, **own,
    )  # fmt: skip
    more = {"ref_model": reference} if reference is not None else {}
    return made(
        model=trainer.model, args=args, train_dataset=datasets.Dataset.from_list(rows),
        processing_class=trainer.processing_class, **more,
    )  # fmt: skip


def bare(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "p_chosen"} for row in rows]


def test_sft_ids_and_loss_are_trls_and_only_the_reply_is_learnt(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": p["prompt"], "completion": p["chosen"]} for p in PAIRS]
    ours = begin(sft, tiny_model, tmp_path, rows)
    theirs = trls("sft", ours, tmp_path, rows, max_length=None)
    assert list(ours.train_dataset["input_ids"]) == list(theirs.train_dataset["input_ids"])
    assert list(ours.train_dataset["labels"]) == list(theirs.train_dataset["labels"])
    assert loss_of(ours) == pytest.approx(loss_of(theirs), rel=1e-6)
    learnt = [i for i in ours.train_dataset[0]["labels"] if i != -100]
    assert ours.processing_class.decode(learnt) == "mote 0 lana<|end|>"


def test_of_messages_every_turn_of_the_assistant_is_learnt(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"messages": p["prompt"] + p["chosen"]} for p in PAIRS]
    ours = begin(sft, tiny_model, tmp_path, rows)
    learnt = [i for i in ours.train_dataset[0]["labels"] if i != -100]
    assert ours.processing_class.decode(learnt) == "no<|end|>mote 0 lana<|end|>"
    theirs = trls("sft", ours, tmp_path, rows, max_length=None, assistant_only_loss=True)
    assert loss_of(ours) == pytest.approx(loss_of(theirs), rel=1e-6)


def test_packing_learns_the_same_tokens(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": p["prompt"], "completion": p["chosen"]} for p in PAIRS]
    plain, packed = begin(sft, tiny_model, tmp_path, rows), begin(sft, tiny_model, tmp_path, rows, packing=True)
    assert len(packed.train_dataset) == 1

    def learnt(trainer: Any) -> list[int]:
        return sorted(i for labels in trainer.train_dataset["labels"] for i in labels if i != -100)

    assert learnt(packed) == learnt(plain)
    batch = packed.data_collator([packed.train_dataset[0]])
    assert len(packed.culprits(batch)) == 4


def test_a_certain_label_gives_trls_reward_loss(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{**row, "p_chosen": 1.0, "margin": 0.3} for row in PAIRS]
    ours = begin(reward, tiny_model, tmp_path, rows)
    theirs = trls("reward", ours, tmp_path, bare(rows), max_length=None, center_rewards_coefficient=0.01)
    assert list(ours.train_dataset["chosen_ids"]) == list(theirs.train_dataset["chosen_ids"])
    assert loss_of(ours) == pytest.approx(loss_of(theirs), rel=1e-6)


def test_soft_reward_labels_are_the_cross_entropy_of_the_two_scores(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    ours = begin(reward, tiny_model, tmp_path, PAIRS, centring=0)
    total = 0.0
    for i, row in enumerate(PAIRS):
        data = ours.train_dataset[i]
        with torch.no_grad():
            scores = [float(ours.model(torch.tensor([data[k]])).logits) for k in ("chosen_ids", "rejected_ids")]
        wanted = torch.tensor([row["p_chosen"], 1 - row["p_chosen"]])
        total += float(torch.nn.functional.cross_entropy(torch.tensor(scores), wanted)) / len(PAIRS)
    assert loss_of(ours) == pytest.approx(total, rel=1e-5)


def test_turning_pairs_round_changes_nothing(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{**row, "margin": 0.5} for row in PAIRS]
    turned = [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"], "p_chosen": 1 - row["p_chosen"]} for row in rows
    ]
    for module in (reward, dpo):
        there, back = (loss_of(begin(module, tiny_model, tmp_path, r)) for r in (rows, turned))
        assert there == pytest.approx(back, rel=1e-6)


def test_a_certain_label_gives_trls_dpo_loss(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{**row, "p_chosen": 1.0} for row in PAIRS]
    ours = begin(dpo, tiny_model, tmp_path, rows)
    theirs = trls("dpo", ours, tmp_path, bare(rows), ours.ref_model, max_length=None)
    for column in ("prompt_ids", "chosen_ids", "rejected_ids"):
        assert list(ours.train_dataset[column]) == list(theirs.train_dataset[column])
    assert loss_of(ours) == pytest.approx(loss_of(theirs), rel=1e-6)
    assert abs(loss_of(ours) - math.log(2)) > 1e-3  # the policy is not its reference


def test_one_label_for_all_gives_cdpo(tiny_model: Path, tmp_path: Path) -> None:
    p = 0.8
    ours = begin(dpo, tiny_model, tmp_path, [{**row, "p_chosen": p} for row in PAIRS])
    # TRL's "robust" loss is ((1 - e) L(c, r) - e L(r, c)) / (1 - 2 e): at this e it is cDPO with smoothing 1 - p.
    e = (p - 1) / (2 * p - 1)
    theirs = trls(
        "dpo", ours, tmp_path, bare(PAIRS), ours.ref_model, max_length=None, loss_type=["robust"], label_smoothing=e
    )
    assert loss_of(ours) == pytest.approx(loss_of(theirs), rel=1e-5)


def test_each_row_costs_its_own_expectation(tiny_model: Path, tmp_path: Path) -> None:
    ours = begin(dpo, tiny_model, tmp_path, PAIRS)
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in PAIRS]
    right = trls("dpo", ours, tmp_path, bare(PAIRS), ours.ref_model, max_length=None)
    wrong = trls("dpo", ours, tmp_path, bare(swapped), ours.ref_model, max_length=None)
    for i, row in enumerate(PAIRS):
        p = row["p_chosen"]
        expected = p * loss_of(right, [i]) + (1 - p) * loss_of(wrong, [i])
        assert loss_of(ours, [i]) == pytest.approx(expected, rel=1e-5)


def test_hard_labels_and_trls_other_losses_pass_through(tiny_model: Path, tmp_path: Path) -> None:
    ours = begin(dpo, tiny_model, tmp_path, PAIRS, loss=["ipo", "sft"], loss_weights=[1.0, 0.5], labels="hard")
    theirs = trls(
        "dpo", ours, tmp_path, bare(PAIRS), ours.ref_model, max_length=None, loss_type=["ipo", "sft"],
        loss_weights=[1.0, 0.5],
    )  # fmt: skip
    assert loss_of(ours) == pytest.approx(loss_of(theirs), rel=1e-6)


def test_under_lora_the_reference_is_the_model_without_its_adapter(tiny_model: Path, tmp_path: Path) -> None:
    ours = begin(dpo, tiny_model, tmp_path, PAIRS, lora={"r": 4})
    assert ours.ref_model is None
    assert loss_of(ours) == pytest.approx(math.log(2), abs=1e-6)  # a fresh adapter changes nothing yet


def test_under_lora_the_reward_head_is_trained_whole(tiny_model: Path, tmp_path: Path) -> None:
    ours = begin(reward, tiny_model, tmp_path, PAIRS, lora={"r": 4})
    trained = [n for n, w in ours.model.named_parameters() if w.requires_grad and "lora" not in n]
    assert len(trained) == 1
    assert "score" in trained[0]


def test_prompts_beyond_the_context_are_dropped_and_long_replies_cut_with_counts(tiny_model: Path) -> None:
    tok = tokenizer_of(tiny_model)
    long = [{"role": "user", "content": "bada " * 90}]
    said = [{"role": "assistant", "content": "mo " * 90}]
    rows = [*PAIRS, {**PAIRS[0], "prompt": long}, {**PAIRS[0], "chosen": said}]
    for shape, encode, dropped, cut in (
        ("pairs", "pair", {"prompt longer than the context": 1}, 1),
        ("pairs", "scored", {"longer than the context": 2}, 0),
    ):
        given = _rows.given(rows, shape)  # type: ignore[arg-type]
        encoded = written(given, getattr(Coder(tok, 64, given.census), encode), lambda row: row["chosen_ids"])
        assert given.census.dropped == dropped
        assert given.census.cut == cut
        assert len(encoded.data) == given.census.kept == 6 - sum(dropped.values())
        assert all(len(ids) <= 64 and len(ids) for ids in encoded.data["chosen_ids"])
