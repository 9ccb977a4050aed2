"""`tenet serve` and `tenet keys`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from service.api.keys import Keys

keys = typer.Typer(help="Keys of the HTTP service; hashed where they are kept.", no_args_is_help=True)
Config = Annotated[Path | None, typer.Option("--config", help="The service's settings (YAML); default: nano.")]
Workspace = Annotated[str, typer.Option(help="Holds the runs and the service's state.")]


def serve(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value …]", help="Settings that replace the file's.")
    ] = None,
    config: Config = None,
    host: Annotated[str, typer.Option(help="Where to listen; without keys: this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8321,
    address: Annotated[str | None, typer.Option(help="A Ray cluster for engines and jobs: ray://…, auto.")] = None,
) -> None:
    """The HTTP API and the page: runs, judge, chat, constitutions, labels."""
    import uvicorn

    from service.api import app, server

    settings = server.settings(config, overrides or [])
    made = app.create(settings, address)
    has_keys = made.state.service.keys.any
    server.check_address(host, has_keys)
    who = "with a key" if has_keys else "by everybody on this machine, as there is no key"
    shown = f"[{host}]" if ":" in host else host
    print(f"tenet serves {settings.workspace} at http://{shown}:{port}, usable {who}. Ctrl-C ends it; jobs go on.")
    uvicorn.Server(server.uvicorn_config(made, host, port, settings.limits)).run()


@keys.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is, or what for.")],
    role: Annotated[list[str] | None, typer.Option(help="read, label, run or admin; may be repeated.")] = None,
    workspace: Workspace = "runs",
) -> None:
    """Makes a key and prints it, this once."""
    print(_keys(workspace).create(name, tuple(role or ("read",))))


@keys.command("list")
def listed(workspace: Workspace = "runs") -> None:
    """Names, roles and dates of all keys."""
    for key in _keys(workspace).listed():
        state = f"revoked {key['revoked']}" if key["revoked"] else ""
        print(f"{key['name']:24} {key['roles']:20} {key['created']}  {state}".rstrip())


@keys.command("revoke")
def revoke(name: Annotated[str, typer.Argument()], workspace: Workspace = "runs") -> None:
    """Takes a key away, with the sessions that it opened; a running service sees it at once."""
    _keys(workspace).revoke(name)
    print(f"revoked {name}")


def _keys(workspace: str) -> Keys:
    from service.api.keys import Keys
    from service.api.settings import Config as Settings
    from service.api.store import Store

    return Keys(Store(Settings(workspace=workspace).home / "service.sqlite"))
