"""Judges: comparisons become verdicts, replies become scores. `open_judge` builds a judge of any kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from constitution import Constitution
from judges._engines import Engines
from tenet import kinds
from tenet.engines import Engine, Request
from tenet.errors import SettingsError
from tenet.records import Comparison, Frozen, Prompt, Score, Verdict
from tenet.settings import Document, assemble

__all__ = ["Ask", "Engines", "Judge", "Scorer", "open_judge", "open_scorer", "read_settings"]

Scale = Literal["", "unit", "reward"]
"""What a judge's scores of single replies mean: nothing, as it gives none; -1 to 1; a reward model's own."""


class Ask(NamedTuple):
    """One question that a judge would put."""

    step: str
    """What it asks for: "judge", "reason", "score"."""
    model: str
    """The name of the model that is asked; empty: the first."""
    request: Request


class Judge(Protocol):
    """Says which of two replies is better. A verdict that cannot be read is `invalid`; nothing is guessed."""

    engines: Sequence[Engine]
    """Every engine that it asks."""
    scale: Scale
    """Whether it also scores single replies, as a Scorer, and on which scale."""

    async def judge(self, comparison: Comparison, key: str = "") -> Verdict:
        """The verdict; `key` names the comparison's place in a run and decides which principles are drawn."""
        ...

    def split(self, verdict: Verdict) -> dict[str, Verdict]:
        """What each slot order by itself makes of a verdict of this judge: {"ab": …, "ba": …}.

        {"": the verdict} where replies were not shown side by side, or nothing was asked.
        """
        ...

    def asks(self, comparison: Comparison, key: str = "") -> list[Ask]:
        """Every question that a comparison costs; nothing is asked. Stand-ins are where replies would be."""
        ...


@runtime_checkable
class Scorer(Protocol):
    """Scores one reply."""

    async def score(self, prompt: Prompt, reply: str, key: str = "") -> Score:
        """The score on the judge's `scale`; one that cannot be read is `invalid`, never 0."""
        ...

    def score_asks(self, prompt: Prompt, reply: str, key: str = "") -> list[Ask]:
        """Every question that a score costs; nothing is asked."""
        ...


def read_settings(data: Mapping[str, Any] | Document, where: str = "judge") -> tuple[ModuleType, Frozen]:
    """The module of the judge that `kind` names, and its settings; SettingsError if they are wrong."""
    document = data if isinstance(data, Document) else Document(dict(data), where)
    module = kinds.load("judges", document.data.get("kind", ""), document.place("kind"))
    settings = assemble(module.Settings, document.without("kind"))
    check = getattr(module, "check", None)  # a kind with settings of other kinds inside
    if check is not None:
        check(document)
    return module, settings


def open_judge(
    data: Mapping[str, Any] | Document, engines: Engines, constitution: Constitution, seed: int = 0
) -> Judge:
    """A judge from its settings (`{"kind": "pairwise", …}`), the engines it may ask, and a constitution.

    `engines` is one engine, or a mapping by name of which the settings' `model` picks one. SettingsError or
    ConstitutionError if they do not fit together.
    """
    module, settings = read_settings(data)
    return module.build(settings, engines, constitution, seed)


def open_scorer(
    data: Mapping[str, Any] | Document, engines: Engines, constitution: Constitution, seed: int = 0
) -> Scorer:
    """A judge that scores single replies; SettingsError if this one does not."""
    judge = open_judge(data, engines, constitution, seed)
    if not (judge.scale and isinstance(judge, Scorer)):
        document = data if isinstance(data, Document) else Document(dict(data), "judge")
        raise SettingsError(
            f"a judge of kind {document.data.get('kind')!r} gives no scores of single replies on one scale",
            where=document.place("kind"),
            fix="kind: pointwise, reward_model, or a panel of pointwise judges",
        )
    return judge
