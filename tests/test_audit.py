"""CI's audit of the pinned packages: it prints what is known, and fails for what we can mend."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

AUDIT = Path(__file__).parent.parent / ".ci" / "audit.py"


def report(tmp_path: Path, name: str, fixes: list[str]) -> tuple[int, str]:
    """The exit code and the words for one vulnerable package."""
    vulnerable = {"name": name, "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": fixes}]}
    unknown = {"name": "other", "skip_reason": "not found"}
    (tmp_path / "report.json").write_text(json.dumps({"dependencies": [vulnerable, unknown]}))
    done = subprocess.run([sys.executable, AUDIT, tmp_path / "report.json"], capture_output=True, text=True)
    return done.returncode, done.stdout


def test_only_what_we_can_raise_fails_and_all_is_printed(tmp_path: Path) -> None:
    for name, fixes, code, word in (
        ("pyyaml", ["1.1"], 1, "raise it to 1.1"),
        ("pyyaml", [], 0, "no fix"),
        ("h11", ["1.1"], 0, "mended in 1.1"),
    ):
        returned, said = report(tmp_path, name, fixes)
        assert (returned, f"{name} 1.0: PYSEC-1 ({word}" in said) == (code, True), said
    assert "1 of 2 packages are known" in said
