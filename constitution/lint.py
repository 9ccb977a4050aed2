"""What is wrong with a constitution's file, and what would probably not work: findings with file, line, rule, advice.

Errors make a file unusable, for some stage at least; warnings are about wording. The rules about words read English
and say nothing of other languages. `# lint: ignore RULE` in a principle's lines (or above the first one, for the
whole file) silences a rule there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from constitution import _likeness, _wording
from constitution.loader import load, packaged, path_of
from constitution.schema import STAGES, Constitution, File, Principle, Stage
from tenet.errors import ConstitutionError, InputError, SettingsError
from tenet.records import Frozen
from tenet.settings import Document, assemble, closest, read

RULES: dict[str, tuple[Literal["error", "warning"], str]] = {
    "yaml": ("error", "the file cannot be read, or is not plain YAML"),
    "schema": ("error", "an unknown key, a missing one, or a value that is not possible"),
    "id": ("error", "an id that is no id, or is given twice"),
    "extends": ("error", "a parent that does not exist, parents that differ, or files that extend one another"),
    "remove": ("error", "an id that is removed and was not inherited"),
    "unknown-id": ("error", "a reference to a principle that does not exist"),
    "missing-text": ("error", "no text for a stage that other principles have texts for"),
    "missing-choose": ("warning", "no question for choosing between two replies"),
    "negated": ("warning", "says what ought not to be"),
    "trait": ("warning", "asks for a trait of character instead of behaviour"),
    "several-demands": ("warning", "asks for several things at once"),
    "evasive": ("warning", "rewards replies that step aside"),
    "vague-comparative": ("warning", "compares without saying by what"),
    "too-long": ("warning", "more words than a judge can hold in mind"),
    "template-marks": ("warning", "marks of a template, which are taken as text"),
    "near-duplicate": ("warning", "nearly the same as another principle"),
    "conflict": ("warning", "may ask for the opposite of another principle"),
    "unknown-rule": ("warning", "a comment that ignores a rule which does not exist"),
    "flips": ("warning", "a judge's verdicts change under a paraphrase (asked with --deep)"),
}
"""Every rule: how grave it is, and what it finds."""

_COMMENT = re.compile(r"(?:^|\s)#\s*lint:\s*ignore[ :]+([\w-]+(?:\s*,\s*[\w-]+)*)")
_PLACE = re.compile(r"(?P<file>.*?)(?:, line (?P<line>\d+))?(?:, (?P<field>[\w-]+(?:\.[\w-]+)*))?", re.DOTALL)


class Finding(Frozen):
    """One thing to mend."""

    level: Literal["error", "warning"]
    rule: str
    file: str
    line: int
    """From 1."""
    principle: str = ""
    """Its id, where the finding is about one."""
    field: str = ""
    what: str
    fix: str = ""

    def __str__(self) -> str:
        about = " ".join(t for t in (self.principle, self.field) if t)
        said = f"{self.file}:{self.line}: {self.level} [{self.rule}] {about + ': ' if about else ''}{self.what}"
        return said + (f" ({self.fix})" if self.fix else "")


def lint(name_or_path: str | Path, ignore: Iterable[str] = (), stages: Iterable[Stage] = ()) -> list[Finding]:
    """Findings about one file, by line; what it inherits unchanged is the parents' own business.

    `stages` names the stages that the constitution is meant for: a principle without a text for one of them is an
    error. By default those are critique, revise and score, where at least one principle has a text.
    SettingsError for a rule in `ignore` that does not exist.
    """
    silent = set(ignore)
    for rule in silent - RULES.keys():
        raise SettingsError(f"there is no rule {rule!r}", where="--ignore", fix=closest(rule, RULES))
    try:
        path = path_of(name_or_path)
        doc = read(path, error=ConstitutionError)
        file = assemble(File, doc, error=ConstitutionError)
        whole = load(path)
    except ConstitutionError as error:
        found = [_of_error(e, str(name_or_path)) for e in error.parts or (error,)]
    else:
        page = _Page(doc, file, whole, tuple(stages))
        spans = _comments(page)
        found = [f for f in page.findings() if not any(a <= f.line <= b and f.rule == r for a, b, r in spans)]
    return sorted((f for f in found if f.rule not in silent), key=lambda f: (f.file, f.line, f.level, f.rule))


def _of_error(error: InputError, name: str) -> Finding:
    place = _PLACE.fullmatch(error.where)
    file, line, field = (place["file"], place["line"], place["field"] or "") if place else (error.where, None, "")
    top, last = field.partition(".")[0], field.rpartition(".")[2]
    rule = "schema" if field or "is required" in error.what else "yaml"
    if top in ("extends", "remove"):
        rule = top
    elif top == "principles" and last == "id":
        rule = "id"
    elif top == "exemplars" and last == "principle":
        rule = "unknown-id"
    elif "has no text" in error.what or "has no principles" in error.what:
        rule = "missing-text"
    return Finding(
        level="error", rule=rule, file=file or name, line=int(line or 1), field=field, what=error.what, fix=error.fix
    )


@dataclass(frozen=True)
class _Page:
    """A file that loads, with what it makes together with its parents."""

    doc: Document
    file: File
    whole: Constitution
    stages: tuple[Stage, ...]

    def findings(self) -> Iterator[Finding]:
        yield from self._unknown_rules()
        for i, own in enumerate(self.file.principles):
            yield from self._of_one(i, own, self.whole.by_id[own.id])
        yield from self._missing()
        yield from self._between()

    def _finding(self, rule: str, path: Any, what: str, fix: str = "", principle: str = "", field: str = "") -> Finding:
        line = self.doc.line_of(path) or 1
        return Finding(
            level=RULES[rule][0], rule=rule, file=self.doc.where, line=line, principle=principle, field=field,
            what=what, fix=fix,
        )  # fmt: skip

    def _of_one(self, i: int, own: Principle, p: Principle) -> Iterator[Finding]:
        """What a principle's own texts give away; texts that it inherits are not gone into again."""
        for stage in STAGES:
            text = getattr(p, stage)
            if not text or stage not in own.model_fields_set:
                continue
            said = [*_wording.too_long(stage, text), *_wording.marks(text)]
            if self.whole.language.lower().startswith("en"):
                said += _wording.remarks(stage, text)
            for rule, what, fix in said:
                yield self._finding(rule, ("principles", i, stage), what, fix, p.id, stage)
        for k, id in enumerate(own.conflicts_with):
            if id == p.id or id not in self.whole.by_id:
                what = "conflicts with itself" if id == p.id else f"there is no principle {id!r}"
                fix = "take it out" if id == p.id else closest(id, self.whole.by_id)
                at = ("principles", i, "conflicts_with", k)
                yield self._finding("unknown-id", at, what, fix, p.id, "conflicts_with")

    @cached_property
    def _places(self) -> dict[str, int]:
        """Where the file's own principles stand, by id."""
        return {p.id: i for i, p in enumerate(self.file.principles)}

    def _missing(self) -> Iterator[Finding]:
        """Principles without a text for a stage: a run that has the stage refuses the whole constitution."""
        every = self.whole.principles
        wanted = set(self.stages) or {s for s in STAGES if s != "choose" and any(getattr(p, s) for p in every)}
        own = self._places
        for stage in STAGES:
            lacking = [p.id for p in every if not getattr(p, stage)]
            if not lacking or (stage not in wanted and stage != "choose"):
                continue
            rule = "missing-text" if stage in wanted else "missing-choose"
            have = len(every) - len(lacking)
            what = f"has no {stage!r}" + (f", while {have} others have" if have else "")
            fix = f"write it: a run that asks for {stage!r} refuses a constitution where one principle lacks it"
            for id in lacking:
                if id in own:
                    yield self._finding(rule, ("principles", own[id]), what, fix, id, stage)
            inherited = [id for id in lacking if id not in own]
            if inherited and len(inherited) < len(every):
                some = ", ".join(inherited[:5]) + (", …" if len(inherited) > 5 else "")
                what = f"{len(inherited)} inherited principles have no {stage!r}: {some}"
                yield self._finding(rule, "extends", what, fix, "", stage)

    def _between(self) -> Iterator[Finding]:
        """What two principles have to do with one another; at the later of those that stand in this file."""
        every = self.whole.principles
        likes = list(_likeness.alike(every, _bundled()))
        opposed = list(_likeness.opposed(every, likes)) if self.whole.language.lower().startswith("en") else []
        pulled = {(i, j) for i, j, _ in opposed}
        for i, j, cosine in likes:
            if (i, j) not in pulled and _may_meet(every[i], every[j]):
                fix = "merge the two, or say what sets them apart"
                what = f"asks for nearly the same as {{}} (likeness {cosine:.2f})"
                yield from self._about("near-duplicate", every[i], every[j], what, fix)
        for i, j, why in opposed:
            one, other = every[i], every[j]
            if one.id not in other.conflicts_with and other.id not in one.conflicts_with and _may_meet(one, other):
                fix = "reword one, or give them different applies_when; if it is meant, name one under conflicts_with"
                yield from self._about("conflict", one, other, f"may ask for the opposite of {{}}: {why}", fix)

    def _about(self, rule: str, one: Principle, other: Principle, what: str, fix: str) -> Iterator[Finding]:
        own = self._places
        here = [p for p in (one, other) if p.id in own]
        if not here and len(self.file.parents) < 2:
            return  # the parent's own business
        last = max(here, key=lambda p: own[p.id], default=other)
        first = one if last is other else other
        path = ("principles", own[last.id]) if last.id in own else ("extends",)
        line = self.doc.line_of(("principles", own[first.id])) if first.id in own else None
        named = f"{first.id!r}" + (f" (line {line})" if line else ", which is inherited")
        yield self._finding(rule, path, what.format(named), fix, last.id)

    def _unknown_rules(self) -> Iterator[Finding]:
        for number, rule in _ignored(self.doc.text, self.whole):
            if rule not in RULES:
                fix = closest(rule, RULES)
                yield Finding(
                    level="warning", rule="unknown-rule", file=self.doc.where, line=number,
                    what=f"there is no rule {rule!r} to ignore", fix=fix,
                )  # fmt: skip


def _comments(page: _Page) -> list[tuple[int, int, str]]:
    """(first line, last line, rule): where each comment silences its rule."""
    starts = [page.doc.line_of(("principles", i)) or 1 for i in range(len(page.file.principles))]
    edges = sorted({*starts, *(page.doc.line_of((key,)) or 1 for key in page.doc.data)})
    found: list[tuple[int, int, str]] = []
    for number, rule in _ignored(page.doc.text, page.whole):
        before = [edge for edge in edges if edge <= number]
        if before and before[-1] in starts:
            after = [edge for edge in edges if edge > number]
            found.append((before[-1], after[0] - 1 if after else 10**9, rule))
        elif not starts or number < starts[0]:
            found.append((1, 10**9, rule))
    return found


def _ignored(text: str, whole: Constitution) -> Iterator[tuple[int, str]]:
    """(line, rule) of every comment that silences a rule; the same words inside a text are no comment."""
    if "lint:" not in text:
        return
    texts = "\n".join(getattr(p, s) for p in whole.principles for s in STAGES)
    for number, row in enumerate(text.split("\n"), 1):
        found = _COMMENT.search(row)
        if found and found[0].strip() not in texts:
            for rule in found[1].split(","):
                yield number, rule.strip()


def _may_meet(one: Principle, other: Principle) -> bool:
    """Whether some prompt may draw either of the two."""
    return not (one.applies_when and other.applies_when) or one.applies_to(other.applies_when)


@cache
def _bundled() -> tuple[Principle, ...]:
    """The packaged principles, which tell what words are common."""
    return tuple(p for name in packaged() for p in load(name).principles)


def worst(findings: Sequence[Finding], strict: bool = False) -> int:
    """The exit status: 2 if there are errors, 1 if there are warnings and `strict`, else 0."""
    levels = {f.level for f in findings}
    return 2 if "error" in levels else 1 if strict and levels else 0
