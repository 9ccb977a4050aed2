"""`tenet train`: a config becomes a trained model in a folder of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

from rich.markup import escape
from rich.table import Table

from service.screen import console
from tenet import kinds
from tenet.settings import Document, assemble, read


def open_config(kind: str, path: Path, overrides: Iterable[str] = ()) -> tuple[Any, Any]:
    """(module, settings) of a kind of training; SettingsError naming file, line and value.

    Paths that begin with ./ or ../ in the file are relative to it; all others, and those of the command line, to
    where the command is given.
    """
    module = kinds.load("trainers", kind, f"tenet train {kind}")
    doc = read(path)
    moved = Document(_moved(doc.data, path.parent), doc.where, doc.text)
    return module, assemble(module.Settings, moved, overrides)


def _moved(value: Any, base: Path) -> Any:
    if isinstance(value, dict):
        return {k: _moved(v, base) for k, v in cast(dict[str, Any], value).items()}
    if isinstance(value, list):
        return [_moved(v, base) for v in cast(list[Any], value)]
    return str(base / value) if isinstance(value, str) and value.startswith(("./", "../")) else value


def main(kind: str, path: Path, overrides: Iterable[str]) -> None:
    """Trains and shows what came of it. InputError before the first step, TrainingError on the way."""
    module, settings = open_config(kind, path, overrides)
    if kind == "sft":
        _warn_of_style(settings)
    if settings.workers > 1:
        from trainers import _workers

        outcome = _workers.train(kind, settings)
    else:
        with ExitStack() as opened:
            trainer = module.build(settings, **_judge(settings, opened))
            outcome = trainer.train(trainer.rows())
    if not outcome.fresh:
        print(f"Finished before, with these settings and data; nothing was done. {outcome.folder}", file=sys.stderr)
    show(outcome.folder, outcome.manifest)


def _warn_of_style(settings: Any) -> None:
    """Says before the first step what replies have in common that a model would learn to say everywhere."""
    if (Path(settings.out) / "manifest.json").exists():
        return  # trained already, or about to be refused
    from trainers import _rows
    from trainers.probes import style

    rows = _rows.read(settings.sources, "replies", settings.seed)
    for warning in style.foreseen(rows):
        console.print(f"[bold yellow]style[/] {escape(warning)}")


def _judge(settings: Any, opened: ExitStack) -> dict[str, Any]:
    """The judge that a reward names, opened: trainers know no judges."""
    config = getattr(getattr(settings, "reward", None), "judge", None)
    if config is None:
        return {}
    from service import _judge_reward

    return {"reward": opened.enter_context(_judge_reward.opened(Path(config), Path(settings.out)))}


def show(folder: Path, manifest: dict[str, Any]) -> None:
    """What a training came to, on one screen."""
    data = manifest["data"]
    console.print(
        f"[bold]{escape(folder.name)}[/] ({manifest['kind']}): {manifest['steps']} steps, {data['kept']} rows of "
        f"{data['read']}, {manifest['seconds']:.1f} s on {escape(manifest['device'])}"
    )
    notes = [f"{n} {why}" for why, n in data["dropped"].items()]
    notes += [f"{data[key]} {word}" for key, word in _NOTES.items() if data.get(key)]
    if notes:
        console.print("rows: " + escape("; ".join(notes)))
    table = Table("figure", "mean of the last tenth", box=None, padding=(0, 2, 0, 0))
    for name, value in manifest["figures"].items():
        table.add_row(escape(name), f"{value:g}")
    console.print(table)
    console.print(f"model: {escape(str(folder))}; card: README.md, curves: curves.svg, metrics: metrics.jsonl")


_NOTES = {
    "swapped": "with p_chosen below 0.5, turned round",
    "hard": "without p_chosen, taken as certain",
    "cut": "cut at the context",
}
