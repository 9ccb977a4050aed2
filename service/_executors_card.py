"""The dataset card's paragraph on other judges: a constitution means what its judge makes of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from service._shares import percent

NAME = "executors.json"
_OPEN, _CLOSE = "<!-- other judges -->", "<!-- /other judges -->"
_BLOCK = re.compile(re.escape(_OPEN) + ".*?" + re.escape(_CLOSE), re.DOTALL)
_NOT_YET = "**Under other judges** the pairs have not been judged (`tenet constitution executors`)."


def block(folder: Path, constitution_hash: str) -> str:
    """The paragraph for a run's card, from what was measured in its folder under the same constitution, if anything."""
    path = folder / NAME
    said = _NOT_YET
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["constitution_hash"] == constitution_hash:
            said = paragraph(found)
    return f"{_OPEN}\n{said}\n{_CLOSE}"


def amend(folder: Path, constitution_hash: str) -> Path | None:
    """Puts the paragraph into the card of a run that has one; returns the card."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    text, said = card.read_text(encoding="utf-8"), block(folder, constitution_hash)
    # A card of an older version has no place for it yet.
    text = _BLOCK.sub(lambda _: said, text) if _BLOCK.search(text) else f"{text.rstrip()}\n\n{said}\n"
    card.write_text(text, encoding="utf-8", newline="\n")
    return card


def paragraph(f: dict[str, Any]) -> str:
    """What was found, as Markdown."""
    lines = [
        f"**Under other judges** the same {f['pairs']:,} pairs, constitution and draws of principles were labelled "
        "again. Agreement counts A, B and tie as labels; pairs that either judge left unreadable do not count; 95% "
        "intervals take the prompts as clusters.",
        "",
        "| judge | and | same label | where both choose | Cohen's kappa |",
        "|---|---|---|---|---|",
    ]
    for c in f["between"]:
        kappa = "–" if c["kappa"] is None else f"{c['kappa']:.2f}"
        lines.append(f"| {_cell(c['a'])} | {_cell(c['b'])} | {percent(c['same'])} | {percent(c['chosen'])} | {kappa} |")
    lines += ["", *_least(f)]
    return "\n".join(lines).rstrip()


def _least(f: dict[str, Any]) -> list[str]:
    """The principles on which the judges agree least, of those with enough votes to say so."""
    made: list[str] = []
    for c in f["between"]:
        known = [(p["value"], id, p) for id, p in c["principles"].items() if p["value"] is not None and p["n"] >= 30]
        if known:
            low = ", ".join(f"`{id}` {percent(p)}" for _, id, p in sorted(known, key=lambda x: x[:2])[:3])
            made.append(f"{_cell(c['a'])} and {_cell(c['b'])} agree least under {low}.")
    return made


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
