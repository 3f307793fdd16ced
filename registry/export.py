"""The audit as a file: JSON Lines that can be verified, or CEF for who collects events.

JSON Lines are, in this order: the export itself, checkpoints, cuts, where chains start (only with
``since``), entries chain by chain, entries that are not sealed yet, the end. All of it is one
moment of the database, read page by page: however long the audit is, little of it is in memory.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from registry import chain
from registry.attestations import Checkpoint
from registry.database import Database, to_json
from registry.findings import Verdict
from registry.sealing import ENTRY, NOW, lock
from registry.signing import PublicKeys
from registry.verification import FORMAT, Verifier, digest

PAGE: Final = 500
"""How many entries at once: between two pages the loop does other things."""
_LOOSE: Final = timedelta(minutes=10)
"""How far entries may stand from the order of their instants: as long as a transaction may take."""

_CHECKPOINTS: Final = text(
    "SELECT number, body FROM audit_checkpoints WHERE number > :after ORDER BY number LIMIT :limit"
)
_NEWEST: Final = text("SELECT body FROM audit_checkpoints ORDER BY number DESC LIMIT 1")
_CUTS: Final = text(
    "SELECT DISTINCT ON (chain) chain, to_seq, body FROM audit_cuts"
    " WHERE CAST(:tenant AS text) IS NULL OR chain = :tenant ORDER BY chain, to_seq DESC"
)
_CHAINS: Final = text("SELECT chain, seq, signed_seq, signed_hash FROM audit_chains ORDER BY chain")
_SEALED: Final = text(
    f"""
    SELECT s.chain, s.seq, encode(s.hash, 'hex') AS hash, {ENTRY} FROM audit_seals s
    LEFT JOIN audit a ON a.id = s.entry_id
    WHERE s.chain = :chain AND s.seq > :after ORDER BY s.seq LIMIT :limit
    """  # noqa: S608 - constants
)
_UNSEALED: Final = text(
    f"""
    SELECT COALESCE(a.tenant_id, '') AS chain, NULL AS seq, NULL AS hash, {ENTRY} FROM audit a
    WHERE NOT EXISTS (SELECT FROM audit_seals s WHERE s.entry_id = a.id)
        AND (CAST(:tenant AS text) IS NULL OR a.tenant_id = :tenant)
    ORDER BY a.xid, a.id LIMIT :limit
    """  # noqa: S608 - constants
)
_UNSEALED_AT_MOST: Final = 50_000
_FIRST_SEAL: Final = text(
    "SELECT seq, encode(hash, 'hex') AS hash FROM audit_seals"
    " WHERE chain = :chain AND seq >= :seq ORDER BY seq LIMIT 1"
)
_WRITTEN: Final = text(
    "SELECT a.at FROM audit_seals s JOIN audit a ON a.id = s.entry_id"
    " WHERE s.chain = :chain AND s.seq >= :seq ORDER BY s.seq LIMIT 1"
)


@dataclass(frozen=True)
class Wanted:
    """Which part of the audit: a tenant's alone, and what was written since an instant.

    With ``since`` a little of what was written before comes along, so that nothing is missing.
    """

    tenant: str | None = None
    since: datetime | None = None


async def json_lines(database: Database, wanted: Wanted) -> AsyncGenerator[list[bytes]]:
    """Yield the export's lines, page by page."""
    as_of = await _now(database)
    since = wanted.since.astimezone(UTC).isoformat() if wanted.since else None
    header = {
        "kind": "export",
        "format": FORMAT,
        "at": as_of,
        "tenant": wanted.tenant,
        "since": since,
    }
    count = 1
    yield [_line(header)]
    async with _one_moment(database) as connection:
        async for page in _body(connection, wanted):
            count += len(page)
            yield page
    yield [_line({"kind": "end", "lines": count + 1, "header": digest(header)})]


async def cef_lines(
    database: Database, wanted: Wanted, line: Callable[[Row[Any]], bytes]
) -> AsyncGenerator[list[bytes]]:
    """Yield a line for each entry, as ``line`` writes it, page by page."""
    async with _one_moment(database) as connection:
        starts, _ = await _starts(connection, wanted)
        async for rows in _entries(connection, wanted, starts):
            yield [
                line(row)
                for row in rows
                if row.id is not None and not _too_old(row.at, wanted.since)
            ]


async def verify(
    database: Database, wanted: Wanted, keys: PublicKeys, outside: Iterable[bytes] = ()
) -> AsyncGenerator[int | Verdict]:
    """Verify the database as an export of it is; yield how many entries so far, then the verdict.

    The work is done in a thread: the loop goes on.
    """
    verifier = await asyncio.to_thread(Verifier, keys, outside)
    async for page in json_lines(database, wanted):
        await asyncio.to_thread(verifier.feed, page)
        yield verifier.entries
    yield await asyncio.to_thread(verifier.finish)


# -- the parts


async def _body(connection: AsyncConnection, wanted: Wanted) -> AsyncIterator[list[bytes]]:
    if wanted.tenant is None:
        async for page in _checkpoints(connection):
            yield page
    elif (newest := await _newest_for(connection, wanted.tenant)) is not None:
        yield [newest]
    cuts = await connection.execute(_CUTS, {"tenant": wanted.tenant})
    yield [row.body.encode() + b"\n" for row in cuts]
    starts, anchors = await _starts(connection, wanted)
    yield [_line({"kind": "start", **anchor}) for anchor in anchors]
    async for rows in _entries(connection, wanted, starts):
        yield list(_entry_lines(rows))


async def _checkpoints(connection: AsyncConnection) -> AsyncIterator[list[bytes]]:
    after = 0
    while True:
        rows = (await connection.execute(_CHECKPOINTS, {"after": after, "limit": PAGE})).all()
        if not rows:
            return
        yield [row.body.encode() + b"\n" for row in rows]
        after = rows[-1].number


async def _newest_for(connection: AsyncConnection, tenant: str) -> bytes | None:
    """Return the newest checkpoint as a tenant may see it: the others' heads as mere leaves."""
    body = (await connection.execute(_NEWEST)).scalar_one_or_none()
    if body is None:
        return None
    heads = [row for row in await connection.execute(_CHAINS) if row.signed_seq]
    mine = {row.chain: (row.signed_seq, row.signed_hash.hex()) for row in heads}
    leaves = sorted(chain.leaf(row.chain, row.signed_seq, row.signed_hash).hex() for row in heads)
    seen = {tenant: mine[tenant]} if tenant in mine else {}
    newest = Checkpoint.parse(chain.read(body))
    return replace(newest, chains=seen, leaves=tuple(leaves)).as_line().encode() + b"\n"


async def _starts(
    connection: AsyncConnection, wanted: Wanted
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Return after which number each chain is read, and the hash there where it is not its first.

    The instants of a chain's entries rise but for the time that transactions take, so that the
    place is found by halving.
    """
    rows = await connection.execute(_CHAINS)
    heads = {row.chain: int(row.seq) for row in rows if wanted.tenant in {None, row.chain}}
    if wanted.since is None:
        return dict.fromkeys(heads, 0), []
    starts, anchors = {}, []
    for name, head in heads.items():
        low, high = 0, head
        while low < high:
            middle = (low + high) // 2
            found = await connection.execute(_WRITTEN, {"chain": name, "seq": middle + 1})
            at = found.scalar_one_or_none()
            if at is not None and at < wanted.since - _LOOSE:
                low = middle + 1
            else:
                high = middle
        starts[name] = 0
        if low:
            found = await connection.execute(_FIRST_SEAL, {"chain": name, "seq": low})
            if (seal := found.first()) is not None and seal.seq == low:
                starts[name] = low
                anchors.append({"chain": name, "seq": low, "hash": seal.hash})
    return starts, anchors


async def _entries(
    connection: AsyncConnection, wanted: Wanted, starts: dict[str, int]
) -> AsyncIterator[list[Row[Any]]]:
    for name, start in starts.items():
        after = start
        while True:
            page = {"chain": name, "after": after, "limit": PAGE}
            rows = (await connection.execute(_SEALED, page)).all()
            if rows:
                yield list(rows)
                after = rows[-1].seq
            if len(rows) < PAGE:
                break
    limit = {"tenant": wanted.tenant, "limit": _UNSEALED_AT_MOST}
    yield list((await connection.execute(_UNSEALED, limit)).all())


def _entry_lines(rows: Iterable[Row[Any]]) -> Iterator[bytes]:
    """Yield entries as lines; their details stand there digit by digit as Postgres has them."""
    for row in rows:
        place = _part({"kind": "entry", "chain": row.chain, "seq": row.seq, "hash": row.hash})
        if row.id is None:
            yield f'{place[:-1]},"entry":null}}\n'.encode()
            continue
        entry = _part(
            {
                "id": row.id,
                "at": row.at,
                "tenant_id": row.tenant_id,
                "actor": row.actor,
                "event": row.event,
                "run_id": row.run_id,
                "call_id": row.call_id,
            }
        )
        yield f'{place[:-1]},"entry":{entry[:-1]},"details":{row.details}}}}}\n'.encode()


def _too_old(at: str, since: datetime | None) -> bool:
    return since is not None and datetime.fromisoformat(at) < since


def _part(value: dict[str, Any]) -> str:
    return _ENCODER.encode(value)


def _line(value: dict[str, Any]) -> bytes:
    return to_json(value).encode() + b"\n"


async def _now(database: Database) -> str:
    """Return the database's time, by which every checkpoint of before is committed."""
    async with database.transaction() as connection:
        await lock(connection, shared=True)
        return str((await connection.execute(text(f"SELECT {NOW}"))).scalar_one())


@asynccontextmanager
async def _one_moment(database: Database) -> AsyncIterator[AsyncConnection]:
    async with database.transaction() as connection:
        await connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        await connection.execute(text("SET LOCAL statement_timeout = '10min'"))
        yield connection


_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))
