"""`tenet constitution diff`: what an edit changes by meaning, and what it touches in a run that was paid for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.markup import escape

from constitution import diff as by_meaning
from constitution.diff import KINDS, Change, Edit, Field, Side
from constitution.loader import packaged
from service import _chains, _replay
from service._replay import STEPS, Impact
from service.screen import columns, console
from tenet import pages
from tenet.pages import Block, Section, Table, Text, Words
from tenet.worddiff import marked

Format = Literal["text", "md", "json"]


def open_side(name: str | Path) -> Side:
    """One side of a comparison: a packaged name, a path, or a run's folder, which stands for its snapshot.

    ConstitutionError, or RunFolderError for a folder that holds no run.
    """
    path = Path(name)
    # The name of a packaged constitution means that, whatever folder of this name lies where the command is given.
    if path.is_dir() and str(name) not in packaged():
        _chains.open_run(path)
        return Side(said=f"{name} (as the run used it)", constitution=_chains.constitution_of(path))
    return by_meaning.open_side(name)


def main(old: str, new: str, run: Path | None, form: Format) -> None:
    """Prints the difference. Raises InputError."""
    sides = open_side(old), open_side(new)
    edit = by_meaning.diff(*sides)
    touched = _impact(run, *sides) if run else None
    if form == "json":
        held = {**edit.model_dump(mode="json"), "kinds": edit.kinds}
        if touched:
            held["run"] = figures(touched)
        print(json.dumps(held, indent=1, ensure_ascii=False))
    elif form == "md":
        print(pages.document("What the edit changes", lead(edit), sections(edit, touched)), end="")
    else:
        for line in lines(edit, touched):
            console.print(line, soft_wrap=True)


def _impact(folder: Path, old: Side, new: Side) -> Impact:
    run = _chains.open_run(folder)
    found = _replay.impact(run, new.constitution)
    if run.constitution.hash == old.constitution.hash:
        return found
    note = f"the run used neither: its constitution has the hash {run.constitution.hash}, and the figures go from that"
    if run.constitution.hash == new.constitution.hash:
        note = f"the run used {new.said} itself"
    return found.model_copy(update={"notes": (*found.notes, note)})


# Text, for the terminal.


def lines(edit: Edit, touched: Impact | None) -> Iterator[str]:
    """Lines with rich markup; the words of constitutions are escaped."""
    yield f"[bold]{escape(edit.old)}[/] ({edit.old_hash}) -> [bold]{escape(edit.new)}[/] ({edit.new_hash})"
    yield escape(headline(edit))
    for change in edit.changes:
        yield ""
        yield f"[bold]{change.kind}[/] {escape(titled(change))}"
        yield f"  [dim]{escape(effect(change))}[/]"
        for field in change.fields:
            yield f"  {escape(field.name)}: {escape(values(field))}{escape(_from(field.source, field.inherited))}"
    if edit.around:
        yield ""
        yield "[bold]of the constitution itself[/]"
        for field in edit.around:
            yield f"  {escape(field.name)}: {escape(values(field))}"
            if field.name in ("preamble", "exemplars"):
                yield f"  [dim]{escape(_WIDE)}[/]"
    if touched:
        yield ""
        yield from map(escape, touched_lines(touched))


_WIDE = "it stands before every critique, revision and judgement that shows it, so all of those are asked anew"


def headline(edit: Edit) -> str:
    """One line: how many changes of each kind."""
    said = [f"{n} {kind}" for kind, n in edit.kinds.items()]
    said += ["the constitution's own " + ", ".join(f.name for f in edit.around)] if edit.around else []
    return "; ".join(said) or "no difference"


def titled(change: Change) -> str:
    """A change's principle, with where it comes from."""
    became = f" -> {change.became}" if change.became else ""
    return change.id + became + _from(change.source, change.inherited)


def effect(change: Change) -> str:
    """What follows from a change."""
    stages = f"; questions that change: {', '.join(change.stages)}" if change.stages else ""
    return KINDS[change.kind] + stages


def values(field: Field) -> str:
    """Old and new, word by word where both are texts."""
    if isinstance(field.old, str) and isinstance(field.new, str):
        return marked(field.old, field.new)
    return f"{_shown(field.old)} -> {_shown(field.new)}"


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if value not in ("", [], None) else "(none)"


def _from(source: str, inherited: bool) -> str:
    return f" (inherited from {source})" if inherited else ""


def touched_lines(t: Impact) -> list[str]:
    """What an edit touches in a run, in lines."""
    known = t.labels_known
    said = [
        f"In the run {t.run}: {t.prompts_touched:,} of {t.prompts:,} prompts and {t.labels_touched:,} of "
        f"{t.labels:,} labels are touched.",
    ]
    if sum(known.values()):
        said.append(
            f"Of these labels the ledger knows {sum(known.values()):,} already: {known['changed']:,} change, "
            f"{known['same']:,} stay."
        )
    said += columns(_step_rows(t))
    said += ["", *end_lines(t)]
    return said


def _step_rows(t: Impact) -> list[list[str]]:
    head = ["calls", "needed", "stored", "sure to be asked", "behind those, at most"]
    body = [
        [step, *(f"{x:,}" for x in (c.needed, c.stored, c.certain, c.follow))]
        for step in STEPS
        if (c := t.steps[step]).needed
    ]
    return [head, *body]


def end_lines(t: Impact) -> list[str]:
    """How many calls, what they cost, and what to know of these figures."""
    return [ask_line(t), *([cost_line(t)] if t.most else []), *(f"Note: {note}." for note in t.notes)]


def ask_line(t: Impact) -> str:
    """The answer to "how many calls?"."""
    if not t.most:
        return f"A rerun asks nothing: all {t.stored:,} replies are stored."
    if t.certain == t.most:
        return f"A rerun reuses {t.stored:,} replies and asks {t.most:,}."
    return (
        f"A rerun reuses at least {t.stored:,} replies and asks {t.certain:,} to {t.most:,}: the most if every new "
        "reply differs from the old one, fewer if some come back to the letter."
    )


def cost_line(t: Impact) -> str:
    """The answer to "what does it cost?"."""
    x, r = t.expected, t.replaced
    money = f", or {t.money:,.2f} by the recipe's prices" if t.money is not None else ""
    return (
        f"At the run's mean cost of such a call that is at most about {x.prompt_tokens:,} tokens in and "
        f"{x.completion_tokens:,} out{money}. The {r.calls:,} calls that fall out cost {r.prompt_tokens:,} tokens in "
        f"and {r.completion_tokens:,} out when they were made."
    )


def figures(t: Impact) -> dict[str, Any]:
    """The same for JSON."""
    return {**t.model_dump(mode="json"), "ask": {"certain": t.certain, "most": t.most}, "stored": t.stored}


# Blocks, for Markdown and the preview's page.


def lead(edit: Edit) -> list[Block]:
    """What is compared."""
    return [
        Text(f"{edit.old} (hash {edit.old_hash}) -> {edit.new} (hash {edit.new_hash})"),
        Text(f"{headline(edit)}."),
    ]


def sections(edit: Edit, touched: Impact | None) -> list[Section]:
    """A section for principles, the constitution itself, and the run."""
    made = [Section("Principles", tuple(principle_blocks(edit.changes)))] if edit.changes else []
    if edit.around:
        made.append(Section("The constitution itself", tuple(_field("", f) for f in edit.around)))
    if touched:
        made.append(Section("In the run", tuple(touched_blocks(touched))))
    return made


def principle_blocks(changes: Sequence[Change]) -> list[Block]:
    """What happened to each principle."""
    blocks: list[Block] = []
    for change in changes:
        title = f"{change.kind}: {titled(change)}"
        if not change.fields:
            blocks.append(Words(title, "", "", effect(change)))
        blocks += [_field(f"{title}: ", f, effect(change)) for f in change.fields]
    return blocks


def _field(title: str, field: Field, facts: str = "") -> Block:
    old, new = ((v if isinstance(v, str) else _shown(v)) for v in (field.old, field.new))
    return Words(f"{title}{field.name}{_from(field.source, field.inherited)}", old, new, facts)


def touched_blocks(t: Impact) -> list[Block]:
    """What an edit touches in a run."""
    head, *rows = _step_rows(t)
    said = touched_lines(t)
    first = said[: 1 + bool(sum(t.labels_known.values()))]
    return [*map(Text, first), Table(head, rows), *map(Text, end_lines(t))]
