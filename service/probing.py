"""What probes are run on: stages by short names, held-out texts, prompts, replies, and tasks."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from tenet.errors import SettingsError
from tenet.records import Message
from trainers.probes import _texts, style, tax
from trainers.probes._checkpoint import Stage, open_stage
from trainers.probes._models import Loaded
from trainers.probes._outputs import Texts
from trainers.probes._texts import Sample

NANO = "nano"
"""In place of a file: texts and prompts of the bundled models' small world, freshly drawn."""
_SEED = 40_000


def opened(names: Sequence[str]) -> list[Stage]:
    """The stages by folder, name below runs/, bundled name or hub name, in order."""
    made: list[Stage] = []
    for name in names:
        made.append(open_stage(placed(name), tuple(made)))
    return made


def placed(name: str) -> str:
    """A short name in full: "sft" is runs/sft where there is such a folder, "base" the bundled nano:base."""
    if re.fullmatch(r"[\w.-]+", name) and not Path(name).exists():
        if (Path("runs") / name).is_dir():
            return str(Path("runs") / name)
        bundled = Path(str(import_module("nano").__file__)).parent / "models" / name
        if (bundled / "config.json").exists():
            return f"nano:{name}"
    return name


def texts(source: str | None, found: Sequence[Stage], n: int) -> Texts | None:
    """Held-out texts: a file's, the small world's for the bundled models, or none."""
    if source == NANO or (source is None and found[0].name.startswith("nano:")):
        return Texts(nano_samples(n), f"{n} fresh replies of nano's world")
    return None if source is None else Texts(_texts.read(source, n), Path(source).name)


def prompts(source: str | None, found: Sequence[Stage], n: int) -> Texts | None:
    """Prompts to answer, from the same places."""
    if source == NANO or (source is None and found[0].name.startswith("nano:")):
        return Texts([_texts.as_prompt(s) for s in nano_samples(n)], f"{n} fresh questions of nano's world")
    return None if source is None else Texts(_texts.prompts(source, n), Path(source).name)


def nano_samples(n: int) -> list[Sample]:
    """Questions of nano's world with replies as its corpus has them, from a seed that no training uses."""
    from nano import world

    rng = random.Random(f"inspect {_SEED}")
    made: list[Sample] = []
    for _ in range(n):
        topic, asked = world.question(rng)
        reply = world.spoiled(rng, topic).text
        made.append(Sample(messages=(Message(role="user", content=asked),), reply=reply))
    return made


def replies_of(
    source: str, prompt_file: str | None, n: int, device: str, seed: int, said: Callable[[str], None]
) -> list[style.Reply]:
    """The replies of a data file or run folder, or a model's samples (temperature 1) on prompts."""
    path = Path(placed(source).partition("@")[0])
    model = source.startswith("nano:") or any((path / f).exists() for f in ("config.json", "adapter_config.json"))
    if not model and (path.exists() or path.suffix):
        return [
            style.Reply(text=s.reply, prompt="\n\n".join(m.content for m in s.messages), round=s.round)
            for s in _texts.read(path) if s.reply
        ]  # fmt: skip
    stage = opened([source])[0]
    asked = prompts(prompt_file, [stage], n)
    if asked is None:
        raise SettingsError("a model needs prompts to answer", where="--prompts", fix="a prompts file, or nano")
    said(f"{stage.name} replies")
    loaded = Loaded(stage, device)
    try:
        written = loaded.replies(asked.samples, 200, temperature=1.0, seed=seed)
    finally:
        loaded.close()
    return [
        style.Reply(text=t, prompt=s.messages[-1].content) for t, s in zip(written, asked.samples, strict=True)
    ]  # fmt: skip


def tasks_of(names: str, items: int, device: str) -> dict[str, tax.Task]:
    """The tasks by name: "nano" is the bundled models' skills, all others are tasks of lm-eval."""
    listed = [n.strip() for n in names.split(",") if n.strip()]
    made: dict[str, tax.Task] = {}
    others = [n for n in listed if n != NANO]
    if NANO in listed:
        made["nano's skills"] = lambda stage: nano_skills(stage, items)
    if others:
        try:
            import_module("lm_eval")
        except ImportError:
            raise SettingsError(
                f"{', '.join(others)}: tasks of lm-eval, which is not installed",
                where="--tasks", fix="pip install lm-eval, or --tasks nano for the bundled models",
            ) from None  # fmt: skip
        made["lm-eval"] = lambda stage: harness(stage, others, items, device)
    return made


def nano_skills(stage: Stage, items: int) -> dict[str, dict[str, Any]]:
    """nano's skills through the pipeline's own templates and a real vLLM engine."""
    from nano import check
    from tenet.engines.vllm import Settings, build

    if stage.base is not None:
        raise SettingsError("nano's skills need whole weights", where=stage.name, fix="merge the adapter first")

    async def run() -> dict[str, Any]:
        engine = build(Settings.model_validate({"model": str(stage.folder)}))
        try:
            return await check.measure(engine, items, _SEED)
        finally:
            await engine.close()

    return flat(asyncio.run(run()))


def flat(found: Mapping[str, Any], before: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """Every share of a nested object by its path, in words."""
    made: dict[str, dict[str, Any]] = {}
    for key, value in found.items():
        if isinstance(value, dict):
            of = cast(dict[str, Any], value)
            made |= {" ".join((*before, key)): of} if "value" in of else flat(of, (*before, key))
    return made


def harness(stage: Stage, names: Sequence[str], items: int, device: str) -> dict[str, dict[str, Any]]:
    """lm-eval's own figures for its tasks, each with the standard error that lm-eval gives."""
    lm_eval, models = import_module("lm_eval"), import_module("lm_eval.models.huggingface")
    loaded = Loaded(stage, device)
    try:
        opened: Any = models.HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=8)
        done: Any = lm_eval.simple_evaluate(model=opened, tasks=list(names), limit=items, bootstrap_iters=200)
    except KeyError as error:  # how lm-eval says that it does not know a task
        if "not a registered" not in str(error):
            raise
        raise SettingsError(
            str(error.args[0]), where="--tasks", fix="a task, group or tag of lm-eval (`lm-eval ls tasks`), or its file"
        ) from error
    finally:
        loaded.close()
    made: dict[str, dict[str, Any]] = {}
    for task, figures in done["results"].items():
        counted = done.get("n-samples", {}).get(task, {}).get("effective")
        for key, value in figures.items():
            metric, of_a_metric, rule = key.partition(",")
            if not of_a_metric or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = figures.get(f"{metric}_stderr,{rule}")
            made[f"{task} {metric}" + (f" ({rule})" if rule != "none" else "")] = {
                "value": float(value), "low": None, "high": None, "n": counted,
                "stderr": float(error) if isinstance(error, int | float) else None,
            }  # fmt: skip
    return made
