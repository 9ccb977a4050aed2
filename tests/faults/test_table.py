"""The page of faults is what the table and the last run of its tests say, and every test that it names is there."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.faults.__main__ import ends, page, results
from tests.faults.table import GROUPS

ROOT = Path(__file__).parent.parent.parent
FAULTS = [fault for faults in GROUPS.values() for fault in faults]


def test_every_test_that_the_table_names_is_there() -> None:
    there: set[str] = set()
    for file in {test.partition("::")[0] for fault in FAULTS for test in fault.tests}:
        tree = ast.parse((ROOT / file).read_text())
        there |= {f"{file}::{node.name}" for node in tree.body if isinstance(node, ast.FunctionDef)}
    named = {test.partition("[")[0] for fault in FAULTS for test in fault.tests}
    assert named <= there, named - there
    assert all(fault.tests and fault.how and fault.promise for fault in FAULTS)
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_the_page_is_made_from_the_table_and_every_test_was_run() -> None:
    assert (ROOT / "docs/reliability.md").read_text() == page(results())
    assert not [fault.name for fault in FAULTS if "not run" in ends(fault, results())]
