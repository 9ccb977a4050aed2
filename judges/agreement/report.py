"""The report: one self-contained HTML page and its Markdown twin, from one list of sections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from judges.agreement import _cases, _sections
from judges.agreement.measure import Agreement
from tenet.pages import Block, Section, Text, save


def write(agreement: Agreement, folder: Path, source: str, attacks: Sequence[dict[str, Any]] = ()) -> list[Path]:
    """Writes `report.html`, `report.md` and `plots/` into a folder; `source` is how the votes are called.

    `attacks` are reports of `tenet attack`, if it was run.
    """
    return list(save(folder, f"Agreement: {source}", _lead(agreement), sections(agreement, attacks)))


def sections(agreement: Agreement, attacks: Sequence[dict[str, Any]] = ()) -> list[Section]:
    """Coverage, people, agreement, ceiling, bias, slices, calibration, disagreements, robustness."""
    f = agreement.figures
    judges: _sections.Judges = list(f["judges"].items())
    made = {
        "Coverage": _sections.coverage(f, judges),
        "People": _sections.people(f["humans"]),
        "Agreement": _sections.agreement_of(f, judges),
        "Ceiling": _sections.ceiling(f["humans"], judges),
        "Bias": _sections.bias(judges),
        "Slices": _sections.slices(judges),
        "Calibration": _sections.calibration(judges),
        "Disagreements": _cases.disagreements(agreement),
        "Robustness": _sections.robustness(judges, attacks),
    }
    return [Section(title, tuple(blocks)) for title, blocks in made.items()]


def _lead(agreement: Agreement) -> list[Block]:
    f = agreement.figures
    return [
        Text(f"{f['input']['votes']:,} votes on {f['input']['items']:,} items. {rules_line(f['rules'])}"),
        Text("A dash stands for a figure that does not exist for these votes; the JSON says why.", note=True),
    ]


def rules_line(rules: dict[str, Any]) -> str:
    """The rules under which figures stand, as every output prints them."""
    said = (
        f"Rules: ties {rules['tie']}; orders {rules['swap']}; invalid verdicts {rules['invalid']}; gold "
        f"{rules['gold']}; epsilon {rules['epsilon']:g}; {rules['resamples']:,} resamples, seed {rules['seed']}"
    )
    return said + (f"; duplicates {rules['duplicates']}." if rules["duplicates"] != "refuse" else ".")
