"""The one error family; every message says what is wrong, where, and what would be right.

TenetError
├── InputError            what the user gave cannot be used; raised before the first call
│   ├── SettingsError     a recipe, a key=value, an engine's or a judge's settings
│   ├── ConstitutionError a constitution file
│   ├── DataError         a prompts or pairs file
│   └── RunFolderError    a run folder that belongs to another recipe, or is in use
├── EngineError           an engine as a whole cannot serve
│   ├── EngineUnreachable no server, or it stopped answering
│   ├── EngineRefused     wrong key, unknown model: trying again cannot help
│   └── BudgetExceeded    the token, call or money budget is spent
├── JudgeError            a judge's answer cannot be read; the run records it as data
├── LedgerError           the ledger cannot be written or read (full disk, damaged file)
├── TrainingError         a training cannot go on: a loss or a router's logits are not finite
├── TooManyFailures       more rows failed than `max_failures` allows
└── AccountingError       the counts of a run do not add up
"""

from __future__ import annotations

from collections.abc import Sequence


class TenetError(Exception):
    """Base of every error that tenet raises on purpose."""


class InputError(TenetError):
    """Bad input: `where` (file, line, field), `what` is wrong, and the `fix` that would be right.

    One that sums up several has them as its `parts`.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "", parts: Sequence[InputError] = ()) -> None:
        self.what, self.where, self.fix, self.parts = what, where, fix, tuple(parts)
        super().__init__(": ".join(p for p in (where, what) if p) + (f" ({fix})" if fix else ""))


class SettingsError(InputError):
    """A setting is unknown, missing, or has a wrong value."""


class ConstitutionError(InputError):
    """A constitution cannot be used."""


class DataError(InputError):
    """A data file cannot be read."""


class RunFolderError(InputError):
    """A run folder cannot be used by this recipe."""


class EngineError(TenetError):
    """The engine as a whole cannot serve."""


class EngineUnreachable(EngineError):
    """Nothing answers at the engine's address."""


class EngineRefused(EngineError):
    """The engine answers, and will go on refusing (401, 403, unknown model)."""


class BudgetExceeded(EngineError):
    """A budget of calls, tokens or money is spent."""


class JudgeError(TenetError):
    """A verdict cannot be read from what the judge said."""


class LedgerError(TenetError):
    """The ledger cannot be read or written."""


class TrainingError(TenetError):
    """A training cannot go on: `where` (step, layer), `what` is wrong, and what may help."""

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(": ".join(p for p in (where, what) if p) + (f" ({fix})" if fix else ""))


class TooManyFailures(TenetError):
    """More rows failed than the recipe allows."""


class AccountingError(TenetError):
    """Counts do not add up: a row was lost or invented."""
