"""Fuzzes one target with atheris: `python -m tests.fuzz.harness TARGET [libFuzzer options] [folders]`."""

# atheris is no dependency of tenet: `pip install atheris`, then run this from the root of the repository.
# pyright: basic, reportMissingImports=false
from __future__ import annotations

import gc
import sys

import atheris  # type: ignore[import-not-found]

PACKAGES = ["tenet", "constitution", "generators", "judges", "service", "tests.fuzz"]

with atheris.instrument_imports(include=PACKAGES):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """libFuzzer writes the input of every finding into the folder where it was started."""
    name = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if name not in TARGETS:
        sys.exit(f"name a target: {', '.join(TARGETS)}")
    target = TARGETS[name]
    target(b"")  # imports that are put off until they are needed
    gc.freeze()
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


main()
