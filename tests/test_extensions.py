"""The five extensions, one place each: a judge, an engine, a trainer, a field of a principle, a metric of agreement.

They are added to a copy of the packages, and used by the command line there. Nothing else of the copy is changed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("tenet", "constitution", "generators", "judges", "trainers", "nano", "service")

ENGINE = '''"""Engine kind "shouter": says the last message back, louder with every sample."""
from tenet.engines import Reply
from tenet.records import Frozen, Usage


class Settings(Frozen):
    """How loud."""

    marks: int = 1


class Shouter:
    name, fingerprint, has_choices, has_scores, family = "shouter", "shouter 1", False, False, "shouter"

    def __init__(self, marks):
        self.marks = marks

    async def generate(self, requests):
        return [
            Reply(text=r.messages[-1].content + "!" * (self.marks + (r.sampling.seed or 0) % 5), usage=Usage(calls=1))
            for r in requests
        ]

    async def close(self):
        pass


def build(settings):
    return Shouter(settings.marks)
'''
JUDGE = '''"""Judge kind "longest": prefers the longer reply, and asks nobody."""
from tenet.records import Frozen, Verdict, Vote


class Settings(Frozen):
    """Nothing to set."""


class Longest:
    engines, scale = (), ""

    async def judge(self, comparison, key=""):
        p = 0.9 if len(comparison.a) > len(comparison.b) else 0.1
        label = "A" if p > 0.5 else "B"
        return Verdict(label=label, p_a=p, votes=(Vote(principle="", label=label, p_a=p),))

    def split(self, verdict):
        return {"": verdict}

    def asks(self, comparison, key=""):
        return []


def build(settings, engines, constitution, seed=0):
    return Longest()
'''
TRAINER = '''"""Trainer kind "tally": counts the rows that it would learn from."""
from pathlib import Path

from trainers import _rows
from trainers._common import Common, Outcome


class Settings(Common):
    """How to count."""

    lr: float = 1.0


class Tally:
    def __init__(self, settings):
        self.settings = settings

    def rows(self):
        return _rows.read(self.settings.sources, "pairs", self.settings.seed)

    def train(self, rows):
        n = sum(1 for _ in rows)
        data = {"read": n, "kept": n, "dropped": {}}
        told = {"kind": "tally", "steps": 0, "data": data, "seconds": 0.0, "device": "none", "figures": {"rows": n}}
        return Outcome(Path(self.settings.out), told, fresh=True)


def build(settings):
    return Tally(settings)
'''
FIELD = '''    audience: Text = ""
    """Whom the rule has in mind."""
'''
METRIC = '''

def says_a(view: View) -> float:
    """Share of the judge's verdicts that are A."""
    return sum(v == "A" for v in view.rows()[1]) / view.n
'''


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages with one of each added."""
    home = tmp_path_factory.mktemp("house")
    for package in PACKAGES:
        skip = shutil.ignore_patterns("__pycache__", "*.safetensors")
        shutil.copytree(ROOT / package, home / package, ignore=skip)
    (home / "tenet/engines/shouter.py").write_text(ENGINE)
    (home / "judges/longest.py").write_text(JUDGE)
    (home / "trainers/tally.py").write_text(TRAINER)
    schema = home / "constitution/schema.py"
    before = '    since: Text = ""\n'
    assert schema.read_text().count(before) == 1
    schema.write_text(schema.read_text().replace(before, FIELD + before))
    with (home / "judges/agreement/metrics.py").open("a") as metrics:
        metrics.write(METRIC)
    return home


def tenet(home: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "service", *arguments]
    environment = os.environ | {"PYTHONPATH": str(home), "COLUMNS": "200"}
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_one_of_each_is_added_in_one_place_and_used(house: Path) -> None:
    (house / "prompts.txt").write_text("mend a fence\nboil an egg\nsew a button\n")
    (house / "rules.yaml").write_text(
        "name: own\nprinciples: [{id: long, critique: c, revise: r, choose: Which?, audience: people in a hurry}]\n"
    )
    (house / "recipe.yaml").write_text("""
prompts: {path: prompts.txt}
constitution: rules.yaml
models: {m: {kind: shouter, marks: 2}}
respond: {samples: 4}
pairs: [{kind: samples, per_prompt: 6}]
judge: {kind: longest}
out: run
""")
    tenet(house, "generate", "recipe.yaml")
    rows = [json.loads(line) for line in (house / "run/data/preference.jsonl").read_text().splitlines()]
    assert rows
    assert all(len(r["chosen"][0]["content"]) > len(r["rejected"][0]["content"]) for r in rows)
    assert "people in a hurry" in (house / "run/constitution.yaml").read_text()

    (house / "tally.yaml").write_text("model: none\ndata: run\nout: counted\n")
    assert f"{len(rows)} rows of {len(rows)}" in tenet(house, "train", "tally", "tally.yaml")

    votes = [
        {"item": str(i), "rater": who, "kind": kind, "verdict": said}
        for i, pair in enumerate(["AA", "AB", "BB", "BA"])
        for who, kind, said in zip(("ann", "robot"), ("human", "judge"), pair, strict=True)
    ]
    (house / "votes.jsonl").write_text("\n".join(map(json.dumps, votes)))
    tenet(house, "agree", "votes.jsonl", "--json", "agreement.json")
    assert json.loads((house / "agreement.json").read_text())["judges"]["robot"]["says_a"] == 0.5
