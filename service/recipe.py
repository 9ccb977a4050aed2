"""A recipe: the one YAML file that says what a run does."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

import constitution
import judges
from constitution import Constitution
from constitution.loader import require
from constitution.schema import Stage
from generators.filters import Keep
from generators.pairs import Settings as Pairs
from generators.prompts import Settings as Prompts
from generators.respond import Settings as Respond
from generators.revise import Settings as Revise
from tenet import kinds
from tenet.engines import Engine
from tenet.engines._cluster import OnCluster
from tenet.engines._unasked import Unasked
from tenet.errors import SettingsError
from tenet.records import Frozen, digest
from tenet.settings import Document, assemble, closest, read


class Limits(Frozen):
    """When a run stops before its prompts are used up."""

    max_failures: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of prompts that may fail through an engine's faults or unreadable verdicts."""
    max_prompts: Annotated[int, Field(ge=1)] | None = None
    """Most prompts to use; the others are not read."""
    max_calls: Annotated[int, Field(ge=1)] | None = None
    """Most calls to pay for; what a stored reply answers is free."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most tokens to pay for, prompts and replies together."""
    in_flight: Annotated[int, Field(ge=1)] = 512
    """Prompts that are worked on at once."""


class Recipe(Frozen):
    """What a run does."""

    prompts: Prompts
    """Where the prompts come from."""
    constitution: str
    """A packaged constitution's name, or a path."""
    models: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """Engines by name: `kind` and that kind's settings. The first serves where none is named."""
    respond: Respond = Respond()
    """First replies."""
    revise: Revise = Revise()
    """Critique and revision rounds."""
    pairs: Annotated[tuple[Pairs, ...], Field(min_length=1)] = (Pairs(),)
    """Which replies are compared."""
    judge: dict[str, Any] = Field(default={"kind": "pairwise"})
    """`kind` and that kind's settings."""
    keep: Keep = Keep()
    """Which judged pairs are kept."""
    limits: Limits = Limits()
    """When to stop early."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides every draw of the run."""
    out: str = ""
    """The run's folder, relative to where the command is given; empty: runs/<recipe's file name>."""


# A model's settings that may differ between two starts of one run, since no row depends on them.
_EXECUTION = {
    *("replicas", "concurrency", "timeout_s", "retries", "patience_s", "address", "key_env", "restarts"),
    *("resources", "wait_s", "hang_s", "pinned"),
    *("gpu_memory_utilization", "kv_cache_gib", "max_num_seqs", "threads", "delay", "device", "batch"),
    *("backoff_s", "max_calls", "max_tokens_budget", "max_money", "price_prompt", "price_cached", "price_completion"),
}


Models = dict[str, tuple[str, Any]]
"""Engine kind and settings by model name."""


@dataclass(frozen=True)
class Plan:
    """A recipe that was checked: every name resolved, nothing called yet."""

    recipe: Recipe
    constitution: Constitution
    models: Models
    folder: Path
    source: str
    """Where the recipe came from, for messages."""
    base: Path = Path()
    """The folder from which the recipe's paths go."""

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides rows: the recipe less what is execution only, and the constitution's hash."""
        data = self.recipe.model_dump(mode="json", exclude={"limits", "out"})
        models = {
            name: {"kind": kind, **settings.model_dump(mode="json", exclude=_EXECUTION)}
            for name, (kind, settings) in self.models.items()
        }
        keep = {k: v for k, v in data["keep"].items() if k != "exactly"}
        return {**data, "keep": keep, "models": models, "constitution_hash": self.constitution.hash}

    @property
    def writers(self) -> set[str]:
        """Names of the models whose replies are compared."""
        first, respond, revise = next(iter(self.models)), self.recipe.respond, self.recipe.revise
        names = set(respond.pool) or {respond.model or first}
        return names | {revise.model} if revise.rounds and revise.model else names

    def on(self, address: str | None) -> Plan:
        """The plan with every engine that has replicas on the Ray cluster at an address. SettingsError."""
        if address is None:
            return self
        given = Document({"address": address}, "--address")
        assemble(OnCluster, given)
        models = {
            name: (kind, s.model_copy(update={"address": address}) if isinstance(s, OnCluster) else s)
            for name, (kind, s) in self.models.items()
        }
        return replace(self, models=models)

    def build_engines(self) -> dict[str, Engine]:
        """Engines by model name; a wrong model path ends here."""
        return build_engines(self.models)


def open_recipe(path: Path, overrides: Iterable[str] = (), out: str | None = None) -> Plan:
    """Reads and checks a recipe. Paths in it are relative to its own folder.

    Raises SettingsError, ConstitutionError or DataError: file, field, value, and what would be right.
    """
    return check_recipe(read(path).override(overrides), path.parent, path.stem, out, str(path))


def check_recipe(doc: Document, base: Path, name: str, out: str | None = None, source: str = "the recipe") -> Plan:
    """The plan of a recipe that was read already, wherever it came from; paths in it are relative to `base`.

    `name` gives the run's folder where neither `out` nor the recipe does. Raises as `open_recipe`.
    """
    recipe = assemble(Recipe, doc)
    recipe = recipe.model_copy(update={"prompts": recipe.prompts.relative_to(base)})
    models = read_models(doc, base)
    _check_names(recipe, doc, models)
    rules = load_constitution(recipe.constitution, base)
    require(rules, stages_of(recipe))
    check_judge(judge_doc(doc, recipe.judge), models, rules)
    _check_scorers(doc, recipe, models, rules)
    return Plan(recipe, rules, models, Path(out or recipe.out or f"runs/{name}"), source, base)


def stages_of(recipe: Recipe) -> list[Stage]:
    """The stages, besides judging, for which every principle needs a text."""
    if not recipe.revise.rounds:
        return []
    return ["critique", "revise"] if recipe.revise.critique else ["revise"]


def read_models(doc: Document, base: Path) -> Models:
    """The engines' settings under `models`; paths in them are relative to `base`."""
    return {name: _model(doc.sub("models").sub(name), base) for name in doc.data["models"]}


def _model(doc: Document, base: Path) -> tuple[str, Any]:
    data: dict[str, Any] = doc.data
    kind = str(data.get("kind", "vllm"))
    module = kinds.load("tenet.engines", kind, doc.place("kind"))
    settings = assemble(module.Settings, doc.without("kind"))
    moved = {
        field: str(base / value)
        for field in ("model", "lora")
        if isinstance(value := getattr(settings, field, None), str) and value.startswith(("./", "../"))
    }
    return kind, settings.model_copy(update=moved)


def build_engines(models: Models) -> dict[str, Engine]:
    """Engines by model name. Equal settings share one engine; a wrong model path ends here."""
    made: dict[str, Engine] = {}
    same: dict[str, Engine] = {}
    for name, (kind, settings) in models.items():
        key = digest(kind, settings.model_dump(mode="json"))
        if key not in same:
            same[key] = kinds.load("tenet.engines", kind).build(settings)
        made[name] = same[key]
    return made


def load_constitution(name: str, base: Path) -> Constitution:
    """A packaged constitution by name, or a file by its path from `base`."""
    return constitution.load(base / name if "/" in name or name.endswith((".yaml", ".yml")) else name)


def judge_doc(doc: Document, given: dict[str, Any]) -> Document:
    """A judge's settings under `judge`, or those that stand where the file has none."""
    return doc.sub("judge") if "judge" in doc.data else Document(dict(given), "judge")


def check_judge(part: Document, models: Models, rules: Constitution, scores: bool = False) -> None:
    """SettingsError, with file and line, if a judge's settings are wrong or do not fit models and constitution, or
    if it gives no scores of single replies where those are wanted."""
    unasked: dict[str, Engine] = {name: Unasked() for name in models}
    try:
        (judges.open_scorer if scores else judges.open_judge)(part, unasked, rules)
    except SettingsError as error:
        if not re.fullmatch(r"judge(\.\w+)+", error.where):
            raise
        place = part.place(error.where.removeprefix("judge."))
        raise SettingsError(error.what, where=place, fix=error.fix) from None


def _check_scorers(doc: Document, recipe: Recipe, models: Models, rules: Constitution) -> None:
    """Pairs by score need a judge that scores: their own, or the recipe's."""
    for i, pair in enumerate(recipe.pairs):
        if pair.kind != "best_of":
            continue
        if pair.scorer:
            at = doc.sub("pairs")
            own = replace(at, data=at.data[i]["scorer"], prefix=(*at.prefix, i, "scorer"))
            check_judge(own, models, rules, scores=True)
            continue
        try:
            check_judge(judge_doc(doc, recipe.judge), models, rules, scores=True)
        except SettingsError as error:
            where = doc.place(f"pairs.{i}.kind")
            raise SettingsError(f"best_of: {error.what}", where=where, fix="scorer: {kind: pointwise}") from None


def _check_names(recipe: Recipe, doc: Document, models: dict[str, Any]) -> None:
    """Every model that a stage names must be one of the recipe's models."""
    named = [
        ("respond.model", recipe.respond.model),
        *((f"respond.pool.{name}", name) for name in recipe.respond.pool),
        ("revise.model", recipe.revise.model),
    ]
    for field, name in named:
        if name and name not in models:
            raise SettingsError(f"there is no model {name!r}", where=doc.place(field), fix=closest(str(name), models))
    if recipe.pairs and recipe.respond.samples < 2:
        for i, pair in enumerate(recipe.pairs):
            if pair.kind != "initial_vs_revision":
                raise SettingsError(
                    f"pairs of {pair.kind} need at least two samples",
                    where=doc.place(f"pairs.{i}.kind"),
                    fix="respond.samples: 2, or pairs of kind initial_vs_revision",
                )
    if not recipe.revise.rounds and any(p.kind == "initial_vs_revision" for p in recipe.pairs):
        raise SettingsError(
            "pairs of initial_vs_revision need at least one round",
            where=doc.place("revise.rounds"),
            fix="revise.rounds: 1",
        )
