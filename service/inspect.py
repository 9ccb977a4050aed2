"""`tenet inspect`: what a training stage did to weights, replies, other skills and style."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.status import Status

from service.probing import opened, prompts, replies_of, tasks_of, texts
from service.screen import console
from tenet import gates, pages
from tenet.errors import SettingsError
from tenet.records import Message, seed_of
from trainers.probes import _outputs, _weights_page, stages, style, tax, weights
from trainers.probes._models import Loaded
from trainers.probes._texts import Sample

# transformers' progress bars would break through the status line.
_QUIET = "HF_HUB_DISABLE_PROGRESS_BARS"


@dataclass(frozen=True)
class Out:
    """Where a probe's results go."""

    folder: Path | None = None
    """Gets report.html, report.md, plots/ and <probe>.json."""
    json_out: Path | None = None
    gate: str = ""


def of_weights(
    names: Sequence[str], settings: weights.Settings, out: Out, text: str | None, norm: float | None, device: str,
    items: int = 200, outputs: bool = True,
) -> bool:
    """`tenet inspect weights`; False if a gate failed."""
    found = opened(names)
    if norm is not None and not (math.isfinite(norm) and norm > 0):
        raise SettingsError(f"{norm} is no norm", where="--norm", fix="a relative change above 0, such as 0.01")
    samples = texts(text, found, items)
    _quiet()
    with _status("reading weights") as status:
        f = weights.compare(found, settings, lambda name, _: status.update(f"weights: {escape(name)}"))
        if not outputs:
            f["outputs"] = {"steps": [], "why": "they were not asked for (--no-kl)"}
        elif samples is None:
            f["outputs"] = {"steps": [], "why": "there is no held-out text: give --text FILE"}
        else:
            pairs = weights.steps_of(found, settings.branches)

            def said(what: str) -> None:
                status.update(f"outputs: {escape(what)}")

            f["outputs"] = _outputs.measure(found, f["steps"], pairs, samples, norm, device, said)
    for line in _weights_page.screen(f):
        console.print(line, markup=False)
    title = f"Weights: {', '.join(s.name for s in found)}"
    return _written(f, title, _weights_page.lead(f), _weights_page.sections(f), out)


def of_prompt(prompt: str, names: Sequence[str], settings: stages.Settings, out: Out, device: str) -> bool:
    """`tenet inspect prompt`."""
    if not prompt.strip():
        raise SettingsError("the prompt is empty", where="PROMPT", fix="a question in quotes")
    sample = Sample(messages=(Message(role="user", content=prompt),))
    found = opened(names)
    _quiet()
    with _status("loading") as status:
        f = stages.walk(found, sample, settings, device, lambda what: status.update(escape(what)))
    for line in stages.screen(f):
        console.print(line, markup=False)
    return _written(f, f"One prompt through {', '.join(s.name for s in found)}", (), stages.sections(f), out)


def of_tax(
    before: str, after: str, out: Out, text: str | None, benign: str | None, tasks: str, items: int, device: str
) -> bool:
    """`tenet inspect tax`; False if a gate failed."""
    a, b = opened([before, after])
    held, asked = texts(text, [a, b], items), prompts(benign, [a, b], items)
    plan = tax.Plan(
        held.samples if held else (), asked.samples if asked else tax.benign(), tasks_of(tasks, items, device), None,
        {"texts": held.source if held else "none", "benign": asked.source if asked else "the bundled list"},
    )  # fmt: skip
    _quiet()
    with _status("loading") as status:
        f = tax.measure(a, b, plan, device, lambda what: status.update(escape(what)))
    for line in tax.screen(f):
        console.print(line, markup=False)
    return _written(f, f"Alignment tax: {a.name} to {b.name}", (), tax.sections(f), out)


def of_style(
    sources: Sequence[str], earlier: str | None, out: Out, prompt_file: str | None, settings: style.Settings, n: int,
    device: str, strict: bool,
) -> bool:
    """`tenet inspect style`; False if a gate failed, or, when strict, if there is a warning."""
    _quiet()
    with _status("reading") as status:

        def said(what: str) -> None:
            status.update(escape(what))

        before = None if earlier is None else replies_of(earlier, prompt_file, n, device, settings.seed, said)
        parts: dict[str, dict[str, Any]] = {}
        if before is not None and earlier is not None:
            parts[f"before: {earlier}"] = style.measure(before, settings)
        for source in sources:
            read = replies_of(source, prompt_file, n, device, settings.seed, said)
            parts[source] = style.measure(read, settings, before)
    for line in style.screen(parts):
        console.print(line, markup=False)
    f: dict[str, Any] = {"probe": "style", "rules": style.RULES, "parts": parts}
    last = parts[sources[-1]]
    passed = _written(f, f"Style: {', '.join(parts)}", (), style.sections(parts), out, last)
    return passed and not (strict and any(p["warnings"] for p in parts.values()))


def pairs(before: str, after: str, prompt_file: str | None, path: Path, n: int, tokens: int, device: str) -> None:
    """`tenet inspect pairs`: both stages' greedy replies to each prompt, as a pairs file for `tenet judge`.

    A coin tossed from the prompt decides which stage stands in slot a; `slices.after` says which slot is the later one.
    """
    found = opened([before, after])
    asked = prompts(prompt_file, found, n)
    if asked is None:
        raise SettingsError("there are no prompts", where="--prompts", fix="a prompts file, or nano")
    _quiet()
    said: list[list[str]] = []
    with _status("loading") as status:
        for stage in found:
            status.update(f"{escape(stage.name)} replies")
            loaded = Loaded(stage, device)
            said.append(loaded.replies(asked.samples, tokens))
            loaded.close()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for i, (sample, old, new) in enumerate(zip(asked.samples, *said, strict=True)):
            turns = [m.model_dump() for m in sample.messages]
            first = seed_of("slot", turns) % 2 == 0
            slot = {"a": new, "b": old} if first else {"a": old, "b": new}
            row = {"id": f"{i}", "prompt": turns, **slot, "slices": {"after": "A" if first else "B"}}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    console.print(f"{len(said[0]):,} pairs: {escape(str(path))}")


def _written(
    f: dict[str, Any], title: str, lead: Sequence[pages.Block], sections: Sequence[pages.Section], out: Out,
    gated: dict[str, Any] | None = None,
) -> bool:
    """Writes JSON and pages; checks the gate and says what failed."""
    of = gated or f
    left_out = ("rules", "settings", "matrices", "replies", "sources")
    known = gates.paths(of, left_out)
    asked = gates.parse(out.gate, lambda name: gates.path_of(name, known)) if out.gate else []
    written = [out.json_out] if out.json_out else []
    if out.folder:
        html, _ = pages.save(out.folder, title, lead, sections)
        written.append(out.folder / f"{f['probe']}.json")
        console.print(f"report: {escape(str(html))}, and report.md beside it")
    for path in written:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(f, indent=1, ensure_ascii=False, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8", newline="\n")
    failures = gates.check(asked, of)
    for failure in failures:
        console.print(f"[bold red]gate[/] {escape(failure)}")
    if asked and not failures:
        console.print(f"gates passed: {escape(out.gate)}")
    return not failures


def _status(said: str) -> Status:
    return Status(said, console=console)


def _quiet() -> None:
    os.environ.setdefault(_QUIET, "1")
    logging: Any = import_module("transformers.utils.logging")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
