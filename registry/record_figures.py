"""What the record says of the fleet as a whole, as Prometheus families.

Any process may gather them and finds the same. Labels are servers, versions, tiers and states,
which operators make: never a tenant, a run, a call, or anything that a caller names.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from registry import holds, notices, overview, sealing
from registry.database import Database
from registry.judgement import VERDICT_ACTOR
from registry.tiers import DEFAULT_TIER

REGRESSED_FOR: Final = timedelta(hours=1)
"""How long a canary that was rolled back by its verdict is told of."""
OVERDUE: Final = timedelta(minutes=1)
"""After which a credential that was to be renewed has not been."""

FIGURES: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "server_info": (
        "The served version of each server, how it is reached, and who pays for it (always 1)",
        ("server", "version", "transport", "cost_tag"),
    ),
    "workers": ("Workers whose lease holds", ("server",)),
    "calls_unfinished": ("Calls in the record that have not ended", ("state",)),
    "queued_calls": ("Calls in the record that wait for a worker", ("server",)),
    "oldest_queued_seconds": (
        "For how long the oldest queued call has waited since it was queued last; 0: none is",
        ("server",),
    ),
    "running_calls": ("Calls in the record that a worker has claimed", ("server",)),
    "runs_active": ("Runs with a call that has not ended", ("server",)),
    "approvals_waiting": ("Calls that wait for an approval", ("server",)),
    "oldest_approval_seconds": (
        "For how long the oldest call that needs an approval has waited; 0: none does",
        ("server",),
    ),
    "tier_unfinished_calls": (
        "Calls that have not ended, by the tier of their tenants",
        ("tier", "state"),
    ),
    "tier_oldest_queued_seconds": (
        "For how long the oldest queued call of a tier has waited; 0: none is",
        ("tier",),
    ),
    "held_changes": ("Changes of tools that wait for an operator", ("server", "change")),
    "listing_age_seconds": ("Since the server's tools were listed last", ("server",)),
    "listing_failing": (
        "Whether its tools could not be listed when that was last tried",
        ("server",),
    ),
    "canary_percent": ("How many of a hundred tenants see the canary", ("server", "version")),
    "canary_regressed": (
        "Whether its calls speak against a canary; for an hour also of one rolled back for that",
        ("server", "version"),
    ),
    "credentials": (
        "Stored credentials: ready, failing (not renewed when it was tried) or needs_consent",
        ("server", "state"),
    ),
    "credential_expiry_seconds": (
        "Until the first of a server's credentials expires; negative once it has",
        ("server",),
    ),
    "credential_unrenewed_expiry_seconds": (
        "The same of those alone whose renewal is overdue, or that cannot be renewed",
        ("server",),
    ),
    "audit_unsealed_seconds": (
        "For how long the oldest entry of the audit has waited to be sealed",
        (),
    ),
    "approval_notices": (
        "Calls that wait for an approval, by whether the webhook has been told of them",
        ("state",),
    ),
}

_SERVERS: Final = """
    SELECT s.name AS server, v.version, v.definition ->> 'transport' AS transport,
        COALESCE(v.definition ->> 'cost_tag', '') AS cost_tag,
        CAST(EXTRACT(EPOCH FROM clock_timestamp() - s.refreshed_at) AS double precision)
            AS listed_s,
        s.refresh_error IS NOT NULL AS failing
    FROM servers s JOIN server_versions v ON v.id = s.current_version_id
    WHERE s.removed_at IS NULL
"""
_UNFINISHED: Final = """
    SELECT s.name AS server, count(DISTINCT c.run_id) AS runs,
        count(*) FILTER (WHERE c.state = 'queued') AS queued,
        count(*) FILTER (WHERE c.state = 'running') AS running,
        count(*) FILTER (WHERE c.state = 'awaiting_approval') AS waiting,
        CAST(EXTRACT(EPOCH FROM clock_timestamp() - min(c.queued_at)
            FILTER (WHERE c.state = 'queued')) AS double precision) AS queued_s,
        CAST(EXTRACT(EPOCH FROM clock_timestamp() - min(c.created_at)
            FILTER (WHERE c.state = 'awaiting_approval')) AS double precision) AS waiting_s
    FROM servers s LEFT JOIN calls c ON c.server_name = s.name
        AND c.state IN ('queued', 'running', 'awaiting_approval')
    WHERE s.removed_at IS NULL GROUP BY s.name
"""
_OF_SERVERS: Final = {
    "queued_calls": "queued",
    "oldest_queued_seconds": "queued_s",
    "running_calls": "running",
    "runs_active": "runs",
    "approvals_waiting": "waiting",
    "oldest_approval_seconds": "waiting_s",
}
_TIERS: Final = """
    WITH open AS (
        SELECT COALESCE(t.definition ->> 'tier', %(default)s) AS tier, c.state, c.queued_at
        FROM calls c LEFT JOIN tenants t ON t.id = c.tenant_id
        WHERE c.state IN ('queued', 'running', 'awaiting_approval')
    )
    SELECT k.tier, count(*) FILTER (WHERE o.state = 'queued') AS queued,
        count(*) FILTER (WHERE o.state = 'running') AS running,
        count(*) FILTER (WHERE o.state = 'awaiting_approval') AS awaiting_approval,
        CAST(EXTRACT(EPOCH FROM clock_timestamp() - min(o.queued_at)
            FILTER (WHERE o.state = 'queued')) AS double precision) AS queued_s
    FROM (SELECT name AS tier FROM tiers UNION SELECT %(default)s) k
    LEFT JOIN open o ON o.tier = k.tier GROUP BY k.tier
"""
_CANARIES: Final = """
    SELECT DISTINCT ON (r.server_name) r.server_name AS server, v.version, r.state,
        CAST(r.plan ->> 'percent' AS double precision) AS percent,
        COALESCE(r.report ->> 'decision' = 'roll_back', false) AS condemned
    FROM rollouts r JOIN server_versions v ON v.id = r.canary_version_id
    JOIN servers s ON s.name = r.server_name AND s.removed_at IS NULL
    WHERE r.state = 'active' OR (r.state = 'rolled_back' AND r.ended_by = %(verdict)s
        AND r.ended_at > clock_timestamp() - %(lately)s)
    ORDER BY r.server_name, r.state = 'active' DESC, r.id DESC
"""
_CREDENTIALS: Final = """
    SELECT c.server_name AS server,
        count(*) FILTER (WHERE c.state = 'ready' AND c.failures = 0) AS ready,
        count(*) FILTER (WHERE c.state = 'ready' AND c.failures > 0) AS failing,
        count(*) FILTER (WHERE c.state = 'needs_consent') AS needs_consent,
        CAST(EXTRACT(EPOCH FROM min(c.expires_at) FILTER (WHERE c.state = 'ready')
            - clock_timestamp()) AS double precision) AS expires_s,
        CAST(EXTRACT(EPOCH FROM min(c.expires_at) FILTER (WHERE c.state = 'ready'
            AND COALESCE(c.renew_at, '-infinity') < clock_timestamp() - %(overdue)s)
            - clock_timestamp()) AS double precision) AS unrenewed_s
    FROM credentials c JOIN servers s ON s.name = c.server_name AND s.removed_at IS NULL
    WHERE c.state <> 'removed' GROUP BY c.server_name
"""


_Add = Callable[[str, tuple[str, ...], float | None], None]


class _Gathered:
    def __init__(self) -> None:
        self.families = {
            name: GaugeMetricFamily(f"toolfleet_{name}", help_, labels=labels)
            for name, (help_, labels) in FIGURES.items()
        }

    def add(self, name: str, labels: tuple[str, ...], value: float | None) -> None:
        """Add a sample; None is 0."""
        self.families[name].add_metric(labels, value or 0.0)


async def record_figures(database: Database) -> list[Metric]:
    """Return every family of `FIGURES`; raise `store_unavailable`."""
    gathered = _Gathered()
    add = gathered.add
    await _servers(database, add)
    await _unfinished(database, add)
    await _canaries(database, add)
    await _credentials(database, add)
    for (server, kind), count in (await holds.counts(database)).items():
        add("held_changes", (server, kind), count)
    add("audit_unsealed_seconds", (), (await sealing.standing(database)).unsealed_s)
    for notice, count in (await notices.counts(database)).items():
        add("approval_notices", (notice,), count)
    return list(gathered.families.values())


async def _servers(database: Database, add: _Add) -> None:
    for server, count in (await overview.worker_counts(database)).items():
        add("workers", (server,), count)
    for row in await database.statement(_SERVERS):
        server = row["server"]
        add("server_info", (server, row["version"], row["transport"], row["cost_tag"]), 1)
        add("listing_failing", (server,), row["failing"])
        if row["listed_s"] is not None:
            add("listing_age_seconds", (server,), row["listed_s"])


async def _unfinished(database: Database, add: _Add) -> None:
    totals = await overview.unfinished_calls(database)
    for state in ("queued", "running", "awaiting_approval"):
        add("calls_unfinished", (state,), totals.get(state))
    for row in await database.statement(_UNFINISHED):
        for name, column in _OF_SERVERS.items():
            add(name, (row["server"],), row[column])
    for row in await database.statement(_TIERS, default=DEFAULT_TIER):
        add("tier_oldest_queued_seconds", (row["tier"],), row["queued_s"])
        for state in ("queued", "running", "awaiting_approval"):
            add("tier_unfinished_calls", (row["tier"], state), row[state])


async def _canaries(database: Database, add: _Add) -> None:
    rows = await database.statement(_CANARIES, verdict=VERDICT_ACTOR, lately=REGRESSED_FOR)
    for row in rows:
        labels = (row["server"], row["version"])
        active = row["state"] == "active"
        add("canary_percent", labels, row["percent"] if active else 0)
        add("canary_regressed", labels, row["condemned"] or not active)


async def _credentials(database: Database, add: _Add) -> None:
    for row in await database.statement(_CREDENTIALS, overdue=OVERDUE):
        server = row["server"]
        for state in ("ready", "failing", "needs_consent"):
            add("credentials", (server, state), row[state])
        for name, column in (
            ("credential_expiry_seconds", "expires_s"),
            ("credential_unrenewed_expiry_seconds", "unrenewed_s"),
        ):
            if row[column] is not None:
                add(name, (server,), row[column])
