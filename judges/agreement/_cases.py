"""The report's disagreements: what people said, what the judge said, and of what."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Sequence

from judges.agreement.measure import Agreement, confidence
from judges.agreement.view import View
from judges.agreement.votes import VERDICTS
from tenet.pages import Block, Case, Heading, Text
from tenet.records import Comparison

SHOWN = 25
"""Listed for each judge; the JSON names all."""


def disagreements(agreement: Agreement) -> list[Block]:
    blocks: list[Block] = []
    for view in agreement.views:
        ids = agreement.figures["judges"][view.name]["disagreements"]
        blocks.append(Heading(f"{view.name}: {len(ids):,}"))
        if len(ids) > SHOWN:
            blocks.append(Text(f"The first {SHOWN}; the JSON names all.", note=True))
        blocks += cases(view, ids[:SHOWN])
    return blocks or [Text("There are no judges.")]


def cases(view: View, ids: Sequence[str]) -> list[Block]:
    """The items with what people and the judge said, and the texts where they are known."""
    place = {name: i for i, name in enumerate(view.votes.items)}
    sure = confidence(view)
    made: list[Block] = []
    for name in ids:
        i = place[name]
        counts = view.people.counts[i].tolist()
        people = ", ".join(f"{c} {n}" for c, n in zip(view.classes, counts, strict=True) if n)
        known = VERDICTS if not view.votes.graded else view.classes
        slots = [known[v] for v in view.slots[i].tolist() if v >= 0]
        facts = f"people: {people}; {view.name}: {', '.join(slots)}"
        facts += f"; |p - 0.5| = {sure[i]:.3f}" if sure[i] >= 0 else ""
        pair: Comparison | None = view.votes.pairs.get(name)
        if pair is None:
            made.append(Case(name, facts))
            continue
        turns = pair.prompt.messages
        asked = turns[0].content if len(turns) == 1 else "\n\n".join(f"{m.role}: {m.content}" for m in turns)
        made.append(Case(name, facts, asked, pair.a, pair.b))
    return made
