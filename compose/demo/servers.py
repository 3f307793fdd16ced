"""The servers of the demo: real ones that nobody here wrote, as an operator would register them."""

from __future__ import annotations

import asyncio
import shutil
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compose.demo.crm import compare_orders, customer, make_crm, make_repository
from compose.demo.sqlite_environment import sqlite_command
from compose.demo.tenant import Wanted
from compose.embedded import free_port
from compose.process import Process

CRM_WORKERS = 2
CRM_READS = ("read_query", "list_tables", "describe_table")
SESSIONS = {"min_idle": 2, "max_size": 2}
ANSWERS_WITHIN_S = 15.0
TENANTS = ("acme", "globex")
ZONES = ("UTC", "Europe/Oslo", "Asia/Tokyo", "America/Lima")


@dataclass(frozen=True)
class Stage:
    """The files and definitions that the acts play with."""

    folder: Path
    crm: Path
    repository: Path | None
    definitions: list[dict[str, Any]]

    def definition(self, name: str) -> dict[str, Any]:
        """Return a server's definition by its name."""
        return next(it for it in self.definitions if it["name"] == name)


def set_stage(folder: Path, http_port: int) -> Stage:
    """Make the demo's files and definitions; without git on this machine there is no git server."""
    crm, repository = folder / "crm.sqlite", folder / "price-list"
    make_crm(crm)
    definitions = [
        _python("time", "mcp_server_time", "--local-timezone", "UTC"),
        {
            "name": "world-clock",
            "transport": "http",
            "url": f"http://127.0.0.1:{http_port}/mcp",
            "networks": ["127.0.0.0/8"],
            "annotations": "trusted",
            "pool": SESSIONS,
        },
        {
            "name": "crm",
            "transport": "stdio",
            "command": sqlite_command(),
            "args": ["--db-path", str(crm)],
            "pool": {**SESSIONS, "max_size": 3},
            "tools": {name: {"delivery": "read"} for name in CRM_READS},
        },
    ]
    if shutil.which("git") is None:
        return Stage(folder, crm, None, definitions)
    make_repository(repository)
    definitions.append(_python("git", "mcp_server_git", "--repository", str(repository)))
    return Stage(folder, crm, repository, definitions)


def _python(name: str, module: str, *arguments: str) -> dict[str, Any]:
    return {
        "name": name,
        "transport": "stdio",
        "command": sys.executable,
        "args": ["-P", "-m", module, *arguments],
        "annotations": "trusted",
        "pool": SESSIONS,
    }


def everyday_calls(stage: Stage) -> list[Wanted]:
    """Return one tenant's calls of an ordinary minute, over every server."""
    calls = [
        Wanted(f"{server}_get_current_time", {"timezone": zone})
        for zone in ZONES
        for server in ("time", "world_clock")
    ]
    calls += [Wanted("crm_read_query", {"query": customer(number)}) for number in range(1, 7)]
    calls += [Wanted("crm_list_tables"), Wanted("crm_describe_table", {"table_name": "orders"})]
    if stage.repository is not None:
        where = {"repo_path": str(stage.repository)}
        calls += [
            Wanted("git_git_log", where),
            Wanted("git_git_status", where),
            Wanted("git_git_show", {**where, "revision": "HEAD"}),
            Wanted("git_git_branch", {**where, "branch_type": "local"}),
        ]
    return calls


def slow_read(title: str, third: int | None = None) -> Wanted:
    """Return a query over the customer database that takes its time."""
    query = compare_orders() if third is None else compare_orders(third)
    return Wanted("crm_read_query", {"query": query}, title)


class TimeOverHttp:
    """mcp-server-time behind streamable HTTP on a free loopback port."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        command = [sys.executable, "-P", "-m", "compose.demo.time_over_http", str(self.port)]
        self._process = Process(command, log=folder / "time-over-http.log", grace_s=3)

    async def start(self) -> None:
        """Start it; return when it accepts connections, raise `TimeoutError` if it does not."""
        await self._process.start()
        async with asyncio.timeout(ANSWERS_WITHIN_S):
            while not accepts(self.port):
                await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """End it."""
        await self._process.stop()


def accepts(port: int) -> bool:
    """Say whether somebody listens on a loopback port."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
