"""The exports, as `datasets` loads them and TRL's trainers take them: unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tenet.ledger import Rows
from tenet.records import Candidate
from tests.test_pipeline import ROOT, go, write

pytestmark = pytest.mark.filterwarnings("ignore")  # the warnings of TRL and of torch are not ours to mend


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    go(write(folder))
    return folder / "runs/run"


def load(folder: Path, name: str, cache: Path) -> Any:
    from datasets import load_dataset

    return load_dataset(str(folder), name, split="train", cache_dir=str(cache))


def test_both_formats_hold_the_same_rows(run_folder: Path, tmp_path: Path) -> None:
    import json

    for name in ("preference", "sft", "reward", "unpaired"):
        lines = (run_folder / f"data/{name}.jsonl").read_text().splitlines()
        assert load(run_folder, name, tmp_path).to_list() == [json.loads(line) for line in lines]


def test_the_chosen_reply_is_the_one_the_votes_prefer(run_folder: Path, tmp_path: Path) -> None:
    for row in load(run_folder, "preference", tmp_path).to_list():
        ps = [v["p_a"] if row["chosen_slot"] == "A" else 1 - v["p_a"] for v in row["votes"]]
        assert sum(ps) / len(ps) == pytest.approx(row["p_chosen"])
        assert row["p_chosen"] > 0.5
        assert {v["order"] for v in row["votes"]} == {"ab", "ba"}
        assert row["chosen"] != row["rejected"]


def test_every_row_says_which_wordings_it_was_made_under(run_folder: Path) -> None:
    import json

    rules = json.loads((run_folder / "manifest.json").read_text())
    hashes, whole = rules["principle_hashes"], rules["constitution"]["hash"]
    rows = [json.loads(line) for line in (run_folder / "data/preference.jsonl").read_text().splitlines()]
    assert {row["constitution"] for row in rows} == {whole}
    votes = [v for row in rows for v in row["votes"]]
    assert len({v["principle"] for v in votes}) > 5
    assert all(v["principle_hash"] == hashes[v["principle"]] for v in votes)
    replies = [json.loads(line) for line in (run_folder / "data/sft.jsonl").read_text().splitlines()]
    assert {row["constitution"] for row in replies} == {whole}
    assert any(row["principles"] for row in replies)
    assert all(row["principle_hashes"] == [hashes[p] for p in row["principles"]] for row in replies)
    with Rows(run_folder, readonly=True) as stored:
        candidates = [Candidate.model_validate_json(r.record) for r in stored.iterate("candidate")]
    revisions = [r for c in candidates for r in c.revisions]
    assert revisions
    for r in revisions:
        assert r.hashes == tuple(hashes[p] for p in r.principles)
        assert r.critique is not None
        assert r.critique.hashes == r.hashes


def test_the_card_states_constitution_judge_bias_and_drops(run_folder: Path) -> None:
    card = (run_folder / "README.md").read_text()
    for said in ("Constitution", "Judge", "slot orders agree", "longer one", "has not been measured", "identical"):
        assert said in card


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["sft", "reward", "dpo"])
def test_trl_trains_on_them(run_folder: Path, tmp_path: Path, kind: str) -> None:
    import trl
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    path = str(ROOT / "nano/models/assistant")
    tok = AutoTokenizer.from_pretrained(path)
    name = {"sft": "sft", "reward": "reward", "dpo": "preference"}[kind]
    config = {"sft": trl.SFTConfig, "reward": trl.RewardConfig, "dpo": trl.DPOConfig}[kind]
    trainer = {"sft": trl.SFTTrainer, "reward": trl.RewardTrainer, "dpo": trl.DPOTrainer}[kind]
    arguments = config(
        output_dir=str(tmp_path / "out"), max_steps=1, per_device_train_batch_size=2, use_cpu=True, bf16=False,
        gradient_checkpointing=False, report_to=[], save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    extra: dict[str, Any] = {}
    if kind == "reward":
        model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype="float32")
        model.config.pad_token_id = tok.pad_token_id
    else:
        model = AutoModelForCausalLM.from_pretrained(path, dtype="float32")
    if kind == "dpo":
        extra["ref_model"] = AutoModelForCausalLM.from_pretrained(path, dtype="float32")
    made = trainer(
        model=model, args=arguments, train_dataset=load(run_folder, name, tmp_path), processing_class=tok, **extra
    )
    assert made.train().training_loss > 0
