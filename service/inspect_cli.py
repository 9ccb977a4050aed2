"""`tenet inspect`: what a training did to a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

inspect = typer.Typer(help="What a training did to a model.", no_args_is_help=True)

Stages = Annotated[list[str], typer.Argument(help="Folders, nano:STAGE, hub names; ADAPTER@BASE for an adapter.")]
Folder = Annotated[Path | None, typer.Option("--out", help="Folder for report.html, report.md and the JSON.")]
Json = Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")]
TextFile = Annotated[str | None, typer.Option("--text", help="Held-out texts: JSONL, Parquet, .txt; or nano.")]
PromptFile = Annotated[str | None, typer.Option("--prompts", help="Prompts: JSONL, Parquet, .txt; or nano.")]
GateText = Annotated[str, typer.Option("--gate", help="'total.relative<=0.1,…': exit status 1 if one fails.")]
Device = Annotated[str, typer.Option(help="Where models run: cpu, cuda, cuda:1.")]
Items = Annotated[int, typer.Option("--n", min=1, help="Texts or prompts at most.")]


@inspect.command("routing")
def inspect_routing(
    model: Annotated[str, typer.Argument(help="A mixture of experts: a folder, a hub name, or nano:<stage>.")],
    data: Annotated[Path, typer.Argument(help="Texts: JSONL or Parquet with messages, prompt or text.")],
    compare: Annotated[str | None, typer.Option(help="A second model of the same shape.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for report.html, report.md, routing.json.")] = Path("runs/routing"),
    length: Annotated[int, typer.Option(min=2, help="Most tokens of a text.")] = 512,
    limit: Annotated[int, typer.Option(min=1, help="Most texts.")] = 400,
) -> None:
    """Where tokens go: load, specialisation and co-activation of experts; what a second model does differently."""
    from service import routing

    routing.main(model, data, compare, out, length, limit)


@inspect.command("weights")
def inspect_weights(
    stages: Stages,
    out: Folder = None,
    json_out: Json = None,
    text: TextFile = None,
    kl: Annotated[bool, typer.Option("--kl/--no-kl", help="Also compare the models' outputs.")] = True,
    branches: Annotated[bool, typer.Option(help="Compare every stage with the first, not the one before.")] = False,
    spectra: Annotated[bool, typer.Option(help="Singular values and directions.")] = True,
    norm: Annotated[float | None, typer.Option(help="Common relative change; default: the smallest step's.")] = None,
    intruder: Annotated[float, typer.Option(help="Cosine below which a direction is an intruder.")] = 0.5,
    top: Annotated[int, typer.Option(help="How many singular directions are the top ones.")] = 10,
    device: Device = "cpu",
    n: Items = 200,
) -> None:
    """Matrix by matrix, what each step between stages changed; read from disk, a block at a time."""
    from service import inspect as command
    from tenet.settings import assemble
    from trainers.probes import weights

    said = {"branches": branches, "spectra": spectra, "intruder": intruder, "top": top}
    settings = assemble(weights.Settings, said, where="the command line")
    command.of_weights(stages, settings, command.Out(out, json_out), text, norm, device, n, kl)


@inspect.command("prompt")
def inspect_prompt(
    prompt: Annotated[str, typer.Argument(help="A question.")],
    stages: Annotated[str, typer.Option(help="Stages by commas, in order: base,sft,dpo.")],
    out: Folder = None,
    json_out: Json = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest reply.")] = 200,
    temperature: Annotated[float, typer.Option(min=0, max=5, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Decides the draws.")] = 0,
    device: Device = "cpu",
) -> None:
    """One prompt through the stages: replies, log-probabilities, and where the distributions part."""
    from service import inspect as command
    from trainers.probes.stages import Settings

    settings = Settings(max_tokens=max_tokens, temperature=temperature, seed=seed)
    names = [s.strip() for s in stages.split(",") if s.strip()]
    command.of_prompt(prompt, names, settings, command.Out(out, json_out), device)


@inspect.command("tax")
def inspect_tax(
    before: Annotated[str, typer.Argument(help="The earlier stage.")],
    after: Annotated[str, typer.Argument(help="The later stage.")],
    out: Folder = None,
    json_out: Json = None,
    text: TextFile = None,
    benign: Annotated[str | None, typer.Option(help="Harmless prompts; default: a bundled list, or nano's.")] = None,
    tasks: Annotated[str, typer.Option(help="By commas: nano (its skills), or tasks of lm-eval.")] = "",
    gate: GateText = "",
    device: Device = "cpu",
    n: Items = 200,
) -> None:
    """What the later stage lost: held-out perplexity, other skills, refusals of harmless prompts."""
    from service import inspect as command

    if not command.of_tax(before, after, command.Out(out, json_out, gate), text, benign, tasks, n, device):
        sys.exit(1)


@inspect.command("style")
def inspect_style(
    sources: Annotated[list[str], typer.Argument(help="SFT files, run folders, or models to be sampled.")],
    before: Annotated[str | None, typer.Option(help="Earlier replies (data or model) to hold lengths against.")] = None,
    out: Folder = None,
    json_out: Json = None,
    prompts: PromptFile = None,
    gate: GateText = "",
    strict: Annotated[bool, typer.Option("--strict", help="Exit status 1 on any warning.")] = False,
    seed: Annotated[int, typer.Option(help="Decides the draws.")] = 0,
    device: Device = "cpu",
    n: Items = 200,
) -> None:
    """Whether replies all sound alike: openings, repeats, boilerplate, length, likeness."""
    from service import inspect as command
    from trainers.probes.style import Settings

    places = command.Out(out, json_out, gate)
    if not command.of_style(sources, before, places, prompts, Settings(seed=seed), n, device, strict):
        sys.exit(1)


@inspect.command("pairs")
def inspect_pairs(
    before: Annotated[str, typer.Argument(help="The earlier stage.")],
    after: Annotated[str, typer.Argument(help="The later stage.")],
    prompts: PromptFile = None,
    out: Annotated[Path, typer.Option(help="The pairs file (JSONL).")] = Path("runs/before-after.jsonl"),
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest reply.")] = 200,
    device: Device = "cpu",
    n: Items = 200,
) -> None:
    """Both stages' replies to the same prompts, as pairs for `tenet judge` and then `tenet report`."""
    from service import inspect as command

    command.pairs(before, after, prompts, out, n, max_tokens, device)
