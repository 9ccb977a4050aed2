"""Names of weights: one spelling for every way a checkpoint writes them, and the class and layer each belongs to."""

from __future__ import annotations

import re
from typing import Literal

Class = Literal["attention", "mlp", "expert", "router", "embedding", "head", "norm", "other"]
CLASSES: tuple[Class, ...] = ("attention", "mlp", "expert", "router", "embedding", "head", "norm", "other")
_MIXTRAL = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_EXPERT = re.compile(r"(.*\.experts\.\d+\.)(w[123])(\.weight)")
_RULES: tuple[tuple[Class, re.Pattern[str]], ...] = (
    ("norm", re.compile(r"norm|(^|\.)ln_|layernorm")),
    ("router", re.compile(r"(mlp|moe|ffn|block)\.gate(\.|$)|router|shared_expert_gate|e_score_correction_bias")),
    ("expert", re.compile(r"\.experts\.")),
    ("attention", re.compile(r"attn|attention")),
    ("mlp", re.compile(r"mlp|feed_forward|ffn|shared_expert")),
    ("embedding", re.compile(r"embed|(^|\.)w[tp]e\.")),
    ("head", re.compile(r"lm_head|(^|\.)score\.|classifier|v_head|value_head")),
)


def canonical(name: str) -> str:
    """The name without the trunk's prefix, experts spelt as most families do (Mixtral's w1 is gate_proj)."""
    name = name.removeprefix("model.").replace("block_sparse_moe.", "mlp.")
    found = _EXPERT.fullmatch(name)
    return f"{found[1]}{_MIXTRAL[found[2]]}{found[3]}" if found else name


def class_of(name: str) -> Class:
    """Which part of the model a weight belongs to; a norm inside attention is a norm."""
    for kind, rule in _RULES:
        if rule.search(name):
            return kind
    return "other"


def layer_of(name: str) -> int | None:
    """The block a weight stands in, from 0; None for embeddings, heads and the last norm."""
    found = re.search(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.", name)
    return int(found[1]) if found else None


def is_head(name: str) -> bool:
    """Whether two stages of one trunk may differ in having this weight: a language or a reward model's head."""
    return class_of(name) == "head"
