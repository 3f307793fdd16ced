"""Where the audit's chains stand: their heads, what is not sealed yet, the newest checkpoint.

For people, who see at a glance whether the audit is being attested; what it proves, the verifier
says (`registry.verification`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from registry.database import Database

MOST_HEADS: Final = 50
MOST_UNSEALED: Final = 10_000


@dataclass(frozen=True)
class Head:
    """The last sealed entry of a chain, and up to where a checkpoint vouches for it."""

    chain: str
    seq: int
    hash: str
    signed_seq: int


@dataclass(frozen=True)
class Standing:
    """How far the audit, or a tenant's chain of it, is attested."""

    heads: list[Head]
    """Of the longest chains, `MOST_HEADS` at most."""
    chains: int
    sealed: int
    """Entries in all chains, those of before a cut among them."""
    unsealed: int
    """Entries that have no place in a chain yet, counted up to `MOST_UNSEALED`."""
    unsealed_since: datetime | None
    checkpoint: int
    """The newest checkpoint's number, 0 before the first."""
    checkpoint_at: str | None
    checkpoint_key: str | None


async def read_standing(database: Database, tenant: str | None = None) -> Standing:
    """Return how far the audit is sealed and signed; with ``tenant`` of that tenant's chain."""
    heads = await database.statement(
        "SELECT chain, seq, encode(hash, 'hex') AS hash, signed_seq,"
        " count(*) OVER () AS chains, (sum(seq) OVER ())::bigint AS sealed FROM audit_chains"
        " WHERE %(tenant)s::text IS NULL OR chain = %(tenant)s"
        " ORDER BY seq DESC, chain LIMIT %(limit)s",
        tenant=tenant,
        limit=MOST_HEADS,
    )
    # OFFSET 0: looked up for each of the few rows above the mark, never joined with all seals.
    (rest,) = await database.statement(
        "SELECT count(*) AS unsealed, min(at) AS since FROM (SELECT a.at FROM audit a"
        " WHERE a.xid >= (SELECT sealed_below FROM audit_sealer)"
        " AND (%(tenant)s::text IS NULL OR a.tenant_id = %(tenant)s)"
        " AND NOT EXISTS (SELECT FROM audit_seals s WHERE s.entry_id = a.id OFFSET 0)"
        " ORDER BY a.xid LIMIT %(limit)s) AS waiting",
        tenant=tenant,
        limit=MOST_UNSEALED,
    )
    newest = await database.statement(
        "SELECT number, at, key FROM audit_checkpoints ORDER BY number DESC LIMIT 1"
    )
    checkpoint = newest[0] if newest else {}
    return Standing(
        heads=[Head(it["chain"], it["seq"], it["hash"], it["signed_seq"]) for it in heads],
        chains=heads[0]["chains"] if heads else 0,
        sealed=heads[0]["sealed"] if heads else 0,
        unsealed=rest["unsealed"],
        unsealed_since=rest["since"],
        checkpoint=checkpoint.get("number", 0),
        checkpoint_at=checkpoint.get("at"),
        checkpoint_key=checkpoint.get("key"),
    )
