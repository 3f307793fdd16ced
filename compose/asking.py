"""The commands that ask a running fleet over HTTP: servers, runs, calls, keys.

Each prints a table for people, or with `--json` the API's own answer for programs.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compose.printing import AsJson, Server, asking, parse_json, read_file, read_text, show

if TYPE_CHECKING:
    from compose.api_client import ApiClient

LONGEST_WAIT_S = 60
REFRESH_WAIT_S = 20
DAY_S = 86_400

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
    file: Annotated[
        Path, typer.Argument(help="JSON or YAML: one definition, or a list; - for stdin.")
    ],
    as_json: AsJson = False,
) -> None:
    """Register servers from a file of definitions."""
    with asking() as fleet:
        document = read_file(file)
        definitions = document if isinstance(document, list) else [document]
        show([fleet.ask("POST", "servers", body=one) for one in definitions], as_json, _SERVERS)


@servers.command("import")
def servers_import(
    file: Annotated[
        Path, typer.Argument(help="A client's JSON (mcpServers, ...), or OpenAPI; - for stdin.")
    ],
    given: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE: what a ${NAME} or input of the file stands for."),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this server of the file.")] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(help="CIDR: a private network that the file's urls may lead into."),
    ] = None,
    version: Annotated[str, typer.Option(help="The version to register them under.")] = "1",
    name: Annotated[str | None, typer.Option(help="OpenAPI: the server's name.")] = None,
    url: Annotated[str | None, typer.Option(help="OpenAPI: where the API is.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Register nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Register the servers of a file that a desktop client or an editor wrote.

    Values come from --set, the environment or the file's defaults; what is still missing is asked
    for on a terminal. Others on this machine may see what is in --set.
    """
    from compose.importing_command import Wishes, import_file

    wishes = Wishes(
        given=given or [],
        only=only or [],
        networks=network or [],
        version=version,
        name=name,
        url=url,
        dry_run=dry_run,
    )
    with asking() as fleet:
        rows, failure = import_file(fleet, file, read_text(file), wishes)
        show([row.as_dict() for row in rows], as_json, ("server", "name", "outcome", "why"))
        if failure is not None:
            raise failure
    if any(row.outcome == "refused" for row in rows):
        raise typer.Exit(1)


@servers.command("list")
def servers_list(as_json: AsJson = False) -> None:
    """List the registered servers."""
    with asking() as fleet:
        show(fleet.ask("GET", "servers"), as_json, _SERVERS)


@servers.command("show")
def serversshow(name: str, as_json: AsJson = False) -> None:
    """Show one server with its tools."""
    with asking() as fleet:
        show(fleet.ask("GET", "servers", name), as_json)


@servers.command("remove")
def servers_remove(name: Server, as_json: AsJson = False) -> None:
    """Take a server out of service; its history stays."""
    with asking() as fleet:
        show(fleet.ask("DELETE", "servers", name), as_json)


@servers.command("refresh")
def servers_refresh(name: Server, as_json: AsJson = False) -> None:
    """Have a server's tools listed again now."""
    with asking() as fleet:
        wait = {"Prefer": f"wait={REFRESH_WAIT_S}"}
        show(fleet.ask("POST", "servers", name, "refresh", headers=wait), as_json)


@runs.command("start")
def runs_start(
    tenant: Annotated[str | None, typer.Option(help="Whose run it is, if not the key's.")] = None,
    server: Annotated[list[str] | None, typer.Option(help="Only these servers' tools.")] = None,
    intent: Annotated[str | None, typer.Option(help="Only the tools that fit a task best.")] = None,
    limit: Annotated[int | None, typer.Option(help="With --intent: how many at most.")] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Show the model two tools: to find, and to call.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Start a run, pinned to the tools of now."""
    exposure = {"exposure": "search"} if search else {}
    with asking() as fleet:
        run = _start_run(fleet, tenant, server, intent=intent, limit=limit, **exposure)
        show(run, as_json)


@runs.command("tools")
def runs_tools(
    run_id: str,
    query: Annotated[str, typer.Argument(help="What is to be done, in plain words.")],
    limit: Annotated[int, typer.Option(help="How many at most.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Show the tools of a run that fit a task best, the best first."""
    with asking() as fleet:
        wanted = {"query": query, "limit": limit}
        show(fleet.ask("GET", "runs", run_id, "tools", query=wanted), as_json, _TOOLS)


@runs.command("compare")
def runs_compare(before: str, after: str, as_json: AsJson = False) -> None:
    """Show how the tools of two runs differ."""
    with asking() as fleet:
        old, new = (fleet.ask("GET", "runs", run)["snapshot"] for run in (before, after))
        show(fleet.ask("GET", "snapshots", old, "changes", new), as_json, _DIFFERENCES)


@runs.command("show")
def runsshow(run_id: str, as_json: AsJson = False) -> None:
    """Show a run with its tools."""
    with asking() as fleet:
        show(fleet.ask("GET", "runs", run_id), as_json)


@runs.command("cancel")
def runs_cancel(run_id: str, as_json: AsJson = False) -> None:
    """Cancel a run and every call of it."""
    with asking() as fleet:
        show(fleet.ask("POST", "runs", run_id, "cancel"), as_json)


def call(
    tool: Annotated[str, typer.Argument(help="The tool's name as a run shows it.")],
    args: Annotated[str, typer.Option(help="The arguments, as JSON.")] = "{}",
    run: Annotated[str | None, typer.Option(help="The run; a new one if absent.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose run to start.")] = None,
    wait: Annotated[int, typer.Option(help="Seconds to wait for the end.")] = LONGEST_WAIT_S,
    as_json: AsJson = False,
) -> None:
    """Call a tool and print how the call ended; status 1 unless it succeeded."""
    with asking() as fleet:
        body = {"tool": tool, "arguments": parse_json(args, "--args")}
        run_id = run or _start_run(fleet, tenant, None)["id"]
        answer = fleet.ask(
            "POST", "runs", run_id, "calls", body=body, headers={"Prefer": f"wait={wait}"}
        )
        show(answer, as_json)
    if answer.get("state") != "succeeded" or answer.get("is_error"):
        raise typer.Exit(1)


def artifact(
    artifact_id: Annotated[str, typer.Argument(help="The id in a call's result, under _meta.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write it, if not to stdout.")
    ] = None,
) -> None:
    """Fetch a result that was too large for its call."""
    with asking() as fleet, ExitStack() as stack:
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
    role: Annotated[str | None, typer.Option(help="operator, tenant, approver or auditor.")] = None,
    days: Annotated[float | None, typer.Option(help="For how many days it is valid.")] = None,
    verb: Annotated[
        list[str] | None, typer.Option(help="Narrow it to this verb, such as calls:read.")
    ] = None,
    server: Annotated[
        list[str] | None, typer.Option(help="Narrow its runs and calls to this server.")
    ] = None,
    tool: Annotated[
        list[str] | None, typer.Option(help="Narrow its calls to these tools: server/pattern.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key; it is shown this once."""
    wanted = {"verbs": verb, "servers": server, "tools": {"allow": tool} if tool else None}
    scopes = {what: values for what, values in wanted.items() if values}
    body = {
        "name": name,
        "role": role or ("tenant" if tenant else "operator"),
        "tenant": tenant,
        "lifetime_s": None if days is None else days * DAY_S,
        "scopes": scopes or None,
    }
    with asking() as fleet:
        show(fleet.ask("POST", "keys", body=body), as_json)


@keys.command("rotate")
def keys_rotate(
    key_id: str,
    hours: Annotated[float, typer.Option(help="For how long the old key still works.")] = 24,
    days: Annotated[float | None, typer.Option(help="For how many days the new one does.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key in the place of another; it is shown this once."""
    lifetime_s = None if days is None else days * DAY_S
    body = {"overlap_s": hours * 3600, "lifetime_s": lifetime_s}
    with asking() as fleet:
        show(fleet.ask("POST", "keys", key_id, "rotate", body=body), as_json)


@keys.command("list")
def keys_list(as_json: AsJson = False) -> None:
    """List the API keys, without their secrets."""
    with asking() as fleet:
        show(fleet.ask("GET", "keys"), as_json, _KEYS)


@keys.command("revoke")
def keys_revoke(key_id: str, as_json: AsJson = False) -> None:
    """Revoke an API key at once."""
    with asking() as fleet:
        show(fleet.ask("DELETE", "keys", key_id), as_json)


_TOOLS = ("name", "description")
_DIFFERENCES = ("tool", "change", "fields")
_SERVERS = ("name", "version", "stale", "refreshed_at", "tools", "queue")
_KEYS = ("id", "name", "role", "tenant_id", "scopes", "last_used_at", "expires_at", "revoked_at")


def _start_run(
    fleet: ApiClient, tenant: str | None, only: list[str] | None, **rest: Any
) -> dict[str, Any]:
    body = {"tenant": tenant, "servers": only, **rest}
    run: dict[str, Any] = fleet.ask("POST", "runs", body=body)
    return run
