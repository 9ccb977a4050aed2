"""Judges: comparisons become verdicts. `open_judge` builds a judge of any kind."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, Protocol

from constitution import Constitution
from tenet import kinds
from tenet.engines import Engine
from tenet.records import Comparison, Frozen, Verdict
from tenet.settings import Document, assemble


class Judge(Protocol):
    """Says which of two replies is better. A verdict that cannot be read is `invalid`; nothing is guessed."""

    async def judge(self, comparison: Comparison, key: str = "") -> Verdict:
        """The verdict; `key` names the comparison's place in a run and decides which principles are drawn."""
        ...


def read_settings(data: Mapping[str, Any] | Document, where: str = "judge") -> tuple[ModuleType, Frozen]:
    """The module of the judge that `kind` names, and its settings; SettingsError if they are wrong."""
    document = data if isinstance(data, Document) else Document(dict(data), where)
    module = kinds.load("judges", document.data.get("kind", ""), document.place("kind"))
    return module, assemble(module.Settings, document.without("kind"))


def open_judge(
    data: Mapping[str, Any] | Document, engine: Engine, constitution: Constitution, seed: int = 0
) -> Judge:
    """A judge from its settings (`{"kind": "pairwise", …}`), the engine it asks, and a constitution."""
    module, settings = read_settings(data)
    return module.build(settings, engine, constitution, seed)
