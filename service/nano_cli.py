"""`tenet nano`: the bundled toy models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

nano = typer.Typer(help="The bundled toy models.", no_args_is_help=True)


@nano.command("build")
def nano_build(
    out: Annotated[Path, typer.Option(help="Folder for the stages.")] = Path("runs/nano"),
    seed: Annotated[int, typer.Option(help="Decides corpus, weights and order.")] = 0,
    scale: Annotated[float, typer.Option(min=0.001, max=4, help="Share of the full training.")] = 1.0,
    moe_from: Annotated[Path | None, typer.Option(help="Only assistant-moe, from this dense assistant.")] = None,
) -> None:
    """Trains the bundled models from a seed, on this machine's CPU."""
    from nano import build

    if moe_from is not None:
        build.mixture(moe_from, out, seed, scale)
    else:
        build.build(out, seed, scale)


@nano.command("pairs")
def nano_pairs(
    out: Annotated[Path, typer.Option(help="The file (JSONL).")] = Path("runs/nano-pairs.jsonl"),
    n: Annotated[int, typer.Option("--n", min=1, help="How many pairs.")] = 400,
    seed: Annotated[int, typer.Option(help="Draws the pairs.")] = 0,
) -> None:
    """Labelled pairs of the toy world, with the oracle's labels: what judges can be measured on without people."""
    from nano import pairs

    pairs.main(n, out, seed)


@nano.command("check")
def nano_check(
    model: Annotated[str, typer.Option(help="A stage's folder or name.")] = "nano:assistant",
    items: Annotated[int, typer.Option(min=10, help="Items per skill.")] = 1000,
    seed: Annotated[int, typer.Option(help="Draws fresh items.")] = 20_000,
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write JSON here.")] = None,
) -> None:
    """Measures the bundled model's skills through the real templates and the real engine."""
    from nano import check

    check.main(model, items, seed, json_out)
