"""`tenet constitution import`: another project's list becomes a file, and what lint says of it is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from constitution import importers, writer
from constitution.lint import lint


def main(files: Sequence[Path], out: Path, form: str, name: str, force: bool) -> None:
    """Writes the constitution. InputError if a file is no known list, or if the target is there already."""
    made = importers.read(files, form, name)
    head = f"Made by `tenet constitution import` from {', '.join(path.name for path in files)}."
    if len(files) > 1:
        head += "\nThe n-th critique stands beside the n-th choice; they need not be about the same."
    writer.write(out, made, head, force=force)
    print(f"{out}: {len(made.principles)} principles")
    found = Counter(f"{f.level} {f.rule}" for f in lint(out))
    if found:
        print("lint: " + ", ".join(f"{n} x {what}" for what, n in found.most_common()))
