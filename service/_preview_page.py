"""The preview's page: the verdict, every changed label with its texts, what revisions say now, and the shifts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from constitution.diff import Edit
from service._shares import change, percent
from service.constitution_edits import headline, principle_blocks
from tenet import pages
from tenet.pages import Block, Case, Heading, Section, Table, Text, Words

SHOWN = 25
"""Flips and revisions that the page shows; the JSON holds all of them."""
_LABELS = ("A", "B", "tie", "invalid", "refused")


def save(out: Path, edit: Edit, figures: Mapping[str, Any]) -> None:
    """Writes report.html and report.md."""
    lead: list[Block] = [
        Text(figures["verdict"]),
        Text(f"{edit.old} (hash {edit.old_hash}) -> {edit.new} (hash {edit.new_hash}): {headline(edit)}."),
        Text(_about(figures), note=True),
    ]
    sections = [
        Section("Shifts", tuple(_shifts(figures))),
        Section("Labels", tuple(_labels(figures))),
        Section("Changed labels", tuple(_flips(figures["flips"]))),
        Section("Revisions", tuple(_revisions(figures["revisions"]))),
        Section("Votes by principle", tuple(_principles(figures["principles"]))),
        Section("The edit", tuple(principle_blocks(edit.changes)) or (Text("No principle differs."),)),
        Section("Rules", (Table(["figure", "rule"], [[k, v] for k, v in figures["rules"].items()], texts=2),)),
    ]
    pages.save(out, "Preview of an edit", lead, sections)


def _about(f: Mapping[str, Any]) -> str:
    files = ", ".join(Path(p).name for p in f["prompts_files"])
    judge = ", ".join(f"{k}: {v}" for k, v in f["judge"].items())
    models = ", ".join(f"{k} = {v}" for k, v in f["models"].items())
    return (
        f"{f['prompts']} prompts of {files}, seed {f['seed']}; judge {judge}; models {models}. "
        f"{f['reused']:,} replies were reused, {f['asked']:,} asked ({f['tokens']:,} tokens)."
    )


def shift_rows(f: Mapping[str, Any]) -> list[list[str]]:
    """(what, old, new, shift) in words; the terminal shows them too."""
    s = f["shifts"]
    length = s["length"]
    ends = ["–" if length[k] is None else f"{length[k]:.0f} characters" for k in ("old", "new")]
    rows = [["mean length of a reply", *ends, change(length["shift"], " characters")]]
    for key, name in (
        ("refusal", "replies that refuse"), ("boilerplate", "replies with boilerplate"),
        ("consistency", "same label in both orders"),
    ):  # fmt: skip
        rows.append([name, percent(s[key]["old"]), percent(s[key]["new"]), change(s[key]["shift"], " points", 100)])
    return rows


def shift_lines(f: Mapping[str, Any]) -> list[str]:
    """The shares and shifts, a line each."""
    r = f["revisions"]
    words = "" if r["words"] is None else f", of which {100 * r['words']:.0f}% of the words"
    lines = [
        f"labels that turn to the other reply: {percent(f['labels']['flipped'])}",
        f"replies that end otherwise: {percent(r['changed'])}{words}",
    ]
    return [*lines, *(f"{name}: {old} -> {new}, shift {by}" for name, old, new, by in shift_rows(f))]


def _shifts(f: Mapping[str, Any]) -> list[Block]:
    rows = [
        ["labels that change", "", "", percent(f["labels"]["changed"])],
        ["labels that turn to the other reply", "", "", percent(f["labels"]["flipped"])],
        ["replies that end otherwise", "", "", percent(f["revisions"]["changed"])],
        *shift_rows(f),
    ]
    return [Table(["with 95% intervals", "old", "new", "change"], rows, texts=4)]


def _labels(f: Mapping[str, Any]) -> list[Block]:
    moves = {(m["old"], m["new"]): m["n"] for m in f["labels"]["moves"]}
    names = [n for n in (*_LABELS, "none") if any(n in pair for pair in moves)]
    rows = [[f"old {a}", *(str(moves.get((a, b), 0)) for b in names)] for a in names]
    return [
        Text("Pairs by their label under the old constitution (rows) and the new one (columns)."),
        Table(["", *(f"new {n}" for n in names)], rows),
    ]


def _flips(flips: Sequence[Mapping[str, Any]]) -> list[Block]:
    if not flips:
        return [Text("No label changes.")]
    note = "Votes are each principle's, in the order of its questions: with both slot orders, ab and then ba."
    blocks: list[Block] = [Text(note, note=True)]
    for flip in flips[:SHOWN]:
        old, new = flip["old"], flip["new"]
        title = f"{old['label']} -> {new['label']}, {flip['place']}"
        facts = f"p of A {_p(old)} -> {_p(new)}. Votes: {_votes(old)} -> {_votes(new)}{_whys(old, new)}"
        held = old if old["a"] is not None else new
        if held["a"] is None:
            blocks.append(Case(title, f"{facts} Prompt: {flip['prompt']}"))
            continue
        blocks.append(Case(title, f"{facts} A is {held['a_from']}, B is {held['b_from']}.", flip["prompt"], held["a"],
                           held["b"]))  # fmt: skip
        for side in "ab":
            if old[side] is not None and new[side] is not None and old[side] != new[side]:
                blocks.append(Words(f"{side.upper()} reads otherwise now", old[side], new[side]))
    if len(flips) > SHOWN:
        blocks.append(Text(f"{len(flips) - SHOWN} more are in preview.json.", note=True))
    return blocks


def _p(side: Mapping[str, Any]) -> str:
    return "–" if side["p_a"] is None else f"{side['p_a']:.3f}"


def _votes(side: Mapping[str, Any]) -> str:
    """ "insult A A, caveat B A": each principle's votes in the order of its questions."""
    by: dict[str, list[str]] = {}
    for vote in side["votes"]:
        by.setdefault(vote["principle"] or "(none)", []).append(vote["label"])
    return ", ".join(f"{name} {' '.join(said)}" for name, said in by.items()) or "none"


def _whys(*sides: Mapping[str, Any]) -> str:
    said = [s["why"] for s in sides if s["why"]]
    return f" ({'; '.join(said)})." if said else "."


def _revisions(r: Mapping[str, Any]) -> list[Block]:
    blocks: list[Block] = [Text(f"Replies that end otherwise after their rounds: {percent(r['changed'])}.")]
    for t in r["texts"][:SHOWN]:
        blocks.append(Words(f"{t['prompt']} (sample {t['sample']})", t["old"], t["new"]))
    if len(r["texts"]) > SHOWN:
        blocks.append(Text(f"{len(r['texts']) - SHOWN} more are in preview.json.", note=True))
    return blocks


def _principles(found: Mapping[str, Mapping[str, Any]]) -> list[Block]:
    head = ["principle", *(f"old {n}" for n in ("A", "B", "tie")), *(f"new {n}" for n in ("A", "B", "tie"))]
    rows: list[list[str]] = []
    for name, f in found.items():
        counts = [str(f[side].get(n, 0)) for side in ("old", "new") for n in ("A", "B", "tie")]
        bad = sum(f[side].get(n, 0) for side in ("old", "new") for n in ("invalid", "refused"))
        mean = "–" if f["mean_change_of_p"] is None else f"{f['mean_change_of_p']:.3f}"
        rows.append([name or "(none)", *counts, str(bad), str(f["both"]), str(f["changed"]), mean])
    return [
        Heading("Votes, one for each question to the judge"),
        Table([*head, "unreadable", "cast under both", "of these changed", "mean change of p"], rows),
    ]
