"""Adapters in other formats: PEFT's packed factors, and a pair per expert and matrix for vLLM's MoE-LoRA loader.

Every pair is widened with zeros to one rank and carries its scale in its second factor, so that alpha = r says all.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from tenet.errors import SettingsError
from trainers.adapters._experts import fit
from trainers.adapters._pieces import ExpertPiece, LinearPiece, RouterPiece

_PREFIX = "base_model.model."
# transformers' path and matrix names -> the checkpoint's, where vLLM goes by the checkpoint's
_BLOCK = (".mlp.experts", ".block_sparse_moe.experts")
_PATHS = {"mixtral": _BLOCK, "phimoe": _BLOCK}
_MATRICES = {"mixtral": ("w1", "w3", "w2"), "phimoe": ("w1", "w3", "w2")}


def _pairs(piece: ExpertPiece, target: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The experts' own and shared pairs as one pair per expert: [E, r, in], [E, r, out], scaled; None for none."""
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    a, b = getattr(piece, f"{target}_a", None), getattr(piece, f"{target}_b", None)
    if a is not None and b is not None:
        rank = max(piece.ranks)
        wide = (fit(t.detach(), piece.E, piece.slots, rank) for t in (a, piece.scale * b))
        found.append(tuple(wide))  # pyright: ignore[reportArgumentType]
    a, b = getattr(piece, f"shared_{target}_a", None), getattr(piece, f"shared_{target}_b", None)
    if a is not None and b is not None:
        shared = (t.detach().expand(piece.E, *t.shape) for t in (a, piece.shared_scale * b))
        found.append(tuple(shared))  # pyright: ignore[reportArgumentType]
    if not found:
        return None
    return torch.cat([a for a, _ in found], 1), torch.cat([b for _, b in found], 1)


def _expressible(handle: Any, to: str) -> None:
    low_rank = not handle.whole
    for piece in handle.pieces.values():
        if isinstance(piece, ExpertPiece) and piece.ids is not None:
            low_rank = False
        if isinstance(piece, RouterPiece) and hasattr(piece, "weight"):
            low_rank = False
    if not low_rank:
        what = f"{to} has no way to say mode {handle.mode!r}: it trains whole matrices"
        raise SettingsError(what, where="adapter.mode", fix="merge the adapter into a plain checkpoint")


def _rank(handle: Any) -> int:
    widest = 1
    for piece in handle.pieces.values():
        if isinstance(piece, ExpertPiece):
            pairs = (_pairs(piece, t) for t in ("gate_up", "down"))
            widest = max([widest, *(p[0].shape[1] for p in pairs if p is not None)])
        elif hasattr(piece, "a"):
            widest = max(widest, piece.a.shape[0])
    return widest


def _wide(t: torch.Tensor, rank: int) -> torch.Tensor:
    return F.pad(t, (0, 0, 0, rank - t.shape[-2]))


def _linear(piece: Any, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """lora_A [r, in], lora_B [out, r] of a router's or a linear layer's pair."""
    return _wide(piece.a.detach(), rank), _wide(piece.scale * piece.b.detach(), rank).T


def peft(handle: Any, folder: Path) -> Path:
    """PEFT's format: `PeftModel.from_pretrained` on the same base gives the same logits.

    Experts are packed as PEFT's target_parameters are: lora_A [E*r, in] with the expert slowest, lora_B [out, r*E] with
    the expert fastest, the first projection under `base_layer`, since the second wraps it.
    """
    from peft import LoraConfig

    _expressible(handle, "PEFT")
    rank, state = _rank(handle), dict[str, torch.Tensor]()
    modules: list[str] = []
    parameters: list[str] = []
    for path, piece in handle.pieces.items():
        if isinstance(piece, ExpertPiece):
            _packed(state, parameters, path, piece, rank)
        elif hasattr(piece, "a"):
            state[f"{_PREFIX}{path}.lora_A.weight"], state[f"{_PREFIX}{path}.lora_B.weight"] = _linear(piece, rank)
            (modules if isinstance(piece, LinearPiece) else parameters).append(
                path if isinstance(piece, LinearPiece) else f"{path}.weight"
            )
    heads = {n.removeprefix("head."): p.detach() for n, p in handle.heads().items()}
    state |= {_PREFIX + n: p for n, p in heads.items()}
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=modules,
        target_parameters=parameters or None,
        modules_to_save=sorted({n.rpartition(".")[0] for n in heads}) or None,
        inference_mode=True,
    )
    return _write(folder, state, config.to_dict())


def _packed(state: dict[str, torch.Tensor], names: list[str], path: str, piece: ExpertPiece, rank: int) -> None:
    block = piece.block[0]
    pairs = {t: _pairs(piece, t) for t in ("gate_up", "down")}
    both = all(p is not None for p in pairs.values())
    for target, pair in pairs.items():
        if pair is None:
            continue
        at = f"{_PREFIX}{path}." + ("base_layer." if both and target == "gate_up" else "")
        a, b = (_wide(t, rank) for t in pair)
        state[f"{at}lora_A.weight"] = a.reshape(-1, a.shape[2])
        state[f"{at}lora_B.weight"] = b.permute(2, 1, 0).reshape(b.shape[2], -1)
        names.append(f"{path}.{block.up_name if target == 'gate_up' else 'down_proj'}")


def vllm(handle: Any, folder: Path) -> Path:
    """vLLM's layout: `….experts.<e>.gate_proj.lora_A` and so on, A written for gate and for up, B split between them.

    Families whose experts vLLM keeps fused and interleaved (GPT-OSS) take PEFT's packing instead. On a CPU vLLM serves
    no LoRA on a mixture: merge there.
    """
    _expressible(handle, "vLLM's LoRA")
    kind = handle.model.config.model_type
    found = [p for p in handle.pieces.values() if isinstance(p, ExpertPiece)]
    if any(not p.block[0].experts.is_concatenated for p in found):
        return peft(handle, folder)
    if any(not p.block[0].experts.has_gate for p in found):
        raise SettingsError(f"{kind}'s experts have no gate, which this layout needs", where="adapter", fix="merge it")
    rank, state = _rank(handle), dict[str, torch.Tensor]()
    gate, up, down = _MATRICES.get(kind, ("gate_proj", "up_proj", "down_proj"))
    targets: set[str] = set()
    for path, piece in handle.pieces.items():
        if not isinstance(piece, ExpertPiece):
            if hasattr(piece, "a"):
                state[f"{_PREFIX}{path}.lora_A.weight"], state[f"{_PREFIX}{path}.lora_B.weight"] = _linear(piece, rank)
                targets.add(path.rpartition(".")[2])
            continue
        at = _PREFIX + path.replace(*_PATHS.get(kind, ("", "")))
        for target in ("gate_up", "down"):
            pair = _pairs(piece, target)
            if pair is None:
                continue
            a, b = (_wide(t, rank) for t in pair)
            halves = zip((gate, up), b.chunk(2, -1), strict=True) if target == "gate_up" else ((down, b),)
            for name, own in halves:
                targets.add(name)
                for e in range(piece.E):
                    state[f"{at}.{e}.{name}.lora_A.weight"] = a[e]
                    state[f"{at}.{e}.{name}.lora_B.weight"] = own[e].T
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": sorted(targets), "bias": "none"}
    return _write(folder, state, config)


def _write(folder: Path, state: dict[str, torch.Tensor], config: dict[str, Any]) -> Path:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.cpu().clone().contiguous() for n, t in state.items()}, folder / "adapter_model.safetensors")
    text = json.dumps(config, indent=1, default=_as_json)
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    return folder


def _as_json(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)
