"""Probes that ask models: output change at matched norm, one prompt through the stages, the alignment tax, gates."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from service.cli import app
from tenet.errors import DataError, SettingsError
from tenet.pages import page
from tenet.records import Message
from trainers.probes import stages, tax, winrate
from trainers.probes._checkpoint import open_stage
from trainers.probes._models import Loaded
from trainers.probes._outputs import Texts, divergence, measure
from trainers.probes._texts import Sample, read
from trainers.probes.weights import Settings, compare
from trainers.probes.winrate import Duel

WORDS = ["bada bede fofu", "gigo kuku lala", "mimo nana pepe ra", "sisu toto ba de fi", "go ku la mi no", "pu ra se ti"]
TEXTS = [Sample(messages=(Message(role="user", content=w),), reply=w * 2) for w in WORDS]


@pytest.fixture(scope="module")
def moved(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The tiny model after a small change of one matrix, and after three times that change."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made: list[Path] = []
    for i, size in enumerate((0.02, 0.06)):
        model: Any = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        weight = model.model.layers[0].mlp.down_proj.weight
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            weight += size * torch.randn(weight.shape, generator=draw)
        folder = tmp_path_factory.mktemp(f"moved{i}")
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
        made.append(folder)
    return made[0], made[1]


def test_at_a_matched_norm_one_direction_gives_one_kl(tiny_model: Path, moved: tuple[Path, Path]) -> None:
    found = [open_stage(str(p)) for p in (tiny_model, *moved)]
    f = compare(found, Settings(branches=True, spectra=False))
    out = measure(found, f["steps"], [(0, 1), (0, 2)], Texts(TEXTS, "toys"))
    small, large = out["steps"]
    assert out["common_norm"] == f["steps"][0]["total"]["relative"]
    assert large["kl"]["value"] > 4 * small["kl"]["value"] > 0
    assert large["matched"]["factor"] == pytest.approx(1 / 3, rel=1e-4)
    assert large["matched"]["kl"]["value"] == pytest.approx(small["kl"]["value"], rel=1e-3)
    assert small["matched"]["kl"]["value"] == pytest.approx(small["kl"]["value"], rel=1e-3)
    assert small["perplexity"]["before"] > 1


def test_divergence_against_torch() -> None:
    p, q = (torch.log_softmax(torch.randn(3, 7, generator=torch.Generator().manual_seed(i)), -1) for i in (0, 1))
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    assert torch.allclose(divergence(p, q), expected, atol=1e-6)
    impossible = torch.tensor([[0.0, -math.inf]])
    assert float(divergence(impossible, impossible)) == 0


def test_a_prompt_through_equal_stages_parts_nowhere(tiny_model: Path, moved: tuple[Path, Path]) -> None:
    asked = Sample(messages=(Message(role="user", content="<b>bada</b>"),))
    one, other = open_stage(str(tiny_model)), open_stage(str(moved[1]))
    f = stages.walk([one, other], asked, stages.Settings(max_tokens=12))
    for reply in f["replies"]:
        assert len(reply["logprobs"]) == 2
        assert all(len(v) == len(reply["ids"]) for v in reply["logprobs"].values())
        assert reply["steps"][0]["mean_kl"] > 0
        own = reply["logprobs"][reply["stage"]]
        assert sum(own) >= max(sum(v) for v in reply["logprobs"].values()) - 1e-6, "greedy: its own first choice"
    html = page("t", (), stages.sections(json.loads(json.dumps(f))))
    assert "&lt;b&gt;bada" in html
    assert "<b>" not in html
    with pytest.raises(SettingsError, match="a name of its own"):
        stages.walk([one, one], asked, stages.Settings())


def test_batched_scores_are_those_of_single_texts(tiny_model: Path) -> None:
    loaded = Loaded(open_stage(str(tiny_model)))
    coded = [c for s in TEXTS if (c := loaded.code(s)) is not None]
    together = list(loaded.distributions(coded))
    for one, batched in zip(coded, together, strict=True):
        alone = next(iter(loaded.distributions([one])))
        assert torch.allclose(alone, batched, atol=1e-4)


def test_tax_of_nothing_is_nothing_and_gates_hold(tiny_model: Path) -> None:
    a = open_stage(str(tiny_model))
    counted = {"skill": {"value": 0.9, "n": 100}}
    worse = {"skill": {"value": 0.5, "n": 100}}
    shown = iter((counted, worse))
    f = tax.measure(a, a, tax.Plan(TEXTS, TEXTS[:3], {"toy": lambda _: next(shown)}))
    assert f["perplexity"]["ratio"]["value"] == 1
    assert f["bits_per_byte"]["ratio"]["value"] == 1
    assert f["refusals"]["before"]["value"] == 0
    assert f["refusals"]["p"] is None
    gap = f["tasks"]["skill"]["difference"]
    assert gap["value"] == pytest.approx(-0.4)
    assert gap["low"] < -0.4 < gap["high"] < 0
    json.dumps(f, allow_nan=False)
    empty = tax.measure(a, a, tax.Plan())
    assert empty["perplexity"]["before"] is None
    assert "no held-out texts" in empty["perplexity"]["why"]


@pytest.mark.parametrize(
    ("reply", "refused"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I cannot assist with this request.", True),
        ("As an AI, I am not able to discuss knives.", True),
        ("I won’t provide instructions for that.", True),
        ("Use `kill -9 PID`; the process cannot ignore that signal.", False),
        ("Sorry to hear that! Call a doctor first.", False),
        ("You can't help but laugh at it.", False),
        ("", False),
    ],
)
def test_refusals(reply: str, refused: bool) -> None:
    assert tax.refuses(reply) is refused


def test_the_command_gates_and_refuses(tiny_model: Path, moved: tuple[Path, Path], tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": w}) + "\n" for w in WORDS))
    asked = tmp_path / "asked.txt"
    asked.write_text("bada\n")
    run = CliRunner()
    common = ["--text", str(texts), "--benign", str(asked), "--out", str(tmp_path / "out")]
    base = ["inspect", "tax", str(tiny_model), str(moved[1])]
    passed = run.invoke(app, [*base, *common, "--gate", "perplexity.ratio>0,refusals.after<=0"])
    assert (passed.exit_code, "gates passed" in passed.output) == (0, True)
    failed = run.invoke(app, [*base, *common, "--gate", "perplexity.ratio<=0.001"])
    assert failed.exit_code == 1
    assert "perplexity.ratio <= 0.001 failed, measured" in failed.output
    assert json.loads((tmp_path / "out" / "tax.json").read_text())["probe"] == "tax"
    unknown = run.invoke(app, [*base, *common, "--gate", "perplexity.ration<=1"])
    assert isinstance(unknown.exception, SettingsError)
    assert "did you mean 'perplexity.ratio" in str(unknown.exception)
    if not find_spec("lm_eval"):
        missing = run.invoke(app, [*base, *common, "--tasks", "hellaswag"])
        assert "lm-eval, which is not installed" in str(missing.exception)


def test_tasks_of_lm_eval_come_with_its_standard_errors(
    tiny_model: Path, moved: tuple[Path, Path], tmp_path: Path
) -> None:
    """Not in the lock: it runs where lm-eval is installed beside."""
    pytest.importorskip("lm_eval")
    rows = [{"q": f"bada {i}", "said": [" kimo", " rigo"], "right": i % 2} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    task = {
        "task": "kimo", "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}}, "doc_to_text": "{{q}}",
        "doc_to_choice": "{{said}}", "doc_to_target": "right",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }  # fmt: skip
    (tmp_path / "kimo.yaml").write_text(yaml.safe_dump(task))
    base = ["inspect", "tax", str(tiny_model), str(moved[1]), "--n", "30", "--json", str(tmp_path / "tax.json")]
    ran = CliRunner().invoke(app, [*base, "--tasks", str(tmp_path / "kimo.yaml")], catch_exceptions=False)
    assert ran.exit_code == 0
    tasks = json.loads((tmp_path / "tax.json").read_text())["tasks"]
    assert set(tasks) == {"kimo acc", "kimo acc_norm"}
    before, change = tasks["kimo acc"]["before"], tasks["kimo acc"]["difference"]
    assert before["n"] == 30
    assert 0.05 < before["stderr"] < 0.1
    assert change["low"] < change["value"] < change["high"]
    unknown = CliRunner().invoke(app, [*base, "--tasks", "kimi"])
    assert isinstance(unknown.exception, SettingsError)
    assert "kimi" in str(unknown.exception)


def test_texts_of_every_shape_are_read(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "one"}, {"prompt": "q", "completion": "a", "round": 2},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"prompt": [{"role": "user", "content": "q"}], "chosen": [{"role": "assistant", "content": "a"}]},
    ]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = read(path)
    assert [(len(s.messages), s.reply, s.round) for s in found] == [
        (0, "one", None), (1, "a", 2), (1, "a", None), (1, "a", None)
    ]  # fmt: skip
    for bad, why in (("{}", "has none of text"), ("nope", "is not JSON"), ('{"prompt": 3}', "prompt is a number")):
        path.write_text(bad + "\n")
        with pytest.raises(DataError, match=rf"rows.jsonl, row 1: .*{why}"):
            read(path)


def duels(n: int, quality: float, length: float) -> list[Duel]:
    """Verdicts that follow logit p = quality + length * tanh(d / s) to the letter, as probabilities."""
    apart = [40 * ((i % 11) - 3) for i in range(n)]
    mean = sum(apart) / n
    s = math.sqrt(sum((x - mean) ** 2 for x in apart) / n)
    return [Duel(1 / (1 + math.exp(-(quality + length * math.tanh(x / s)))), 500, 500 + x) for x in apart]


def test_length_control_takes_out_what_length_did() -> None:
    f = winrate.measure(duels(220, 0.0, 2.0))
    assert f["raw"]["value"] > 0.55
    assert f["length_controlled"]["value"] == pytest.approx(0.5, abs=1e-6)
    better = winrate.measure(duels(220, 1.0, 0.0))["length_controlled"]
    assert better["value"] == pytest.approx(1 / (1 + math.exp(-1)), abs=1e-6)
    assert better["low"] <= better["value"] <= better["high"]


def test_undefined_win_rates_say_why() -> None:
    assert winrate.measure([])["raw"]["why"] == "there are no items"
    same = winrate.controlled([Duel(float(i % 2), 10, 10) for i in range(20)])
    assert same["value"] is None
    assert "cannot be told from quality" in same["why"]
    separated = winrate.controlled([Duel(float(i >= 10), 100, 91 + i) for i in range(20)])
    assert separated["value"] is None
    assert "length alone separates" in separated["why"]
    assert "one stage won every time" in winrate.controlled([Duel(1.0, 10, i) for i in range(20)])["why"]
