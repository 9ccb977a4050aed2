"""PPO's checkpoints: policy, value network, optimizer, KL weight and step, so that a killed training goes on exactly.

Nothing is pickled: tensors are safetensors, the rest is JSON. Random numbers need no state of their own, since every
draw is seeded by the run's seed and the step.
"""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

from tenet.errors import RunFolderError
from trainers import _disk
from trainers._common import load, quiet
from trainers._ppo_math import KLController
from trainers._ppo_networks import Networks


def save(
    folder: Path, step: int, networks: Networks, optimizer: Any, scheduler: Any, tok: Any, controller: KLController
) -> None:
    """Writes `folder`, whole or not at all. The policy in it is a Hugging Face model, or an adapter."""
    files: Any = import_module("safetensors.torch")
    with _disk.whole(folder) as beside, quiet():
        if networks.adapter:
            networks.adapter.save(beside)
        else:
            networks.policy.save_pretrained(beside)
        tok.save_pretrained(beside)
        values = {f"{i}": w.detach().clone() for i, w in enumerate(networks.value_weights)}
        files.save_file(values, beside / "value.safetensors")
        state = optimizer.state_dict()["state"]
        moments = {f"{i}.{k}": v.detach().clone() for i, each in state.items() for k, v in each.items()}
        files.save_file(moments, beside / "optimizer.safetensors")
        told = {"step": step, "kl_weight": controller.beta, "scheduler": scheduler.state_dict()}
        (beside / "state.json").write_text(json.dumps(told), encoding="utf-8")


def restore(
    folder: Path, networks: Networks, optimizer: Any, scheduler: Any, tok: Any, controller: KLController
) -> tuple[int, KLController]:
    """Puts a checkpoint back into freshly made parts; (its step, its controller). RunFolderError if it is damaged."""
    torch, files = import_module("torch"), import_module("safetensors.torch")
    try:
        told = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        values = files.load_file(folder / "value.safetensors")
        moments = files.load_file(folder / "optimizer.safetensors")
        with torch.no_grad():
            for i, weight in enumerate(networks.value_weights):
                weight.copy_(values[str(i)])
        if networks.adapter:
            networks.adapter.load(folder)
        else:
            networks.policy.load_state_dict(load(folder, tok).state_dict())
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        what = f"the checkpoint cannot be read: {str(error).splitlines()[0]}"
        fix = "remove that checkpoint; an earlier one may be whole"
        raise RunFolderError(what, where=str(folder), fix=fix) from None
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in moments.items():
        i, _, key = name.partition(".")
        state.setdefault(int(i), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    scheduler.load_state_dict(told["scheduler"])
    for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = rate
    return told["step"], KLController(told["kl_weight"], controller.target, controller.rate)


def keep_last(home: Path, keep: int) -> None:
    """Lets the oldest checkpoints go."""
    from trainers._loop import checkpoints

    for old in checkpoints(home)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def rewind(path: Path, step: int) -> None:
    """Drops the lines of a JSONL file that belong to steps after `step`: they will be done again."""
    if path.exists():
        kept: list[str] = []
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except ValueError:
                break
        _disk.write(path, "".join(kept))
