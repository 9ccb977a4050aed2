"""What a run made of each prompt, put together again from its rows: replies, pairs by their place, drops."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import constitution
from constitution import Constitution, snapshot
from constitution.schema import File
from generators import pairs
from generators.pairs import Settings as PairSettings
from service.pipeline import Judged, Scored
from service.recipe import Recipe
from tenet.errors import ConstitutionError, DataError, RunFolderError
from tenet.ledger import Rows
from tenet.records import Candidate, Comparison, Dropped, Preference, Prompt, Verdict
from tenet.settings import assemble

End = Literal["A", "B", "tie", "invalid", "refused", "none"]
"""A pair's label; "none" where two replies were not judged, as identical ones are not."""


@dataclass(frozen=True)
class Pair:
    """A pair of a prompt's replies, at its place ("first 0-1", "revision 0")."""

    key: str
    comparison: Comparison | None
    """None where the pair was dropped before it was judged."""
    verdict: Verdict | None
    kept: bool
    """Whether it became a preference."""
    why: str = ""
    """Why it was not judged."""

    @property
    def label(self) -> End:
        return self.verdict.label if self.verdict else "none"


@dataclass(frozen=True)
class Walk:
    """One prompt's chain."""

    prompt: Prompt
    candidates: tuple[Candidate, ...]
    pairs: Mapping[str, Pair]
    drops: tuple[Dropped, ...]


def walk_of(records: Iterable[tuple[str, Any]], recipe: Recipe) -> Walk | None:
    """The chain of (stage, record) pairs; None if the row held no prompt.

    Records are models, or their canonical JSON. A preference does not say its pair's place in the run: that follows
    from where its replies came from, as when the pair was made.
    """
    prompt: Prompt | None = None
    candidates: list[Candidate] = []
    judged: list[tuple[str, Comparison, Verdict, bool]] = []
    scores: dict[str, dict[int, float | None]] = {}
    drops: list[Dropped] = []
    for stage, record in records:
        if stage == "prompt":
            prompt = _read(Prompt, record)
        elif stage == "candidate":
            candidates.append(_read(Candidate, record))
        elif stage == "score":
            s = _read(Scored, record)
            scores.setdefault(s.key, {})[s.sample] = s.score.value
        elif stage == "preference":
            p = _read(Preference, record)
            judged.append(("", p.comparison, p.verdict, True))
        elif stage == "judged":
            j = _read(Judged, record)
            judged.append((j.key, j.comparison, j.verdict, False))
        elif stage == "dropped":
            drops.append(_read(Dropped, record))
    if prompt is None:
        return None
    places = _places(prompt, candidates, scores, recipe)
    taken = {key for key, *_ in judged if key}
    made: dict[str, Pair] = {}
    for key, comparison, verdict, kept in judged:
        key = key or next((k for k, c in places.items() if k not in taken and c == comparison), "")
        taken.add(key)
        made[key] = Pair(key, comparison, verdict, kept)
    for drop in drops:
        key, _, _ = drop.detail.partition(":")
        if drop.unit == "pair" and key not in made:
            made[key] = Pair(key, places.get(key), None, False, drop.reason)
    return Walk(prompt, tuple(candidates), made, tuple(drops))


def _read(model: Any, record: Any) -> Any:
    return model.model_validate_json(record) if isinstance(record, str) else record


def _places(
    prompt: Prompt, candidates: Sequence[Candidate], scores: Mapping[str, Mapping[int, float | None]], recipe: Recipe
) -> dict[str, Comparison]:
    """Every pair that may have been made, by its key."""
    found: dict[str, Comparison] = {}
    for settings in recipe.pairs:
        # All of them, not the first `per_prompt`: a reply whose revision failed took no part when they were counted.
        many: PairSettings = settings.model_copy(update={"per_prompt": 4096})
        if settings.kind != "best_of":
            found |= dict(pairs.pairs(prompt, candidates, many, recipe.seed))
            continue
        known = scores.get(f"best of {settings.of}", {})
        values = [known.get(c.response.index) for c in candidates]
        made = pairs.best_of(prompt, candidates, values, settings, recipe.seed)
        found |= {key: pair for key, pair in made if isinstance(pair, Comparison)}
    return found


# A run's folder.


class RunView(NamedTuple):
    """A run that is read only: what it was asked to do, under which constitution, and how far it came."""

    folder: Path
    recipe: Recipe
    constitution: Constitution
    manifest: Mapping[str, Any]
    """Empty if the run has not ended."""

    def chains(self) -> Iterator[tuple[int, list[tuple[str, str]]]]:
        """(ordinal, its (stage, canonical JSON) records) of every row of the prompts, in order; memory stays flat."""
        with Rows(self.folder, readonly=True) as rows:
            for ordinal, of in groupby(rows.iterate(), key=lambda row: row.ordinal):
                yield ordinal, [(row.stage, row.record) for row in of]

    def walks(self) -> Iterator[Walk]:
        """Every prompt's chain, in order."""
        for _, chain in self.chains():
            if (walk := walk_of(chain, self.recipe)) is not None:
                yield walk


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run of `tenet generate`."""
    return (folder / "rows.sqlite").is_file()


def open_run(folder: Path) -> RunView:
    """A run by its folder. RunFolderError if it is none, DataError if its files are not what they should be."""
    if not is_run(folder):
        raise RunFolderError("no run here", where=str(folder), fix="a folder of tenet generate, with rows.sqlite")
    manifest = manifest_of(folder)
    said = identity_of(folder)
    recipe = manifest.get("recipe") or {k: v for k, v in said.items() if k in Recipe.model_fields}
    return RunView(folder, assemble(Recipe, recipe, where=str(folder)), constitution_of(folder), manifest)


def manifest_of(folder: Path) -> dict[str, Any]:
    """The run's manifest; {} if it has not ended. DataError if it is damaged."""
    path = folder / "manifest.json"
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}", where=str(path), fix="run tenet generate again") from None
    return cast(dict[str, Any], value)


def identity_of(folder: Path) -> dict[str, Any]:
    """What decides the run's rows, as it was stored when the run began; {} if there is none."""
    with Rows(folder, readonly=True) as rows:
        return cast(dict[str, Any], json.loads(rows.meta("identity") or "{}"))


def constitution_of(folder: Path) -> Constitution:
    """The constitution that a run used: its snapshot, or for an older run what its manifest holds."""
    path = folder / snapshot.NAME
    if path.is_file():
        return constitution.load(path)
    held = dict(manifest_of(folder).get("constitution") or {})
    if not held:
        fix = "let the run go on: it writes its snapshot at its start"
        raise RunFolderError("holds no constitution", where=str(folder), fix=fix)
    kept = {k: v for k, v in held.items() if k in File.model_fields and k != "extends"}
    return assemble(Constitution, kept, where=f"{folder}/manifest.json", error=ConstitutionError)
