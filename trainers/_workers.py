"""One training by several processes, each with its share of every batch, started through Ray Train."""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

from tenet import kinds
from tenet.engines import _ray
from tenet.errors import EngineError, SettingsError, TrainingError
from trainers import _reporters
from trainers._common import Common, Outcome


def train(kind: str, settings: Common) -> Outcome:
    """Trains with `settings.workers` processes on a Ray cluster, a local one unless an address is set.

    Raises what a single process would raise: InputError, TrainingError. Every worker must see `data`, `model` and
    `out` under the same paths.
    """
    # What is wrong with settings or data is told before Ray starts.
    _reporters.opened(settings)
    for _ in kinds.load("trainers", kind).build(settings).rows():
        pass
    if settings.address is None:
        _check_room(settings, (os.cpu_count() or 1) if settings.on_cpu else import_module("torch").cuda.device_count())
    asyncio.run(_ray.enter(settings.address))
    try:
        if settings.address is not None:
            what = "CPU" if settings.on_cpu else "GPU"
            _check_room(settings, int(_ray.ray().cluster_resources().get(what, 0)))
        return _fit(kind, settings)
    finally:
        _ray.leave()


def _check_room(settings: Common, there: int) -> None:
    if there < settings.workers:
        short = f"{settings.workers} workers, but there are {there} {'CPUs' if settings.on_cpu else 'GPUs'}"
        raise SettingsError(short, where="workers", fix="fewer workers, or a cluster with more of them (address)")


def _fit(kind: str, settings: Common) -> Outcome:
    torch_train: Any = import_module("ray.train.torch")
    ray_train: Any = import_module("ray.train")
    cpu = settings.on_cpu
    out = Path(settings.out).absolute()
    absolute = settings.model_copy(update={"out": str(out)})
    with tempfile.TemporaryDirectory(prefix="tenet-train-") as storage:
        note = Path(storage) / "outcome.json"
        trainer = torch_train.TorchTrainer(
            _work,
            train_loop_config={
                "kind": kind, "settings": absolute.model_dump_json(), "fields": sorted(absolute.model_fields_set),
                "note": str(note), "path": sys.path, "folder": str(Path.cwd()),
            },
            scaling_config=ray_train.ScalingConfig(num_workers=settings.workers, use_gpu=not cpu),
            torch_config=torch_train.TorchConfig(backend="gloo" if cpu else "nccl"),
            run_config=ray_train.RunConfig(storage_path=storage, name="run"),
        )  # fmt: skip
        try:
            with warnings.catch_warnings():
                # Ray Data, which Ray Train loads, warns of the defaults that it sets itself.
                warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"ray\.data")
                trainer.fit()
        except Exception as error:
            raise told(note, error) from None
        result = json.loads(note.read_text(encoding="utf-8"))
    return Outcome(Path(settings.out), result["manifest"], result["fresh"])


def told(note: Path, error: Exception) -> Exception:
    """What a worker raised, in the words that a single process would have used."""
    if note.exists():
        said = json.loads(note.read_text(encoding="utf-8"))
        made = getattr(import_module("tenet.errors"), said["error"], TrainingError)
        # The words are whole already: the class would put its own parts together.
        raised = made.__new__(made)
        raised.args = (said["said"],)
        return raised
    return EngineError(f"a worker ended: {_ray.reason(error)}")


def _work(config: dict[str, Any]) -> None:
    """Runs in every worker: the same training, with the process group that Ray Train has set up."""
    sys.path[:0] = [p for p in config["path"] if p not in sys.path]
    os.chdir(config["folder"])
    import torch

    from tenet import kinds
    from tenet.errors import TenetError

    # All workers share the machine's cores.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    module = kinds.load("trainers", config["kind"])
    said = json.loads(config["settings"])
    # Only what was set: some settings ask whether they were.
    settings = module.Settings.model_validate({k: said[k] for k in config["fields"]})
    note = Path(config["note"])
    try:
        trainer = module.build(settings)
        outcome = trainer.train(trainer.rows())
    except TenetError as error:
        if not note.exists():
            note.write_text(json.dumps({"error": type(error).__name__, "said": str(error)}), encoding="utf-8")
        raise
    if int(os.environ["RANK"]) == 0:
        note.write_text(json.dumps({"manifest": outcome.manifest, "fresh": outcome.fresh}), encoding="utf-8")
