"""The checkup: what is well with the fleet, what is not, and what to do about it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from api import shown
from api.auth import operators_only
from api.fleet import Server, read_fleet
from api.operations import Operations
from api.rest import PROBLEMS, operations_of
from api.wire import StrictRoute, answer
from registry import (
    credential_store,
    definition_secrets,
    notices,
    overview,
    sealing,
)
from registry.catalog import ServerVersion
from registry.errors import FleetError
from registry.stored_credential import CredentialState

MOST_SKEW_S: Final = 2.0
LONGEST_QUEUED_S: Final = 60.0
LONGEST_UNSEALED_S: Final = 60.0
_CLOCK: Final = time.time  # noqa: TID251 - the one place that compares clocks

State = Literal["ok", "warning", "failed"]

router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=PROBLEMS)


@dataclass(frozen=True)
class Finding:
    """What was checked, how it is, and what to do if it is not well."""

    check: str
    state: State
    what: str
    advice: str = ""


@router.get(
    "/checkup",
    tags=["health"],
    dependencies=[Depends(operators_only)],
    responses={200: {"model": shown.Checkup}},
)
async def checkup(
    request: Request,
    time_s: Annotated[float | None, Query(description="The caller's clock, since 1970")] = None,
) -> Response:
    """Check database, broker, steward, clocks, workers, queues and every server."""
    findings = [it async for it in check(operations_of(request), callers_time_s=time_s)]
    well = not any(finding.state == "failed" for finding in findings)
    return answer({"well": well, "findings": [asdict(finding) for finding in findings]})


async def check(
    operations: Operations,
    *,
    callers_time_s: float | None = None,
    clock: Callable[[], float] = _CLOCK,
) -> AsyncIterator[Finding]:
    """Yield what was found, part by part; a part that is away hides those that need it."""
    async for finding in check_parts(operations, callers_time_s=callers_time_s, clock=clock):
        yield finding
        if (finding.check, finding.state) == ("database", "failed"):
            return
    async for finding in _servers(operations):
        yield finding


async def check_parts(
    operations: Operations,
    *,
    callers_time_s: float | None = None,
    clock: Callable[[], float] = _CLOCK,
) -> AsyncIterator[Finding]:
    """Yield what `check` does of everything but the servers and their queues."""
    clocks = {"API": clock()} | ({"caller": callers_time_s} if callers_time_s else {})
    try:
        facts = await overview.database_facts(operations.database)
    except FleetError as error:
        yield Finding("database", "failed", error.message, error.hint)
        return
    clocks["Postgres"] = facts["time_s"]
    yield Finding(
        "database", "ok", f"PostgreSQL {facts['version']}, schema revision {facts['revision']}"
    )
    try:
        broker = await operations.client.broker_facts()
        steward = await operations.client.steward_lives()
    except FleetError as error:
        yield Finding("broker", "failed", error.message, error.hint)
    else:
        clocks["Redis"] = broker["time_s"]
        yield _broker(broker)
        yield _steward(alive=steward)
    yield _clocks(clocks)
    yield _audit(await sealing.standing(operations.database))
    for finding in _notices(await notices.counts(operations.database)):
        yield finding
    for ailing in await credential_store.ailing(operations.database):
        yield _credential(ailing)
    if clear := await definition_secrets.in_the_clear(operations.database):
        yield _in_the_clear(clear)


def _broker(facts: dict[str, Any]) -> Finding:
    policy = facts["maxmemory_policy"]
    if facts["maxmemory"] and policy not in {"noeviction", "unknown"}:
        return Finding(
            "broker",
            "warning",
            f"Redis drops keys when its memory is full (maxmemory-policy {policy})",
            "set maxmemory-policy noeviction: a dropped key may be an open breaker",
        )
    return Finding("broker", "ok", "Redis answers")


def _steward(*, alive: bool) -> Finding:
    if alive:
        return Finding("steward", "ok", "a steward works")
    return Finding(
        "steward",
        "failed",
        "no steward has shown itself for 15 s",
        "start `toolfleet steward`: without it lost messages and dead workers' calls are not seen",
    )


def _audit(standing: sealing.Standing) -> Finding:
    if standing.unsealed_s > LONGEST_UNSEALED_S:
        return Finding(
            "audit",
            "failed",
            f"entries have waited for {standing.unsealed_s:.0f} s to be sealed",
            "the steward seals them: look at its log",
        )
    if not standing.checkpoint:
        return Finding(
            "audit",
            "warning",
            "no checkpoint of the audit was signed yet",
            "give the steward a key: `toolfleet audit key --new`, TOOLFLEET_AUDIT_KEY_FILE",
        )
    what = f"sealed, and signed at {standing.checkpoint_at} (checkpoint {standing.checkpoint})"
    return Finding("audit", "ok", what)


def _notices(counts: Mapping[str, int]) -> Iterable[Finding]:
    untold = counts["failing"] + counts["given_up"]
    if untold:
        yield Finding(
            "approvals",
            "warning",
            f"the webhook could not be told of {untold} calls that wait; given up: "
            f"{counts['given_up']}",
            "look at the steward's log; `toolfleet approvals list` shows the calls",
        )


def _credential(row: dict[str, Any]) -> Finding:
    check = f"credential of {row['tenant_id']} for {row['server_name']}"
    problem = (row["problem"] or {}).get("message", "")
    if row["state"] == CredentialState.NEEDS_CONSENT:
        return Finding(
            check,
            "failed",
            f"it is no longer accepted: {problem}",
            "have somebody consent again, and set the new one with `toolfleet credentials set`",
        )
    return Finding(
        check,
        "warning",
        f"it was not renewed, {row['failures']} times in a row: {problem}",
        "it is tried again by itself; until then its token serves as long as it lives",
    )


def _in_the_clear(versions: Sequence[str]) -> Finding:
    return Finding(
        "definitions",
        "warning",
        f"secrets in the definitions of {', '.join(versions)} lie in the clear in the database",
        "seal them: `toolfleet credentials rewrap`, with TOOLFLEET_ENCRYPTION_KEYS_FILE set",
    )


def _clocks(clocks: dict[str, float]) -> Finding:
    behind, ahead = min(clocks, key=clocks.__getitem__), max(clocks, key=clocks.__getitem__)
    skew_s = clocks[ahead] - clocks[behind]
    if skew_s <= MOST_SKEW_S:
        return Finding("clock", "ok", f"{', '.join(sorted(clocks))} agree within {skew_s:.1f} s")
    return Finding(
        "clock",
        "warning",
        f"the clock of {ahead} is {skew_s:.1f} s ahead of that of {behind}",
        "run a time service (NTP) on both machines; deadlines follow Postgres' clock",
    )


async def _servers(operations: Operations) -> AsyncIterator[Finding]:
    servers = (await read_fleet(operations)).servers
    if not servers:
        yield Finding(
            "servers", "warning", "no server is registered", "`toolfleet servers add FILE`"
        )
    for server in servers:
        problems = [
            *_worker_problems(server),
            *_listing_problems(server.version, server.held),
            *_breaker_problems(server),
        ]
        for problem in problems:
            yield problem
        if not problems:
            count = len(server.workers)
            tools = len(server.version.tools)
            what = f"{tools} tools, {count} worker{'s' if count != 1 else ''}"
            yield Finding(f"server {server.name}", "ok", what)


def _worker_problems(server: Server) -> Iterable[Finding]:
    name = server.name
    if not server.workers:
        yield Finding(
            f"server {name}",
            "failed",
            "no worker serves its queue",
            f"start `toolfleet worker {name}`; `toolfleet up` does so by itself",
        )
    elif server.oldest_queued_s > LONGEST_QUEUED_S:
        yield Finding(
            f"queue mcp.{name}",
            "warning",
            f"its oldest call has waited for {server.oldest_queued_s:.0f} s",
            f"add workers to the queue (`toolfleet worker {name}`), or raise pool.max_size",
        )


def _listing_problems(server: ServerVersion, held: int) -> Iterable[Finding]:
    name = server.definition.name
    if server.refresh_error is not None:
        error = FleetError.from_dict(server.refresh_error)
        yield Finding(f"server {name}", "failed", error.message, error.hint)
    elif server.stale and server.refreshed_at is None:
        yield Finding(
            f"server {name}",
            "warning",
            "its tools have not been listed yet",
            f"`toolfleet servers refresh {name}` says what keeps it",
        )
    if held:
        yield Finding(
            f"server {name}",
            "warning",
            f"{held} changes of its tools are held, and those tools are not offered",
            f"`toolfleet servers changes {name}` shows them",
        )


def _breaker_problems(server: Server) -> Iterable[Finding]:
    """Yield what is to be said of the versions whose breakers are open, as any worker says."""
    pools = [pool for it in server.workers for pool in it.pools.values()]
    versions = sorted({pool.version for pool in pools if pool.breaker == "open"})
    if versions:
        named = ", ".join(f"{server.name}@{version}" for version in versions)
        yield Finding(
            f"server {server.name}",
            "failed",
            f"the breaker of {named} is open: its calls fail fast",
            "look at why calls fail; it is tried again by itself every 30 s",
        )
