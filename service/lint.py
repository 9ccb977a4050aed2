"""`tenet constitution lint`: findings as text, JSON or GitHub annotations."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from constitution.lint import Finding, lint, worst
from constitution.schema import STAGES, Stage
from service._paraphrased import Deep, Flips
from tenet.errors import SettingsError
from tenet.settings import closest


def main(
    names: Sequence[str],
    form: str,
    strict: bool,
    ignore: Iterable[str],
    stages: Sequence[Stage] = (),
    deep: Deep | None = None,
) -> int:
    """Prints what was found; returns the exit status: 0 clean, 1 warnings with `strict`, 2 errors."""
    if form not in ("text", "json", "github"):
        raise SettingsError(f"{form!r} is no format", where="--format", fix="text, json or github")
    silent = list(ignore)
    findings = [f for name in names for f in lint(_named(name), silent, stages)]
    measured: list[Flips] = []
    if deep is not None:
        if worst(findings) == 2:
            what = "a constitution with errors cannot be asked about"
            raise SettingsError(what, where="--deep", fix="mend them first")
        for name in names:
            found, flips = asyncio.run(deep.ask(_named(name)))
            findings += [f for f in found if f.rule not in silent]
            measured += flips
    show(findings, measured, form, len(names))
    return worst(findings, strict)


def judge_of(config: Path | None) -> Path:
    """The judge's config; SettingsError if there is none."""
    if config is None:
        raise SettingsError("no judge is given", where="--deep", fix="--judge CONFIG")
    return config


def stages(names: Iterable[str]) -> list[Stage]:
    """The stages of these names; SettingsError for one that is none."""
    given = list(names)
    for name in given:
        if name not in STAGES:
            raise SettingsError(f"there is no stage {name!r}", where="--stage", fix=closest(name, STAGES))
    return [s for s in STAGES if s in given]


def _named(name: str) -> str | Path:
    """A packaged name, or a path; a file that is there is a path even without its ending."""
    return Path(name) if Path(name).is_file() else name


def show(findings: Sequence[Finding], flips: Sequence[Flips], form: str, files: int) -> None:
    """Prints findings in a format."""
    errors = sum(f.level == "error" for f in findings)
    counts = {"files": files, "errors": errors, "warnings": len(findings) - errors}
    if form == "json":
        told = {**counts, "findings": [f.model_dump() for f in findings], "flips": [f.model_dump() for f in flips]}
        print(json.dumps(told, indent=1, ensure_ascii=False))
        return
    for finding in findings:
        print(finding if form == "text" else github(finding))
    for f in flips:
        said = f"{f.flipped} of {f.pairs} ({100 * (f.low or 0):.0f}-{100 * (f.high or 0):.0f}%)" if f.pairs else f.why
        print(f"{'::notice::' if form == 'github' else ''}{f.principle}: pairs that flip under a paraphrase: {said}")
    if form == "text":
        print(f"{files} file{'s' * (files > 1)}: {counts['errors']} errors, {counts['warnings']} warnings")


def github(f: Finding) -> str:
    """A finding as a workflow command, which GitHub shows at the line of the file."""
    about = " ".join(t for t in (f.principle, f.field) if t)
    said = f"{about + ': ' if about else ''}{f.what}" + (f" ({f.fix})" if f.fix else "")
    title = f"tenet constitution lint: {f.rule}"
    return f"::{f.level} file={_property(f.file)},line={f.line},title={_property(title)}::{_data(said)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
