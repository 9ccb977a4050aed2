"""PPO against the last TRL that had one, 1.12: the same rollouts must give the same losses and the same new weights.

    pip download trl==1.12.0 --no-deps -d DIR && unzip DIR/trl-1.12.0-*.whl -d DIR
    TENET_TRL_1_12=DIR pytest tests/test_ppo_oracle.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PLACE = os.environ.get("TENET_TRL_1_12", "")


@pytest.mark.skipif(not Path(PLACE, "trl", "experimental", "ppo").is_dir(), reason="TENET_TRL_1_12 names no TRL 1.12")
@pytest.mark.parametrize(("whiten", "estimator"), [("plain", "k1"), ("whiten", "k1"), ("plain", "k3")])
def test_an_update_is_that_of_trl(tmp_path: Path, whiten: str, estimator: str) -> None:
    root = Path(__file__).parents[1]
    script = root / "tests" / "trl_ppo_script.py"
    env = {**os.environ, "PYTHONPATH": f"{PLACE}{os.pathsep}{root}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(tmp_path), whiten, estimator]
    out = subprocess.run(command, env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr[-3000:]
    found = json.loads(out.stdout.splitlines()[-1])
    assert found["trl"].startswith("1.12")
    for name, both in found["figures"].items():
        assert both["tenet"] == pytest.approx(both["trl"], rel=2e-5, abs=2e-6), name
    assert found["moved"] > 1e-2
    assert found["apart"] < 1e-5
    assert found["apart_value"] < 1e-4
