"""`tenet inspect routing`: planted routing is found, two models are told apart, and reports hold it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from nano import tasks
from service.cli import app
from tenet.errors import DataError, SettingsError
from trainers.moe import routing, upcycle
from trainers.moe._hooks import layers
from trainers.moe._texts import CLASSES, Row, kinds_of, read

NANO = Path(tasks.__file__).parent / "models"


@pytest.fixture(scope="module")
def tok() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(NANO / "base")


def mixture(top_k: int = 2) -> Any:
    from transformers import AutoModelForCausalLM

    dense = AutoModelForCausalLM.from_pretrained(NANO / "base", dtype=torch.float32)
    return upcycle.upcycle(dense, upcycle.Settings(experts=8, top_k=top_k, router_std=0.5))


def rows(n: int = 24) -> list[Row]:
    """Texts of two topics, with words and numbers."""
    rng = random.Random(0)
    made: list[Row] = []
    for i in range(n):
        ids = [rng.randrange(300, 1200) if i % 2 else rng.randrange(1200, 2000) for _ in range(rng.randint(20, 40))]
        made.append(Row(ids, [1 if t % 2 else 3 for t in ids], ("low", "high")[i % 2]))
    return made


def follow_the_id(model: Any, of: Any) -> None:
    """Makes every router send a token to experts that `of` names from its id."""
    held: dict[str, Any] = {}
    model.base_model.register_forward_pre_hook(lambda _, __, kw: held.update(kw), with_kwargs=True)

    def route(_: Any, __: Any, output: Any) -> Any:
        flat = held["input_ids"].reshape(-1)
        chosen = torch.tensor([of(int(t)) for t in flat])
        logits = torch.full_like(output[0], -20.0).scatter(1, chosen, 0.0)
        return logits, torch.full(chosen.shape, 0.5), chosen

    for layer in layers(model):
        layer.router.register_forward_hook(route)


def test_loads_add_up_and_padding_counts_for_nothing() -> None:
    texts = rows()
    found = routing.measure(mixture(), texts)
    assert found["tokens"] == sum(len(r.ids) for r in texts)
    assert [y["name"] for y in found["layers"]] == [f"model.layers.{i}.mlp" for i in range(5)]
    for y in found["layers"]:
        assert sum(y["load"]) == pytest.approx(1)
        assert y["similarity"] == pytest.approx(1, abs=1e-4)
        for by in (y["by_class"], y["by_topic"]):
            assert all(sum(load) == pytest.approx(1) for load in by.values())
    assert found["classes"] == {c: n for c, n in found["classes"].items() if n}
    assert sum(found["topics"].values()) == found["tokens"]


def test_experts_that_follow_the_class_or_the_topic_are_found_and_others_are_not() -> None:
    model = mixture()
    follow_the_id(model, lambda t: (0, 1) if t % 2 else (2, 3))
    y = routing.measure(model, rows())["layers"][0]
    assert y["specialisation"]["class"]["share"] == pytest.approx(0.5, abs=0.02)  # 1 bit of the experts' 2
    assert y["specialisation"]["class"]["chance"] < 0.02
    assert y["specialisation"]["topic"]["share"] < 0.02
    assert y["dead"] == [4, 5, 6, 7]
    assert y["load_entropy"] == pytest.approx(2 / 3, abs=0.01)
    pairs = y["coactivation"]
    assert pairs[0][1] == pytest.approx(8 * 7 / 2 * 0.5, rel=0.1)
    assert pairs[0][2] == 0.0
    assert pairs[0][0] is None
    model = mixture()
    follow_the_id(model, lambda t: (0, 1) if t < 1200 else (2, 3))
    y = routing.measure(model, rows())["layers"][0]
    assert y["specialisation"]["topic"]["share"] == pytest.approx(0.5, abs=0.02)
    assert y["by_topic"]["low"][2:4] == pytest.approx([0.5, 0.5])


def test_a_model_compared_with_itself_drops_nothing_and_a_moved_router_shows_where_it_moved() -> None:
    one, other = mixture(), mixture()
    for y in routing.compare(one, other, rows()):
        assert (y["dropped"], y["kl"], y["load_moved"], y["router_change"]) == (0.0, 0.0, 0.0, 0.0)
        assert y["same_set"] == y["same_first"] == 1.0
    router: Any = layers(other)[3].router
    with torch.no_grad():
        router.weight.copy_(router.weight.roll(1, 0))  # every expert is asked for what the one before it was
    found = routing.compare(one, other, rows())
    assert found[3]["dropped"] > 0.5
    assert found[3]["router_change"] > 0.5
    assert found[3]["experts_change"] == 0.0
    assert max(y["dropped"] for y in found[:3]) == 0.0
    # The experts are copies, so the layers after it see what they saw.
    assert found[4]["dropped"] < 0.01


def test_comparing_leaves_gradients_on() -> None:
    routing.compare(mixture(), mixture(), rows(8))
    assert torch.is_grad_enabled()


def test_models_of_another_shape_are_not_compared() -> None:
    with pytest.raises(SettingsError, match="other MoE layers or experts"):
        routing.compare(mixture(), mixture(top_k=1), rows())


def test_tokens_are_told_apart_by_class(tok: Any) -> None:
    kinds = kinds_of(tok)
    ids = tok("<|user|>Rinse the brush 42 times, then dry.", add_special_tokens=False)["input_ids"]
    said = [(tok.decode([i]), CLASSES[kinds[i]]) for i in ids]
    assert said[0] == ("<|user|>", "special")
    assert {c for t, c in said if t.strip().isdigit()} == {"number"}
    assert {c for t, c in said if t in (",", ".")} == {"punctuation"}
    assert {c for t, c in said if t in (" the", " then")} == {"word start"}


def test_rows_are_read_from_every_shape_and_bad_ones_are_named(tok: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "How do I sew?"}, {"role": "assistant", "content": "With care."}]
    made = [
        {"messages": turns, "tags": ["sewing"]}, {"prompt": turns[:1], "chosen": turns[1:], "topic": "thread"},
        {"text": "Plain words here."}, {"prompt": "How?", "completion": " So."},
    ]  # fmt: skip
    path.write_text("".join(json.dumps(r) + "\n" for r in made))
    found = read(path, tok, 64)
    assert [r.topic for r in found] == ["sewing", "thread", None, None]
    assert found[0].ids == found[1].ids
    path.write_text('{"text": "fine here"}\n{"score": 3}\n')
    with pytest.raises(DataError, match=r"row 2: has no text"):
        read(path, tok, 64)


def test_the_command_writes_a_report_of_one_model_or_two(tmp_path: Path) -> None:
    rng = random.Random(1)
    data = tmp_path / "rows.jsonl"
    role = {"user": "user", "assistant": "assistant", "given": "assistant"}
    talks = [[{"role": role[r], "content": t} for r, t in tasks.exercise(rng)] for _ in range(30)]
    data.write_text("".join(json.dumps({"messages": t}) + "\n" for t in talks))
    for name, seed in (("one", 0), ("two", 1)):
        made = upcycle.main(NANO / "base", upcycle.Settings(experts=8, top_k=2, seed=seed), tmp_path / name)
        assert made["difference"] <= 1e-4
    asked = ["inspect", "routing", str(tmp_path / "one"), str(data), "--compare", str(tmp_path / "two")]
    ran = CliRunner().invoke(app, [*asked, "--out", str(tmp_path / "report")], catch_exceptions=False)
    assert ran.exit_code == 0
    assert "layer 4" in ran.output
    figures = json.loads((tmp_path / "report/routing.json").read_text())
    assert len(figures["comparison"]) == 5
    assert len(figures["topics"]) > 3, "nano's world knows what its texts are about"
    html = (tmp_path / "report/report.html").read_text()
    text = (tmp_path / "report/report.md").read_text()
    for title in ("Load", "Comparison", "Token classes", "Topics", "Specialisation", "Co-activation"):
        assert f"<h2 id=\"{title.lower().replace(' ', '-')}\">" in html
    assert all((tmp_path / "report" / p.split(")")[0]).exists() for p in text.split("](")[1:])
    with pytest.raises(SettingsError, match="is dense: it has no router"):
        CliRunner().invoke(app, ["inspect", "routing", "nano:base", str(data)], catch_exceptions=False)
