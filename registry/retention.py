"""Retention: the oldest entries of each chain are removed, and a signed cut stands in their place.

Invariants:
 1. What is removed was sealed, is vouched for by a checkpoint, and verified right before; where it
    does not verify nothing is removed, because a cut would hide that.
 2. Cut, removal and the audit's own entry about it are one transaction.
 3. A chain keeps its newest entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from registry import audit, chain
from registry.attestations import Cut
from registry.database import Database
from registry.errors import Code, FleetError
from registry.sealing import ENTRY, NOW, entry_of, lock
from registry.signing import PublicKeys, Signer

BATCH: Final = 5_000

_OLDEST: Final = text(
    f"""
    SELECT s.seq, s.hash, {ENTRY}, COALESCE(a.at < :before, true) AS old
    FROM audit_seals s LEFT JOIN audit a ON a.id = s.entry_id
    WHERE s.chain = :chain AND s.seq > :after
        AND s.seq < (SELECT LEAST(seq, signed_seq + 1) FROM audit_chains WHERE chain = :chain)
    ORDER BY s.seq LIMIT :limit
    """  # noqa: S608 - constants
)
_KEEP_CUT: Final = text(
    "INSERT INTO audit_cuts (chain, to_seq, body) VALUES (:chain, :to_seq, :body)"
)
# Seals last: they say which entries a cut is about.
_REMOVE: Final = (
    text(
        "DELETE FROM audit WHERE id IN (SELECT entry_id FROM audit_seals"
        " WHERE chain = :chain AND seq <= :to_seq)"
    ),
    text("DELETE FROM audit_seals WHERE chain = :chain AND seq <= :to_seq"),
)


async def prune(
    database: Database, signer: Signer, keys: PublicKeys, before: datetime, *, actor: str
) -> dict[str, int]:
    """Remove the entries from before an instant; return how many each chain lost.

    A chain is cut before its first entry that stays, and only as far as it is signed for. ``keys``
    are those that may have signed earlier cuts. Raises `audit_broken` when a chain does not verify.
    """
    async with database.transaction() as connection:
        found = await connection.execute(text("SELECT chain FROM audit_chains ORDER BY chain"))
        names = [row.chain for row in found]
    removed: dict[str, int] = {}
    for name in names:
        while count := await _cut(database, signer, keys, name, before, actor):
            removed[name] = removed.get(name, 0) + count
            if count < BATCH:
                break
    return removed


async def _cut(
    database: Database, signer: Signer, keys: PublicKeys, name: str, before: datetime, actor: str
) -> int:
    """Remove up to a batch of a chain's oldest entries; return how many."""
    async with database.transaction() as connection:
        await lock(connection)
        after, hash_ = await _last_cut(connection, name, keys)
        wanted = {"chain": name, "after": after, "before": before, "limit": BATCH}
        rows = (await connection.execute(_OLDEST, wanted)).all()
        old = _first_that_are_old(rows)
        if not old:
            return 0
        _verify(name, after, hash_, old)
        cut = Cut(
            chain=name,
            from_seq=after + 1,
            to_seq=old[-1].seq,
            hash=old[-1].hash.hex(),
            at=(await connection.execute(text(f"SELECT {NOW}"))).scalar_one(),
            key=signer.id,
        ).signed(signer)
        await connection.execute(
            _KEEP_CUT, {"chain": name, "to_seq": cut.to_seq, "body": cut.as_line()}
        )
        for statement in _REMOVE:
            await connection.execute(statement, {"chain": name, "to_seq": cut.to_seq})
        details = {
            "from_seq": cut.from_seq,
            "to_seq": cut.to_seq,
            "hash": cut.hash,
            "before": before.isoformat(),
        }
        await audit.record(connection, actor, "audit.pruned", details, tenant=name or None)
        return len(old)


async def _last_cut(connection: AsyncConnection, name: str, keys: PublicKeys) -> tuple[int, bytes]:
    """Return where a chain begins: the number and the hash before its first entry."""
    found = await connection.execute(
        text("SELECT body FROM audit_cuts WHERE chain = :chain ORDER BY to_seq DESC LIMIT 1"),
        {"chain": name},
    )
    body = found.scalar_one_or_none()
    if body is None:
        return 0, chain.genesis(name)
    cut = Cut.parse(chain.read(body))
    if not cut.is_signed(keys):
        raise _broken(name, cut.to_seq)
    return cut.to_seq, bytes.fromhex(cut.hash)


def _first_that_are_old(rows: Sequence[Row[Any]]) -> Sequence[Row[Any]]:
    stays = next((n for n, row in enumerate(rows) if not row.old), len(rows))
    return rows[:stays]


def _verify(name: str, after: int, before: bytes, rows: Sequence[Row[Any]]) -> None:
    for number, row in enumerate(rows, after + 1):
        whole = row.id is not None and row.seq == number
        if not whole or chain.link(before, entry_of(row)) != row.hash:
            raise _broken(name, number)
        before = row.hash


def _broken(name: str, seq: int) -> FleetError:
    return FleetError(
        Code.AUDIT_BROKEN,
        f"the audit chain {name!r} does not verify at {seq}: nothing was removed from it",
        hint="`toolfleet audit verify` says what is wrong",
        details={"chain": name, "seq": seq},
    )
