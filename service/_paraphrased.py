"""What paraphrases do to a judge's verdicts: every pair question of a constitution, and others that mean the same."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

from constitution import Principle, load
from constitution.lint import RULES, Finding
from constitution.loader import path_of
from judges import pairs_file
from nano import probes
from service import _by_principle, judging
from service._by_principle import wilson
from service.judging import JudgePlan
from tenet.engines import Engine
from tenet.errors import ConstitutionError, SettingsError
from tenet.records import Comparison, Frozen
from tenet.settings import read

FLIPS = 0.05
"""A principle is reported if the lower end of the interval of its share of flipped pairs lies above this."""
_FEW = 10


class Flips(Frozen):
    """How often a judge's verdict under a principle turns round when the question is put in other words."""

    principle: str
    question: str
    paraphrases: tuple[str, ...]
    pairs: int
    """Pairs on which the question and at least one paraphrase were decided, A or B."""
    flipped: int
    """Those of them on which some paraphrase gave the other reply."""
    share: float | None
    low: float | None
    high: float | None
    """95% Wilson interval of the share; null without pairs."""
    worst: str = ""
    """The paraphrase that flipped most pairs."""
    why: str = ""
    """Why there is no share."""


_WHICH = re.compile(r"^Which (?:reply|response|answer|one) (.+)\?$", re.IGNORECASE | re.DOTALL)


def paraphrases(question: str) -> list[str]:
    """The same question in other words: nano's own other wordings if it is one of nano's, else other frames."""
    if known := probes.paraphrases(question):
        return known
    found = _WHICH.match(question)
    if found:
        rest = found[1]
        return [
            f"Which of the two replies {rest}?",
            f"Which response {rest}?",
            f"Choose the reply that {rest}.",
            f"Look at both replies. Which one {rest}?",
        ]
    swapped = re.sub(r"\breply\b", "response", question)
    asked = [f"Look at both replies before you choose. {question}", f"Choose one of the two replies. {question}"]
    return asked if swapped == question else [*asked, swapped]


class Deep:
    """Asks a judge every pair question, and its paraphrases, on the same pairs."""

    def __init__(
        self,
        config: Path,
        overrides: Iterable[str] = (),
        pairs: Path | None = None,
        limit: int = 40,
        workspace: Path = Path("runs"),
        engines: Mapping[str, Engine] | None = None,
    ) -> None:
        self.plan: JudgePlan = judging.open_config(config, overrides)
        _by_principle.check(self.plan)
        self._pairs = [p.comparison for p in islice(pairs_file.read(pairs), limit)] if pairs else None
        self._limit, self._workspace, self._engines = limit, workspace, engines

    async def ask(self, name: str | Path) -> tuple[list[Finding], list[Flips]]:
        """Findings of rule "flips", and every principle's figures."""
        rules = load(name)
        asked = [p for p in rules.principles if p.choose]
        groups = [(_worded(p), self._probes(p)) for p in asked]
        # One group of all principles where they share the pairs, so that each pair is one prefix for all its questions.
        if self._pairs is not None:
            shared = [_numbered(i, w) for i, w in enumerate(w for w, _ in groups)]
            flat = [p for worded in shared for p in worded]
            tables, _ = await _by_principle.judge(
                self.plan, [(flat, self._pairs)], self._workspace, "lint", self._engines
            )
            flips = [self._flips(p, worded, tables[0]) for p, worded in zip(asked, shared, strict=True)]
        else:
            tables, _ = await _by_principle.judge(self.plan, groups, self._workspace, "lint", self._engines)
            flips = [self._flips(p, g[0], t) for p, g, t in zip(asked, groups, tables, strict=True)]
        return [_finding(name, f) for f in flips if f.low is not None and f.low > FLIPS], flips

    def _probes(self, p: Principle) -> Sequence[Comparison]:
        if self._pairs is not None:
            return self._pairs
        concept = probes.concept_of(p.choose)
        if concept is None:
            what = f"there are no bundled probes for the question of {p.id!r}"
            raise SettingsError(what, where="--deep", fix="--pairs FILE: pairs of replies such as you have judged")
        return probes.pairs(concept, self._limit)

    def _flips(self, p: Principle, worded: Sequence[Principle], table: _by_principle.Table) -> Flips:
        first, *others = (w.id for w in worded)
        decided = flipped = 0
        by_other = dict.fromkeys(others, 0)
        for row in table:
            mine = row[first].label
            theirs = {o: row[o].label for o in others if row[o].label in ("A", "B")}
            if mine not in ("A", "B") or not theirs:
                continue
            decided += 1
            flipped += any(label != mine for label in theirs.values())
            for other, label in theirs.items():
                by_other[other] += label != mine
        low, high = wilson(flipped, decided)
        top = max(others, key=lambda o: by_other[o], default="")
        texts = {w.id: w.choose for w in worded}
        return Flips(
            principle=p.id, question=p.choose, paraphrases=tuple(texts[o] for o in others), pairs=decided,
            flipped=flipped, share=flipped / decided if decided else None,
            low=low, high=high, worst=texts[top] if top and by_other[top] else "",
            why="" if decided else "no pair was decided under the question and a paraphrase",
        )  # fmt: skip


def _worded(p: Principle) -> list[Principle]:
    """The principle's question, and its paraphrases, as principles of their own."""
    return [
        Principle(id=f"w{i}", choose=text, exemplars=p.exemplars)
        for i, text in enumerate((p.choose, *paraphrases(p.choose)))
    ]


def _numbered(i: int, worded: Sequence[Principle]) -> list[Principle]:
    return [Principle(id=f"p{i}.{w.id}", choose=w.choose, exemplars=w.exemplars) for w in worded]


def _finding(name: str | Path, f: Flips) -> Finding:
    path = path_of(name)
    doc = read(path, error=ConstitutionError)
    ids = [p.get("id") for p in doc.data.get("principles", [])]
    line = doc.line_of(("principles", ids.index(f.principle), "choose") if f.principle in ids else "extends") or 1
    few = f"; only {f.pairs} pairs were decided" if f.pairs < _FEW else ""
    return Finding(
        level=RULES["flips"][0], rule="flips", file=doc.where, line=line, principle=f.principle, field="choose",
        what=f"the verdict flips on {f.flipped} of {f.pairs} pairs when it is asked as {f.worst!r}{few}",
        fix="name what can be seen in a reply, so that the wording matters less",
    )  # fmt: skip
