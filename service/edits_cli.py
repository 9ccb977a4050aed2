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


def diff(
    old: Annotated[str, typer.Argument(help="A file, a packaged name, or a run's folder: what it used.")],
    new: Annotated[str, typer.Argument(help="The same.")],
    run: Annotated[Path | None, typer.Option(help="A run's folder: what the edit touches in it, and its cost.")] = None,
    form: Form = "text",
) -> None:
    """What an edit changes, by meaning: principles added, removed, reworded, re-weighted, re-tagged, moved."""
    from service import constitution_edits

    constitution_edits.main(old, new, run, one_of(form, "text", "json", "md"))


def one_of(form: str, *known: str) -> Any:
    """The format, if there is such a one; SettingsError."""
    from tenet.errors import SettingsError
    from tenet.settings import closest

    if form not in known:
        raise SettingsError(f"there is no format {form!r}", where="--format", fix=closest(form, known))
    return form
