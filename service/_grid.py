"""A grid of judges: a judge's config with `grid` and `variants`, checked before anything is asked."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import Field

import judges
from service.judging import Config, JudgePlan
from service.recipe import Recipe, check_judge, judge_doc, load_constitution, read_models
from tenet.engines import Engine
from tenet.engines._unasked import Unasked
from tenet.errors import SettingsError
from tenet.records import Frozen, canonical
from tenet.settings import Document, assemble, closest, read

MOST = 200
"""Variants that one grid may have."""


class Axes(Frozen):
    """What varies."""

    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict[str, list[Any]])
    """Judge settings and their values: every combination is a variant. null leaves the setting out."""
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict[str, dict[str, Any]])
    """More variants by name, as changes to `judge`; one that names a `kind` stands by itself."""


@dataclass(frozen=True)
class Variant:
    """One judge of the grid."""

    name: str
    plan: JudgePlan
    extra: bool = False
    """Whether it stands under `variants`, and not in the grid."""

    @property
    def settings(self) -> dict[str, Any]:
        return self.plan.config.judge


@dataclass(frozen=True)
class Bench:
    """A grid that was checked; nothing is started yet."""

    plan: JudgePlan
    variants: tuple[Variant, ...]
    impossible: dict[str, str]
    """Combinations whose settings contradict one another, and why."""


def open_grid(path: Path) -> Bench:
    """Reads and checks a grid: a judge's config with `grid` and `variants`.

    Raises SettingsError for a setting that the judge's kind does not have, or a value that it cannot have;
    values that only contradict one another make a combination impossible, and no more.
    """
    doc = read(path)
    own = ("grid", "variants")
    others = [k for k in (*Recipe.model_fields, *own) if k not in Config.model_fields]
    given: Any = doc.data
    if not isinstance(given, dict):
        raise SettingsError("is not a mapping", where=doc.where, fix="a judge's config with grid: or variants:")
    config = assemble(Config, doc.without(*others))
    axes = assemble(Axes, doc.without(*(k for k in cast("dict[str, Any]", given) if k not in own)))
    models, rules = read_models(doc, path.parent), load_constitution(config.constitution, path.parent)
    check_judge(judge_doc(doc, config.judge), models, rules)
    plan = JudgePlan(config, rules, models, str(path))
    _check_axes(axes, config.judge, doc)
    found: dict[str, dict[str, Any]] = {}
    for values in product(*axes.grid.values()):
        changed = dict(zip(axes.grid, values, strict=True))
        name = ", ".join(f"{k} {_said(v)}" for k, v in changed.items()) or "as configured"
        found[name] = _merged(config.judge, changed)
    if axes.variants and not axes.grid:
        found = {"as configured": dict(config.judge)}
    found |= {n: dict(c) if "kind" in c else _merged(config.judge, c) for n, c in axes.variants.items()}
    return _sorted_out(plan, found, doc, axes.variants.keys())


def _said(value: Any) -> str:
    return "off" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _merged(judge: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in {**judge, **changed}.items() if v is not None}


def _check_axes(axes: Axes, judge: Mapping[str, Any], doc: Document) -> None:
    module, _ = judges.read_settings(dict(judge))
    known: dict[str, Any] = module.Settings.model_fields
    for key in axes.grid:
        if key not in known:
            raise SettingsError(
                f"a judge of kind {judge.get('kind')!r} has no setting {key!r}",
                where=doc.place(f"grid.{key}"), fix=closest(key, known),
            )  # fmt: skip


def _sorted_out(plan: JudgePlan, found: Mapping[str, dict[str, Any]], doc: Document, extra: Collection[str]) -> Bench:
    """Variants that can be built, each once, and why the others cannot."""
    made: list[Variant] = []
    impossible: dict[str, str] = {}
    seen: set[str] = set()
    engines: dict[str, Engine] = {name: Unasked() for name in plan.models}
    for name, settings in found.items():
        _, read_as = judges.read_settings(Document(settings, f"{doc.where}, variant {name!r}"))
        key = canonical([settings.get("kind"), read_as.model_dump(mode="json")])
        if key in seen:
            continue
        seen.add(key)
        config = plan.config.model_copy(update={"judge": settings})
        variant = Variant(name, replace(plan, config=config), name in extra)
        try:
            variant.plan.open(engines)
        except SettingsError as error:
            impossible[name] = str(error)
            continue
        made.append(variant)
    if not made:
        raise SettingsError("no variant is possible", where=doc.where, fix="; ".join(impossible.values()))
    if len(made) > MOST:
        raise SettingsError(f"{len(made)} variants", where=doc.place("grid"), fix=f"at most {MOST}")
    return Bench(plan, tuple(made), impossible)


def differ(x: Variant, y: Variant) -> list[str]:
    """The settings in which two variants differ."""
    (_, one), (_, other) = (judges.read_settings(dict(v.settings)) for v in (x, y))
    a, b = ({"kind": v.settings.get("kind"), **s.model_dump(mode="json")} for v, s in ((x, one), (y, other)))
    return [k for k in dict.fromkeys((*a, *b)) if a.get(k) != b.get(k) or (k in a) != (k in b)]
