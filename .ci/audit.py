"""Asks pip-audit for known vulnerabilities of the pinned packages: `audit.py`, or `audit.py REPORT` of an earlier one.

Every one found is printed. It fails for those of a package that pyproject.toml names and that a newer version mends:
we can raise that pin. What other packages pull in, they must let go of first. Where the data cannot be reached, and
that takes seconds to see, it says so and passes.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROBE = "pyyaml==5.3"  # has had a published vulnerability since 2020: who does not know of it, knows of none


def ask(requirements: str, seconds: float) -> list[dict]:
    """pip-audit's entries for some requirements; none if it fails or takes too long."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(requirements)
        file.flush()
        command = [Path(sys.executable).parent / "pip-audit", "--progress-spinner=off", "--no-deps", "--disable-pip"]
        command += ["--timeout=5", "--format=json", f"--requirement={file.name}"]
        try:
            said = subprocess.run(command, capture_output=True, text=True, timeout=seconds).stdout
            return json.loads(said)["dependencies"]
        except (OSError, subprocess.TimeoutExpired, ValueError):
            return []


def named() -> set[str]:
    """The packages that pyproject.toml names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *(x for extra in project["optional-dependencies"].values() for x in extra)]
    return {re.split(r"[^\w.-]", x)[0].lower() for x in listed}


def main() -> int:
    """0, or 1 if there is one that we can mend."""
    if len(sys.argv) > 1:
        found = json.loads(Path(sys.argv[1]).read_text())["dependencies"]
    elif not any(x.get("vulns") for x in ask(PROBE, 20)):
        print("pip-audit: skipped, the vulnerability data cannot be reached from here")
        return 0
    else:
        # A local version such as +cpu is the same source.
        found = ask(re.sub(r"\+\w+$", "", (ROOT / "requirements/cpu.lock").read_text(), flags=re.MULTILINE), 300)
        if not found:
            print("pip-audit: skipped, its answer did not come within 300 s")
            return 0
    ours, bad = named(), 0
    for package in found:
        for vulnerability in package.get("vulns", ()):
            fixed = ", ".join(vulnerability["fix_versions"])
            mend = bool(fixed) and package["name"].lower() in ours
            bad += mend
            said = f"mended in {fixed}, for whoever asks for it" if fixed else "no fix"
            said = f"raise it to {fixed}" if mend else said
            print(f"pip-audit: {package['name']} {package['version']}: {vulnerability['id']} ({said})")
    audited = sum("vulns" in package for package in found)
    print(f"pip-audit: {audited} of {len(found)} packages are known to it; {bad} findings must be mended")
    return 1 if bad else 0


sys.exit(main())
