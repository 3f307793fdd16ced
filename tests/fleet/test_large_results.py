"""Large results through a whole fleet: a link in the call, the redacted whole behind it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.fleet.driver import MAX_RESULT_BYTES, Fleet
from tests.requirements import requirement

pytestmark = pytest.mark.anyio

MAIL = "jane.doe@example.com"


@pytest.fixture(scope="module")
async def fleet(empty_fleet: Fleet) -> AsyncIterator[Fleet]:
    async with empty_fleet.echo_http("web") as web:
        await empty_fleet.serve(empty_fleet.echo("local"), web)
        yield empty_fleet


async def tenant(fleet: Fleet, name: str) -> httpx2.AsyncClient:
    made = await fleet.http.post("/v1/keys", json={"name": name, "role": "tenant", "tenant": name})
    headers = {"authorization": f"Bearer {made.json()['key']}"}
    return httpx2.AsyncClient(base_url=fleet.local.api_url, headers=headers, timeout=60)


def content(call: dict[str, Any]) -> list[dict[str, Any]]:
    assert (call["state"], call["is_error"]) == ("succeeded", False), call
    return list(call["result"]["content"])


@requirement("large:linked", "artifacts:served", "fleet:redacts")
@pytest.mark.parametrize("server", ["local", "web"])
async def test_a_large_result_is_a_link_to_its_redacted_whole(fleet: Fleet, server: str) -> None:
    run = await fleet.run("acme")
    call = await fleet.call(run, f"{server}_around", text=MAIL, size=3_000_000)
    text, link = content(call)
    assert text["text"].startswith("so many words")
    assert len(text["text"]) == 1000
    assert link["type"] == "resource_link"
    about = call["result"]["_meta"]["toolfleet/artifact"]
    async with await tenant(fleet, "acme") as acme, await tenant(fleet, "globex") as globex:
        whole = await acme.get(about["href"])
        foreign = await globex.get(about["href"])
    assert (foreign.status_code, foreign.json()["code"]) == (404, "not_found")
    assert whole.status_code == 200
    assert hashlib.sha256(whole.content).hexdigest() == about["sha256"]
    assert len(whole.content) == about["size_bytes"] == link["size"]
    (block,) = json.loads(whole.content)["content"]
    assert len(block["text"]) > 2_900_000
    assert "words [email] so" in block["text"]
    assert MAIL not in whole.text


@requirement("command:artifact")
async def test_a_large_result_is_fetched_by_a_command(fleet: Fleet, tmp_path: Path) -> None:
    call = await fleet.call(await fleet.run(), "local_around", text=MAIL, size=1_000_000)
    about = call["result"]["_meta"]["toolfleet/artifact"]

    async def artifact(*arguments: str) -> int:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "compose.cli", "artifact", *arguments,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={
                **os.environ,
                "TOOLFLEET_URL": fleet.local.api_url,
                "TOOLFLEET_KEY": fleet.local.operator_key,
            },
        )  # fmt: skip
        return await process.wait()

    file = tmp_path / "result.json"
    assert await artifact(about["id"], "-o", str(file)) == 0
    assert hashlib.sha256(file.read_bytes()).hexdigest() == about["sha256"]
    assert await artifact("0" * 32, "-o", str(tmp_path / "none")) == 1
    assert not (tmp_path / "none").exists()


@requirement("large:never-read-here", "fleet:redacts")
@pytest.mark.parametrize("server", ["local", "web"])
async def test_a_result_under_the_limit_is_in_its_call(fleet: Fleet, server: str) -> None:
    run = await fleet.run()
    call = await fleet.call(run, f"{server}_around", text=MAIL, size=200_000)
    (block,) = content(call)
    assert len(block["text"]) > 190_000
    assert "words [email] so" in block["text"]
    assert "_meta" not in call["result"] or "toolfleet/artifact" not in call["result"]["_meta"]


@requirement("fleet:typed-ends")
async def test_a_result_over_every_limit_is_refused(fleet: Fleet) -> None:
    call = await fleet.call(
        await fleet.run(), "local_around", text=MAIL, size=MAX_RESULT_BYTES + 1_000
    )
    assert (call["state"], call["error"]["code"]) == ("failed", "result_too_large")
