"""`tenet train`: every kind from a config to a model that loads, crashes and full disks survived, bad input refused."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from service import train as command
from tenet.errors import DataError, RunFolderError, SettingsError, TrainingError
from tests.conftest import make_tiny_model
from trainers._encode import Coder, written
from trainers._loop import checkpoints
from trainers._run import Start

ROOT = Path(__file__).parent.parent
DATA = {"pretrain": "texts", "sft": "replies", "reward": "pairs", "dpo": "pairs"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("train") / "tiny", hidden=32, head_dim=16, heads=2)


def data(folder: Path, shape: str, n: int = 24) -> Path:
    """Rows of a shape, each with other words."""
    words = ["bada", "kilo", "mote", "lana", "rupo", "sibe"]

    def row(i: int) -> dict[str, Any]:
        asked, good, bad = (f"{words[(i + k) % 6]} {words[(i * k) % 6]} {i}" for k in (1, 2, 3))
        if shape == "texts":
            return {"text": f"{asked}. {good}, {bad}."}
        prompt, said = [{"role": "user", "content": asked}], [{"role": "assistant", "content": good}]
        if shape == "replies":
            return {"prompt": prompt, "completion": said}
        worse = [{"role": "assistant", "content": bad + " no"}]
        return {"prompt": prompt, "chosen": said, "rejected": worse, "p_chosen": 0.6 + 0.015 * i}

    path = folder / f"{shape}.jsonl"
    path.write_text("".join(json.dumps(row(i)) + "\n" for i in range(n)))
    return path


def config(folder: Path, kind: str, start: Path, **settings: Any) -> Path:
    said = {
        "model": str(start), "data": str(data(folder, DATA[kind])), "out": str(folder / "out"), "batch": 4,
        "lr": 1e-3, "steps": 4, "log_every": 1, "save_every": 2, "context": 64, **settings,
    }  # fmt: skip
    path = folder / f"{kind}.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in said.items() if v is not None}))
    return path


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("kind", sorted(DATA))
def test_every_kind_gives_a_model_with_metrics_card_and_manifest(kind: str, model: Path, tmp_path: Path) -> None:
    import transformers

    path = config(tmp_path, kind, model)
    command.main(kind, path, [])
    out = tmp_path / "out"
    auto = transformers.AutoModelForSequenceClassification if kind == "reward" else transformers.AutoModelForCausalLM
    _, told = auto.from_pretrained(out, output_loading_info=True)
    assert not told["missing_keys"]
    assert transformers.AutoTokenizer.from_pretrained(out).chat_template
    dtypes = {str(w.dtype) for w in weights(out).values()}
    assert dtypes == {"torch.float32" if kind == "reward" else "torch.bfloat16"}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["steps"] == 4
    assert manifest["data"]["read"] == manifest["data"]["kept"] == 24
    (file,) = manifest["data"]["files"].values()
    assert len(file["sha256"]) == 64
    assert manifest["settings"]["lr"] == 1e-3
    assert "trl" in manifest["versions"]
    assert f"tenet train {kind}" in (out / "README.md").read_text()
    assert "<svg" in (out / "curves.svg").read_text()
    assert not (out / "checkpoints").exists()
    assert all(not p.name.startswith(".") for p in out.iterdir())


def test_a_tracker_gets_the_figures_and_keeps_them(model: Path, tmp_path: Path) -> None:
    command.main("dpo", config(tmp_path, "dpo", model, report_to=["tensorboard"]), [])
    (events,) = (tmp_path / "out/tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()
    assert b"train/rewards/accuracies" in events.read_bytes()


@pytest.mark.parametrize(("name", "why"), [("tensorbord", "no tracker is named"), ("wandb", "install wandb")])
def test_a_tracker_that_is_not_there_is_named_before_anything_is_loaded(
    name: str, why: str, model: Path, tmp_path: Path
) -> None:
    if find_spec(name):
        pytest.skip(f"{name} is installed here")
    for workers in (1, 2):
        with pytest.raises(SettingsError, match=f"report_to: .*{why}"):
            command.main("sft", config(tmp_path, "sft", model, report_to=[name], workers=workers), [])


def test_the_steps_after_the_last_line_are_logged_too(model: Path, tmp_path: Path) -> None:
    command.main("pretrain", config(tmp_path, "pretrain", model, log_every=3), [])
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [3, 4]
    command.main("pretrain", config(tmp_path, "pretrain", model, log_every=10, out=str(tmp_path / "short")), [])
    assert "loss" in json.loads((tmp_path / "short/manifest.json").read_text())["figures"]


def test_the_same_command_on_a_finished_training_does_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(tmp_path, "sft", model)
    command.main("sft", path, [])
    before = (tmp_path / "out/manifest.json").stat().st_mtime_ns
    command.main("sft", path, ["log_every=3"])
    assert "nothing was done" in capsys.readouterr().err
    assert (tmp_path / "out/manifest.json").stat().st_mtime_ns == before
    with pytest.raises(RunFolderError, match="holds another training or run that is finished"):
        command.main("sft", path, ["lr=0.5"])


def test_a_training_killed_after_a_checkpoint_ends_with_the_same_weights(model: Path, tmp_path: Path) -> None:
    (tmp_path / "calm").mkdir()
    calm, wild = config(tmp_path / "calm", "dpo", model, steps=10), config(tmp_path, "dpo", model, steps=10)
    command.main("dpo", calm, [])
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "train", "dpo", str(wild)], cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 200
        while not (tmp_path / "out/checkpoints/checkpoint-4").exists() and time.monotonic() < deadline:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "out/manifest.json").exists()
    with pytest.raises(RunFolderError, match="checkpoints of a training with other settings"):
        command.main("dpo", wild, ["lr=0.5"])
    command.main("dpo", wild, [])
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert 4 <= manifest["resumed_from_step"] < 10
    resumed, whole = weights(tmp_path / "out"), weights(tmp_path / "calm/out")
    assert all((resumed[name] == whole[name]).all() for name in whole)

    def losses(out: Path) -> list[tuple[int, float]]:
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return [(line["step"], line["loss"]) for line in lines if "loss" in line]

    assert losses(tmp_path / "out") == losses(tmp_path / "calm/out")


def begin(kind: str, path: Path) -> Any:
    """The transformers trainer of a config, not yet started."""
    module, settings = command.open_config(kind, path)
    trainer = module.build(settings)
    folder, rows = Path(settings.model), trainer.rows()
    from trainers._common import load, tokenizer_of

    tok = tokenizer_of(folder)
    encoded = written(rows, trainer.encode(Coder(tok, 64, rows.census)), trainer.sequence)
    (tmp := Path(settings.out)).mkdir(parents=True, exist_ok=True)
    assert tmp.is_dir()
    return trainer.start(Start(settings, folder, tok, load(folder, tok, trainer.head), encoded, 64))


def test_a_loss_that_is_not_finite_stops_names_the_rows_and_keeps_the_last_checkpoint(
    model: Path, tmp_path: Path
) -> None:
    path = config(tmp_path, "reward", model, batch=2, steps=12, save_every=1)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    rows[7]["margin"] = 1e39  # a number to Python, infinite to float32
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(TrainingError, match=r"step \d+: the loss is not finite; .*pairs\.jsonl, line 8") as stopped:
        command.main("reward", path, [])
    step = int(str(stopped.value).split(":")[0].removeprefix("step "))
    assert step > 1, "the seed must not draw the bad row first"
    last = checkpoints(tmp_path / "out/checkpoints")[-1]
    assert last.name == f"checkpoint-{step - 1}"
    assert all(w.isfinite().all() for w in weights(last).values())
    assert not (tmp_path / "out/manifest.json").exists()


def test_a_full_disk_while_saving_leaves_the_checkpoint_before_whole(model: Path, tmp_path: Path) -> None:
    import transformers

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Fills(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))

    trainer = begin("sft", config(tmp_path, "sft", model))
    trainer.add_callback(Fills())
    try:
        with pytest.raises(TrainingError, match="the disk is full"):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    kept = tmp_path / "out/checkpoints"
    assert [p.name for p in kept.iterdir()] == ["checkpoint-2"]
    assert transformers.AutoModelForCausalLM.from_pretrained(kept / "checkpoint-2")
    command.main("sft", tmp_path / "sft.yaml", [])  # with room again, the same command goes on
    assert json.loads((tmp_path / "out/manifest.json").read_text())["steps"] == 4


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo"])
def test_adapters_train_and_the_saved_model_is_merged(kind: str, model: Path, tmp_path: Path) -> None:
    command.main(kind, config(tmp_path, kind, model, lora={"r": 4, "alpha": 8.0}, lr=0.01), [])
    out = tmp_path / "out"
    assert (out / "adapter/adapter_model.safetensors").exists()
    trained, start = weights(out), weights(model)
    assert not any("lora" in name for name in trained)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert (trained[name].float() - start[name]).abs().max() > 1e-3
    assert (trained["model.embed_tokens.weight"].float() - start["model.embed_tokens.weight"]).abs().max() < 0.01
    if kind == "reward":
        assert "score.weight" in trained


def test_bf16_checkpointing_and_accumulation_train_alike(model: Path, tmp_path: Path) -> None:
    def losses(**settings: Any) -> list[float]:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        command.main("sft", config(folder, "sft", model, **settings), [])
        lines = [json.loads(line) for line in (folder / "out/metrics.jsonl").read_text().splitlines()]
        return [line["loss"] for line in lines if "loss" in line]

    plain = losses()
    assert losses(accumulation=2) == pytest.approx(plain, rel=1e-4)
    assert losses(gradient_checkpointing=True) == pytest.approx(plain, rel=1e-4)
    assert losses(bf16=True) == pytest.approx(plain, rel=0.02)


def test_sft_says_before_it_starts_what_all_replies_share(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(tmp_path, "sft", model, steps=1)
    rows = [json.loads(line) for line in data(tmp_path, "replies", 40).read_text().splitlines()]
    for row in rows:
        row["completion"][0]["content"] = "Of course, bada. " + row["completion"][0]["content"]
    (tmp_path / "replies.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    command.main("sft", path, [])
    said = " ".join(capsys.readouterr().out.split())
    warned = said.index("style one opening begins 100% of the replies: 'of course ,' 100%")
    assert warned < said.index("out (sft): 1 steps")
    command.main("sft", path, [])
    assert "style" not in capsys.readouterr().out, "what was trained before is past warning"


def test_the_papers_schedule_by_name(model: Path, tmp_path: Path) -> None:
    path = config(tmp_path, "sft", model, schedule="cai", pretraining_lr=1e-3, lr=None, steps=None)
    module, settings = command.open_config("sft", path)
    spelled = module.build(settings).settings
    assert (spelled.lr, spelled.schedule, spelled.epochs, spelled.warmup) == (5e-4, "constant", 1.0, 0.0)
    for said in ("lr=0.1", "epochs=2"):
        module, settings = command.open_config("sft", path, [said])
        with pytest.raises(SettingsError, match="schedule: cai decides"):
            module.build(settings)
    module, settings = command.open_config("sft", config(tmp_path, "sft", model, schedule="cai", lr=None, steps=None))
    with pytest.raises(SettingsError, match="pretraining rate, which is not known"):
        module.build(settings)


def test_new_weights_by_config(model: Path, tmp_path: Path) -> None:
    path = config(tmp_path, "pretrain", model, scratch={"num_hidden_layers": 1})
    command.main("pretrain", path, [])
    assert not any("layers.1." in name for name in weights(tmp_path / "out"))
    with pytest.raises(SettingsError, match="'layers' is no key"):
        command.main("pretrain", path, ["scratch={layers: 1}", f"out={tmp_path}/other"])


@pytest.mark.parametrize(
    ("kind", "settings", "error", "says"),
    [
        ("sft", {"batch": 5, "accumulation": 2}, SettingsError, "no multiple of workers x accumulation"),
        ("sft", {"context": 4096}, SettingsError, "the model has positions for 2048"),
        ("sft", {"data": "nowhere.jsonl"}, DataError, "no such file"),
        ("sft", {"lr": -1.0}, SettingsError, "lr"),
        ("sft", {"speed": 1}, SettingsError, "speed"),
        ("sft", {"model": "nano:none"}, SettingsError, "no bundled model"),
        ("dpo", {"loss": "ipo"}, SettingsError, "labels: hard"),
        ("dpo", {"loss": "exo_pair", "labels": "hard"}, SettingsError, "label_smoothing"),
        ("sft", {"context": 8}, DataError, "24 prompt longer than the context"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    kind: str, settings: Any, error: Any, says: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        command.main(kind, config(tmp_path, kind, model, **settings), [])
    assert not (tmp_path / "out/checkpoints").exists()


def test_an_unknown_kind_lists_those_there_are(tmp_path: Path, model: Path) -> None:
    with pytest.raises(SettingsError, match=r"known kinds: .*dpo.*pretrain.*reward, sft"):
        command.main("grpo", config(tmp_path, "sft", model), [])


def test_models_that_do_not_fit_are_refused(model: Path, tmp_path: Path) -> None:
    command.main("reward", config(tmp_path, "reward", model), [])
    other = tmp_path / "x"
    other.mkdir()
    with pytest.raises(SettingsError, match="another architecture"):
        command.main("sft", config(other, "sft", tmp_path / "out"), [])
    bare = make_tiny_model(tmp_path / "bare", hidden=32, head_dim=16, heads=2)
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(SettingsError, match="no chat template"):
        command.main("sft", config(other, "sft", bare), [])
    with pytest.raises(RunFolderError, match="the model that the training starts from"):
        command.main("sft", config(other, "sft", model, out=str(model)), [])


def test_the_trained_reward_model_is_an_engine_that_judges(model: Path, tmp_path: Path) -> None:
    import asyncio

    from tenet.engines import Request, Sampling, classifier
    from tenet.records import Message

    command.main("reward", config(tmp_path, "reward", model), [])
    engine = classifier.build(classifier.Settings(model=str(tmp_path / "out")))
    turns = (Message(role="user", content="bada?"), Message(role="assistant", content="kilo"))
    (reply,) = asyncio.run(engine.generate([Request(messages=turns, sampling=Sampling())]))
    assert not reply.fault
    assert float(reply.text) == float(reply.text)
