"""The commands around constitutions: `tenet constitution …`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from service import edits_cli

constitution = typer.Typer(help="A constitution as something people edit.", no_args_is_help=True)


@constitution.callback()
def _group() -> None:  # pyright: ignore[reportUnusedFunction]
    """A constitution as something people edit."""


Workspace = Annotated[Path, typer.Option(help="Holds calls.sqlite, the stored replies.")]


@constitution.command("lint")
def constitution_lint(
    files: Annotated[list[str], typer.Argument(help="Files, or names of packaged constitutions.")],
    form: Annotated[str, typer.Option("--format", help="text, json or github.")] = "text",
    strict: Annotated[bool, typer.Option("--strict", help="Exit status 1 on any warning.")] = False,
    ignore: Annotated[list[str] | None, typer.Option(help="A rule to leave out; may be repeated.")] = None,
    stage: Annotated[list[str] | None, typer.Option(help="critique, revise, choose, score: must be there.")] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Ask a judge whether paraphrases flip its verdicts.")] = False,
    judge: Annotated[Path | None, typer.Option(help="For --deep: a judge's config, or a recipe (YAML).")] = None,
    pairs: Annotated[Path | None, typer.Option(help="For --deep: pairs of replies; nano has its own.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="For --deep: most pairs (nano: per principle).")] = 40,
    workspace: Workspace = Path("runs"),
) -> None:
    """What is wrong with constitutions, by line. Exit status: 0 clean, 1 warnings with --strict, 2 errors."""
    from service import lint

    asked = lint.Deep(lint.judge_of(judge), pairs=pairs, limit=limit, workspace=workspace) if deep else None
    sys.exit(lint.main(files, form, strict, ignore or [], lint.stages(stage or []), asked))


@constitution.command("import")
def constitution_import(
    files: Annotated[list[Path], typer.Argument(help="Another project's JSON; CAI's two files make one constitution.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The constitution to write (YAML).")],
    form: Annotated[str, typer.Option("--format", help="cai-critiques, cai-choices, llm-swarm, salmon, icai.")] = "",
    name: Annotated[str, typer.Option(help="The constitution's name; default: the first file's.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Another project's list of principles as a constitution; its format is found by its shape."""
    from service import importing

    importing.main(files, out, form, name, force)


@constitution.command("infer")
def constitution_infer(
    pairs: Annotated[Path, typer.Argument(help="Pairs with people's labels: JSONL, JSON, CSV or Parquet.")],
    judge: Annotated[Path, typer.Option(help="A pairwise judge's config, or a recipe (YAML).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The constitution to write (YAML).")],
    candidates: Annotated[
        list[str] | None, typer.Option(help="Principles to try: a constitution, or nano:rules. May be repeated.")
    ] = None,
    propose: Annotated[int, typer.Option(min=0, help="Calls that propose; 20 where no candidates are given.")] = 0,
    model: Annotated[str, typer.Option(help="Which of the config's models proposes; default: the first.")] = "",
    held_out: Annotated[float, typer.Option(help="Share of the pairs that candidates are tested on.")] = 0.5,
    min_coverage: Annotated[float, typer.Option(help="Share of pairs that a candidate must decide.")] = 0.02,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N pairs.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides the parts and the draws.")] = 0,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write every candidate's figures here.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    workspace: Workspace = Path("runs"),
) -> None:
    """From people's labels to principles that predict them on held-out pairs. Exit status 1 if there are none."""
    from service import infer
    from tenet.settings import assemble

    said = {"propose": propose, "model": model, "held_out": held_out, "min_coverage": min_coverage, "seed": seed}
    options = assemble(infer.Options, said, where="the command line")
    job = infer.Job(pairs, judge, out, candidates or [], options, limit, json_out, force, workspace)
    sys.exit(infer.main(job))


edits_cli.register(constitution)
