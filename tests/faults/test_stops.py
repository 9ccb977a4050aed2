"""Runs that are killed, stopped and stopped again, at each of their stages: the same command has the same rows."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path

from service import recipe as recipes
from service import run
from tenet.ledger import Calls
from tests.faults.runs import ROOT, command, environment, files, go, manifest_of, start, stored, write

STAGES = ("reading the prompts", "starting the engines", "generating", "prompt 5", "writing the exports", "exported")
KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from service import export, recipe, run

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def walk(stage):
    hooks = run.Hooks(
        stage=lambda name: name == stage and die(),
        tally=lambda t: stage == f"prompt {t.done}" and die(),
    )
    if stage == "exported":  # what comes last before the manifest
        export.card = lambda *_: die()
    asyncio.run(run.execute(recipe.open_recipe(Path(sys.argv[1]), [], sys.argv[2]), hooks=hooks))

for stage in sys.argv[3:]:
    child = os.fork()
    if not child:
        walk(stage)
        os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_killed_in_each_stage_the_same_command_has_the_same_rows(tmp_path: Path) -> None:
    recipe = write(tmp_path, 12)
    calm = go(recipe, "calm/run")
    wild = tmp_path / "wild/run"
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(recipe), str(wild), *STAGES],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ended.stdout.split() == ["-9"] * len(STAGES)
    assert not (wild / "manifest.json").exists()
    same_again(recipe, wild, tmp_path / "calm/run")
    whole = manifest_of(wild)
    paid = sum(u["calls"] for u in whole["usage"].values())
    assert paid == sum(u["calls"] for u in calm["usage"].values())  # what was stored was paid once


def started(recipe: Path, out: Path, delay: float) -> subprocess.Popen[str]:
    """A run whose calls take so long, as it works on its first prompts."""
    process = start(command(recipe, out, f"models.m.delay={delay}", "limits.in_flight=4"))
    deadline = time.monotonic() + 60
    while not (out / "constitution.yaml").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    time.sleep(1.0)  # the pipeline is there by now
    assert process.poll() is None, process.communicate()
    return process


def same_again(recipe: Path, out: Path, calm: Path) -> None:
    """The recipe once more, into the same folder: it comes out as one that nothing disturbed."""
    plan = recipes.open_recipe(recipe, [], str(out))
    assert files(asyncio.run(run.execute(plan))) == files(manifest_of(calm))
    assert stored(out) == stored(calm)


def test_sigterm_stops_between_prompts_and_says_how_to_go_on(tmp_path: Path) -> None:
    recipe, out = write(tmp_path, 16), tmp_path / "wild/run"
    process = started(recipe, out, 0.3)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, manifest_of(out)["state"]) == (130, "stopped")
    assert "To go on: tenet generate" in said
    assert 0 < manifest_of(out)["prompts"]["rows"] < 16
    go(recipe, "calm/run")
    same_again(recipe, out, tmp_path / "calm/run")


def test_sigterm_stops_as_cleanly_with_ray_in_the_process(tmp_path: Path) -> None:
    """Ray's C++ takes the signal over and aborts the process three seconds later: the calls in flight take longer."""
    replicated = '{kind: scripted, script: "tests.oracle_script:play", replicas: 1, delay: 2.0}'
    recipe, out = write(tmp_path, 10, replicated), tmp_path / "wild/run"
    process = start(command(recipe, out, "limits.in_flight=4"))
    deadline = time.monotonic() + 120
    while not paid(out.parent / "calls.sqlite") and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    sent = time.monotonic()
    said, _ = process.communicate(timeout=120)
    assert (process.returncode, manifest_of(out)["state"]) == (130, "stopped")
    assert time.monotonic() - sent > 3.5
    assert "To go on: tenet generate" in said
    assert "SIGTERM received" not in said
    assert 0 < manifest_of(out)["prompts"]["rows"] < 10


def paid(path: Path) -> bool:
    """Whether a workspace holds a reply."""
    if not path.exists():
        return False
    with Calls(path) as calls:
        return bool(calls.counts())


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    recipe, out = write(tmp_path, 12), tmp_path / "wild/run"
    process = started(recipe, out, 60.0)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None  # it waits for the calls in flight
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, "Stopped at once. Stored replies stay" in said) == (130, True)
    assert time.monotonic() - begun < 20
    assert "Traceback" not in said
    assert not (out / "manifest.json").exists()
    go(recipe, "calm/run")
    same_again(recipe, out, tmp_path / "calm/run")
