"""`tenet report`: one page with all stages of a run: data, judge, training, probes, examples, win rates."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich.markup import escape

from service import duels
from service.screen import console
from tenet import pages
from tenet.errors import DataError
from tenet.pages import Block, Heading, Plot, Section, Table, Text
from trainers._save import curves, read_metrics
from trainers.probes import _weights_page, stages, style, tax
from trainers.probes._numbers import number

_DEPTH = 3
"""Folders below the run's in which trainings and probes are looked for."""


@dataclass(frozen=True)
class Duels:
    """Pairs of `tenet inspect pairs` and the verdicts of `tenet judge` on them."""

    pairs: Path | None = None
    verdicts: Path | None = None


@dataclass(frozen=True)
class Training:
    """A folder of `tenet train`."""

    folder: Path
    manifest: dict[str, Any]
    history: list[dict[str, Any]]


def main(run: Path, out: Path | None, trained: Sequence[Path], probes: Sequence[Path], asked: Duels) -> None:
    """Writes the page. DataError for files that are named and are not what they should be."""
    if not run.is_dir():
        raise DataError("is no folder", where=str(run), fix="a folder of tenet generate or tenet train")
    out = out or run / "report"
    found = _manifests(run, out)
    data = next((m for _, m in found if "prompts" in m and "recipe" in m), None)
    trainings = _trainings(trained, [(p, m) for p, m in found if "kind" in m])
    read = [_probe(p, required=True) for p in probes] or _probes(run, out)
    named = [p for p in read if p is not None]
    pairs = duels.read(asked.pairs)
    made = [
        Section("Data", tuple(_data(data))),
        Section("Judge", tuple(_judge(data))),
        Section("Training", tuple(_training(trainings))),
        *_probe_sections(named),
        Section("Before and after", tuple(duels.examples(pairs, asked.verdicts, named))),
        Section("Win rates", tuple(duels.wins(pairs, asked.verdicts))),
    ]
    lead = [
        Text(f"{run.name}: {len(trainings)} trainings, {len(named)} probes."),
        Text("A dash stands for a figure that does not exist; the JSON of each probe says why.", note=True),
    ]
    html, _ = pages.save(out, f"Report: {run.name}", lead, made)
    console.print(f"report: {escape(str(html))}, and report.md beside it")


def _object(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return cast(dict[str, Any], value) if isinstance(value, dict) else None


def _below(run: Path, out: Path, pattern: str) -> list[Path]:
    found = (p for depth in range(_DEPTH + 1) for p in sorted(run.glob("*/" * depth + pattern)))
    return [p for p in found if not p.is_relative_to(out) and "checkpoints" not in p.parts]


def _manifests(run: Path, out: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Manifests of the run's folder and below, and of trainings beside it that stand on this run's data."""
    found = [(p.parent, m) for p in _below(run, out, "manifest.json") if (m := _object(p)) is not None]
    seen, around = {p.resolve() for p, _ in found}, run.resolve().parent
    beside = [p for pattern in ("*/manifest.json", "*/*/manifest.json") for p in sorted(around.glob(pattern))]
    left = [(p.parent, m) for p in beside if p.parent not in seen and (m := _object(p)) is not None and "kind" in m]
    data = {f.get("sha256") for _, m in found for f in cast(dict[str, Any], m.get("files") or {}).values()} - {None}
    # A training that starts from one of the run's belongs to the run too, such as PPO on other prompts.
    while more := [x for x in left if _stands_on(x[1], run, data, found)]:
        found += more
        left = [x for x in left if x not in more]
    return found


def _stands_on(m: dict[str, Any], run: Path, data: set[Any], found: Sequence[tuple[Path, dict[str, Any]]]) -> bool:
    """Whether a training read the run's files (by hash, or by path), or starts from a training that is found."""
    files = cast(dict[str, Any], (m.get("data") or {}).get("files") or {})
    if any(f.get("sha256") in data or Path(name).resolve().is_relative_to(run.resolve()) for name, f in files.items()):
        return True
    settings = cast(dict[str, Any], m.get("settings") or {})
    starts = [settings.get("model"), (settings.get("reward") or {}).get("model")]
    folders = {p.resolve() for p, other in found if "kind" in other}
    return any(isinstance(s, str) and Path(s).resolve() in folders for s in starts)


def _trainings(named: Sequence[Path], found: list[tuple[Path, dict[str, Any]]]) -> list[Training]:
    if named:
        found = []
        for folder in named:
            manifest = _object(folder / "manifest.json")
            if manifest is None or "kind" not in manifest:
                raise DataError("has no manifest of a training", where=str(folder), fix="a folder of tenet train")
            found.append((folder, manifest))
    ordered = sorted(found, key=lambda item: str(item[1].get("finished", ""))) if not named else found
    return [Training(folder, m, read_metrics(folder / "metrics.jsonl")) for folder, m in ordered]


def _probes(run: Path, out: Path) -> list[dict[str, Any] | None]:
    return [_probe(p) for p in _below(run, out, "*.json") if p.name != "manifest.json" and p.stat().st_size < 64 << 20]


def _probe(path: Path, required: bool = False) -> dict[str, Any] | None:
    value = _object(path)
    if value is not None and value.get("probe") in _PROBES:
        return value
    if required:
        raise DataError("is no JSON of tenet inspect", where=str(path), fix="write one with tenet inspect … --json")
    return None


def _data(m: dict[str, Any] | None) -> list[Block]:
    if m is None:
        return [Text("The folder holds no manifest of tenet generate.")]
    p, pairs = m["prompts"], m["pairs"]
    rows = [
        ["prompts", number(p["rows"])], ["kept", number(p["kept"])], ["dropped", number(p["dropped"])],
        ["pairs judged", number(pairs["made"])], ["preferences exported", number(pairs["exported"])],
        *([f"rows of {name}", number(f["rows"])] for name, f in m["files"].items() if name.endswith(".parquet")),
    ]  # fmt: skip
    drops = [
        [unit, stage, reason, number(n)]
        for unit, by_stage in m["drops"].items() for stage, reasons in by_stage.items() for reason, n in reasons.items()
    ]  # fmt: skip
    c = m["constitution"]
    rules = [[r["id"], r.get("title") or r.get("choose") or ""] for r in c["principles"][:40]]
    blocks: list[Block] = [Text(f"State: {m['state']}. Finished {m['finished']}."), Table(["", "n"], rows)]
    if drops:
        blocks.append(Table(["dropped", "stage", "reason", "n"], drops, texts=3))
    blocks += [Heading(f"Constitution {c['name']}, hash {c['hash']}"), Table(["principle", "text"], rules, texts=2)]
    return blocks


def _judge(m: dict[str, Any] | None) -> list[Block]:
    if m is None:
        return [Text("No data of a judge.")]
    a, settings = m["agreement"], m["recipe"]["judge"]

    def of(part: str, whole: str) -> list[str]:
        return [number(a[part] / a[whole]) if a[whole] else "–", number(a[whole])]

    rows = [
        ["same verdict in both slot orders", *of("consistent", "both_orders")],
        ["first slot preferred", *of("first_slot", "readable_votes")],
        ["longer reply chosen", *of("longer_chosen", "uneven")],
    ]
    kin = {True: " (of a writer's family)", False: ""}
    engines = ", ".join(f"{e['name']}{kin[bool(e['writes_too'])]}" for e in m["judge_engines"])
    said = ", ".join(f"{k}: {v}" for k, v in settings.items())
    return [
        Text(f"{said}; engine {engines}."),
        Table(["share", "value", "n"], rows),
        Text("These shares say how steady the judge is, not how right: tenet agree measures that.", note=True),
    ]


def _training(trainings: list[Training]) -> list[Block]:
    if not trainings:
        return [Text("No training reads this run's data yet.")]
    rows: list[list[str]] = []
    for t in trainings:
        s, m = t.manifest.get("settings") or {}, t.manifest
        data = m.get("data") or {}
        counts = (data.get("kept"), m.get("steps"), s.get("lr"), m.get("tokens"), m.get("seconds"))
        rows.append([t.folder.name, str(m["kind"]), str(s.get("model", "–")), *map(number, map(_count, counts))])
    blocks: list[Block] = [
        Table(["stage", "kind", "from", "rows", "steps", "learning rate", "tokens", "seconds"], rows, texts=3)
    ]
    for i, t in enumerate(trainings):
        blocks.append(Heading(f"{t.folder.name} ({t.manifest['kind']})"))
        if t.history:
            blocks.append(Plot(f"curves-{i}", curves(t.history), f"What {t.folder.name} logged, over its steps."))
        else:
            blocks.append(Text("No metrics.jsonl.", note=True))
        figures = t.manifest.get("figures") or {}
        if figures:
            rows = [[k, number(_count(v), 4)] for k, v in figures.items()]
            blocks.append(Table(["figure, mean of the last tenth", "value"], rows))
    return blocks


def _count(value: Any) -> Any:
    """What a trainer counts in floats, such as tokens, as a whole number again."""
    return int(value) if isinstance(value, float) and value.is_integer() and value >= 1000 else value


def _weights_sections(f: dict[str, Any]) -> list[Section]:
    return [s for s in _weights_page.sections(f) if s.title not in ("Matrices", "Rules")]


def _style_sections(f: dict[str, Any]) -> list[Section]:
    return style.sections(f["parts"])


_PROBES = {
    "weights": ("Weights", _weights_sections),
    "prompt": ("One prompt", stages.sections),
    "tax": ("Alignment tax", tax.sections),
    "style": ("Style", _style_sections),
}


def _probe_sections(probes: Sequence[dict[str, Any]]) -> list[Section]:
    made: list[Section] = []
    for i, f in enumerate(probes, 1):
        title, sections = _PROBES[f["probe"]]
        blocks: list[Block] = []
        for section in sections(f):
            if section.title == "Rules":
                continue
            blocks.append(Heading(section.title))
            for block in section.blocks:
                # Two probes of one kind draw pictures of one name.
                blocks.append(Plot(f"{i}-{block.name}", block.svg, block.caption) if isinstance(block, Plot) else block)
        same = sum(g["probe"] == f["probe"] for g in probes) > 1
        made.append(Section(f"{title} {i}" if same else title, tuple(blocks)))
    return made or [Section("Probes", (Text("No JSON of tenet inspect lies in the run's folder."),))]
