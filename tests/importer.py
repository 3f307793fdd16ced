"""An operator who types `toolfleet servers import`, and what the command said."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
from typer.testing import CliRunner

from compose.cli import app

COMMAND = [sys.executable, "-m", "compose.cli", "servers", "import"]


class Importer:
    """An operator with files of a folder, a client of their fleet's API, and its variables."""

    def __init__(self, folder: Path, http: httpx2.AsyncClient, url: str, key: str) -> None:
        self.folder = folder
        self.http = http
        self.variables = {"TOOLFLEET_URL": url, "TOOLFLEET_KEY": key}

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of a process of theirs."""
        clean = {name: value for name, value in os.environ.items() if "TOOLFLEET" not in name}
        return clean | self.variables

    def write(self, servers: Mapping[str, Any], name: str = "mcp.json", **around: Any) -> Path:
        """Write a client's file; return its path."""
        file = self.folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"mcpServers": servers, **around}))
        return file

    async def run(
        self, file: Path | str, *options: str, **environment: str
    ) -> tuple[int, dict[str, Any], str]:
        """Run the command, in this process to save its start.

        Returns its status, its rows by the file's name for a server, and stderr.
        """
        runner = CliRunner(env=self.variables | environment)
        typed = ["servers", "import", str(file), "--json", *options]
        done = await asyncio.to_thread(runner.invoke, app, typed)
        rows = json.loads(done.stdout) if done.stdout else []
        return done.exit_code, {row["server"].split("/")[-1]: row for row in rows}, done.stderr

    async def known(self) -> set[str]:
        """Return the names of the servers in the registry."""
        answer = await self.http.get("/v1/servers")
        return {server["name"] for server in answer.json()["servers"]}
