"""The commands around constitutions: `tenet constitution …`."""

from __future__ import annotations

import typer

from service import edits_cli

constitution = typer.Typer(help="A constitution as something people edit.", no_args_is_help=True)


@constitution.callback()
def _group() -> None:  # pyright: ignore[reportUnusedFunction]
    """A constitution as something people edit."""


edits_cli.register(constitution)
