"""Which engine a judge asks, and whether that engine can give what the judge needs."""

from __future__ import annotations

from collections.abc import Mapping

from tenet.engines import Engine
from tenet.errors import SettingsError
from tenet.settings import closest

Engines = Engine | Mapping[str, Engine]
"""One engine, or several by name, of which a judge's `model` picks one; empty: the first."""


def pick(engines: Engines, name: str) -> Engine:
    """The engine that a judge's `model` names. SettingsError if there is none of that name."""
    if not isinstance(engines, Mapping):
        if name:
            fix = f"give the engines by name: {{{name!r}: engine}}"
            raise SettingsError(f"names {name!r}, but the one engine given has no name", where="judge.model", fix=fix)
        return engines
    if not engines:
        raise SettingsError("there is no engine", where="judge.model", fix="name at least one under models")
    if name and name not in engines:
        raise SettingsError(f"there is no model {name!r}", where="judge.model", fix=closest(name, engines))
    return engines[name] if name else next(iter(engines.values()))


def require_text(engine: Engine, read: str) -> None:
    """SettingsError unless the engine can be asked in words, and scores options if `read` is "logprobs"."""
    if engine.has_scores and not engine.has_choices:
        what = f"{engine.name} is a reward model and answers no questions"
        raise SettingsError(what, where="judge.kind", fix="kind: reward_model, or another model")
    if read == "logprobs" and not engine.has_choices:
        raise SettingsError(f"{engine.name} gives no log-probabilities", where="judge.read", fix="read: text")
