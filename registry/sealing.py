"""Sealing: committed entries get their place in their tenant's chain, and checkpoints are signed.

Entries are written by the transactions that they tell of, which wait for nothing; about a second
later the steward seals them.

Invariants:
 1. Each committed entry is sealed once, in the chain of its tenant; numbers have no gap.
 2. No entry is skipped, however late its transaction commits: all below `sealed_below` had ended
    when they were looked at, and what is not sealed above it is found by looking for its seal.
 3. Seals, heads and mark change in one transaction under one lock: killed in the middle, or run
    twice at once, sealing neither loses nor repeats anything.
 4. Entries of a batch stand in the order of their transactions' numbers, then of their ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from registry import audit, chain
from registry.attestations import Checkpoint
from registry.database import Database
from registry.signing import Signer

STEWARD: Final = "steward"
BATCH: Final = 4_000
_PUBLISHED_AT_ONCE: Final = 1_000

ENTRY: Final = r"""
    a.id, to_char(a.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24\:MI\:SS.US"Z"') AS at,
    a.tenant_id, a.actor, a.event, a.run_id, a.call_id, CAST(a.details AS text) AS details
"""
"""The columns of an entry `a` as they are hashed and exported, for SQLAlchemy's `text`."""
NOW: Final = r"""to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24\:MI\:SS.US"Z"')"""

_LOCK: Final = "hashtext('toolfleet.audit')"
_XMIN: Final = "CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint)"
_XMAX: Final = "CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS bigint)"
_CLUSTER: Final = "(SELECT CAST(system_identifier AS text) FROM pg_control_system())"

_MARK: Final = text(
    f"SELECT sealed_below, cluster IS DISTINCT FROM {_CLUSTER} AS moved FROM audit_sealer"  # noqa: S608 - constants
)
# OFFSET 0: looked up for each of the few rows above the mark, never joined with all seals.
_UNSEALED: Final = text(
    f"""
    SELECT {ENTRY}, a.xid, {_XMIN} AS ended_below FROM audit a
    WHERE a.xid >= :below AND (:moved OR a.xid < {_XMAX})
        AND NOT EXISTS (SELECT FROM audit_seals s WHERE s.entry_id = a.id OFFSET 0)
    ORDER BY a.xid, a.id LIMIT :limit
    """  # noqa: S608 - constants
)
_HEADS: Final = text("SELECT chain, seq, hash FROM audit_chains WHERE chain = ANY(:chains)")
_SEAL: Final = text(
    """
    INSERT INTO audit_seals (chain, seq, entry_id, hash)
    SELECT * FROM unnest(CAST(:chains AS text[]), CAST(:seqs AS bigint[]),
        CAST(:ids AS bigint[]), CAST(:hashes AS bytea[]))
    """
)
_MOVE_HEADS: Final = text(
    """
    INSERT INTO audit_chains (chain, seq, hash)
    SELECT * FROM unnest(CAST(:chains AS text[]), CAST(:seqs AS bigint[]),
        CAST(:hashes AS bytea[]))
    ON CONFLICT (chain) DO UPDATE SET seq = EXCLUDED.seq, hash = EXCLUDED.hash
    """
)
_MOVE_MARK: Final = text(
    f"UPDATE audit_sealer SET sealed_below = :below, cluster = CASE WHEN :all THEN {_CLUSTER}"  # noqa: S608 - constants
    " ELSE cluster END"
)


def entry_of(row: Row[Any]) -> dict[str, Any]:
    """Return the entry of a row that has the columns `ENTRY`, as it is hashed."""
    return {
        "id": row.id,
        "at": row.at,
        "tenant_id": row.tenant_id,
        "actor": row.actor,
        "event": row.event,
        "run_id": row.run_id,
        "call_id": row.call_id,
        "details": chain.read(row.details),
    }


async def seal(database: Database, *, limit: int = BATCH) -> int:
    """Seal up to ``limit`` committed entries; return how many, 0 while another sealer is at it."""
    async with database.transaction() as connection:
        if not await _try_lock(connection):
            return 0
        mark = (await connection.execute(_MARK)).one()
        # After a restore into another cluster, whose transactions are numbered anew, everything
        # that has no seal is looked for once.
        below = 0 if mark.moved else mark.sealed_below
        wanted = {"below": below, "moved": mark.moved, "limit": limit}
        rows = (await connection.execute(_UNSEALED, wanted)).all()
        whole = len(rows) < limit
        if rows:
            await _append(connection, rows)
        if rows or mark.moved:
            await connection.execute(
                _MOVE_MARK, {"below": _next_mark(rows, below, mark.moved, whole), "all": whole}
            )
        return len(rows)


def _next_mark(rows: Sequence[Row[Any]], below: int, moved: bool, whole: bool) -> int:
    if not rows or (moved and not whole):
        return below
    ended_below = int(rows[0].ended_below)
    return ended_below if whole else min(ended_below, int(rows[-1].xid))


async def _append(connection: AsyncConnection, rows: Sequence[Row[Any]]) -> None:
    names = {row.tenant_id or chain.NO_TENANT for row in rows}
    found = await connection.execute(_HEADS, {"chains": list(names)})
    heads = {row.chain: (int(row.seq), bytes(row.hash)) for row in found}
    chains, seqs, hashes = [], [], []
    for row in rows:
        name = row.tenant_id or chain.NO_TENANT
        seq, before = heads.get(name) or (0, chain.genesis(name))
        heads[name] = seq + 1, chain.link(before, entry_of(row))
        chains.append(name)
        seqs.append(seq + 1)
        hashes.append(heads[name][1])
    ids = [row.id for row in rows]
    await connection.execute(_SEAL, {"chains": chains, "seqs": seqs, "ids": ids, "hashes": hashes})
    moved = [(name, *heads[name]) for name in sorted(names)]
    await connection.execute(
        _MOVE_HEADS,
        {
            "chains": [name for name, _, _ in moved],
            "seqs": [seq for _, seq, _ in moved],
            "hashes": [hash_ for _, _, hash_ in moved],
        },
    )


@dataclass(frozen=True)
class Standing:
    """How far the audit is attested."""

    unsealed_s: float
    """For how long the oldest entry has waited to be sealed."""
    checkpoint: int
    checkpoint_at: str | None


_STANDING: Final = text(
    """
    SELECT (SELECT EXTRACT(EPOCH FROM clock_timestamp() - min(a.at)) FROM audit a
            WHERE a.xid >= (SELECT sealed_below FROM audit_sealer)
            AND NOT EXISTS (SELECT FROM audit_seals s WHERE s.entry_id = a.id OFFSET 0)) AS waited,
        c.number, c.at
    FROM (SELECT 1) AS one
    LEFT JOIN (SELECT number, at FROM audit_checkpoints ORDER BY number DESC LIMIT 1) AS c ON true
    """
)


async def standing(database: Database) -> Standing:
    """Return how far the audit is sealed and signed."""
    async with database.transaction() as connection:
        row = (await connection.execute(_STANDING)).one()
    return Standing(max(0.0, float(row.waited or 0)), row.number or 0, row.at)


async def lock(connection: AsyncConnection, *, shared: bool = False) -> None:
    """Let nobody seal, sign or cut until this transaction ends."""
    how = "pg_advisory_xact_lock_shared" if shared else "pg_advisory_xact_lock"
    await connection.execute(text(f"SELECT {how}({_LOCK})"))


async def _try_lock(connection: AsyncConnection) -> bool:
    result = await connection.execute(text(f"SELECT pg_try_advisory_xact_lock({_LOCK})"))
    return bool(result.scalar_one())


# -- checkpoints


async def sign_checkpoint(
    database: Database, signer: Signer, *, after: int = 0
) -> Checkpoint | None:
    """Sign the chains' heads as they are now; None where none moved since the last checkpoint.

    ``after`` is the newest number that is known outside the database.
    """
    async with database.transaction() as connection:
        await lock(connection)
        heads = (await connection.execute(text("SELECT * FROM audit_chains"))).all()
        if all(head.seq == head.signed_seq for head in heads):
            return None
        found = await connection.execute(
            text("SELECT number, key FROM audit_checkpoints ORDER BY number DESC LIMIT 1")
        )
        last = found.first()
        number = last.number if last else 0
        # Where the outside knows more than the database, every head is told anew.
        changed = [it for it in heads if number < after or it.seq != it.signed_seq]
        checkpoint = Checkpoint(
            number=max(number, after) + 1,
            at=(await connection.execute(text(f"SELECT {NOW}"))).scalar_one(),
            key=signer.id,
            total=sum(head.seq for head in heads),
            root=chain.root(chain.leaf(it.chain, it.seq, it.hash) for it in heads).hex(),
            chains={it.chain: (it.seq, it.hash.hex()) for it in changed},
        ).signed(signer)
        await _keep(connection, checkpoint)
        if last is None or last.key != signer.id:
            keys = {"key": signer.id, "before": last.key if last else None}
            await audit.record(connection, STEWARD, "audit.key_changed", keys)
        return checkpoint


async def _keep(connection: AsyncConnection, checkpoint: Checkpoint) -> None:
    await connection.execute(
        text(
            "INSERT INTO audit_checkpoints (number, at, key, body)"
            " VALUES (:number, :at, :key, :body)"
        ),
        {
            "number": checkpoint.number,
            "at": checkpoint.at,
            "key": checkpoint.key,
            "body": checkpoint.as_line(),
        },
    )
    await connection.execute(
        text("UPDATE audit_chains SET signed_seq = seq, signed_hash = hash WHERE seq <> signed_seq")
    )


async def newest_checkpoint(database: Database) -> int:
    """Return the number of the newest checkpoint, 0 before the first."""
    async with database.transaction() as connection:
        found = await connection.execute(text("SELECT max(number) FROM audit_checkpoints"))
        return found.scalar_one() or 0


async def unpublished(database: Database, after: int) -> list[str]:
    """Return the lines of the checkpoints after a number, the oldest first, a thousand at most."""
    async with database.transaction() as connection:
        result = await connection.execute(
            text(
                "SELECT body FROM audit_checkpoints WHERE number > :after"
                " ORDER BY number LIMIT :limit"
            ),
            {"after": after, "limit": _PUBLISHED_AT_ONCE},
        )
        return [row.body for row in result]
