"""Loads a constitution by packaged name or path, with its parents joined in."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from constitution.schema import STAGES, Constitution, Exemplar, File, Principle, Stage
from tenet.errors import ConstitutionError
from tenet.settings import Document, assemble, closest, read

_FILES = Path(__file__).parent / "files"
_MAX_PARENTS = 32


def packaged() -> list[str]:
    """The names of the constitutions that come with the package."""
    return sorted(p.stem for p in _FILES.glob("*.yaml"))


def load(name_or_path: str | Path) -> Constitution:
    """The constitution of a packaged name ("harmless") or a path ("mine.yaml").

    Raises ConstitutionError naming file, line, field and what would be right.
    """
    return _load(_find(name_or_path, Path(), None), (), {})


def path_of(name_or_path: str | Path) -> Path:
    """The file of a packaged name or a path; ConstitutionError for a name that no packaged constitution has."""
    return _find(name_or_path, Path(), None)


def parts(name_or_path: str | Path) -> list[tuple[Path, File]]:
    """The files that a constitution is put together from, as they are written, parents before those that extend them.

    Raises ConstitutionError as `load` does for a file that cannot be read; what the files make together is not checked.
    """
    found: dict[Path, File | None] = {}

    def visit(path: Path) -> None:
        real = path.resolve()
        if real in found:
            return
        found[real] = None  # a file that extends itself is `load`'s to refuse
        doc = read(path, error=ConstitutionError)
        file = assemble(File, doc, error=ConstitutionError)
        for parent in file.parents:
            visit(_find(parent, path.parent, doc))
        del found[real]  # put back behind its parents
        found[real] = file

    visit(_find(name_or_path, Path(), None))
    return [(path, file) for path, file in found.items() if file is not None]


def require(constitution: Constitution, stages: Iterable[Stage]) -> None:
    """Raises ConstitutionError unless every principle has the text that each stage needs."""
    wanted = [s for s in STAGES if s in set(stages)]
    lacking = [(p.id, s) for p in constitution.principles for s in wanted if not getattr(p, s)]
    if not lacking:
        return
    some = "; ".join(f"principle {i!r} has no {s!r}" for i, s in lacking[:5])
    more = f"; and {len(lacking) - 5} more" if len(lacking) > 5 else ""
    raise ConstitutionError(
        f"{some}{more}",
        where=f"constitution {constitution.name!r}",
        fix=f"the recipe uses {', '.join(wanted)}: write the texts, or remove the principles",
    )


def _find(name_or_path: str | Path, beside: Path, doc: Document | None) -> Path:
    """The file of a packaged name, or of a path taken from the folder `beside`."""
    text = os.fspath(name_or_path)
    if "\0" in text:
        where = doc.place("extends") if doc else ""
        raise ConstitutionError(f"{text!r} holds U+0000, as no path does", where=where, fix="correct the path")
    if isinstance(name_or_path, Path) or "/" in text or text.endswith((".yaml", ".yml")):
        path = beside / name_or_path
        if doc and not _is_file(path):
            what = f"there is no file {str(path)!r}"
            raise ConstitutionError(what, where=doc.place("extends"), fix="correct the path")
        return path
    if text not in packaged():
        what = f"there is no packaged constitution {text!r}"
        fix = f"{closest(text, packaged())} A file is named by a path such as ./{text}.yaml"
        raise ConstitutionError(what, where=doc.place("extends") if doc else "", fix=fix)
    return _FILES / f"{text}.yaml"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # too long a name, or a folder that may not be entered
        return False


def _load(path: Path, above: tuple[Path, ...], done: dict[Path, Constitution], named: str = "") -> Constitution:
    """`named` is the place that named the file as a parent."""
    real = path.resolve()
    if real in done:  # else a ladder of shared parents would be read 2^n times
        return done[real]
    if real in above:
        cycle = " -> ".join(p.name for p in (*above[above.index(real) :], real))
        what = f"a constitution extends itself: {cycle}"
        raise ConstitutionError(what, where=named, fix="take one extends out")
    if len(above) >= _MAX_PARENTS:
        what = f"extends reaches more than {_MAX_PARENTS} files deep"
        raise ConstitutionError(what, where=named, fix="put what the files share into one")
    doc = read(path, error=ConstitutionError)
    file = assemble(File, doc, error=ConstitutionError)
    _check_ids(file, doc)
    found = [_find(parent, path.parent, doc) for parent in file.parents]
    places = [doc.place("extends" if isinstance(file.extends, str) else ("extends", i)) for i in range(len(found))]
    inner = (*above, real)
    done[real] = _join(file, doc, [_load(p, inner, done, at) for p, at in zip(found, places, strict=True)])
    return done[real]


def _check_ids(file: File, doc: Document) -> None:
    """Two principles with one id in one file are a mistake; an inherited id is an override."""
    for id, n in Counter(p.id for p in file.principles).items():
        if n > 1:
            spots = [i for i, p in enumerate(file.principles) if p.id == id]
            first = doc.line_of(("principles", spots[0], "id"))
            raise ConstitutionError(
                f"the id {id!r} is already taken by the principle in line {first}",
                where=doc.place(("principles", spots[1], "id")),
                fix="give each principle its own id",
            )


def _join(file: File, doc: Document, parents: list[Constitution]) -> Constitution:
    own = {p.id for p in file.principles}
    merged = _inherit(parents, own | set(file.remove), doc)
    for i, id in enumerate(file.remove):
        if id not in merged:
            fix = closest(id, merged) if merged else "the file extends nothing that has principles"
            what = f"there is no inherited principle {id!r} to remove"
            raise ConstitutionError(what, where=doc.place(("remove", i)), fix=fix)
        del merged[id]
    for i, p in enumerate(file.principles):
        if p.id in merged:
            p = _override(merged[p.id], p)
        elif not any(getattr(p, s) for s in STAGES):
            what = f"the principle {p.id!r} has no text"
            fix = f"write one of {', '.join(STAGES)}"
            if merged:
                fix += f"; to change an inherited principle use its id, {closest(p.id, merged)}"
            raise ConstitutionError(what, where=doc.place(("principles", i)), fix=fix)
        merged[p.id] = p
    if not merged:
        raise ConstitutionError("has no principles", where=doc.where, fix="write at least one")
    preambles = dict.fromkeys(p.preamble for p in parents if p.preamble)
    languages = [c.language for c in parents]
    return Constitution(
        name=file.name,
        version=file.version,
        serves=file.serves,
        extends=file.parents,
        preamble=file.preamble or "\n\n".join(preambles),
        exemplars=_exemplars(file, doc, parents, set(merged)),
        language=file.language or (languages[0] if languages else "en"),
        principles=tuple(merged.values()),
    )


def _inherit(parents: list[Constitution], settled: set[str], doc: Document) -> dict[str, Principle]:
    """The parents' principles by id; where parents differ the file itself must settle it."""
    merged: dict[str, Principle] = {}
    for i, parent in enumerate(parents):
        for p in parent.principles:
            if p.id in merged and merged[p.id] != p and p.id not in settled:
                what = f"the parents differ in the principle {p.id!r}"
                fix = "say in this file which it should be, or remove it"
                place = ("extends", i) if len(parents) > 1 else "extends"
                raise ConstitutionError(what, where=doc.place(place), fix=fix)
            merged[p.id] = p
    return merged


def _override(old: Principle, new: Principle) -> Principle:
    """The inherited principle with the fields that the file gives; so id + weight re-weights it."""
    given = {name: getattr(new, name) for name in new.model_fields_set}
    # Not model_copy: it would carry the old principle's cached hash along.
    return Principle.model_validate({**dict(old), **given})


def _exemplars(file: File, doc: Document, parents: list[Constitution], ids: set[str]) -> tuple[Exemplar, ...]:
    """The parents' exemplars, less those of removed principles, then the file's own."""
    for i, e in enumerate(file.exemplars):
        if e.principle is not None and e.principle not in ids:
            what = f"there is no principle {e.principle!r}"
            where = doc.place(("exemplars", i, "principle"))
            raise ConstitutionError(what, where=where, fix=closest(e.principle, ids))
    inherited = [e for c in parents for e in c.exemplars]
    kept = [e for e in inherited if e.principle is None or e.principle in ids]
    return tuple(dict.fromkeys((*kept, *file.exemplars)))
