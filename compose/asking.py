"""The commands that ask a running fleet over HTTP: servers, runs, calls, keys.

Each prints a table for people, or with `--json` the API's own answer for programs. A problem is
printed as code, message and hint, and ends the command with status 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from compose.api_client import ApiClient

AsJson = Annotated[bool, typer.Option("--json", help="Print the API's JSON.")]
LONGEST_WAIT_S = 60
REFRESH_WAIT_S = 20
WIDTH_OF_A_PIPE = 200

servers = typer.Typer(help="Register and look at MCP servers.", no_args_is_help=True)
runs = typer.Typer(help="Start, look at and cancel runs.", no_args_is_help=True)
keys = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Add these commands to the `toolfleet` command."""
    app.add_typer(servers, name="servers")
    app.add_typer(runs, name="run")
    app.add_typer(keys, name="keys")
    app.command("call")(call)
    app.command("artifact")(artifact)


@servers.command("add")
def servers_add(
    file: Annotated[Path, typer.Argument(help="JSON: one definition, or a list; - for stdin.")],
    as_json: AsJson = False,
) -> None:
    """Register servers from a file of definitions."""
    with _asking() as fleet:
        document = _read_json(file)
        definitions = document if isinstance(document, list) else [document]
        _show([fleet.ask("POST", "servers", body=one) for one in definitions], as_json, _SERVERS)


@servers.command("list")
def servers_list(as_json: AsJson = False) -> None:
    """List the registered servers."""
    with _asking() as fleet:
        _show(fleet.ask("GET", "servers"), as_json, _SERVERS)


@servers.command("show")
def servers_show(name: str, as_json: AsJson = False) -> None:
    """Show one server with its tools."""
    with _asking() as fleet:
        _show(fleet.ask("GET", "servers", name), as_json)


@servers.command("remove")
def servers_remove(name: str, as_json: AsJson = False) -> None:
    """Take a server out of service; its history stays."""
    with _asking() as fleet:
        _show(fleet.ask("DELETE", "servers", name), as_json)


@servers.command("refresh")
def servers_refresh(name: str, as_json: AsJson = False) -> None:
    """Have a server's tools listed again now."""
    with _asking() as fleet:
        wait = {"Prefer": f"wait={REFRESH_WAIT_S}"}
        _show(fleet.ask("POST", "servers", name, "refresh", headers=wait), as_json)


@runs.command("start")
def runs_start(
    tenant: Annotated[str | None, typer.Option(help="Whose run it is, if not the key's.")] = None,
    server: Annotated[list[str] | None, typer.Option(help="Only these servers' tools.")] = None,
    as_json: AsJson = False,
) -> None:
    """Start a run, pinned to the tools of now."""
    with _asking() as fleet:
        _show(_start_run(fleet, tenant, server), as_json)


@runs.command("show")
def runs_show(run_id: str, as_json: AsJson = False) -> None:
    """Show a run with its tools."""
    with _asking() as fleet:
        _show(fleet.ask("GET", "runs", run_id), as_json)


@runs.command("cancel")
def runs_cancel(run_id: str, as_json: AsJson = False) -> None:
    """Cancel a run and every call of it."""
    with _asking() as fleet:
        _show(fleet.ask("POST", "runs", run_id, "cancel"), as_json)


def call(
    tool: Annotated[str, typer.Argument(help="The tool's name as a run shows it.")],
    args: Annotated[str, typer.Option(help="The arguments, as JSON.")] = "{}",
    run: Annotated[str | None, typer.Option(help="The run; a new one if absent.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose run to start.")] = None,
    wait: Annotated[int, typer.Option(help="Seconds to wait for the end.")] = LONGEST_WAIT_S,
    as_json: AsJson = False,
) -> None:
    """Call a tool and print how the call ended; status 1 unless it succeeded."""
    with _asking() as fleet:
        body = {"tool": tool, "arguments": _parse_json(args, "--args")}
        run_id = run or _start_run(fleet, tenant, None)["id"]
        answer = fleet.ask(
            "POST", "runs", run_id, "calls", body=body, headers={"Prefer": f"wait={wait}"}
        )
        _show(answer, as_json)
    if answer.get("state") != "succeeded" or answer.get("is_error"):
        raise typer.Exit(1)


def artifact(
    artifact_id: Annotated[str, typer.Argument(help="The id in a call's result, under _meta.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write it, if not to stdout.")
    ] = None,
) -> None:
    """Fetch a result that was too large for its call."""
    with _asking() as fleet, ExitStack() as stack:
        chunks = fleet.download("artifacts", artifact_id)
        first = next(chunks, b"")  # a problem is told before a file is made
        file = stack.enter_context(output.open("wb")) if output else sys.stdout.buffer
        file.write(first)
        file.writelines(chunks)


@keys.command("create")
def keys_create(
    name: str,
    tenant: Annotated[
        str | None, typer.Option(help="A key of this tenant, not an operator's.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key; it is shown this once."""
    with _asking() as fleet:
        role = {"role": "tenant", "tenant": tenant} if tenant else {"role": "operator"}
        _show(fleet.ask("POST", "keys", body={"name": name, **role}), as_json)


@keys.command("list")
def keys_list(as_json: AsJson = False) -> None:
    """List the API keys, without their secrets."""
    with _asking() as fleet:
        _show(fleet.ask("GET", "keys"), as_json, _KEYS)


@keys.command("revoke")
def keys_revoke(key_id: str, as_json: AsJson = False) -> None:
    """Revoke an API key at once."""
    with _asking() as fleet:
        _show(fleet.ask("DELETE", "keys", key_id), as_json)


_SERVERS = ("name", "version", "stale", "refreshed_at", "tools", "queue")
_KEYS = ("id", "name", "role", "tenant_id", "created_at", "expires_at", "revoked_at")


def _start_run(fleet: ApiClient, tenant: str | None, only: list[str] | None) -> dict[str, Any]:
    run: dict[str, Any] = fleet.ask("POST", "runs", body={"tenant": tenant, "servers": only})
    return run


@contextmanager
def _asking() -> Iterator[ApiClient]:
    from compose.api_client import AskError, find_fleet

    try:
        yield find_fleet()
    except AskError as error:
        from rich.console import Console

        console = Console(stderr=True, highlight=False)
        console.print(f"{error.code}: {error.message}", style="red", markup=False)
        if error.hint:
            console.print(error.hint, markup=False)
        raise typer.Exit(1) from None


def _show(answer: Any, as_json: bool, columns: Sequence[str] = ()) -> None:
    """Print an answer: JSON for programs; a table of ``columns``, or of its fields, for people."""
    if as_json:
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=bool(columns))
    if columns:
        for column in columns:
            table.add_column(column.replace("_", " "), overflow="fold")
        for row in _rows(answer):
            table.add_row(*(_cell(row.get(column)) for column in columns))
    else:
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in (answer or {"done": True}).items():
            table.add_row(str(name).replace("_", " "), _cell(value))
    # A pipe has no width of its own, and what is cut there is lost.
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else WIDTH_OF_A_PIPE
    console.print(table)


def _rows(answer: Any) -> list[Mapping[str, Any]]:
    """Return the rows of a listing, whether it is bare or wrapped with a cursor."""
    if isinstance(answer, Mapping):
        return next((list(value) for value in answer.values() if isinstance(value, list)), [])
    return list(answer)


def _cell(value: Any) -> Any:
    from rich.text import Text

    if value is None:
        return Text("-", style="dim")
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return Text(", ".join(value))
    if isinstance(value, list) and all(isinstance(item, dict) and "name" in item for item in value):
        return Text(", ".join(item["name"] for item in value))
    if isinstance(value, list | dict):
        return Text(json.dumps(value, indent=2))
    return Text(str(value))


def _read_json(file: Path) -> Any:
    try:
        content = sys.stdin.read() if str(file) == "-" else file.read_text()
    except OSError as error:
        raise typer.BadParameter(f"{file} cannot be read: {error.strerror}") from error
    return _parse_json(content, str(file))


def _parse_json(content: str, what: str) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise typer.BadParameter(f"{what} is not JSON: {error}") from error
