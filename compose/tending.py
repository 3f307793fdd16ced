"""The commands that tend a running fleet: force a server's breaker, list workers, drain one."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from compose.printing import AsJson, Server, asking, show

workers = typer.Typer(help="The worker processes of a running fleet.", no_args_is_help=True)

_WORKERS = ("id", "server", "hostname", "pid", "started_at", "in_use", "idle", "waiting", "state")


class Forced(StrEnum):
    """What a breaker can be forced to be."""

    OPEN = "open"
    CLOSED = "closed"


def add_to(app: typer.Typer, servers: typer.Typer) -> None:
    """Add these commands to the `toolfleet` command, one of them below `servers`."""
    app.add_typer(workers, name="workers")
    servers.command("breaker")(breaker)


def breaker(
    name: Server,
    state: Annotated[
        Forced | None, typer.Argument(help="Force it open or closed; left out, show it.")
    ] = None,
    for_s: Annotated[
        float | None, typer.Option("--for", help="Seconds to keep it open; 300 by default.")
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="Of another version than the served one.")
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Why: for the audit.")] = None,
    as_json: AsJson = False,
) -> None:
    """Open a server's breaker for a while or close it, for all workers; or show it."""
    with asking() as fleet:
        if state is None:
            query = {"version": version} if version else {}
            show(fleet.ask("GET", "servers", name, "breaker", query=query), as_json)
            return
        said = {"for_s": for_s, "version": version, "reason": reason}
        body = {"state": state.value, **{key: it for key, it in said.items() if it is not None}}
        show(fleet.ask("POST", "servers", name, "breaker", body=body), as_json)


@workers.command("list")
def workers_list(as_json: AsJson = False) -> None:
    """List the workers that are at work, with their sessions."""
    with asking() as fleet:
        answer = fleet.ask("GET", "workers")
        show(answer if as_json else [_row(it) for it in answer["workers"]], as_json, _WORKERS)


@workers.command("drain")
def workers_drain(
    worker: Annotated[str, typer.Argument(help="Its id, as `workers list` shows it.")],
    as_json: AsJson = False,
) -> None:
    """Have a worker take no more calls, let those that run finish, and end."""
    with asking() as fleet:
        show(fleet.ask("POST", "workers", worker, "drain"), as_json)


def _row(worker: dict[str, Any]) -> dict[str, Any]:
    pools = worker["pools"]
    return {
        **worker,
        "in_use": sum(pool["sessions"]["in_use"] for pool in pools),
        "idle": sum(pool["sessions"]["idle"] for pool in pools),
        "waiting": sum(pool["waiting"] for pool in pools),
        "state": "draining" if worker["drain_requested_at"] else "at work",
    }
