"""What a tool wants said in headers too, as a server over HTTP sees it."""

from __future__ import annotations

import asyncio

import pytest

from registry.database import Database
from registry.definitions import parse_definition
from registry.settings import Settings
from tests.everything import everything_definition, running_everything
from tests.jobs import make_job
from tests.ledger import Ledger, register, start
from tests.requirements import requirement
from workers.invoke import invoke
from workers.runtime import WorkerRuntime
from workers.session import Session

pytestmark = pytest.mark.anyio

TOOL = "test_x_mcp_header"


@requirement("headers:mirrored")
async def test_an_argument_that_its_tool_wants_as_a_header_arrives_as_one(
    database: Database, database_url: str, redis_url: str
) -> None:
    async with running_everything() as url:
        definition = parse_definition(everything_definition(url, name="demo"))
        session = await Session.open(
            definition, connect_timeout_s=20, stop_grace_s=1, max_result_bytes=1_000_000
        )
        listed = await session.list_tools()
        await session.close()
        await register(database, definition, *(it for it in listed if it["name"] == TOOL))
        settings = Settings(database_url=database_url, redis_url=redis_url)
        ledger = Ledger(database, await start(database), settings)
        call_id = await ledger.submit(TOOL, arguments={"region": "Zürich"})
        worker = WorkerRuntime("demo", settings)
        await worker.open()
        try:
            async with asyncio.timeout(20):
                await invoke(worker, call_id, make_job())
        finally:
            await worker.close()
    row = await ledger.row(call_id)
    assert row["state"] == "succeeded", row["error"]
    assert row["result"]["content"][0]["text"] == "region=Zürich"
