"""Adapters on mixtures: every mode against a loop over tokens and against PEFT, in every family, and bad input."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tenet.errors import SettingsError
from trainers.adapters import attach, check

FAMILIES = ("qwen3_moe", "mixtral", "olmoe", "gpt_oss", "granitemoe", "deepseek_v3")
LOW_RANK = ("shared", "per_expert", "hybrid")


def tiny(family: str = "qwen3_moe", seed: int = 0, **more: Any) -> Any:
    """A random model of the family: 2 layers, hidden 32, 8 experts of 24, 2 picked."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0,
    }  # fmt: skip
    own = {
        "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8,
                      "intermediate_size": 48, "norm_topk_prob": True},
        "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 24, "head_dim": 8},
        "olmoe": {"num_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 24},
        "gpt_oss": {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 24, "head_dim": 8},
        "granitemoe": {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 24},
        "deepseek_v3": {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                        "intermediate_size": 48, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1,
                        "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
                        "v_head_dim": 8, "num_key_value_heads": 4},
        "qwen3": {"intermediate_size": 48, "head_dim": 8},
    }[family]  # fmt: skip
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(sizes | own | more)))
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(0, 0.15)
    return model.eval()


def tokens(n: int = 3, length: int = 17, seed: int = 0) -> Any:
    import torch

    return torch.randint(1, 96, (n, length), generator=torch.Generator().manual_seed(seed))


def shake(handle: Any, size: float = 0.1, seed: int = 1) -> None:
    """Random weights for the adapter, so that it is not the identity it starts as."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, p in handle.named_parameters():
            p.add_(torch.randn(p.shape, generator=draw).to(p.dtype) * size)


def by_token(layer: Any, piece: Any, x: Any, picks: Any, weights: Any) -> Any:
    """The experts with their adapter, a token and a pick at a time, from the definition."""
    import torch

    def through(target: str, weight: Any, bias: Any, e: int, row: Any) -> Any:
        out = row @ weight[e] if layer.is_transposed else weight[e] @ row
        out = out if bias is None else out + bias[e]
        if piece.ranks:
            a = getattr(piece, f"{target}_a").view(piece.E, piece.ranks[0], -1)[e]
            b = getattr(piece, f"{target}_b").view(piece.E, piece.ranks[0], -1)[e]
            out = out + piece.scale * (b.T @ (a @ row))
        if hasattr(piece, f"shared_{target}_a"):
            a, b = getattr(piece, f"shared_{target}_a"), getattr(piece, f"shared_{target}_b")
            out = out + piece.shared_scale * (b.T @ (a @ row))
        return out

    biases = (layer.gate_up_proj_bias, layer.down_proj_bias) if layer.has_bias else (None, None)
    rows = []
    for t in range(x.shape[0]):
        total = torch.zeros_like(x[t])
        for j in range(picks.shape[1]):
            e = int(picks[t, j])
            h = layer._apply_gate(through("gate_up", layer.gate_up_proj, biases[0], e, x[t]))
            total = total + weights[t, j] * through("down", layer.down_proj, biases[1], e, h)
        rows.append(total)
    return torch.stack(rows)


# -- the pass over the experts ---------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("mode", LOW_RANK)
def test_the_pass_equals_a_loop_over_tokens(family: str, mode: str) -> None:
    import torch

    model = tiny(family).double()
    handle = attach(model, {"mode": mode, "r": 3})
    shake(handle)
    path, piece = next(iter(handle.pieces.items()))
    layer = dict(model.named_modules())[path]
    x = torch.randn(9, 32, dtype=torch.float64, requires_grad=True)
    picks = torch.stack([torch.randperm(6)[:2] for _ in range(9)])  # experts 6 and 7 get nothing
    weights = torch.rand(9, 2, dtype=torch.float64, requires_grad=True)
    inputs = [x, weights, *piece.parameters()]
    ours, loop = layer(x, picks, weights), by_token(layer, piece, x, picks, weights)
    torch.testing.assert_close(ours, loop, rtol=1e-10, atol=1e-10)
    direction = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, direction),
        torch.autograd.grad(loop, inputs, direction),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("settings", [{"mode": "hybrid", "r": 2}, {"mode": "experts", "ids": {0: [1, 3], 1: [0]}}])
def test_gradients_agree_with_finite_differences(settings: dict[str, Any]) -> None:
    import torch

    model = tiny(hidden_size=8, moe_intermediate_size=6, num_experts=4).double()
    handle = attach(model, settings)
    shake(handle)
    path, piece = next(iter(handle.pieces.items()))
    layer = dict(model.named_modules())[path]
    x = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    picks = torch.tensor([[0, 1], [1, 2], [2, 1], [1, 0], [3, 1]])
    weights = torch.rand(5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w, *_: layer(x, picks, w), (x, weights, *piece.parameters()))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_starts_as_its_base_and_can_be_switched_off(family: str) -> None:
    import torch

    model, ids = tiny(family), tokens()
    base = model(ids).logits
    for mode in (*LOW_RANK, "router", "attention"):
        handle = attach(model, {"mode": mode})
        torch.testing.assert_close(model(ids).logits, base, rtol=1e-4, atol=2e-5)
        shake(handle)
        assert (model(ids).logits - base).abs().max() > 1e-3
        with handle.disabled():
            torch.testing.assert_close(model(ids).logits, base, rtol=1e-4, atol=2e-5)
        handle.remove()
        assert torch.equal(model(ids).logits, base)
        assert not [n for n, _ in model.named_parameters() if "tenet" in n]


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "olmoe", "gpt_oss"])
def test_per_expert_equals_peft_in_logits_and_gradients(family: str) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    model, ids = tiny(family), tokens()
    other = copy.deepcopy(model)
    handle = attach(model, {"mode": "per_expert", "r": 4, "alpha": 8})
    shake(handle)
    names = ["experts.gate_up_proj", "experts.down_proj"]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=[], target_parameters=names)
    wrapped = get_peft_model(other, config)
    theirs = dict(wrapped.named_parameters())
    pairs: list[tuple[Any, Any, Any]] = []
    for name, p in handle.named_parameters():
        path, _, own = name.rpartition(".")
        inner = ".base_layer" if own.startswith("gate_up") else ""
        peft_name = f"base_model.model.{path}{inner}.lora_{'A' if own.endswith('a') else 'B'}.default.weight"

        # A is [E*r, in] as ours is; B is [out, r*E] with the expert fastest
        def pack(t: Any, is_a: bool = own.endswith("a")) -> Any:
            return t if is_a else t.view(8, 4, -1).permute(2, 1, 0).reshape(t.shape[1], -1)

        with torch.no_grad():
            theirs[peft_name].copy_(pack(p))
        pairs.append((p, theirs[peft_name], pack))
    a, b = model(ids, labels=ids), wrapped(ids, labels=ids)
    torch.testing.assert_close(a.logits, b.logits, rtol=1e-4, atol=2e-5)
    a.loss.backward()
    b.loss.backward()
    for ours, peft, pack in pairs:
        torch.testing.assert_close(pack(ours.grad), peft.grad, rtol=1e-3, atol=2e-6)


def test_the_kernel_for_gpus_gives_the_same_as_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from trainers.adapters import _experts, _pieces

    model, ids = tiny(), tokens()
    handle = attach(model, {"mode": "hybrid", "r": 3, "residual_r": 3})
    shake(handle)
    model(ids, labels=ids).loss.backward()
    grads = {n: p.grad.clone() for n, p in handle.named_parameters()}
    # grouped_mm runs on a CPU too; only the choice of the path is by device
    monkeypatch.setattr(_experts, "loops_on", lambda device: False)
    for p in model.parameters():
        p.grad = None
    model(ids, labels=ids).loss.backward()
    for n, p in handle.named_parameters():
        torch.testing.assert_close(p.grad, grads[n], rtol=1e-4, atol=1e-6)
    assert _pieces.aligned(3, torch.float32) == 4
    assert _pieces.aligned(3, torch.bfloat16) == 8


def test_nothing_of_a_weights_size_is_kept_for_the_backward_pass() -> None:
    import torch

    model = tiny()
    attach(model, {"mode": "per_expert", "r": 2})
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    block, kept = model.model.layers[0].mlp, list[int]()

    def pack(t: Any) -> Any:
        if t.untyped_storage().data_ptr() not in own:
            kept.append(t.numel())
        return t

    x = torch.randn(1, 5, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        block(x)
    S = 5 * 2
    assert max(kept) == S * 48  # the first projection's output; an expert's stack of deltas has 8 * 48 * 32
    assert sum(kept) < 3 * S * 48


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_no_gradient_and_counts_each_token_once(reentrant: bool) -> None:
    import torch

    ids = tokens()
    found: list[tuple[dict[str, Any], int]] = []
    for checkpointed in (False, True):
        model = tiny().train()
        handle = attach(model, {"mode": "hybrid", "jitter": 0.05})
        shake(handle)
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        torch.manual_seed(3)
        model(ids, labels=ids, use_cache=False).loss.backward()
        seen = sum(int(p.tokens.sum()) for p in handle.pieces.values() if hasattr(p, "tokens"))
        found.append(({n: p.grad for n, p in handle.named_parameters()}, seen))
    for name, grad in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], grad, rtol=1e-5, atol=1e-7)
    # two layers, two picks; the last token of a sequence predicts nothing, so no gradient comes through it
    assert found[0][1] == found[1][1] == 2 * 2 * 3 * 16


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    import torch

    ids = tokens(4)
    model = tiny()
    handle = attach(model, {"mode": "per_expert"})
    shake(handle)
    model(ids, labels=ids).loss.backward()
    whole = {n: p.grad.clone() for n, p in handle.named_parameters()}
    for p in model.parameters():
        p.grad = None
    for half in ids.chunk(2):
        (model(half, labels=half).loss / 2).backward()
    for n, p in handle.named_parameters():
        torch.testing.assert_close(p.grad, whole[n], rtol=1e-4, atol=1e-7)


def test_bf16_stays_near_float32_and_keeps_factors_in_float32() -> None:
    import torch

    ids = tokens()
    grads: list[Any] = []
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny().to(dtype)
        handle = attach(model, {"mode": "per_expert", "r": 8})
        shake(handle)
        assert {p.dtype for _, p in handle.named_parameters()} == {torch.float32}
        model(ids, labels=ids).loss.backward()
        grads.append(torch.cat([p.grad.reshape(-1) for _, p in handle.named_parameters()]))
    # routing may flip where two experts are near a tie, so the whole gradient is compared and not each value
    assert torch.nn.functional.cosine_similarity(grads[0], grads[1], dim=0) > 0.97


def test_autocast_gives_the_gradients_of_its_own_float32_experts() -> None:
    import torch

    ids = tokens()
    model = tiny()
    handle = attach(model, {"mode": "hybrid"})
    shake(handle)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(ids, labels=ids).loss
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for _, p in handle.named_parameters())


# -- modes -----------------------------------------------------------------------------------------


def test_a_shared_pair_is_one_for_all_experts() -> None:
    model = tiny()
    audit = attach(model, {"mode": "shared", "r": 4}).audit()
    # two layers, gate_up 32 -> 48 and down 24 -> 32
    assert audit.trainable == audit.active == 2 * 4 * (32 + 48 + 24 + 32)


def test_per_expert_counts_what_a_token_meets() -> None:
    audit = attach(tiny(), {"mode": "per_expert", "r": 4}).audit()
    assert audit.trainable == 8 * 2 * 4 * (32 + 48 + 24 + 32)
    assert audit.active == audit.trainable * 2 / 8
    assert "model.layers.*.mlp.experts.gate_up_a [32, 32] x 2" in audit.text()


def test_attention_goes_with_any_mode() -> None:
    model = tiny()
    handle = attach(model, {"mode": "router", "attention": {"r": 2, "targets": ["q_proj", "v_proj"]}})
    assert {n.split(".")[4] for n, _ in handle.named_parameters()} == {"gate", "q_proj", "v_proj"}


def test_chosen_experts_alone_are_trained() -> None:
    import torch

    model, ids = tiny(), tokens()
    base = {n: p.detach().clone() for n, p in model.named_parameters()}
    handle = attach(model, {"mode": "experts", "ids": {0: [5, 2], 1: [7]}})
    assert handle.audit().trainable == 3 * (48 * 32 + 32 * 24)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    handle.guard(optimizer)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    merged = dict(handle.merge().named_parameters())
    for name, before in base.items():
        changed = {e for e in range(before.shape[0]) if not torch.equal(before[e], merged[name][e])}
        layer = name.split(".")[2] if "experts" in name else ""
        assert changed == {"0": {2, 5}, "1": {7}, "": set()}[layer], name


def test_chosen_experts_have_the_gradient_of_full_fine_tuning() -> None:
    import torch

    model, ids = tiny(), tokens()
    other = copy.deepcopy(model)
    handle = attach(model, {"mode": "experts", "ids": {0: [1, 6], 1: [0, 1, 2]}})
    model(ids, labels=ids).loss.backward()
    other(ids, labels=ids).loss.backward()
    for n, p in handle.named_parameters():
        path, _, own = n.rpartition(".")
        whole = other.get_parameter(f"{path}.{own.removeprefix('chosen_')}_proj").grad
        torch.testing.assert_close(p.grad, whole[handle.pieces[path].ids], rtol=1e-4, atol=1e-6)


def test_experts_are_selected_as_esft_does() -> None:
    from trainers.adapters.experts import select

    assert select([0.5, 0.1, 0.3, 0.1], 0.6, None) == [0, 2]
    assert select([0.5, 0.1, 0.3, 0.1], 0.5, None) == [0]
    assert select([0.1, 0.4, 0.4, 0.1], 1.0, 2) == [1, 2]
    model = tiny()
    batches = [{"input_ids": tokens()}]
    handle = attach(model, {"mode": "experts", "by": "token", "n": 3}, batches=batches)
    from trainers.adapters import measure

    handle.remove()
    load = measure(model, batches)
    most = [sorted(row.argsort(descending=True, stable=True)[:3].tolist()) for row in load.tokens]
    assert [p.ids.tolist() for p in handle.pieces.values()] == most


def test_the_load_leaves_padding_out() -> None:
    import torch

    from trainers.adapters import measure

    model, ids = tiny(), tokens(2, 6)
    padded = torch.cat([ids, torch.zeros_like(ids)], 1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros_like(ids)], 1)
    alone, beside = (
        measure(model, [{"input_ids": ids}]),
        measure(model, [{"input_ids": padded, "attention_mask": mask}]),
    )
    assert torch.equal(alone.tokens, beside.tokens)
    assert int(alone.tokens.sum()) == 2 * 12 * 2
    assert torch.equal(alone.rows.sum(0), alone.tokens)


def test_heads_stay_trainable_in_every_mode() -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    config = tiny().config
    config.num_labels = 1
    for mode in ("shared", "per_expert", "hybrid", "router", "attention", "full"):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config)
        handle = attach(model, {"mode": mode})
        assert model.score.weight.requires_grad
        assert "head.score.weight" in handle.state()
        model(tokens()).logits.sum().backward()
        assert model.score.weight.grad is not None


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [*LOW_RANK, "router", "experts"])
def test_a_dense_model_is_refused_with_the_reason(mode: str) -> None:
    settings = {"mode": mode} | ({"ids": {0: [0]}} if mode == "experts" else {})
    with pytest.raises(SettingsError, match="qwen3 is a dense model: no layer of it routes tokens"):
        attach(tiny("qwen3"), settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mode": "per_expert", "r": 0}, "greater than or equal to 1|at least 1|0"),
        ({"mode": "per_expert", "r": 25}, "rank 25 is above the 24 that .*down can have"),
        ({"mode": "router", "r": 9}, "rank 9 is above the 8 that .*gate can have"),
        ({"mode": "shared", "attention": {"r": 17}}, "rank 17 is above the 16"),
        ({"mode": "experts", "ids": {0: [8]}}, r"unknown expert ids \[8\].*experts 0 to 7"),
        ({"mode": "experts", "ids": {2: [0]}}, "no mixture layer 2.*0 to 1"),
        ({"mode": "experts", "ids": {0: [1, 1]}}, "repeat"),
        ({"mode": "experts", "ids": {}}, "would train nothing"),
        ({"mode": "experts", "n": 2}, "no data to measure it on"),
        ({"mode": "experts", "n": 2, "share": 0.1}, "give one of ids, share, n"),
        ({"mode": "shared", "targets": []}, "no projection is named"),
        ({"mode": "per_expert", "rank_by_load": 0.5}, "no data to measure it on"),
        ({"mode": "attention", "targets": ["nothing"]}, "no linear layers in nothing"),
        ({"mode": "lora"}, "unknown kind 'lora'.*attention, experts, full, hybrid, per_expert, router, shared"),
        ({"r": 8}, "no mode is given"),
        ({"mode": "shared", "rank": 8}, "rank"),
    ],
)
def test_bad_settings_are_refused_and_leave_the_model_as_it_was(settings: dict[str, Any], words: str) -> None:
    model = tiny()
    names = [n for n, _ in model.named_parameters()]
    with pytest.raises(SettingsError, match=words):
        attach(model, settings)
    assert [n for n, _ in model.named_parameters()] == names
    assert all(p.requires_grad for p in model.parameters())
    assert model.config._experts_implementation != "tenet"


def test_settings_are_checked_without_a_model() -> None:
    mode, settings = check({"mode": "hybrid", "r": 16})
    assert (mode, settings.model_dump()["residual_r"]) == ("hybrid", 4)


def test_quantised_experts_are_refused() -> None:
    import torch

    model = tiny()
    for layer in model.model.layers:
        weight = layer.mlp.experts.down_proj.data.to(torch.float8_e4m3fn)
        layer.mlp.experts.down_proj = torch.nn.Parameter(weight, requires_grad=False)
    with pytest.raises(SettingsError, match="quantised"):
        attach(model, {"mode": "shared"})


def test_a_family_without_the_interface_is_refused_by_name() -> None:
    import torch
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    torch.manual_seed(0)
    config = Llama4TextConfig(
        vocab_size=96, hidden_size=32, intermediate_size=24, intermediate_size_mlp=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_local_experts=4, interleave_moe_layer_step=1,
    )  # fmt: skip
    with pytest.raises(SettingsError, match=r"llama4.*experts interface"):
        attach(Llama4ForCausalLM(config), {"mode": "shared"})
