"""Time and saved activations of one MoE block, forward and backward: frozen, each adapter mode, PEFT, all weights.

    python -m benchmarks.moe_adapters [--device cuda] [--out docs/benchmarks/moe_adapters.json]

Every repeat runs all variants one after another, so that a noisy machine is noisy for all alike; a figure is the
median over repeats of the ratio to the frozen block of the *same* repeat. "frozen" is transformers' own grouped_mm
implementation with the gradient of the input only. With --threads 1 (the default on CPU) the clock is this process's
CPU time, which other processes on the machine disturb far less than the time on the wall.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from trainers.adapters import attach

MODES: dict[str, dict[str, Any]] = {
    "per_expert": {"mode": "per_expert"},
    "shared": {"mode": "shared"},
    "hybrid": {"mode": "hybrid", "residual_r": 4},
    "router": {"mode": "router"},
    "router low-rank": {"mode": "router", "r": 8},
}
CPU = (
    ("E 32, k 4, T 2048", {"H": 512, "I": 256, "E": 32, "k": 4, "T": 2048}, 8),
    ("E 128, k 8, T 2048", {"H": 512, "I": 128, "E": 128, "k": 8, "T": 2048}, 8),
    ("E 32, k 4, T 256", {"H": 512, "I": 256, "E": 32, "k": 4, "T": 256}, 8),
    ("E 32, k 4, T 2048, r 32", {"H": 512, "I": 256, "E": 32, "k": 4, "T": 2048}, 32),
)
CUDA = (("E 128, k 8, T 16384", {"H": 2048, "I": 768, "E": 128, "k": 8, "T": 16384}, 8),)


def model(shape: dict[str, int], device: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=64, hidden_size=shape["H"], intermediate_size=64, moe_intermediate_size=shape["I"],
        num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4, head_dim=16,
        num_experts=shape["E"], num_experts_per_tok=shape["k"], norm_topk_prob=True,
    )  # fmt: skip
    made = Qwen3MoeForCausalLM(config)
    with torch.no_grad():
        for p in made.model.layers[0].mlp.parameters():
            p.normal_(0, 0.02)
    return made.to(device, dtype)


def variants(shape: dict[str, int], r: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Name -> (block, the model it belongs to)."""
    made: dict[str, Any] = {}
    frozen = model(shape, device, dtype)
    frozen.requires_grad_(False)
    made["frozen"] = frozen
    for name, settings in MODES.items():
        if r != 8 and name != "per_expert":
            continue
        one = model(shape, device, dtype)
        handle = attach(one, settings | ({"r": r} if "r" in settings or name != "router" else {}))
        with torch.no_grad():
            for _, p in handle.named_parameters():
                p.add_(torch.randn_like(p) * 0.01)
        made[name] = one
    made["PEFT"] = peft(model(shape, device, dtype), r)
    if r == 8:
        made["full"] = model(shape, device, dtype)
    return made


def peft(base: Any, r: int) -> Any:
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(
            r=r, lora_alpha=2 * r, target_modules=[], target_parameters=["experts.gate_up_proj", "experts.down_proj"]
        )
        return get_peft_model(base, config).base_model.model


def run(block: Any, x: torch.Tensor, grad: torch.Tensor) -> None:
    out = block(x)
    out = out[0] if isinstance(out, tuple) else out
    out.backward(grad)


def saved(block: Any, x: torch.Tensor, known: set[int]) -> float:
    """MB of distinct storages that the forward pass keeps for the backward pass, parameters left out."""
    kept: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = block(x)  # kept alive, so that no storage's address is used twice
        total = sum(kept.values()) / 1e6
    del out
    return total


def clock(device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    return time.process_time() if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


def measure(shape: dict[str, int], r: int, repeats: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
    made = variants(shape, r, device, dtype)
    x = torch.randn(1, shape["T"], shape["H"], device=device, dtype=dtype)
    grad = torch.randn_like(x)
    blocks = {name: m.model.layers[0].mlp for name, m in made.items()}
    memory = {}
    for name, block in blocks.items():
        known = {p.untyped_storage().data_ptr() for p in made[name].parameters()} | {x.untyped_storage().data_ptr()}
        memory[name] = saved(block, x.clone().requires_grad_(), known)
    times: dict[str, list[float]] = {name: [] for name in blocks}
    for i in range(repeats + 2):
        for name, block in blocks.items():
            leaf = x.detach().requires_grad_()
            block.zero_grad(set_to_none=True)
            gc.collect() if i == 0 else None
            begun = clock(device)
            run(block, leaf, grad)
            if i >= 2:
                times[name].append(clock(device) - begun)
    base = times["frozen"]
    rows: dict[str, Any] = {}
    for name, took in times.items():
        whole = sum(p.numel() for p in blocks[name].parameters())
        trained = sum(p.numel() for p in made[name].parameters() if p.requires_grad)
        rows[name] = {
            "ms": round(1e3 * statistics.median(took), 2),
            "x_frozen": round(statistics.median(t / b for t, b in zip(took, base, strict=True)), 3),
            "saved_mb": round(memory[name], 1),
            "trainable": whole if name == "full" else trained,
        }
    extra = rows["PEFT"]["saved_mb"] - rows["frozen"]["saved_mb"]
    for name, row in rows.items():
        row["x_peft"] = round(statistics.median(t / p for t, p in zip(times[name], times["PEFT"], strict=True)), 3)
        row["extra_of_peft"] = round((row["saved_mb"] - rows["frozen"]["saved_mb"]) / extra, 3)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="Only the shapes whose name holds this.")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    found: dict[str, Any] = {"device": args.device, "threads": torch.get_num_threads(), "torch": torch.__version__}
    found |= {"repeats": args.repeats, "dtype": str(dtype), "blocks": {}}
    for name, shape, r in CPU if args.device == "cpu" else CUDA:
        if args.only not in name:
            continue
        rows = measure(shape, r, args.repeats, args.device, dtype)
        found["blocks"][name] = {"shape": shape, "r": r, "variants": rows}
        print(name)
        for variant, row in rows.items():
            print(f"  {variant:16} " + "  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
