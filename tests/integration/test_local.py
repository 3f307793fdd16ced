"""A one-machine fleet whose API, steward, Flower and workers are small stand-ins."""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
from pathlib import Path

import psutil
import pytest

from compose.data_folder import DataFolder, FolderInUseError
from compose.local import LocalFleet
from compose.supervisor import State
from registry import catalog
from registry.database import Database
from registry.definitions import parse_definition
from registry.settings import Settings
from tests.requirements import requirement
from tests.waiting import until

pytestmark = pytest.mark.anyio

STAND_IN = """
import http.server, os, signal, sys, threading
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
port = {"api": "TOOLFLEET_API_PORT", "flower": "TOOLFLEET_FLOWER_PORT"}.get(sys.argv[1])
if port is None:
    threading.Event().wait()
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(os.environ[port])), Answer).serve_forever()
"""


def stand_in(*arguments: str) -> list[str]:
    return [sys.executable, "-c", STAND_IN, *arguments]


def fleet_on(data_dir: Path, **options: object) -> LocalFleet:
    return LocalFleet(
        Settings(data_dir=data_dir, database_url="", redis_url=""),
        free_ports=True,
        durable=False,
        command=stand_in,
        **options,  # type: ignore[arg-type]
    )


async def register(fleet: LocalFleet, name: str) -> None:
    database = Database(fleet.database_url)
    definition = parse_definition({"name": name, "transport": "stdio", "command": "never-started"})
    await catalog.add_server(database, definition, actor="test")
    await database.close()


async def remove(fleet: LocalFleet, name: str) -> None:
    database = Database(fleet.database_url)
    await catalog.remove_server(database, name, actor="test")
    await database.close()


@requirement("local:one-worker-per-server")
async def test_a_server_gets_a_worker_when_it_is_added_and_loses_it_when_removed(
    tmp_path: Path,
) -> None:
    async with fleet_on(tmp_path / "data") as fleet:
        await register(fleet, "crm")
        await until(lambda: "crm" in fleet.workers())
        await remove(fleet, "crm")
        await until(lambda: "crm" not in fleet.workers())


@requirement("local:one-worker-per-server")
async def test_a_server_may_have_more_than_one_worker(tmp_path: Path) -> None:
    async with fleet_on(tmp_path / "data", workers_per_server={"crm": 2}) as fleet:
        await register(fleet, "crm")
        await until(lambda: len(fleet.workers().get("crm", [])) == 2)
        assert {"worker:crm", "worker:crm#2"} <= set(fleet.children)


@requirement("local:restarts")
@pytest.mark.parametrize("name", ["api", "redis", "postgres"])
async def test_a_killed_part_comes_back_where_it_was(tmp_path: Path, name: str) -> None:
    async with fleet_on(tmp_path / "data") as fleet:
        urls = (fleet.database_url, fleet.redis_url, fleet.api_url)
        child = fleet.children[name]
        os.kill(child.program.pid or 0, signal.SIGKILL)
        await until(lambda: child.restarts == 1 and child.state is State.RUNNING)
        assert (fleet.database_url, fleet.redis_url, fleet.api_url) == urls


@requirement("local:leaves-nothing")
async def test_a_stopped_fleet_leaves_no_process_no_socket_and_no_pid_file(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    before = psutil.Process().children(recursive=True)
    async with fleet_on(data_dir) as fleet:
        await register(fleet, "crm")
        await until(lambda: "crm" in fleet.workers())
        family = psutil.Process().children(recursive=True)
    files = [path.name for path in data_dir.rglob("*") if path.is_socket() or ".pid" in path.name]
    left = [it for it in family if it not in before and it.is_running()]
    assert (left, files, DataFolder(data_dir).read_facts()) == ([], [], None)


@requirement("local:one-fleet-per-folder")
async def test_a_second_fleet_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    async with fleet_on(tmp_path / "data") as fleet:
        with pytest.raises(FolderInUseError, match=fleet.api_url):
            await fleet_on(tmp_path / "data").start()


@requirement("local:recovers-from-crash")
async def test_what_a_crashed_fleet_left_running_is_ended_first(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    async with fleet_on(folder.path) as fleet:
        facts = (folder.path / "fleet.json").read_text()
        steward = psutil.Process(fleet.children["steward"].program.pid)
        # As a crash leaves it: the facts are there, the lock is not.
        other = DataFolder(tmp_path / "other")
        other.acquire()
        only_steward = json.loads(facts) | {"pids": {"steward": steward.pid}}
        (other.path / "fleet.json").write_text(json.dumps(only_steward))
        assert await other.end_earlier_life() == ["steward"]
        other.release()
        await until(lambda: fleet.children["steward"].program.pid != steward.pid)


@requirement("local:outside-servers")
async def test_outside_servers_are_used_and_none_is_started(
    tmp_path: Path, database_url: str, redis_url: str
) -> None:
    settings = Settings(data_dir=tmp_path / "data", database_url=database_url, redis_url=redis_url)
    async with LocalFleet(settings, free_ports=True, command=stand_in) as fleet:
        assert (fleet.database_url, fleet.redis_url) == (database_url, redis_url)
        assert set(fleet.children) == {"steward", "api", "flower"}


@requirement("local:private-secrets")
async def test_secrets_lie_in_files_of_the_owner_alone(tmp_path: Path) -> None:
    async with fleet_on(tmp_path / "data") as fleet:
        secret = [fleet.folder.path / name for name in ("operator.key", "secret.key", "fleet.json")]
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in secret}
    assert modes == {"operator.key": 0o600, "secret.key": 0o600, "fleet.json": 0o600}


@requirement("local:embedded-data-survives")
async def test_the_operator_key_stays_valid_over_a_restart(tmp_path: Path) -> None:
    async with fleet_on(tmp_path / "data") as fleet:
        first = fleet.operator_key
    async with fleet_on(tmp_path / "data") as fleet:
        assert fleet.operator_key == first


@requirement("local:leaves-nothing")
async def test_a_fleet_that_does_not_come_up_leaves_nothing(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", database_url="", redis_url="", api_port=1)
    before = set(psutil.Process().children(recursive=True))

    def broken(*arguments: str) -> list[str]:
        return [str(tmp_path / "no-such-program"), *arguments]

    with pytest.raises(OSError, match="no-such-program"):
        await LocalFleet(settings, free_ports=True, durable=False, command=broken).start()
    assert set(psutil.Process().children(recursive=True)) == before
