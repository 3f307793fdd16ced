"""The commands that govern a running fleet: versions, changes, tenants.

Each prints a table for people, or with `--json` the API's own answer for programs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compose.printing import AsJson, Server, asking, read_file, show

if TYPE_CHECKING:
    from compose.api_client import ApiClient

tenants = typer.Typer(help="What tenants and tiers may do.", no_args_is_help=True)

_CHANGES = ("id", "version", "tool", "kind", "state", "what")
_ROLLOUTS = ("canary", "stable", "state", "started_at", "ended_at", "ended_by")
_TIERS = ("name", "priority", "limits", "together", "classes", "tools", "redaction", "results")
_KEPT = ("tier", "flags", "servers", "tools", "redaction", "results")
_TENANTS = ("name", "tier", "flags", "servers", "limits", "priority")


def add_to(app: typer.Typer, servers: typer.Typer) -> None:
    """Add these commands to the `toolfleet` command, some of them below `servers`."""
    app.add_typer(tenants, name="tenants")
    for name, command in (
        ("version", version),
        ("rollout", rollout),
        ("restore", restore),
        ("changes", changes),
        ("accept", accept),
        ("reject", reject),
    ):
        servers.command(name)(command)


# -- versions and rollouts


def version(
    file: Annotated[Path, typer.Argument(help="JSON or YAML: a definition; - for stdin.")],
    percent: Annotated[
        float, typer.Option(help="Of a hundred tenants, how many see it; 100: it is current.")
    ] = 100,
    as_json: AsJson = False,
) -> None:
    """Add a version to a registered server, for all tenants or as a canary."""
    with asking() as fleet:
        definition = read_file(file)
        if not isinstance(definition, dict) or not isinstance(definition.get("name"), str):
            raise typer.BadParameter(f"{file} holds no definition with a name")
        answer = fleet.ask(
            "POST", "servers", definition["name"], "versions", body=definition,
            query={"percent": percent},
        )  # fmt: skip
        show(answer, as_json)


def rollout(
    name: Server,
    version: Annotated[str | None, typer.Option(help="The version to try.")] = None,
    percent: Annotated[
        float | None, typer.Option(help="Of a hundred tenants, how many see it.")
    ] = None,
    tenant: Annotated[list[str] | None, typer.Option(help="Tenants that see it anyway.")] = None,
    cohort: Annotated[list[str] | None, typer.Option(help="Flags whose tenants see it.")] = None,
    automatic: Annotated[
        bool | None,
        typer.Option("--automatic/--by-hand", help="Whether the verdict promotes or rolls back."),
    ] = None,
    minimum_calls: Annotated[
        int | None, typer.Option(help="Canary calls before it is cleared.")
    ] = None,
    promote: Annotated[bool, typer.Option("--promote", help="End it: for all.")] = False,
    rollback: Annotated[bool, typer.Option("--rollback", help="End it: for none.")] = False,
    history: Annotated[bool, typer.Option("--history", help="Show earlier ones.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start, change, end or show the rollout of a server's version.

    What is not named when a rollout is changed stays as it is.
    """
    if sum([version is not None, promote, rollback, history]) > 1:
        raise typer.BadParameter("give one of --version, --promote, --rollback and --history")
    with asking() as fleet:
        if version is not None:
            verdict = {"automatic": automatic, "minimum_calls": minimum_calls}
            said = {"percent": percent, "tenants": tenant, "cohorts": cohort}
            plan = _plan(fleet, name, version)
            plan |= {field: value for field, value in said.items() if value is not None}
            plan["verdict"] |= {field: it for field, it in verdict.items() if it is not None}
            show(fleet.ask("PUT", "servers", name, "rollout", body=plan), as_json)
        elif promote or rollback:
            end = "promote" if promote else "rollback"
            show(fleet.ask("POST", "servers", name, "rollout", end), as_json)
        elif history:
            show(fleet.ask("GET", "servers", name, "rollouts"), as_json, _ROLLOUTS)
        else:
            show(fleet.ask("GET", "servers", name, "rollout"), as_json)


def _plan(fleet: ApiClient, name: str, version: str) -> dict[str, Any]:
    """Return the plan of the rollout of this version that is under way, else an empty one."""
    running = fleet.ask("GET", "servers", name)["rollout"]
    if running is not None and running["canary"] == version:
        plan: dict[str, Any] = running["plan"]
        return plan
    return {"version": version, "verdict": {}}


def restore(name: Server, as_json: AsJson = False) -> None:
    """Serve the version again that was current before this one."""
    with asking() as fleet:
        show(fleet.ask("POST", "servers", name, "restore"), as_json)


# -- changes of tools


def changes(
    name: Server,
    everything: Annotated[
        bool, typer.Option("--all", help="What changed before, too, not only what is held.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the changes of a server's tools that wait for a decision."""
    with asking() as fleet:
        answer = fleet.ask("GET", "servers", name, "changes")
        if as_json:
            show(answer, as_json)
        elif everything:
            rows = [
                {**listing, **change, "what": _what(change)}
                for listing in answer["changes"]
                for change in listing["changes"]
            ]
            show(rows, as_json, ("created_at", "version", "tool", "change", "reaction", "what"))
        else:
            held = [{**hold, "what": _what(hold["change"])} for hold in answer["held"]]
            show(held, as_json, _CHANGES)


def accept(
    name: Server,
    changes: Annotated[list[int], typer.Argument(help="The ids that `servers changes` shows.")],
    as_json: AsJson = False,
) -> None:
    """Take held changes in: new runs are offered what the server lists."""
    _decide_changes(name, changes, "accept", as_json)


def reject(
    name: Server,
    changes: Annotated[list[int], typer.Argument(help="The ids that `servers changes` shows.")],
    as_json: AsJson = False,
) -> None:
    """Keep held changes out until the server changes the tool again."""
    _decide_changes(name, changes, "reject", as_json)


def _decide_changes(name: str, ids: list[int], how: str, as_json: bool) -> None:
    with asking() as fleet:
        decided = [fleet.ask("POST", "servers", name, "changes", str(id_), how) for id_ in ids]
        show([{**it, "what": _what(it["change"])} for it in decided], as_json, _CHANGES)


def _what(change: dict[str, Any]) -> str:
    return "; ".join(f"{it['path']}: {it['what']}" for it in change.get("differences", [])[:5])


# -- tenants and tiers


@tenants.command("list")
def tenants_list(as_json: AsJson = False) -> None:
    """List the tenants, in the order in which they came."""
    with asking() as fleet:
        show(fleet.ask("GET", "tenants"), as_json, _TENANTS)


@tenants.command("show")
def tenants_show(name: str, as_json: AsJson = False) -> None:
    """Show a tenant and the limits that hold for it."""
    with asking() as fleet:
        show(fleet.ask("GET", "tenants", name), as_json)


@tenants.command("set")
def tenants_set(
    name: str,
    tier: Annotated[str | None, typer.Option(help="The tier it is in.")] = None,
    flag: Annotated[list[str] | None, typer.Option(help="Its feature flags, all of them.")] = None,
    enable: Annotated[list[str] | None, typer.Option(help="Servers it may use.")] = None,
    disable: Annotated[list[str] | None, typer.Option(help="Servers it may not use.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="JSON or YAML: the whole definition.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add a tenant, or change what it may do; what is not named stays as it is."""
    with asking() as fleet:
        if file is not None:
            body = read_file(file)
        else:
            known = fleet.ask("GET", "tenants")["tenants"]
            now: dict[str, Any] = next((it for it in known if it["name"] == name), {})
            body = {key: now[key] for key in _KEPT if key in now}
            body |= {"limits": now["own_limits"]} if now else {}
            switches = dict.fromkeys(enable or [], True) | dict.fromkeys(disable or [], False)
            body["servers"] = {**body.get("servers", {}), **switches}
            body |= {"tier": tier} if tier else {}
            body |= {"flags": flag} if flag is not None else {}
        show(fleet.ask("PUT", "tenants", name, body=body), as_json)


@tenants.command("tiers")
def tiers_list(as_json: AsJson = False) -> None:
    """List the tiers."""
    with asking() as fleet:
        show(fleet.ask("GET", "tiers"), as_json, _TIERS)


@tenants.command("set-tier")
def tiers_set(
    file: Annotated[Path, typer.Argument(help="JSON or YAML: a tier, or a list; - for stdin.")],
    as_json: AsJson = False,
) -> None:
    """Add tiers, or change them for all their tenants."""
    with asking() as fleet:
        found = read_file(file)
        answers = [
            fleet.ask("PUT", "tiers", str(tier.get("name", "")), body=tier)
            for tier in (found if isinstance(found, list) else [found])
        ]
        show(answers, as_json, _TIERS)


@tenants.command("remove-tier")
def tiers_remove(name: str, as_json: AsJson = False) -> None:
    """Remove a tier that no tenant is in."""
    with asking() as fleet:
        show(fleet.ask("DELETE", "tiers", name), as_json)
