"""`toolfleet servers import` against a whole fleet: what was imported answers calls."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fleet.driver import LIMIT_S, Fleet
from tests.importer import COMMAND, Importer
from tests.requirements import requirement

pytestmark = pytest.mark.anyio

BIN = Path(sys.executable).parent


@pytest.mark.timeout(5 * LIMIT_S)  # three workers at once, each with warm sessions
@requirement("import:command", "import:whole-files")
async def test_the_servers_of_a_clients_file_answer_calls(
    empty_fleet: Fleet, tmp_path: Path
) -> None:
    fleet = empty_fleet
    importer = Importer(tmp_path, fleet.http, fleet.local.api_url, fleet.local.operator_key)
    repository = importer.folder / "repository"
    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    async with fleet.echo_http("web") as echo:
        file = importer.write(
            {
                "World Time": {
                    "command": str(BIN / "mcp-server-time"),
                    "args": ["--local-timezone", "${ZONE}"],
                    "autoApprove": ["get_current_time"],
                },
                "git": {
                    "command": str(BIN / "mcp-server-git"),
                    "args": ["--repository", "${workspaceFolder}/repository"],
                    "excludeTools": ["git_commit"],
                },
                "echo": {"type": "http", "url": echo["url"], "headers": {"X-Word": "$WORD"}},
                "old": {"command": "never-started", "disabled": True},
            },
            ".cursor/mcp.json",
        )
        options = ["--set", "ZONE=UTC", "--network", "127.0.0.0/8", "--json"]
        typing = await asyncio.create_subprocess_exec(
            *COMMAND, str(file), *options,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**importer.environment, "WORD": "hello"},
        )  # fmt: skip
        said, complaint = await typing.communicate()
        assert (typing.returncode, complaint) == (0, b"")
        rows = {row["server"].split("/")[-1]: row for row in json.loads(said)}
        assert {name: row["outcome"] for name, row in rows.items()} == {
            "World Time": "added",
            "git": "added",
            "echo": "added",
            "old": "skipped",
        }
        assert rows["World Time"]["why"] == "named world-time; ignored: autoApprove"
        names = ["world-time", "git", "echo"]
        await fleet.local.wait_ready(names, timeout_s=3 * LIMIT_S)
        for name in names:
            await fleet.http.post(
                f"/v1/servers/{name}/refresh", headers={"prefer": f"wait={LIMIT_S}"}
            )
        run = await fleet.run()
        offered = {tool["name"] for tool in run["tools"]}
        assert {"git_git_status", "echo_echo"} <= offered
        assert "git_git_commit" not in offered
        time = await fleet.call(run, "world_time_get_current_time", timezone="UTC")
        git = await fleet.call(run, "git_git_status", repo_path=str(repository))
        header = await fleet.call(run, "echo_header", name="x-word")
        assert [it["state"] for it in (time, git, header)] == ["succeeded"] * 3
        assert "hello" in json.dumps(header["result"])
