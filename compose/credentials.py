"""The commands of stored credentials; a secret comes from a file, a pipe or a prompt.

Never from the command line, where every user of the machine can read it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from compose.printing import AsJson, Server, asking, read_file, read_text, show

credentials = typer.Typer(help="Keep tenants' credentials.", no_args_is_help=True)

_COLUMNS = (
    "tenant", "server", "kind", "state", "secrets", "expires_at", "renew_at", "problem",
    "changed_at", "changed_by",
)  # fmt: skip

Tenant = Annotated[str, typer.Argument(help="The tenant; * for all without one of their own.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands to the `toolfleet` command."""
    app.add_typer(credentials, name="credentials")


@credentials.command("set")
def credentials_set(
    tenant: Tenant,
    server: Server,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="JSON or YAML: a credential of any kind; - for stdin."),
    ] = None,
    secret_file: Annotated[
        Path | None, typer.Option(help="A file with a static secret and nothing else.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Set a credential in place of the one before.

    Without options it is a static secret, read from a pipe or asked for.
    """
    if file is not None and secret_file is not None:
        raise typer.BadParameter("give --file or --secret-file")
    if file is not None:
        body: Any = read_file(file)
    else:
        body = {"kind": "static", "secret": _secret(secret_file)}
    with asking() as fleet:
        show(fleet.ask("PUT", "credentials", tenant, server, body=body), as_json)


@credentials.command("list")
def credentials_list(as_json: AsJson = False) -> None:
    """List the stored credentials, without their secrets."""
    with asking() as fleet:
        show(fleet.ask("GET", "credentials"), as_json, _COLUMNS)


@credentials.command("show")
def credentials_show(tenant: Tenant, server: Server, as_json: AsJson = False) -> None:
    """Show a stored credential, without its secrets, and how its renewal stands."""
    with asking() as fleet:
        show(fleet.ask("GET", "credentials", tenant, server), as_json)


@credentials.command("remove")
def credentials_remove(tenant: Tenant, server: Server, as_json: AsJson = False) -> None:
    """Remove a credential and its secrets."""
    with asking() as fleet:
        show(fleet.ask("DELETE", "credentials", tenant, server), as_json)


@credentials.command("rewrap")
def credentials_rewrap(as_json: AsJson = False) -> None:
    """Have the current encryption key protect all that an older one does, or none does yet."""
    with asking() as fleet:
        show(fleet.ask("POST", "credentials", "rewrap"), as_json)


def _secret(file: Path | None) -> str:
    if file is not None:
        return _one_line(read_text(file))
    if sys.stdin.isatty():
        return str(typer.prompt("Secret", hide_input=True))
    return _one_line(sys.stdin.read())


def _one_line(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")
