"""Trackers that a training tells its figures: transformers' own callbacks, opened before anything is loaded."""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from tenet.errors import SettingsError
from trainers._common import Common


def opened(settings: Common) -> list[Any]:
    """A callback for each of `report_to`. SettingsError for a name that transformers does not know, or whose package
    is not installed.

    TensorBoard's files go to out/tensorboard unless TENSORBOARD_LOGGING_DIR says otherwise: transformers would put them
    among the checkpoints, which a finished training removes.
    """
    names = [n for n in settings.report_to if n != "none"]
    if not names:
        return []
    hub: Any = import_module("transformers.integrations.integration_utils")
    if "all" in names:
        names = hub.get_available_reporting_integrations()
    unknown = [n for n in names if n not in hub.INTEGRATION_TO_CALLBACK]
    if unknown:
        known = ", ".join(sorted(hub.INTEGRATION_TO_CALLBACK))
        raise SettingsError(f"no tracker is named {', '.join(unknown)}", where="report_to", fix=f"one of {known}")
    made: list[Any] = []
    for name in names:
        try:
            made.append(hub.INTEGRATION_TO_CALLBACK[name]())
        except (RuntimeError, ImportError) as error:
            raise SettingsError(str(error), where="report_to", fix=f"install {name}, or leave it out") from error
        if name == "tensorboard" and made[-1].logging_dir is None:
            made[-1].logging_dir = str(Path(settings.out) / "tensorboard")
    return made
