"""The house: packages resolve inside the checkout, the floors hold, and light imports stay light."""

from __future__ import annotations

import importlib
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("tenet", "constitution", "generators", "judges", "trainers", "service", "nano")


@pytest.mark.parametrize("name", PACKAGES)
def test_each_package_is_ours(name: str) -> None:
    # PyPI has a package called judges: an installed one must not win.
    assert Path(str(importlib.import_module(name).__file__)).is_relative_to(ROOT)


@pytest.mark.parametrize("code", ["import judges", "import service.cli", "import generators.prompts"])
def test_light_imports_load_nothing_heavy(code: str) -> None:
    check = (
        f"{code}; import sys; heavy = {{'torch', 'vllm', 'ray', 'trl', 'transformers', 'datasets', 'pyarrow'}};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=ROOT)
    assert said.stdout.strip() == "[]"


def test_help_is_quick() -> None:
    # As a ratio, measured in turns: on a busy machine the same work takes twice the CPU seconds. What help cannot do
    # without takes 0.2 s on an idle machine.
    bare, ours = ["-c", "import typer.rich_utils"], ["-m", "service", "--help"]
    took = [[_cpu(bare), _cpu(ours)] for _ in range(4)]
    floor, help_ = (min(times) for times in zip(*took, strict=True))
    assert help_ < 2.0 * floor


def _cpu(words: list[str]) -> float:
    """CPU seconds of a Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], capture_output=True, check=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_the_first_line_of_each_file_says_what_it_is() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            assert path.read_text().startswith('"""'), path
