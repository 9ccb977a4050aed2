"""Several workers through Ray Train: the losses of one worker at the same global batch, and no Ray left behind."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest
import yaml

from service import train as command
from tenet.errors import DataError, SettingsError, TrainingError
from tests.conftest import make_tiny_model
from trainers import _workers


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def ray_servers() -> set[psutil.Process]:
    """Ray's servers below this process; an engine that other tests share may have some."""
    below = psutil.Process().children(recursive=True)
    return {p for p in below if "raylet" in p.name() or "gcs_server" in p.name()}


def test_two_workers_have_the_losses_of_one(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "tiny", hidden=32, head_dim=16, heads=2)
    words = ["bada", "kilo", "mote", "lana", "rupo"]
    rows = [
        {"prompt": f"{words[i % 5]} {i}", "chosen": f"{words[i % 3]} {i}", "rejected": "no " * (1 + i % 4),
         "p_chosen": 0.6 + 0.02 * i}
        for i in range(16)
    ]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = {
        "model": str(model), "data": str(tmp_path / "pairs.jsonl"), "out": str(tmp_path / "one"), "batch": 4,
        "lr": 0.01, "log_every": 1, "context": 64, "device": "cpu",
    }  # fmt: skip
    path = tmp_path / "dpo.yaml"
    path.write_text(yaml.safe_dump(said))
    command.main("dpo", path, [])
    before = ray_servers()
    command.main("dpo", path, ["workers=2", f"out={tmp_path}/two"])
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 4
    assert one[-1] < one[0]
    assert two == pytest.approx(one, rel=1e-4)
    assert json.loads((tmp_path / "two/manifest.json").read_text())["data"]["kept"] == 16
    left = ray_servers() - before
    psutil.wait_procs(left, timeout=20)
    assert not [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_bad_input_is_refused_before_ray_starts(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"chosen": "a", "rejected": "b", "prompt": "c", "p_chosen": 7}))
    path = tmp_path / "dpo.yaml"
    path.write_text(f"{{model: 'nano:base', data: {tmp_path}/pairs.jsonl, out: {tmp_path}/out, workers: 2}}")
    with pytest.raises(DataError, match=r"line 1: p_chosen"):
        command.main("dpo", path, [])
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"chosen": "a", "rejected": "b", "prompt": "c", "p_chosen": 0.7}))
    with pytest.raises(SettingsError, match="64 workers, but there are"):
        command.main("dpo", path, ["workers=64", "batch=64"])


def test_what_a_worker_raises_is_told_in_its_own_words(tmp_path: Path) -> None:
    note = tmp_path / "note.json"
    note.write_text(json.dumps({"error": "TrainingError", "said": "step 3: the loss is not finite"}))
    told = _workers.told(note, RuntimeError("Ray"))
    assert isinstance(told, TrainingError)
    assert str(told) == "step 3: the loss is not finite"
    assert "Ray" in str(_workers.told(tmp_path / "none.json", RuntimeError("Ray")))
