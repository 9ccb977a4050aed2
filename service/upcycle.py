"""`tenet upcycle`: a dense Qwen3 or Llama folder becomes a mixture of experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.markup import escape

from service.screen import console
from tenet.engines import _model
from tenet.settings import assemble
from trainers.moe import upcycle


def main(model: str, out: Path, asked: dict[str, Any]) -> None:
    """Writes the new model, and prints its size and how far its logits are from the dense model's."""
    settings = assemble(upcycle.Settings, asked, where="the command line")
    folder, _ = _model.locate(model, "model")
    _model.check_weights(folder, "model")
    found = upcycle.main(folder, settings, out, lambda said: console.print(escape(said)))
    console.print(f"{found['active']:,} of them work on each token (dense: {found['dense']:,})")
    apart = f"largest difference of logits in float32, 256 random tokens: {found['difference']:.2g}"
    why = "" if settings.keeps_function else ", since noise or reinit change the function"
    console.print(f"{apart}{why}\n{escape(str(out))}")
