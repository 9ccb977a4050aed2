"""Commands for what an edit changes: `tenet constitution diff`, `preview`, `stats`, `executors`; `tenet runs`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Form = Annotated[str, typer.Option("--format", help="text, json or md.")]


runs = typer.Typer(help="The runs of a workspace, and what differs between two.", invoke_without_command=True)


@runs.callback()
def list_runs(
    context: typer.Context,
    workspace: Annotated[Path, typer.Option(help="The folder that holds the runs.")] = Path("runs"),
    form: Annotated[str, typer.Option("--format", help="text or json.")] = "text",
) -> None:
    """Runs with their constitution's name, version and hash, counts, state and time."""
    if context.invoked_subcommand is None:
        from service import runs as command

        command.show(workspace, one_of(form, "text", "json"))


@runs.command("diff")
def diff_runs(
    first: Annotated[Path, typer.Argument(help="A run's folder.")],
    second: Annotated[Path, typer.Argument(help="Another's.")],
    form: Annotated[str, typer.Option("--format", help="text or json.")] = "text",
    limit: Annotated[int, typer.Option(min=0, help="Changed labels to show.")] = 20,
) -> None:
    """Which labels and rows of two runs differ, prompts matched by their content."""
    from service import runs as command

    command.show_difference(first, second, one_of(form, "text", "json"), limit)


def register(app: typer.Typer) -> None:
    """Adds the commands to the group of `tenet constitution`."""
    app.command("diff")(diff)
    app.command("preview")(preview)
    app.command("stats")(stats)
    app.command("executors")(executors)


def diff(
    old: Annotated[str, typer.Argument(help="A file, a packaged name, or a run's folder: what it used.")],
    new: Annotated[str, typer.Argument(help="The same.")],
    run: Annotated[Path | None, typer.Option(help="A run's folder: what the edit touches in it, and its cost.")] = None,
    form: Form = "text",
) -> None:
    """What an edit changes, by meaning: principles added, removed, reworded, re-weighted, re-tagged, moved."""
    from service import constitution_edits

    constitution_edits.main(old, new, run, one_of(form, "text", "json", "md"))


def preview(
    old: Annotated[str, typer.Option("--old", help="A file, a packaged name, or a run's folder.")],
    new: Annotated[str, typer.Option("--new", help="The same.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value …]", help="Settings that replace the recipe's.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="A file of prompts; default: the recipe's.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most prompts.")] = 50,
    recipe: Annotated[Path | None, typer.Option(help="A recipe file (YAML): models, rounds, pairs, judge.")] = None,
    model: Annotated[str, typer.Option(help="Without a recipe: a model for vLLM, or of --base-url.")] = "",
    base_url: Annotated[str, typer.Option(help="Without a recipe: an OpenAI-compatible server.")] = "",
    out: Annotated[Path, typer.Option(help="Folder for the page and the JSON.")] = Path("runs/preview"),
    workspace: Annotated[Path, typer.Option(help="Holds calls.sqlite, the stored replies.")] = Path("runs"),
) -> None:
    """The same prompts under both constitutions: which labels flip, what revisions say now, before it is paid for."""
    from service import preview as command

    job = command.Job(old, new, prompts, limit, recipe, model, base_url, overrides or [], out, workspace)
    command.main(job)


def stats(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    labels: Annotated[
        Path | None, typer.Option(help="People's labels: votes whose items are comparison ids, or labelled pairs.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for report.html and report.md.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
) -> None:
    """What each principle did in a run: draws, finds, votes, flips, worth; which of them are alike or at odds."""
    from service import stats as command

    command.main(run, labels, out, json_out)


def executors(
    run: Annotated[Path, typer.Argument(help="A run's folder: its pairs, its constitution, its own judge.")],
    judges: Annotated[list[Path], typer.Option("--judge", help="Another judge's config or recipe; may be repeated.")],
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N pairs.")] = None,
    card: Annotated[bool, typer.Option(help="Say in the run's dataset card what was found.")] = True,
) -> None:
    """The same constitution under other judges: how far a run's labels are its judge's, overall and by principle."""
    from service import executors as command

    command.main(command.Job(run, judges, limit, card))


def one_of(form: str, *known: str) -> Any:
    """The format, if there is such a one; SettingsError."""
    from tenet.errors import SettingsError
    from tenet.settings import closest

    if form not in known:
        raise SettingsError(f"there is no format {form!r}", where="--format", fix=closest(form, known))
    return form
