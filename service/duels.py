"""Two stages' replies to the same prompts, judged: examples side by side, and win rates."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tenet import files
from tenet.errors import DataError
from tenet.pages import Block, Table, Text, Texts
from trainers.probes import winrate
from trainers.probes._numbers import number, spread

EXAMPLES = 8


def read(path: Path | None) -> dict[str, dict[str, Any]]:
    """Rows of `tenet inspect pairs` by id."""
    if path is None:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for number_, row in _lines(path):
        if not {"id", "prompt", "a", "b"} <= row.keys() or (row.get("slices") or {}).get("after") not in ("A", "B"):
            what = "has no id, prompt, a, b and slices.after"
            raise DataError(what, where=f"{path}, line {number_}", fix="a file of tenet inspect pairs")
        found[str(row["id"])] = row
    return found


def _lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    files.check_exists(str(path), path, "JSONL")
    rows: list[tuple[int, dict[str, Any]]] = []
    for line, raw in files.lines(str(path), path):
        try:
            rows.append((line, files.json_object(raw)))
        except files.Malformed as stop:
            raise stop.at(f"{path}, line {line}") from None
    return rows


def _sides(row: dict[str, Any]) -> tuple[str, str]:
    """(before, after) of a pair."""
    return (row["b"], row["a"]) if row["slices"]["after"] == "A" else (row["a"], row["b"])


def examples(pairs: dict[str, dict[str, Any]], verdicts: Path | None, probes: Sequence[dict[str, Any]]) -> list[Block]:
    if not pairs:
        if any(f["probe"] == "prompt" for f in probes):
            return [Text("See the section on one prompt.")]
        return [Text("No pairs: tenet inspect pairs BEFORE AFTER writes them.")]
    said = {str(v.get("id")): v.get("verdict") for _, v in _lines(verdicts)} if verdicts else {}
    blocks: list[Block] = []
    for key, row in islice(pairs.items(), EXAMPLES):
        before, after = _sides(row)
        asked = row["prompt"] if isinstance(row["prompt"], str) else "\n\n".join(m["content"] for m in row["prompt"])
        verdict = said.get(key)
        won = {row["slices"]["after"]: "after", "tie": "a tie"}.get(str(verdict), verdict or "not judged")
        won = "before" if verdict in ("A", "B") and won != "after" else won
        blocks.append(Texts(f"{asked}  |  judge: {won}", [("before", before), ("after", after)]))
    return blocks


def duels_of(pairs: dict[str, dict[str, Any]], verdicts: Path) -> tuple[list[winrate.Duel], int]:
    """(one duel for each readable verdict, how many could not be read). DataError for a verdict on no pair."""
    duels: list[winrate.Duel] = []
    unread = 0
    for line, verdict in _lines(verdicts):
        row = pairs.get(str(verdict.get("id")))
        if row is None or "verdict" not in verdict:
            what = f"is a verdict on {verdict.get('id')!r}, which is none of the pairs"
            raise DataError(what, where=f"{verdicts}, line {line}", fix="the verdicts of tenet judge on --pairs")
        if verdict["verdict"] not in ("A", "B", "tie"):
            unread += 1
            continue
        p = verdict.get("p_a")
        p_a = p if isinstance(p, int | float) else {"A": 1.0, "B": 0.0, "tie": 0.5}[verdict["verdict"]]
        before, after = _sides(row)
        won = float(p_a if row["slices"]["after"] == "A" else 1 - p_a)
        duels.append(winrate.Duel(won, len(before), len(after)))
    return duels, unread


def wins(pairs: dict[str, dict[str, Any]], verdicts: Path | None) -> list[Block]:
    if verdicts is None:
        return [Text("No verdicts: tenet judge PAIRS --judge CONFIG, then --pairs and --verdicts here.")]
    f = winrate.measure(*duels_of(pairs, verdicts))
    raw, controlled, length = f["raw"], f["length_controlled"], f["mean_length"]
    rows = [
        ["raw", spread(raw), number(raw["n"])],
        ["length-controlled", spread(controlled), number(controlled["n"])],
    ]
    notes: list[Block] = [Table(["win rate of after over before", "value (95%)", "n"], rows)]
    for name, of in (("raw", raw), ("length-controlled", controlled)):
        if of.get("why"):
            notes.append(Text(f"{name}: {of['why']}.", note=True))
    if controlled.get("phi") is not None:
        said = f"theta {number(controlled['theta'])}, phi {number(controlled['phi'])}"
        notes.append(Text(f"Fitted: {said}, s {number(controlled['scale'], 1)}.", note=True))
    notes.append(Text(f"Mean length in characters: before {number(length['before'], 1)}, after "
                      f"{number(length['after'], 1)}. Unreadable verdicts: {f['unreadable']}.", note=True))  # fmt: skip
    return [*notes, Text(f["rule"], note=True)]
