"""Upcycling: the mixture starts as the dense model's equal, loads where it should, and refuses what cannot be."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tenet.errors import SettingsError
from tenet.records import Message
from trainers.moe import routing, upcycle
from trainers.moe._hooks import layers
from trainers.moe.upcycle import Settings

GRID = [(4, 1, 1), (8, 2, 1), (8, 8, 1), (8, 2, 2), (16, 4, 2), (16, 4, 4), (12, 6, 3)]


def dense(kind: str, **own: Any) -> Any:
    """A tiny dense model whose weights are spread so wide that its logits are large."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {
        "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64, "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**shape, **own}))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(0, 1.5 / weight.shape[1] ** 0.5)
    return model.eval()


IDS = torch.randint(0, 96, (4, 48), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_the_function_is_equal_at_the_start_over_the_grid(kind: str, tied: bool, shared: bool) -> None:
    model = dense(kind, tie_word_embeddings=tied)
    kinds = {"qwen3": ("qwen3_moe", "dots1"), "llama": ("mixtral", "qwen2_moe")}
    assert model(input_ids=IDS).logits.detach().abs().max() > 1.0
    for experts, top_k, granularity in GRID:
        settings = Settings(experts=experts, top_k=top_k, granularity=granularity, shared_expert=shared)
        made = upcycle.upcycle(model, settings)
        assert made.config.model_type == kinds[kind][shared]
        assert upcycle.difference(model, made, IDS) <= 1e-4
        for layer in layers(made):
            assert (layer.count, layer.top_k) == (experts, top_k)
            per_expert = sum(p[0].numel() for p in layer.experts.parameters())
            assert per_expert == 3 * 32 * 48 // granularity


def test_the_bundled_assistant_upcycled_gives_the_same_logits() -> None:
    from transformers import AutoModelForCausalLM

    from nano import build

    folder = Path(build.__file__).parent / "models" / "assistant"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(5, 2048, (2, 64), generator=torch.Generator().manual_seed(1))
    made = upcycle.upcycle(model, Settings(experts=8, top_k=2))
    assert upcycle.difference(model, made, ids) <= 1e-4


def test_noise_and_reinitialisation_break_the_symmetry_by_the_share_asked_for() -> None:
    model = dense("qwen3")
    copies = layers(upcycle.upcycle(model, Settings(experts=4, top_k=2)))[0]
    assert routing.similarity(copies) == pytest.approx(1.0, abs=1e-4)
    noisy = layers(upcycle.upcycle(model, Settings(experts=4, top_k=2, noise=0.5)))[0]
    assert routing.similarity(noisy) == pytest.approx(1 / 1.25, abs=0.03)
    new = layers(upcycle.upcycle(model, Settings(experts=4, top_k=2, reinit=0.5)))[0]
    assert 0.1 < routing.similarity(new) < 0.6
    experts: Any = new.experts
    old: Any = model.model.layers[0].mlp
    kept = [
        {i for i in range(48) if torch.equal(experts.gate_up_proj[e, i], old.gate_proj.weight[i])} for e in range(4)
    ]
    assert [len(k) for k in kept] == [24] * 4
    assert kept[0] != kept[1], "each expert has its own units drawn anew"
    for e in range(4):  # gate, up and down of one unit are new together
        same_up = {i for i in range(48) if torch.equal(experts.gate_up_proj[e, 48 + i], old.up_proj.weight[i])}
        same_down = {i for i in range(48) if torch.equal(experts.down_proj[e, :, i], old.down_proj.weight[:, i])}
        assert kept[e] == same_up == same_down


def test_copies_give_the_router_no_gradient_from_the_language_model_loss() -> None:
    model = dense("qwen3")
    for reinit, moved in ((0.0, False), (0.5, True)):
        made = upcycle.upcycle(model, Settings(experts=4, top_k=2, reinit=reinit)).train()
        made(input_ids=IDS, labels=IDS).loss.backward()
        router: Any = layers(made)[0].router
        expert: Any = layers(made)[0].experts
        share = float(router.weight.grad.norm() / expert.down_proj.grad.norm())
        assert (share > 1e-3) == moved


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"experts": 8, "top_k": 3, "granularity": 2}, "top_k 3 is not a multiple of granularity 2"),
        ({"experts": 9, "top_k": 2, "granularity": 2}, "experts 9 is not a multiple of granularity 2"),
        ({"experts": 4, "top_k": 5}, "top_k 5 is more than there are experts"),
        ({"experts": 1, "top_k": 1}, "greater than 1"),
        ({"experts": 4, "top_k": 0}, "greater than 0"),
        ({"experts": 4, "top_k": 2, "reinit": 1.5}, "less than or equal to 1"),
    ],
)
def test_numbers_that_do_not_divide_are_refused(shape: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Settings(**shape)


def test_models_that_cannot_be_upcycled_are_refused_with_the_reason() -> None:
    with pytest.raises(SettingsError, match="granularity 5 does not divide the MLP's inner size 48"):
        upcycle.upcycle(dense("qwen3"), Settings(experts=5, top_k=5, granularity=5))
    with pytest.raises(SettingsError, match="gpt2 cannot be upcycled"):
        upcycle.upcycle(dense("gpt2", n_embd=32, n_head=2, n_layer=1), Settings(experts=4, top_k=2))
    with pytest.raises(SettingsError, match="has biases"):
        upcycle.upcycle(dense("llama", mlp_bias=True), Settings(experts=4, top_k=2))
    mixture = upcycle.upcycle(dense("qwen3"), Settings(experts=4, top_k=2))
    with pytest.raises(SettingsError, match="qwen3_moe cannot be upcycled"):
        upcycle.upcycle(mixture, Settings(experts=4, top_k=2))


def test_the_command_writes_what_transformers_loads_and_says_how_far_apart_they_are(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from service.cli import app

    out = tmp_path / "moe"
    asked = ["upcycle", "nano:base", "--experts", "4", "--top-k", "2", "--granularity", "2", "--out", str(out)]
    ran = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert ran.exit_code == 0
    assert "weights become" in ran.output
    assert "Loading" not in ran.output
    assert "largest difference of logits" in ran.output
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    assert loaded.config.model_type == "qwen3_moe"
    assert json.loads((out / "upcycle.json").read_text())["granularity"] == 2
    assert AutoTokenizer.from_pretrained(out).chat_template
    with pytest.raises(SettingsError, match="holds something already"):
        CliRunner().invoke(app, asked, catch_exceptions=False)
    again = [*asked[:4], "--top-k", "1", *asked[6:8], "--out", str(tmp_path / "other")]
    with pytest.raises(SettingsError, match="top_k 1 is not a multiple of granularity 2"):
        CliRunner().invoke(app, again, catch_exceptions=False)


def test_a_saved_mixture_is_served_by_vllm_with_the_text_that_transformers_gives(
    tiny_model: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tenet.engines import Request, Sampling
    from tenet.engines import vllm as served

    upcycle.main(tiny_model, Settings(experts=4, top_k=2, granularity=2, reinit=0.3), tmp_path / "moe")
    tok = AutoTokenizer.from_pretrained(tmp_path / "moe")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "moe", dtype=torch.float32).eval()
    asked = ["bada kimo?", "1 2 3 rigo", "sute nomi pa"]
    expected: list[str] = []
    for text in asked:
        turns = [{"role": "user", "content": text}]
        ids = tok.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        made = model.generate(**ids, max_new_tokens=12, do_sample=False)
        expected.append(tok.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    engine = served.build(
        served.Settings(model=str(tmp_path / "moe"), dtype="float32", max_model_len=256, kv_cache_gib=0.25)
    )

    async def ask() -> list[str]:
        messages = [(Message(role="user", content=text),) for text in asked]
        sampling = Sampling(temperature=0.0, max_tokens=12)
        try:
            return [r.text for r in await engine.generate([Request(messages=m, sampling=sampling) for m in messages])]
        finally:
            await engine.close()

    assert asyncio.run(ask()) == expected
