"""A training from start to end, for the kinds that stand on TRL: rows -> ids -> model -> loop -> a finished folder."""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from tenet.errors import RunFolderError
from tenet.records import digest
from trainers import _disk, _reporters, _rows, _save, adapters
from trainers._common import PROBE, WEIGHED, Common, Outcome, context_of, load, locate, quiet, tokenizer_of
from trainers._encode import Coder, Encode, Encoded, Ids, written
from trainers._rows import Rows
from trainers._shapes import Row, Shape


@dataclass(frozen=True)
class Start:
    """What a kind makes its transformers trainer from."""

    settings: Any
    folder: Path
    """The model that the training starts from."""
    tok: Any
    model: Any
    encoded: Encoded
    context: int


@dataclass(frozen=True)
class TrlTrainer:
    """A kind's trainer: how its rows become ids, and which transformers trainer sees them."""

    kind: str
    settings: Common
    shape: Shape
    encode: Callable[[Coder], Encode]
    sequence: Callable[[Row], Ids]
    """What an encoded row looks like in a batch's input_ids."""
    make: Callable[[Start], Any]
    """A transformers trainer with `Guarded` among its bases."""
    head: Literal["causal", "reward"] = "causal"
    chat: bool = True
    pack: bool = False
    """Whether rows are strung together and cut into blocks of the context."""
    fresh: Callable[[Path, Any, int], Any] | None = None
    """Makes a model from folder, tokenizer and context, where the weights do not come from the folder."""

    def rows(self) -> Rows:
        """The rows that the settings name."""
        return _rows.read(self.settings.sources, self.shape, self.settings.seed)

    def train(self, rows: Rows) -> Outcome:
        """Trains, or goes on from the last checkpoint. InputError before it starts, TrainingError after."""
        from trainers._loop import watched

        settings, out = self.settings, Path(self.settings.out)
        folder = locate(settings.model, weights=self.fresh is None)
        done = finished(settings, self.kind, folder)
        if done is not None:
            return Outcome(out, done, fresh=False)
        reporters = _reporters.opened(settings)
        tok = tokenizer_of(folder, self.chat)
        context = context_of(settings, folder)
        encode = self.encode(Coder(tok, context, rows.census))
        encoded = written(rows, encode, self.sequence, context if self.pack else 0)
        checkpoint = begun(settings, digest(rows.census.files))
        model = self.fresh(folder, tok, context) if self.fresh else load(folder, tok, self.head, settings.seed)
        handle = self._adapted(model, encoded)
        draws = self._draws(model, encoded)
        hf = self.start(Start(settings, folder, tok, model, encoded, context))
        hf.draws = draws
        for reporter in reporters:
            hf.add_callback(reporter)
        if handle is not None:
            hf.add_callback(handle.callback(checkpoint=checkpoint))
        clock = time.monotonic()
        with quiet(), _patience(), watched(hf, self.kind):
            hf.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        seconds = time.monotonic() - clock
        manifest = None
        if hf.args.should_save:
            _save.model_folder(hf.accelerator.unwrap_model(hf.model), tok, out, settings.save_as)
            facts = self._facts(hf, context, seconds, checkpoint)
            manifest = _save.finish(settings, self.kind, rows.census, facts)
            shutil.rmtree(out / "checkpoints", ignore_errors=True)
        return Outcome(out, manifest or {}, fresh=True)

    def _adapted(self, model: Any, encoded: Encoded) -> Any:
        """The adapter that the settings ask for, on the model; experts are weighed on the first rows of the data."""
        if self.settings.adapter is None:
            return None
        first = encoded.data.select(range(min(PROBE, len(encoded.data))))
        batches = self._inputs(first) if WEIGHED & self.settings.adapter.keys() else None
        return adapters.attach(model, self.settings.adapter, batches=batches)

    def _draws(self, model: Any, encoded: Encoded) -> Any:
        """How often to draw each row [N], where experts are to get a minimum load: one pass over all rows tells."""
        floor = (self.settings.adapter or {}).get("minimum_load")
        if not floor:
            return None
        from trainers.adapters import _load

        return _load.draw_weights(adapters.measure(model, self._inputs(encoded.data)).rows, floor)

    def _inputs(self, rows: Any) -> Iterator[dict[str, Any]]:
        import torch

        return ({"input_ids": torch.tensor([list(self.sequence(row))])} for row in rows)

    def start(self, start: Start) -> Any:
        """The transformers trainer, guarded and ready."""
        from trainers._loop import guard

        with quiet(), _patience():
            hf = self.make(start)
        return guard(hf, start.settings, lambda batch: start.encoded.find(sequences(batch)))

    def _facts(self, hf: Any, context: int, seconds: float, checkpoint: Path | None) -> dict[str, Any]:
        settings = self.settings
        history = hf.state.log_history
        tokens = next((h["num_tokens"] for h in reversed(history) if "num_tokens" in h), None)
        return {
            "steps": hf.state.global_step,
            "epochs": hf.state.epoch,
            "tokens": tokens,
            "context": context,
            "figures": _save.last_figures(history),
            "seconds": round(seconds, 3),
            "resumed_from_step": int(checkpoint.name.rpartition("-")[2]) if checkpoint else None,
            "trainable": sum(p.numel() for p in hf.model.parameters() if p.requires_grad),
            "device": _save.device_name(settings.on_cpu),
            "peak_memory_mb": _peak(settings.on_cpu),
        }


def finished(settings: Common, kind: str, folder: Path) -> dict[str, Any] | None:
    """The manifest of this very training, if it is done; RunFolderError if the folder holds something else."""
    out = Path(settings.out)
    if out.resolve() == folder.resolve():
        raise RunFolderError("is the model that the training starts from", where=f"out {out}", fix="another folder")
    path = out / "manifest.json"
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = {}
    if found.get("kind") == kind and found.get("identity") == settings.identity:
        return found
    what = "holds another training or run that is finished"
    raise RunFolderError(what, where=f"out {out}", fix="another out=, or remove that folder")


def begun(settings: Common, data: str) -> Path | None:
    """Notes what is trained in the folder, and returns the last checkpoint of the same training, if there is one."""
    from trainers._loop import checkpoints

    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    note = out / "begun.json"
    mine = {"identity": settings.identity, "data": data}
    kept = checkpoints(out / "checkpoints")
    if kept and note.exists():
        theirs = json.loads(note.read_text(encoding="utf-8"))
        if theirs != mine:
            what = "other settings" if theirs.get("identity") != mine["identity"] else "other data"
            fix = "another out=, the settings and data as they were, or remove its checkpoints"
            raise RunFolderError(f"holds checkpoints of a training with {what}", where=f"out {out}", fix=fix)
        return kept[-1]
    if int(os.environ.get("RANK", "0")) == 0:
        _disk.write(note, json.dumps(mine))
    return None


def sequences(batch: dict[str, Any]) -> list[Ids]:
    """The sequences of ids in a batch: padding off, and packed ones taken apart."""
    ids = batch.get("input_ids")
    if ids is None:
        return []
    if batch.get("position_ids") is not None:
        flat, places = ids[0].tolist(), batch["position_ids"][0].tolist()
        starts = [i for i, place in enumerate(places) if place == 0]
        return [flat[a:b] for a, b in zip(starts, [*starts[1:], len(flat)], strict=True)]
    mask = batch["attention_mask"].bool()
    return [row[real].tolist() for row, real in zip(ids, mask, strict=True)]


def _patience() -> ExitStack:
    """Silences what transformers and TRL warn of for reasons that are not the user's."""
    stack = ExitStack()
    stack.enter_context(warnings.catch_warnings())
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    return stack


def _peak(cpu: bool) -> float:
    """The process's peak memory, or the GPU's, in MB."""
    import torch

    if not cpu:
        return round(torch.cuda.max_memory_allocated() / 1e6, 1)
    peak = getattr(psutil.Process().memory_info(), "peak_wset", None)
    if peak is None:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return round(peak / 1e6, 1)
