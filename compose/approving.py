"""The commands of approvals: see what waits, and decide about it.

A decision is sent with the binding of what was shown here, so that nothing else is decided about.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compose.printing import AsJson, asking, show

if TYPE_CHECKING:
    from compose.api_client import ApiClient

approvals = typer.Typer(help="Decide about calls that wait.", no_args_is_help=True)

_COLUMNS = ("id", "tenant_id", "tool", "arguments", "requested_by", "expires_at")
_DECIDED = ("id", "tenant_id", "tool", "arguments", "requested_by", "state", "decisions")
_OUTCOMES = ("id", "state", "problem")

Ids = Annotated[list[str], typer.Argument(help="The ids that `approvals list` shows.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Binding = Annotated[
    str | None,
    typer.Option(help="What `approvals show` showed for the one call: refuse if it differs now."),
]


def add_to(app: typer.Typer) -> None:
    """Add these commands to the `toolfleet` command."""
    app.add_typer(approvals, name="approvals")


@approvals.command("list")
def approvals_list(
    decided: Annotated[
        bool, typer.Option("--decided", help="What was decided, newest first.")
    ] = False,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    server: Annotated[str | None, typer.Option(help="Only of this server.")] = None,
    tool: Annotated[str | None, typer.Option(help="Only of this tool, as models call it.")] = None,
    after: Annotated[str | None, typer.Option(help="Only what comes after this call.")] = None,
    limit: Annotated[int, typer.Option(help="How many.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List the calls that wait for an approval, the oldest first."""
    wanted = {"tenant": tenant, "server": server, "tool": tool, "after": after, "limit": limit}
    query = {name: value for name, value in wanted.items() if value is not None}
    query["state"] = "decided" if decided else "waiting"
    with asking() as fleet:
        answer = fleet.ask("GET", "approvals", query=query)
        show(answer, as_json, _DECIDED if decided else _COLUMNS)


@approvals.command("show")
def approvals_show(call_id: str, as_json: AsJson = False) -> None:
    """Show a call that waits or waited: what it is, who asked for it, who decided what."""
    with asking() as fleet:
        show(fleet.ask("GET", "approvals", call_id), as_json)


@approvals.command("approve")
def approvals_approve(
    calls: Ids,
    reason: Annotated[str | None, typer.Option(help="For the audit.")] = None,
    binding: Binding = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Let waiting calls run, after a look at each; never those that you asked for."""
    _decide(calls, "approve", reason, binding, yes=yes, as_json=as_json)


@approvals.command("deny")
def approvals_deny(
    calls: Ids,
    reason: Annotated[str | None, typer.Option(help="For the caller and the audit.")] = None,
    binding: Binding = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """End waiting calls as denied."""
    _decide(calls, "deny", reason, binding, yes=yes, as_json=as_json)


def _decide(
    ids: list[str], how: str, reason: str | None, binding: str | None, *, yes: bool, as_json: bool
) -> None:
    if binding is not None and len(ids) != 1:
        raise typer.BadParameter("--binding is about one call: name one")
    with asking() as fleet:
        bindings = [binding or _look(fleet, it, quietly=as_json) for it in ids]
        if not yes and binding is None and sys.stdin.isatty():
            typer.confirm(f"{how.capitalize()}?", abort=True)
        decisions = [
            {"id": it, "binding": seen, "approve": how == "approve", "reason": reason}
            for it, seen in zip(ids, bindings, strict=True)
        ]
        answer = fleet.ask("POST", "approvals", "decide", body={"decisions": decisions})
        rows = [_outcome(it) for it in answer["results"]]
        show(answer if as_json else rows, as_json, _OUTCOMES)
    if any(row["problem"] for row in rows):
        raise typer.Exit(1)


def _look(fleet: ApiClient, call_id: str, *, quietly: bool) -> str:
    """Show a call; return the binding of what was shown."""
    shown = fleet.ask("GET", "approvals", call_id)
    if not quietly:
        show(shown, as_json=False)
    return str(shown["binding"])


def _outcome(result: dict[str, Any]) -> dict[str, Any]:
    error = result.get("error")
    problem = f"{error['code']}: {error['detail']}" if error else None
    return {
        "id": result["id"],
        "state": result.get("approval", {}).get("state"),
        "problem": problem,
    }
