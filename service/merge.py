"""`tenet merge`: an adapter and its base in, a plain checkpoint out, with the same logits."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tenet.engines._model import locate
from tenet.errors import DataError, SettingsError

_TOLERANCE = 1e-4


def main(adapter: Path, base: str, out: Path) -> None:
    """Writes the merged checkpoint and prints how far its logits are from adapter + base.

    DataError if `adapter` is none; SettingsError if it was made for another base, the base is quantised, or `out`
    holds something.
    """
    folder, _ = locate(base, "--base")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("quantization_config"):
        what = "the base is quantised, and a merge would round the adapter away"
        raise SettingsError(what, where=str(folder), fix="name the unquantised checkpoint that it was made from")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError("is there already", where=str(out), fix="name a folder that is new or empty")
    apart = merge(adapter, folder, out)
    print(f"{out}: merged; logits differ from adapter + base by at most {apart:.2e} (float32, before rounding to "
          f"{config.get('dtype') or config.get('torch_dtype') or 'float32'})")  # fmt: skip
    print("Serve it with a fresh engine: vLLM on a CPU takes new weights for a mixture and goes on with wrong ones.")


def merge(adapter: Path, folder: Path, out: Path) -> float:
    """Merges and saves; the largest difference of logits on a probe, in float32. DataError if it is not small."""
    import torch

    from trainers import adapters

    if not (adapter / "adapter.json").is_file():
        raise DataError("no adapter.json", where=str(adapter), fix="a folder that an adapter was saved into")
    model, dtype = _open(folder)
    # read by hand and not by a tokenizer: any ids probe the weights, and a base may come without one
    vocab = model.config.get_text_config().vocab_size
    ids = torch.randint(0, vocab, (2, 24), generator=torch.Generator().manual_seed(0))
    handle = adapters.load(model, adapter)
    with torch.no_grad():
        beside = model(input_ids=ids).logits
        plain = handle.merge()
        apart = float((plain(input_ids=ids).logits - beside).abs().max())
    if not apart <= _TOLERANCE * max(1.0, float(beside.abs().max())):
        what = f"the merged model's logits differ from adapter + base by {apart:.2e}"
        raise DataError(what, where=str(adapter), fix="is the adapter finite and of a sane size?")
    plain.to(dtype).save_pretrained(out)
    for file in sorted(folder.iterdir()):
        own = file.suffix in (".safetensors", ".bin", ".pt") or file.name.endswith(".index.json")
        if file.is_file() and not own and not (out / file.name).exists():
            shutil.copyfile(file, out / file.name)
    return apart


def _open(folder: Path) -> tuple[Any, Any]:
    """The base in float32, and the dtype of its checkpoint."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(folder, local_files_only=True)  # nosec B615 # a local folder
    named = " ".join(config.architectures or [])
    kind = AutoModelForSequenceClassification if "SequenceClassification" in named else AutoModelForCausalLM
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    model = kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval(), dtype
