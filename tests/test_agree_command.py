"""`tenet agree` as a user runs it: screen, JSON, gates, the report, and pairs judged on the spot."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from judges.agreement import votes as votes_file
from judges.agreement.measure import measure
from judges.agreement.report import write
from judges.agreement.rules import Rules
from service.cli import app
from tenet.engines import Reply, Request
from tenet.errors import DataError, InputError, SettingsError
from tenet.pages import escaped, fenced
from tests.test_agree import DEGENERATE, made

ROOT = Path(__file__).parent.parent
SECTIONS = [
    "Coverage", "People", "Agreement", "Ceiling", "Bias", "Slices", "Calibration", "Disagreements", "Robustness",
]  # fmt: skip
HOSTILE = '<script>alert("x")</script> ``` <img src=x onerror=alert(1)> </pre></article> | [a](javascript:b) $\\alpha$'


def file(folder: Path, rows: list[dict[str, Any]], name: str = "votes.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*arguments: Any) -> tuple[int, str]:
    """Exit status and screen of a command; errors come as they are raised."""
    done = CliRunner().invoke(app, ["agree", *map(str, arguments)], catch_exceptions=False)
    return done.exit_code, " ".join(done.output.split())


def test_the_screen_and_the_json_say_the_same(tmp_path: Path) -> None:
    code, screen = run(file(tmp_path, made()), "--json", tmp_path / "out" / "a.json", "--tie", "drop", "--seed", 3)
    figures = json.loads((tmp_path / "out" / "a.json").read_text())
    assert code == 0
    assert figures["rules"] == {
        "tie": "drop", "swap": "both", "invalid": "wrong", "gold": "majority", "epsilon": 0.15,
        "duplicates": "refuse", "seed": 3, "resamples": 1000,
    }  # fmt: skip
    assert "ties drop; orders both; invalid verdicts wrong; gold majority; epsilon 0.15" in screen
    for name, j in figures["judges"].items():
        assert f"{name} {j['n']} {j['accuracy']['value']:.3f} ({j['accuracy']['low']:.3f} to" in screen
    required = {
        "n", "coverage", "states", "accuracy", "balanced_accuracy", "macro", "weighted", "confusion", "cohen_kappa",
        "scott_pi", "gwet_ac1", "s2", "consistency", "first_slot_share", "alt_test", "calibration", "bias", "slices",
        "rogan_gladen", "disagreements",
    }  # fmt: skip
    assert required <= figures["judges"]["jay0"].keys()
    assert figures["humans"].keys() >= {
        "raters", "pairwise_agreement", "cohen", "fleiss_kappa", "krippendorff_alpha", "gwet_ac1",
        "leave_one_out_ceiling",
    }  # fmt: skip
    assert figures["between"].keys() == {"mcnemar", "difference", "rank_stability"}


def test_one_judge_and_one_slice_on_request(tmp_path: Path) -> None:
    run(file(tmp_path, made()), "--judge", "jay1", "--by", "topic", "--json", tmp_path / "a.json")
    figures = json.loads((tmp_path / "a.json").read_text())
    assert list(figures["judges"]) == ["jay1"]
    assert list(figures["judges"]["jay1"]["slices"]) == ["topic"]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--tie", "third", "'third' should be one of three-class, half, drop"),
        ("--swap", "none", "'none' should be one of both, mean, first, signed-sum"),
        ("--epsilon", "2", "epsilon"),
        ("--judge", "jay9", "no vote is by 'jay9'"),
        ("--gate", "kappa>=high", "'kappa>=high' is no gate"),
        ("--gate", "kapa>=0.6", "no figure is called 'kapa' (did you mean 'kappa'? known:"),
        ("--gate", "kappa>=0.6;invalid<=1", "is no gate"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, option: str, value: str, said: str) -> None:
    with pytest.raises(SettingsError) as e:
        run(file(tmp_path, made(items=6)), option, value)
    assert said in str(e.value)


def test_gates(tmp_path: Path) -> None:
    votes = file(tmp_path, made())
    code, screen = run(votes, "--gate", "kappa.low >= -1, invalid<=0.5,accuracy>0.1,s2.n>=1,alt_test.rho<=1")
    assert (code, "gates passed" in screen) == (0, True)
    code, screen = run(votes, "--judge", "jay0", "--gate", "kappa.low>=0.99,invalid<=0.5")
    low = measure(votes_file.read(str(votes)), Rules()).figures["judges"]["jay0"]["cohen_kappa"]["low"]
    assert code == 1
    assert f"gate jay0: kappa.low >= 0.99 failed, measured {low:.6g}" in screen
    assert screen.count("failed, measured") == 1


def test_an_undefined_figure_passes_no_gate(tmp_path: Path) -> None:
    rows = [r for r in made(items=10, orders=False) if "p_a" not in r or r.pop("p_a")]
    code, screen = run(file(tmp_path, rows), "--judge", "jay0", "--gate", "ece<=1,consistency>=0")
    assert code == 1
    assert "ece <= 1 failed, measured undefined: no readable vote has a p_a" in screen
    assert "consistency >= 0 failed, measured undefined: no item was judged in both slot orders" in screen


def test_the_report_is_one_page_with_all_sections_in_order(tmp_path: Path) -> None:
    _, screen = run(file(tmp_path, made()), "--report", tmp_path / "r")
    page, twin = ((tmp_path / "r" / name).read_text() for name in ("report.html", "report.md"))
    assert str(tmp_path / "r" / "report.html") in screen.replace(" ", "") or "report" in screen
    assert re.findall(r'<h2 id="[a-z]+">(\w+)</h2>', page) == SECTIONS
    assert re.findall(r"^## (\w+)$", twin, re.MULTILINE) == SECTIONS
    assert not re.search(r'(src|href)="(?!data:image/svg|#)', page)  # nothing comes from outside
    assert page.count("data:image/svg+xml;base64,") == len(list((tmp_path / "r" / "plots").glob("*.svg"))) >= 5
    for name in re.findall(r"\(plots/([^)]+)\)", twin):
        assert (tmp_path / "r" / "plots" / name).exists()
    for text in (page, twin.replace("\\", "")):
        assert "Rules: ties three-class; orders both; invalid verdicts wrong; gold majority" in text


@pytest.mark.parametrize("name", DEGENERATE)
def test_a_report_of_next_to_nothing_is_still_a_report(tmp_path: Path, name: str) -> None:
    facts = {"len_a": 3, "len_b": 3, "slices": {"topic": "x"}}
    rows = [{**row, **facts} for row in DEGENERATE[name]]
    code, _ = run(file(tmp_path, rows), "--report", tmp_path / "r")
    assert code == 0
    assert re.findall(r'<h2 id="[a-z]+">(\w+)</h2>', (tmp_path / "r" / "report.html").read_text()) == SECTIONS


def test_the_same_votes_give_the_same_report(tmp_path: Path) -> None:
    agreement = measure(votes_file.read(str(file(tmp_path, made()))), Rules())
    for folder in ("one", "two"):
        write(agreement, tmp_path / folder, "votes")
    assert (tmp_path / "one/report.html").read_bytes() == (tmp_path / "two/report.html").read_bytes()


def hostile_pairs() -> list[dict[str, Any]]:
    return [{"id": f"{HOSTILE}{i}", "prompt": HOSTILE, "a": HOSTILE, "b": f"b {i}", "label": "A"} for i in range(3)]


def test_hostile_texts_and_names_are_shown_as_text(tmp_path: Path) -> None:
    pairs = file(tmp_path, hostile_pairs(), "pairs.jsonl")
    rows: list[dict[str, Any]] = []
    for pair in hostile_pairs():
        facts = {"item": pair["id"], "slices": {HOSTILE: HOSTILE}}
        rows.append({**facts, "rater": HOSTILE, "kind": "human", "verdict": "A"})
        rows.append({**facts, "rater": f"[bold]{HOSTILE}", "kind": "judge", "verdict": "B", "p_a": 0.1})
    run(file(tmp_path, rows), "--pairs", pairs, "--report", tmp_path / "r")
    page, twin = ((tmp_path / "r" / name).read_text() for name in ("report.html", "report.md"))
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "<img src=x" not in page
    assert page.count("</article>") == 3
    # In Markdown, texts stand in fences that they cannot close; names are escaped.
    outside = re.sub(r"^(`{3,})text\n.*?\n\1$", "", twin, flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in re.sub(r"\\<", "", outside)
    assert "](javascript" not in outside.replace("\\]", "").replace("\\(", "")


def test_markdown_fences_hold_what_they_are_given() -> None:
    assert fenced("a ```` b") == "`````text\na ```` b\n`````"
    assert escaped("a|b\n<c>") == "a\\|b \\<c\\>"


def prefers_longer(request: Request) -> Reply:
    """Plays a judge that prefers the longer of two fenced replies, and the first slot a little."""
    text = request.messages[-1].content
    one, two = (re.findall(f"<reply_{x}>\n(.*?)\n</reply_{x}>", text, re.DOTALL)[-1] for x in "ab")
    gap = (len(one) - len(two)) / 20 + 0.1
    return Reply(choice_logprobs=(gap - 5, -5.0))


CONFIG = """
constitution: helpful
models:
  scripted: {kind: scripted, script: "tests.test_agree_command:prefers_longer"}
judge: {kind: pairwise}
"""


def test_pairs_are_judged_on_the_spot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "longer.yaml").write_text(CONFIG)
    rows = [
        {"id": f"p{i}", "prompt": "Say it.", "a": "word " * (i + 1) + "word", "b": "word " * 4 + "word", "label": "A"}
        for i in range(8)
    ]
    pairs = file(tmp_path, rows, "pairs.jsonl")
    code, _ = run("--pairs", pairs, "--judge", tmp_path / "longer.yaml", "--json", tmp_path / "a.json", "--report", "r")
    j = json.loads((tmp_path / "a.json").read_text())["judges"]["longer"]
    assert code == 0
    assert j["states"]["A"] + j["states"]["B"] + j["states"]["tie"] == 16
    # Of 8 pairs A is longer in 4 (i > 3), as long in one: there each order falls for its first slot.
    assert j["accuracy"]["value"] == 0.5
    assert j["bias"]["longer_share"]["value"] == 1.0
    assert j["consistency"] == {"value": 7 / 8, "n": 8}
    assert set(j["disagreements"]) == {"p0", "p1", "p2", "p3"}
    assert "word word" in (tmp_path / "r" / "report.html").read_text()


def test_an_attack_report_goes_into_the_page(tmp_path: Path) -> None:
    share = {"value": 0.25, "low": 0.1, "high": 0.4, "n": 20}
    row = {"name": "bare colon", "escapes": 0, **dict.fromkeys(("false_accept", "false_accept_control"), share)}
    row |= {k: {"value": None, "low": None, "high": None, "n": 0} for k in ("flip", "flip_control")}
    found = {"judge": {"engines": ["jay"], "settings": {"kind": "pairwise"}}, "attacks": [row]}
    (tmp_path / "attack.json").write_text(json.dumps(found))
    run(file(tmp_path, made(items=8)), "--attack", tmp_path / "attack.json", "--report", tmp_path / "r")
    assert 'bare colon</td><td class="n">0.250 (0.100 to 0.400)' in (tmp_path / "r" / "report.html").read_text()
    (tmp_path / "no.json").write_text("[]")
    with pytest.raises(DataError, match="is no report of tenet attack"):
        run(file(tmp_path, made(items=8)), "--attack", tmp_path / "no.json")


def test_what_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    votes = file(tmp_path, made(items=4))
    with pytest.raises(InputError, match="there is nothing to read"):
        run("--json", tmp_path / "a.json")
    with pytest.raises(DataError, match="no such file"):
        run(tmp_path / "none.jsonl")
    with pytest.raises(SettingsError, match="'jay0' is not a config file"):
        run("--pairs", file(tmp_path, hostile_pairs(), "pairs.jsonl"), "--judge", "jay0")
    people = file(tmp_path, [r for r in made(items=4) if r["kind"] == "human"], "people.jsonl")
    code, screen = run(people)
    assert (code, "No rater is of kind judge." in screen) == (0, True)
    with pytest.raises(SettingsError, match="there is no judge to hold a gate against"):
        run(people, "--gate", "kappa>=0")
    assert run(votes)[0] == 0


def test_the_command_as_a_process_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    bad = file(tmp_path, [{"item": "q", "rater": "ann", "kind": "human", "verdict": "yes"}])
    command = [sys.executable, "-m", "service", "agree", str(bad)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert done.stderr == f"tenet: {bad}, line 1: 'verdict' is 'yes' (one of A, B, tie, invalid, refused)\n"


def test_nothing_heavy_is_imported_to_read_votes() -> None:
    code = (
        "import judges.agreement.measure, judges.agreement.report, judges.pairs_file, sys;"
        "heavy = {'numpy', 'scipy', 'sklearn', 'pandas', 'statsmodels', 'matplotlib', 'evalica', 'pyarrow'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
