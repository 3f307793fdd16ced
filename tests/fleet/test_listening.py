"""A whole fleet whose servers change their tools while they run: only the event can tell in time.

The steward asks for the tools of each server every five minutes.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.changing import Kind, changing
from tests.fleet.driver import Fleet
from tests.requirements import requirement
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

FEW_S = 30.0  # it is one or two; unheard it would be five minutes


async def tools_of_a_new_run(fleet: Fleet, server: str) -> set[str]:
    run = await fleet.run(servers=[server])
    return {tool["name"].removeprefix(f"{server.replace('-', '_')}_") for tool in run["tools"]}


async def known(fleet: Fleet, server: str, *tools: str) -> float:
    """Return after how many seconds a new run has these tools."""
    began = time.monotonic()

    async def same() -> bool:
        return await tools_of_a_new_run(fleet, server) == set(tools)

    await until(same, within_s=60)
    return time.monotonic() - began


@requirement("listing:heard", "listing:renewed")
@pytest.mark.parametrize(
    "kind",
    ["http", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("stdio", "http-legacy"))],
)
async def test_a_tool_that_is_added_while_the_server_runs_is_in_the_next_runs(
    kind: Kind, empty_fleet: Fleet, tmp_path: Path
) -> None:
    fleet, name = empty_fleet, f"changing-{kind}"
    async with changing(kind, tmp_path / "server") as server:
        await fleet.serve(server.definition(name, tools={"second": {"delivery": "read"}}))
        assert await tools_of_a_new_run(fleet, name) == {"first"}
        server.says("first", "second")
        assert await known(fleet, name, "first", "second") < FEW_S
        run = await fleet.run(servers=[name])
        call: dict[str, Any] = await fleet.call(run, f"{name.replace('-', '_')}_second")
        assert call["result"]["content"][0]["text"] == "second"
        if kind != "stdio":
            await server.stop()
            server.says("first", "third")
            await server.start()
            await known(fleet, name, "first", "third")
            server.says("fourth")
            assert await known(fleet, name, "fourth") < FEW_S
        assert (await fleet.http.delete(f"/v1/servers/{name}")).status_code == 204


@requirement("drift:held")
async def test_a_call_that_follows_a_drift_at_once_is_refused(
    empty_fleet: Fleet, tmp_path: Path
) -> None:
    fleet, name = empty_fleet, "drifting"
    async with changing("http-legacy", tmp_path / "server") as server:
        held = {"changes": {"removed": "hold"}, "tools": {"first": {"delivery": "read"}}}
        await fleet.serve(server.definition(name, **held))
        run = await fleet.run(servers=[name])
        assert (await fleet.call(run, "drifting_first"))["state"] == "succeeded"
        server.says("second")

        async def refused() -> bool:
            answer = await fleet.ask(run, "drifting_first", wait_s=30)
            body = answer.json()
            code = body["code"] if answer.status_code >= 400 else (body["error"] or {}).get("code")
            return code == "tool_held"

        await until(refused)
        (change,) = (await fleet.http.get(f"/v1/servers/{name}/changes")).json()["held"]
        assert (change["tool"], change["kind"]) == ("first", "removed")
        assert (await fleet.http.delete(f"/v1/servers/{name}")).status_code == 204
