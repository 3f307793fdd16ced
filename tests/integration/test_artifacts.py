"""What is too large for the ledger lies beside it, for its tenant, as long as its call keeps it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from registry import artifacts, calls
from registry.artifacts import CHUNK_BYTES, NewArtifact
from registry.calls import CallState, Claim, Ending
from registry.database import Database
from registry.errors import Code, FleetError
from tests.integration.test_api import Api, problem_of, serving
from tests.ledger import HOUR, WORKER, Ledger
from tests.requirements import requirement

pytestmark = pytest.mark.anyio

CONTENT = json.dumps({"content": [{"type": "text", "text": "so many words " * 60_000}]}).encode()
NO_AGE = timedelta(0)


@pytest.fixture
async def ledger(database: Database) -> Ledger:
    return await Ledger.open(database)


@pytest.fixture
async def api(database: Database, redis_url: str) -> AsyncIterator[Api]:
    async with serving(database, redis_url) as api:
        yield api


def new(claim: Claim, content: bytes = CONTENT) -> NewArtifact:
    digest = hashlib.sha256(content).hexdigest()
    return NewArtifact(claim.tenant_id, claim.id, claim.fence, digest, content)


async def ended(ledger: Ledger, artifact: NewArtifact, claim: Claim) -> dict[str, Any]:
    """End a call with an artifact as a worker does; return the call's row."""
    await artifacts.store(ledger.database, artifact)
    result = artifacts.link(
        artifact, claim.tool, is_error=False, structured=True, preview="so many"
    )
    ending = Ending(claim.id, claim.fence, CallState.SUCCEEDED, result, False, artifact=artifact)
    assert await calls.finish(ledger.database, WORKER, [ending]) == [True]
    return await ledger.row(claim.id)


async def stored(database: Database, artifact: NewArtifact) -> bytes | None:
    """Return what is stored of an artifact; None when nothing is."""
    try:
        found = await artifacts.find(database, artifact.id, tenant=None)
    except FleetError as error:
        if error.code is not Code.NOT_FOUND:
            raise
        return None
    return b"".join([chunk async for chunk in artifacts.read(database, found)])


@requirement("artifacts:stored-first")
@pytest.mark.parametrize("size", [1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 5])
async def test_an_artifact_is_read_as_it_was_stored(ledger: Ledger, size: int) -> None:
    artifact = new(await ledger.running(), (bytes(range(256)) * (size // 256 + 1))[:size])
    await artifacts.store(ledger.database, artifact)
    await artifacts.store(ledger.database, artifact)  # as after a commit that was not confirmed
    assert await stored(ledger.database, artifact) == artifact.content
    rows = await ledger.sql("SELECT max(length(data)) FROM artifact_chunks")
    assert rows[0][0] <= CHUNK_BYTES


@requirement("large:linked")
async def test_a_calls_result_says_where_the_whole_of_it_is(ledger: Ledger) -> None:
    claim = await ledger.running()
    artifact = new(claim)
    row = await ended(ledger, artifact, claim)
    text, link = row["result"]["content"]
    assert text == {"type": "text", "text": "so many"}
    assert (link["type"], link["uri"]) == ("resource_link", f"toolfleet://artifacts/{artifact.id}")
    assert (link["mimeType"], link["size"]) == ("application/json", len(CONTENT))
    assert row["result"]["_meta"]["toolfleet/artifact"] == {
        "id": artifact.id,
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "size_bytes": len(CONTENT),
        "href": f"/v1/artifacts/{artifact.id}",
        "omitted": ["structuredContent"],
    }
    assert "structuredContent" not in row["result"]


@requirement("artifacts:stored-first")
async def test_only_what_a_succeeded_call_links_to_is_kept(ledger: Ledger) -> None:
    claim = await ledger.running()
    kept = new(claim)
    await ended(ledger, kept, claim)
    taken_over = await ledger.running()
    late = new(taken_over)
    await artifacts.store(ledger.database, late)
    await ledger.sql("UPDATE calls SET fence = fence + 1 WHERE id = :id", id=taken_over.id)
    again = new(Claim(**{**vars(taken_over), "fence": taken_over.fence + 1}), b"{}")
    await artifacts.store(ledger.database, again)
    ending = Ending(taken_over.id, again.fence, CallState.SUCCEEDED, {}, False)
    assert await calls.finish(ledger.database, WORKER, [ending]) == [True]
    failed = await ledger.running()
    dropped = new(failed)
    await artifacts.store(ledger.database, dropped)
    await ledger.finish(failed, CallState.FAILED)
    assert await artifacts.sweep(ledger.database, HOUR) == 0
    assert await artifacts.sweep(ledger.database, NO_AGE) == 2
    assert await stored(ledger.database, kept) == CONTENT
    assert await stored(ledger.database, again) == b"{}"
    assert await stored(ledger.database, late) is None
    assert await stored(ledger.database, dropped) is None
    assert await artifacts.sweep(ledger.database, NO_AGE) == 0


@requirement("artifacts:stored-first")
async def test_an_artifact_goes_with_its_call(ledger: Ledger) -> None:
    claim = await ledger.running()
    artifact = new(claim)
    await ended(ledger, artifact, claim)
    await ledger.sql("DELETE FROM calls WHERE id = :id", id=claim.id)
    assert await stored(ledger.database, artifact) is None
    assert await ledger.sql("SELECT 1 FROM artifact_chunks") == []


@requirement("artifacts:served")
async def test_an_artifact_is_sent_as_it_was_stored(ledger: Ledger, api: Api) -> None:
    claim = await ledger.running()
    artifact = new(claim)
    row = await ended(ledger, artifact, claim)
    href = row["result"]["_meta"]["toolfleet/artifact"]["href"]
    async with api.client(await api.key(tenant="acme")) as acme:
        answer = await acme.get(href)
        assert (answer.status_code, answer.content) == (200, CONTENT)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["content-length"] == str(len(CONTENT))
        assert answer.headers["etag"] == f'"{artifact.sha256}"'
        again = await acme.get(href, headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert (await api.http.get(href)).content == CONTENT


@requirement("artifacts:served", "api:tenants-are-apart")
async def test_another_tenants_artifact_does_not_exist(ledger: Ledger, api: Api) -> None:
    artifact = new(await ledger.running())
    await artifacts.store(ledger.database, artifact)
    async with api.client(await api.key(tenant="globex")) as globex:
        foreign = await globex.get(f"/v1/artifacts/{artifact.id}")
        unknown = [await globex.get(f"/v1/artifacts/{it}") for it in ("0" * 32, "x", "%00")]
    codes = [problem_of(answer)["code"] for answer in (foreign, *unknown)]
    assert codes == ["not_found"] * 4
