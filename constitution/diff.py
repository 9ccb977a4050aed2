"""What an edit of a constitution changes, by meaning: principles, not lines."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Literal

from pydantic import Field as PydanticField

from constitution.loader import load, parts
from constitution.schema import STAGES, Constitution, Principle
from tenet.records import Frozen

Kind = Literal["added", "removed", "renamed", "reworded", "re-weighted", "re-tagged", "moved", "annotated"]
KINDS: dict[Kind, str] = {
    "added": "it is drawn now, and takes draws from the others",
    "removed": "its draws go to the others",
    "renamed": "the same texts under a new id: draws go by the id, so they change",
    "reworded": "what it asks for changes where it is drawn; where it is drawn stays",
    "re-weighted": "how often it is drawn changes",
    "re-tagged": "which prompts draw it may change (applies_when), or only how reports group it (tags)",
    "moved": "its place in the list: no draw and no question changes",
    "annotated": "title, source, since, conflicts, exemplars",
}
_WORDS = ("title", *STAGES)
_TAGS = ("tags", "applies_when")
_NOTES = ("title", "source", "since", "conflicts_with", "exemplars")
_AROUND = ("name", "version", "serves", "preamble", "language", "exemplars")


class Field(Frozen):
    """One field's values; texts are texts, other values are as YAML would hold them."""

    name: str
    old: Any
    new: Any
    source: str = ""
    """The file that says so now."""
    inherited: bool = False
    """Whether that is a parent of the file that was given."""


class Change(Frozen):
    """One thing that happened to a principle."""

    kind: Kind
    id: str
    fields: tuple[Field, ...] = ()
    stages: tuple[str, ...] = ()
    """The stages whose questions change where the principle is drawn, of critique, revise, choose, score."""
    source: str = ""
    """The file that made the change, so far as it can be told."""
    inherited: bool = False
    """Whether that is a parent of the file that was given."""
    became: str = ""
    """Renamed: the new id."""


class Edit(Frozen):
    """All that differs between two constitutions."""

    old: str
    """What the first one was called when it was asked for, with its hash."""
    new: str
    old_hash: str
    new_hash: str
    changes: tuple[Change, ...]
    """Of principles, by kind."""
    around: tuple[Field, ...]
    """Of the constitution itself: its name, preamble, exemplars, …"""

    @property
    def kinds(self) -> dict[str, int]:
        """How many changes of each kind there are."""
        return {k: n for k in KINDS if (n := sum(c.kind == k for c in self.changes))}


class Side(Frozen):
    """One of the two constitutions, with the file that each field of a principle comes from."""

    said: str
    constitution: Constitution
    top: str = ""
    """The name of the file that was given."""
    sources: dict[str, dict[str, str]] = PydanticField(default_factory=dict[str, dict[str, str]])
    """Principle id -> field -> the file that says it."""
    removed: dict[str, str] = PydanticField(default_factory=dict[str, str])
    """Id of a principle that was removed -> the file that removes it."""

    def source(self, id: str, field: str = "") -> str:
        """The file of a principle's field, or of the principle."""
        found = self.sources.get(id, {})
        return found.get(field) or found.get("id", "")


def open_side(name_or_path: str | Path) -> Side:
    """A packaged name or a path, loaded, with its parents' files known. ConstitutionError."""
    loaded = load(name_or_path)
    sources: dict[str, dict[str, str]] = {}
    removed: dict[str, str] = {}
    files = parts(name_or_path)
    for path, file in files:  # parents first, so that a file that overrides has the last word
        for id in file.remove:
            removed[id] = path.name
        for p in file.principles:
            sources.setdefault(p.id, {}).update(dict.fromkeys(p.model_fields_set, path.name))
            removed.pop(p.id, None)
    return Side(
        said=str(name_or_path), constitution=loaded, top=files[-1][0].name, sources=sources,
        removed=removed,
    )  # fmt: skip


def diff(old: Side, new: Side) -> Edit:
    """What happened on the way from old to new; principles are the same if their ids are."""
    before, after = old.constitution.by_id, new.constitution.by_id
    gone = [p for id, p in before.items() if id not in after]
    fresh = [p for id, p in after.items() if id not in before]
    renamed = _renamed(gone, fresh)
    changes = [_removed(p, old, new) for p in gone if p.id not in renamed]
    changes += [_added(p, new) for p in fresh if p.id not in renamed.values()]
    for a, b in renamed.items():
        changes.append(_change("renamed", a, [], new, b, stages=_texts(after[b]), became=b))
    for id in (id for id in before if id in after):
        changes += _altered(before[id], after[id], new)
    moved = _moved([id for id in before if id in after], [id for id in after if id in before])
    changes += [_change("moved", id, [], new) for id in moved]
    order = list(KINDS)
    around = [
        Field(name=f, old=a, new=b)
        for f in _AROUND
        if (a := _plain(getattr(old.constitution, f))) != (b := _plain(getattr(new.constitution, f)))
    ]
    return Edit(
        old=old.said, new=new.said, old_hash=old.constitution.hash, new_hash=new.constitution.hash,
        changes=tuple(sorted(changes, key=lambda c: order.index(c.kind))), around=tuple(around),
    )  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]  # pyright: ignore[reportUnknownVariableType]
    return value.model_dump(mode="json", exclude_defaults=True) if isinstance(value, Frozen) else value


def _texts(p: Principle) -> tuple[str, ...]:
    return tuple(s for s in STAGES if getattr(p, s))


def _renamed(gone: list[Principle], fresh: list[Principle]) -> dict[str, str]:
    """Old id -> new id, where a principle that went and one that came have the same texts for every stage."""
    waiting: dict[tuple[str, ...], list[str]] = {}
    for q in fresh:
        waiting.setdefault(tuple(getattr(q, s) for s in STAGES), []).append(q.id)
    found: dict[str, str] = {}
    for p in gone:
        if same := waiting.get(tuple(getattr(p, s) for s in STAGES)):
            found[p.id] = same.pop(0)
    return found


def _removed(p: Principle, old: Side, new: Side) -> Change:
    by = new.removed.get(p.id, "")
    # No file says so: then the one that held it holds it no more.
    source = by or old.source(p.id)
    fields = tuple(Field(name=s, old=getattr(p, s), new="") for s in _texts(p))
    inherited = bool(new.top) and source not in ("", new.top, old.top)
    return Change(kind="removed", id=p.id, fields=fields, stages=_texts(p), source=source, inherited=inherited)


def _added(p: Principle, new: Side) -> Change:
    fields = [(s, "", getattr(p, s)) for s in _texts(p)]
    return _change("added", p.id, fields, new, p.id, stages=_texts(p))


def _altered(a: Principle, b: Principle, new: Side) -> list[Change]:
    """The changes of a principle that both have; a principle may be reworded and re-weighted at once."""
    differ = [f for f in Principle.model_fields if getattr(a, f) != getattr(b, f)]

    def of(names: Iterable[str]) -> list[tuple[str, Any, Any]]:
        return [(f, _plain(getattr(a, f)), _plain(getattr(b, f))) for f in names if f in differ]

    made: list[Change] = []
    if worded := of(STAGES):
        made.append(_change("reworded", b.id, worded + of(("title",)), new, stages=_asked(f for f, *_ in worded)))
    for kind, names in (("re-weighted", ("weight",)), ("re-tagged", _TAGS), ("annotated", _NOTES)):
        found = [f for f in of(names) if not (worded and f[0] == "title")]
        if found:
            stages = (*_exemplified(a, b),) if kind == "annotated" else ()
            made.append(_change(kind, b.id, found, new, stages=stages))  # pyright: ignore[reportArgumentType]
    return made


def _asked(names: Iterable[str]) -> tuple[str, ...]:
    """A critique stands in the question for the revision too."""
    given = set(names)
    return tuple(s for s in STAGES if s in given or (s == "revise" and "critique" in given))


def _exemplified(a: Principle, b: Principle) -> tuple[str, ...]:
    """The stages that show exemplars of a kind that changed."""
    found: list[str] = []
    for choice, stages in ((False, ("critique", "revise")), (True, ("choose",))):
        if [e for e in a.exemplars if e.is_choice is choice] != [e for e in b.exemplars if e.is_choice is choice]:
            found += stages
    return tuple(found)


def _change(kind: Kind, id: str, fields: list[tuple[str, Any, Any]], new: Side, now: str = "", **more: Any) -> Change:
    now = now or id
    made: list[Field] = []
    for name, before, after in fields:
        source = new.source(now, name)
        made.append(Field(name=name, old=before, new=after, source=source, inherited=source not in ("", new.top)))
    source = made[0].source if made else new.source(now)
    inherited = bool(made) and all(f.inherited for f in made)
    return Change(kind=kind, id=id, fields=tuple(made), source=source, inherited=inherited, **more)


def _moved(before: list[str], after: list[str]) -> list[str]:
    """The ids that are out of the order that the others kept."""
    kept = SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks()
    stayed = {id for m in kept for id in before[m.a : m.a + m.size]}
    return [id for id in after if id not in stayed]
