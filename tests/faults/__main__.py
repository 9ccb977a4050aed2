"""`python -m tests.faults` prints docs/reliability.md; `--run` first runs the tests that the table names."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path

import pytest

from tests.faults.table import GROUPS, Fault

RESULTS = Path(__file__).with_name("results.json")
HEAD = """# Reliability

What was broken on purpose, and what a run does about it. This page is made from `tests/faults/table.py` and from how
each of these tests ended when it was last run (`python -m tests.faults --run > docs/reliability.md`); a test compares
it with both.
A promise that several tests hold is "held" if all of them passed.
"""


class Recorder:
    """Notes how each test ended, by pytest's id."""

    def __init__(self) -> None:
        self.ended: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.ended[report.nodeid] = report.outcome


def results() -> dict[str, str]:
    """How the tests ended when they were last run."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def ends(fault: Fault, known: dict[str, str]) -> list[str]:
    """How the tests of a fault ended; an id without brackets stands for all its parameters."""
    found: list[str] = []
    for test in fault.tests:
        of_test = [end for id, end in known.items() if id == test or id.startswith(f"{test}[")]
        found += of_test or ["not run"]
    return found


def verdict(fault: Fault, known: dict[str, str]) -> str:
    """The page's last column."""
    found = ends(fault, known)
    for bad, word in (("failed", "broken"), ("not run", "not run"), ("skipped", "not tried here")):
        if n := found.count(bad):
            return f"{word} ({n} of {len(found)})"
    return f"held ({len(found)})" if len(found) > 1 else "held"


def page(known: dict[str, str]) -> str:
    """docs/reliability.md."""
    lines = [HEAD]
    for title, faults in GROUPS.items():
        lines += [f"## {title}", "", "| fault | how it is put in | promise | result |", "|---|---|---|---|"]
        lines += [f"| {f.name} | {f.how} | {f.promise} | {verdict(f, known)} |" for f in faults]
        lines.append("")
    lines += ["## Tests", ""]
    lines += [f"- {f.name}: " + ", ".join(f"`{t}`" for t in f.tests) for faults in GROUPS.values() for f in faults]
    return "\n".join(lines) + "\n"


def run(only: str) -> None:
    """Runs the tests that the table names, and notes how they ended beside what is known of the others."""
    recorder = Recorder()
    tests = sorted({t for faults in GROUPS.values() for f in faults for t in f.tests if only in t})
    with contextlib.redirect_stdout(sys.stderr):  # stdout is the page's
        pytest.main(["-q", "-p", "no:cacheprovider", "--timeout", "900", *tests], plugins=[recorder])
    kept = {id: end for id, end in results().items() if only not in id}
    RESULTS.write_text(json.dumps({**kept, **recorder.ended}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", action="store_true", help="run the tests and keep how they ended")
    parser.add_argument("--only", default="", help="with --run: only tests with this in their ids")
    given = parser.parse_args()
    if given.run:
        run(given.only)
    print(page(results()), end="")
