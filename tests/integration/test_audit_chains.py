"""The audit's chains on a real Postgres: sealed in order, signed, cut, exported and verified."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from registry import audit, calls, leases, retention, sealing, tenants
from registry.calls import CallState, Ending
from registry.checkpoint_file import CheckpointFile
from registry.database import Database
from registry.errors import Code, FleetError
from registry.export import Wanted, json_lines, verify
from registry.findings import Verdict
from registry.settings import Settings
from registry.signing import Signer, make_key, public_file, read_public_keys
from registry.tenants import Role
from registry.verification import Verifier
from tests.approving import decide
from tests.ledger import WORKER, Ledger, definition, register, start
from tests.requirements import requirement
from workers.notary import Notary

pytestmark = pytest.mark.anyio

LATER = datetime.now(UTC) + timedelta(days=1)


class Office:
    """A steward's part in the audit of one database, and a verifier's."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.key = folder / "audit.key"
        make_key(self.key)
        self.file = CheckpointFile(folder / "checkpoints.jsonl")
        settings = Settings(audit_key_file=self.key, audit_checkpoints=self.file.path)
        self.notary = Notary(settings, database)

    async def work(self) -> None:
        """Seal and sign whatever there is."""
        await self.notary.seal_audit()
        await self.notary.sign_audit()

    async def prune(self, before: datetime = LATER) -> dict[str, int]:
        keys = read_public_keys(public_file(self.key))
        signer = Signer.load(self.key)
        return await retention.prune(self.database, signer, keys, before, actor="ops")

    async def verdict(self, **wanted: Any) -> Verdict:
        """Verify the database as it is, with the checkpoints outside."""
        keys = read_public_keys(public_file(self.key))
        progress = verify(self.database, Wanted(**wanted), keys, self.file.lines())
        (*_, verdict) = [news async for news in progress]
        assert isinstance(verdict, Verdict)
        return verdict

    async def export(self, **wanted: Any) -> list[bytes]:
        return [line async for page in json_lines(self.database, Wanted(**wanted)) for line in page]

    def offline(self, lines: Iterable[bytes]) -> Verdict:
        verifier = Verifier(read_public_keys(public_file(self.key)), self.file.lines())
        verifier.feed(lines)
        return verifier.finish()


@pytest.fixture
async def office(database: Database, tmp_path: Path) -> Office:
    return Office(database, tmp_path)


@pytest.fixture
async def ledger(database: Database) -> Ledger:
    return await Ledger.open(database)


@pytest.fixture
async def other(database_url: str) -> AsyncIterator[Database]:
    """Another process's door to the same database."""
    database = Database(database_url)
    yield database
    await database.close()


async def sql(database: Database, statement: str, **values: Any) -> list[Any]:
    async with database.transaction() as connection:
        result = await connection.execute(text(statement), values)
        return list(result) if result.returns_rows else []


async def write(database: Database, count: int = 1, tenant: str | None = "acme") -> None:
    async with database.transaction() as connection:
        for number in range(count):
            await audit.record(connection, "somebody", "thing.done", {"n": number}, tenant=tenant)


async def unsealed(database: Database) -> int:
    (row,) = await sql(
        database,
        "SELECT count(*) FROM audit a"
        " WHERE NOT EXISTS (SELECT FROM audit_seals s WHERE s.entry_id = a.id)",
    )
    return int(row[0])


async def numbers(database: Database, chain: str) -> list[int]:
    rows = await sql(
        database, "SELECT seq FROM audit_seals WHERE chain = :chain ORDER BY seq", chain=chain
    )
    return [row.seq for row in rows]


# -- what is written


@requirement("audit:complete")
async def test_each_transition_of_a_call_says_who_what_how_and_how_it_went(ledger: Ledger) -> None:
    claim = await ledger.running(arguments={"a": 1})
    ending = Ending(
        claim.id, claim.fence, CallState.SUCCEEDED, {"content": []}, True, timings={"call_s": 0.25}
    )
    await calls.finish(ledger.database, WORKER, [ending])
    found = await audit.entries(ledger.database, call=claim.id)
    row = await ledger.row(claim.id)
    assert [(it["event"], it["actor"]) for it in reversed(found)] == [
        ("call.queued", "agent"),
        ("call.running", WORKER),
        ("call.succeeded", WORKER),
    ]
    for entry in found:
        said = entry["details"]
        assert (entry["tenant_id"], entry["run_id"]) == ("acme", ledger.run.id)
        assert (said["tool"], said["server"]) == ("demo_look", "demo")
        assert said["tool_version_id"] == row["tool_version_id"]
        assert said["server_version_id"] == row["server_version_id"]
        assert len(said["arguments_digest"]) == 64
    assert (found[0]["details"]["is_error"], found[0]["details"]["timings"]) == (
        True,
        {"call_s": 0.25},
    )
    assert found[1]["details"]["queue_wait_s"] >= 0


@requirement("audit:complete")
async def test_the_other_ends_of_a_call_say_as_much(ledger: Ledger) -> None:
    stopped, late, approved = [await ledger.submit() for _ in range(3)]
    await calls.stop(ledger.database, [stopped], actor="key:1")
    await ledger.age("deadline_at", [late])
    await leases.expire(ledger.database)
    await ledger.sql("UPDATE calls SET state = 'awaiting_approval' WHERE id = :id", id=approved)
    await decide(ledger, approved, actor="key:2")
    claim = await ledger.running("write")  # of a worker that nobody knows
    await leases.close_dead(ledger.database, 3)
    for call_id, event in (
        (stopped, "call.stopped"),
        (late, "call.expired"),
        (approved, "call.approved"),
        (claim.id, "call.outcome_unknown"),
    ):
        last = (await audit.entries(ledger.database, call=call_id, limit=1))[0]
        assert last["event"] == event
        assert last["details"].keys() >= {"tool", "server", "tool_version_id", "arguments_digest"}


@requirement("audit:complete", "audit:no-secret")
async def test_who_made_and_revoked_a_key_is_told_and_never_its_secret(database: Database) -> None:
    key_id, secret = await tenants.create_key(
        database, name="ci", role=Role.TENANT, tenant="acme", actor="key:1"
    )
    await tenants.revoke_key(database, key_id, actor="key:2")
    await tenants.revoke_key(database, key_id, actor="key:3")
    found = await audit.entries(database)
    assert [(it["event"], it["actor"], it["tenant_id"]) for it in reversed(found)] == [
        ("tenant.added", "key:1", "acme"),
        ("key.created", "key:1", "acme"),
        ("key.revoked", "key:2", "acme"),
    ]
    said = found[1]["details"]
    assert (said["key"], said["name"], said["role"]) == (key_id, "ci", "tenant")
    assert secret.removeprefix("tf_") not in json.dumps(found, default=str)


@requirement("audit:complete")
async def test_what_ends_with_something_else_has_its_entry_too(database: Database) -> None:
    from registry import catalog, rollouts
    from registry.rollouts import RolloutPlan

    await register(database, definition())
    await catalog.add_version(database, definition(version="2"), actor="ops", serve=False)
    await rollouts.put_rollout(database, "demo", RolloutPlan(version="2"), actor="ops")
    await catalog.remove_server(database, "demo", actor="key:9")
    found = await audit.entries(database, limit=2)
    assert [(it["event"], it["actor"]) for it in found] == [
        ("server.removed", "key:9"),
        ("rollout.replaced", "key:9"),
    ]


CHANGES = (
    "UPDATE audit SET actor = 'nobody'",
    "UPDATE audit_seals SET seq = seq + 1",
    "UPDATE audit_checkpoints SET body = ''",
    "UPDATE audit_cuts SET body = ''",
    "DELETE FROM audit",
    "DELETE FROM audit_seals",
    "DELETE FROM audit_checkpoints",
    "DELETE FROM audit_cuts",
    "TRUNCATE audit",
    "TRUNCATE audit_seals",
    "TRUNCATE audit_checkpoints",
    "TRUNCATE audit_cuts",
)


@requirement("audit:append-only")
@pytest.mark.parametrize("role", ["origin", "replica"])
async def test_the_owner_of_the_tables_cannot_change_what_is_in_them(
    database: Database, office: Office, role: str
) -> None:
    await write(database, 3)
    await office.work()
    await office.prune()
    await office.work()
    for change in CHANGES:
        async with database.transaction() as connection:
            await connection.execute(text(f"SET LOCAL session_replication_role = {role}"))
            with pytest.raises(DBAPIError, match="only ever added to"):
                await connection.execute(text(change))
            await connection.rollback()
    assert (await office.verdict()).sound


# -- sealing


@requirement("audit:sealed")
async def test_entries_are_numbered_without_a_gap_in_their_tenants_chain(
    database: Database, office: Office
) -> None:
    for tenant in ("acme", None, "zeta", "acme"):
        await write(database, 5, tenant)
    await office.work()
    assert await numbers(database, "acme") == list(range(1, 11))
    assert await numbers(database, "zeta") == list(range(1, 6))
    assert await unsealed(database) == 1  # that a key signs for the first time is an entry, too
    verdict = await office.verdict()
    assert (verdict.sound, verdict.entries, verdict.chains) == (True, 20, 3)


@requirement("audit:sealed")
async def test_an_entry_that_is_committed_late_is_not_passed_over(
    database: Database, other: Database, office: Office
) -> None:
    async with other.transaction() as late:
        await audit.record(late, "somebody", "late.done", {}, tenant="acme")
        for _ in range(3):
            await write(database)
            assert await sealing.seal(database) == 1
    assert await sealing.seal(database) == 1
    assert await sealing.seal(database) == 0
    assert await numbers(database, "acme") == [1, 2, 3, 4]


@requirement("audit:sealed")
async def test_however_transactions_overlap_each_entry_is_sealed_once(
    database: Database, database_url: str, office: Office
) -> None:
    draw = random.Random(7)
    async with AsyncExitStack() as stack:
        sealers = [Database(database_url, pool_size=2) for _ in range(2)]
        writers = Database(database_url, pool_size=6)
        for it in (*sealers, writers):
            stack.push_async_callback(it.close)
        done = asyncio.Event()

        async def seal_on(sealer: Database) -> None:
            while not done.is_set():
                await sealing.seal(sealer, limit=draw.randrange(1, 9))

        async def write_some(number: int) -> None:
            for _ in range(12):
                try:
                    async with writers.transaction() as connection:
                        for _ in range(draw.randrange(1, 4)):
                            tenant = draw.choice([None, "acme", "zeta"])
                            await audit.record(connection, "w", "x.y", {}, tenant=tenant)
                            await asyncio.sleep(draw.random() * 0.01)
                        if draw.random() < 0.2:
                            raise LookupError  # which rolls it back
                except LookupError:
                    assert number < 8

        sealing_on = [asyncio.create_task(seal_on(it)) for it in sealers]
        await asyncio.gather(*(write_some(number) for number in range(8)))
        done.set()
        await asyncio.gather(*sealing_on)
    await office.work()
    assert await unsealed(database) == 1
    verdict = await office.verdict()
    assert (verdict.problems, verdict.entries > 100) == ([], True)


@requirement("audit:sealed")
async def test_a_database_that_was_put_into_another_cluster_goes_on_being_sealed(
    database: Database, office: Office
) -> None:
    await write(database, 2)
    await office.work()
    # A younger cluster numbers its transactions anew, so that all seem to have ended long ago.
    await sql(database, "UPDATE audit_sealer SET cluster = 'another', sealed_below = 9000000000")
    await write(database, 2)
    await office.work()
    await office.work()
    assert await unsealed(database) == 0
    assert (await office.verdict()).sound


@requirement("audit:sealed")
async def test_numbers_and_characters_of_any_kind_verify(
    database: Database, office: Office
) -> None:
    odd = (
        '{"a": [1.10, 1e400, -0.0, 1e-7, 12345678901234567890.5, 2.0], "\\u2028\\ud834\\udd1e": 1}'
    )
    await sql(
        database,
        "INSERT INTO audit (actor, event, details) VALUES (:actor, 'x', CAST(:odd AS jsonb))",
        actor='ü\\"\n',
        odd=odd,
    )
    async with database.transaction() as connection:
        await audit.record(connection, "a", "b", {"nul\0": ["\0", "\ud800", (1, 2)]})
    await office.work()
    assert (await office.verdict()).sound
    lines = await office.export()
    assert office.offline(lines).sound
    changed = [line.replace(b"12345678901234567890.5", b"12345678901234567890.4") for line in lines]
    assert [it.kind for it in office.offline(changed).problems] == ["edited"]


# -- checkpoints


@requirement("audit:checkpoints")
async def test_every_checkpoint_is_in_the_database_and_outside(
    database: Database, office: Office
) -> None:
    for _ in range(3):
        await write(database)
        await office.work()
    await office.notary.sign_audit()  # nothing moved
    outside = [line.decode().strip() for line in office.file.lines()]
    assert outside == await sealing.unpublished(database, 0)
    assert [json.loads(line)["number"] for line in outside] == [1, 2, 3]


@requirement("audit:checkpoints")
async def test_a_file_that_a_crash_left_behind_is_made_whole(
    database: Database, office: Office
) -> None:
    for _ in range(3):
        await write(database)
        await office.work()
    whole = office.file.path.read_bytes()
    office.file.path.write_bytes(whole[: len(whole) * 2 // 3])
    await office.work()
    assert office.file.path.read_bytes().startswith(whole)
    assert (await office.verdict()).sound


@requirement("audit:checkpoints")
async def test_the_key_can_be_changed_and_what_it_signed_still_verifies(
    database: Database, office: Office
) -> None:
    await write(database)
    await office.work()
    make_key(office.key)
    await write(database)
    await office.work()
    await office.work()
    assert (await office.verdict()).sound
    changes = await audit.entries(database, event="audit.key_changed")
    assert changes[0]["details"]["before"] == changes[1]["details"]["key"]
    assert office.key.stat().st_mode & 0o077 == 0


@requirement("audit:checkpoints")
async def test_a_key_that_others_may_read_is_not_used(office: Office, database: Database) -> None:
    office.key.chmod(0o644)
    await write(database)
    with pytest.raises(FleetError, match="others than its owner"):
        await office.work()


# -- what is found out


async def in_spite_of_triggers(database: Database, *statements: str) -> None:
    """Change what nobody may, as the owner of the database can after all."""
    tables = ("audit", "audit_seals", "audit_checkpoints", "audit_cuts")
    async with database.transaction() as connection:
        for statement in (
            *(f"ALTER TABLE {table} DISABLE TRIGGER ALL" for table in tables),
            *statements,
            *(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER keep" for table in tables),
            *(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER keep_rows" for table in tables[:2]),
        ):
            await connection.execute(text(statement))


BACKDATED = (
    "INSERT INTO audit (actor, event, tenant_id, at, xid)"
    " VALUES ('x', 'call.denied', 'acme', now() - interval '1 hour', 3)"
)
NTH = "(SELECT entry_id FROM audit_seals WHERE chain = 'acme' AND seq = {})"
SWAP = (
    "UPDATE audit_seals SET seq = seq + 1000 WHERE chain = 'acme' AND seq IN (5, 8)",
    "UPDATE audit_seals SET seq = 13 - (seq - 1000) WHERE chain = 'acme' AND seq > 1000",
)


@requirement("audit:tampering-found")
@pytest.mark.parametrize(
    ("statements", "kind", "seq"),
    [
        ((f"UPDATE audit SET actor = 'nobody' WHERE id = {NTH.format(7)}",), "edited", 7),
        ((f"DELETE FROM audit WHERE id = {NTH.format(7)}",), "deleted", 7),
        (("DELETE FROM audit_seals WHERE chain = 'acme' AND seq = 7",), "deleted", 7),
        (("DELETE FROM audit_seals WHERE chain = 'acme' AND seq < 4",), "truncated", 1),
        (("DELETE FROM audit_seals WHERE chain = 'acme' AND seq > 17",), "truncated", 18),
        (SWAP, "reordered", 8),
        (("UPDATE audit_checkpoints SET body = replace(body, 'acme', 'zeta')",), "rewritten", 1),
        (("DELETE FROM audit_checkpoints",), "deleted", 1),
        ((BACKDATED,), "unsealed", None),
    ],
)
async def test_what_was_done_to_the_database_is_told_with_its_place(
    database: Database, office: Office, statements: tuple[str, ...], kind: str, seq: int | None
) -> None:
    for _ in range(4):
        await write(database, 5)
        await office.work()
    await in_spite_of_triggers(database, *statements)
    verdict = await office.verdict()
    assert (kind, seq) in {(it.kind, it.seq) for it in verdict.problems}
    exported = office.offline(await office.export())
    assert [vars(it) for it in exported.problems] == [vars(it) for it in verdict.problems]


@requirement("audit:outside")
async def test_a_database_written_anew_as_a_whole_is_found_by_the_file_outside(
    database: Database, office: Office
) -> None:
    await write(database, 10)
    await office.work()
    await in_spite_of_triggers(
        database,
        f"UPDATE audit SET actor = 'nobody' WHERE id = {NTH.format(4)}",
        "DELETE FROM audit_seals",
        "DELETE FROM audit_chains",
        "DELETE FROM audit_checkpoints",
        "UPDATE audit_sealer SET sealed_below = 0",
    )
    await office.work()  # which seals and signs, in good faith, what it finds
    kinds = {(it.kind, it.chain) for it in (await office.verdict()).problems}
    assert ("rewritten", "acme") in kinds
    assert ("deleted", "(checkpoints)") in kinds


@requirement("audit:outside")
async def test_an_end_that_was_cut_off_with_its_checkpoints_is_found_by_the_file_outside(
    database: Database, office: Office
) -> None:
    for _ in range(2):
        await write(database, 5)
        await office.work()
    await in_spite_of_triggers(
        database,
        f"DELETE FROM audit WHERE id = {NTH.format(10)}",
        "DELETE FROM audit_seals WHERE chain = 'acme' AND seq = 10",
        "DELETE FROM audit_checkpoints WHERE number = 2",
    )
    assert ("truncated", "acme", 10) in {
        (it.kind, it.chain, it.seq) for it in (await office.verdict()).problems
    }


# -- retention


@requirement("audit:retention")
async def test_after_old_entries_are_removed_the_rest_verifies(
    database: Database, office: Office
) -> None:
    await write(database, 12)
    await office.work()
    removed = await office.prune()
    assert removed == {"acme": 11}
    await office.work()
    assert await numbers(database, "acme") == [12, 13]
    verdict = await office.verdict()
    assert (verdict.problems, verdict.entries) == ([], 3)
    assert office.offline(await office.export()).sound
    entry = (await audit.entries(database, event="audit.pruned"))[0]
    assert (entry["actor"], entry["tenant_id"], entry["details"]["to_seq"]) == ("ops", "acme", 11)
    assert await office.prune() == {"acme": 1}
    await office.work()
    assert (await office.verdict()).sound


@requirement("audit:retention")
async def test_only_what_is_old_enough_and_signed_for_is_removed(
    database: Database, office: Office
) -> None:
    await write(database, 4)
    assert await office.prune() == {}
    await office.notary.seal_audit()
    assert await office.prune() == {}
    await office.notary.sign_audit()
    assert await office.prune(datetime.now(UTC) - timedelta(days=1)) == {}
    assert await office.prune() == {"acme": 3}


@requirement("audit:retention")
async def test_what_does_not_verify_is_not_removed(database: Database, office: Office) -> None:
    await write(database, 4)
    await office.work()
    await in_spite_of_triggers(
        database, f"UPDATE audit SET actor = 'nobody' WHERE id = {NTH.format(2)}"
    )
    with pytest.raises(FleetError) as refused:
        await office.prune()
    assert refused.value.code is Code.AUDIT_BROKEN
    assert await numbers(database, "acme") == [1, 2, 3, 4]


@requirement("audit:retention")
async def test_a_cut_that_nobody_signed_is_found(database: Database, office: Office) -> None:
    await write(database, 4)
    await office.work()
    await office.prune()
    await in_spite_of_triggers(database, "UPDATE audit_cuts SET body = replace(body, '-', '+')")
    kinds = [it.kind for it in (await office.verdict()).problems]
    assert kinds == ["signature", "truncated"]


# -- exports


@requirement("audit:export")
async def test_a_tenants_export_verifies_and_has_nothing_of_the_others(
    database: Database, office: Office
) -> None:
    await write(database, 3, "acme")
    await write(database, 3, "zeta")
    await office.work()
    lines = await office.export(tenant="acme")
    assert b"zeta" not in b"".join(lines)
    keys = read_public_keys(public_file(office.key))
    verifier = Verifier(keys)  # the file outside is not a tenant's to read
    verifier.feed(lines)
    verdict = verifier.finish()
    assert (verdict.problems, verdict.entries, verdict.checkpoints) == ([], 3, 1)
    verifier = Verifier(keys)
    verifier.feed(line for line in lines if b'"seq":3,' not in line)
    assert verifier.finish().problems[0].kind == "truncated"


@requirement("audit:export")
async def test_an_export_since_an_instant_begins_there_and_verifies(
    database: Database, office: Office
) -> None:
    await write(database, 40)
    await in_spite_of_triggers(
        database, "UPDATE audit SET at = at - interval '1 day' WHERE id % 40 < 30"
    )
    await office.work()
    since = datetime.now(UTC) - timedelta(hours=1)
    lines = await office.export(since=since)
    verdict = office.offline(lines)
    assert verdict.problems == []
    assert verdict.entries < 20
    assert "begins" in verdict.notes[0]


@requirement("audit:export")
async def test_an_export_that_was_written_out_anew_verifies_all_the_same(
    database: Database, office: Office, ledger: Ledger
) -> None:
    await ledger.finish(await ledger.running())
    await start(database, tenant="zeta")
    await office.work()
    lines = await office.export()
    other = [json.dumps(json.loads(line), sort_keys=True, indent=None).encode() for line in lines]
    assert other != lines
    assert office.offline(other).sound
