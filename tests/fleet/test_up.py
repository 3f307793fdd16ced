"""`toolfleet up` and the commands that ask it, as a user runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.fleet.driver import Fleet
from tests.requirements import requirement

COMMAND = [sys.executable, "-m", "compose.cli"]
WITHIN_S = 30.0
TIME_SERVER = {
    "name": "time",
    "transport": "stdio",
    "command": str(Path(sys.executable).with_name("mcp-server-time")),
    "tools": {"get_current_time": {"delivery": "read"}},
}


class Up:
    """One running `toolfleet up` on a data folder."""

    def __init__(self, data_dir: Path, **environment: str) -> None:
        clean = {name: value for name, value in os.environ.items() if "TOOLFLEET" not in name}
        self.data_dir = data_dir
        self.environment = clean | {"TOOLFLEET_DATA_DIR": str(data_dir)} | environment
        self._output = data_dir.with_name(f"{data_dir.name}-{time.monotonic_ns()}.txt")
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [*COMMAND, "up", "--free-ports"],
                stdout=output,
                stderr=output,
                env=self.environment,
            )
        self.wait(
            lambda: "Ctrl-C stops the fleet" in self.said() or self.process.poll() is not None
        )

    def said(self) -> str:
        return self._output.read_text()

    def address(self, name: str) -> str:
        line = next(line for line in self.said().splitlines() if line.startswith(name))
        return line.removeprefix(name).split()[0]

    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.data_dir / "fleet.json").read_text())
        return facts

    def ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=False,
            env=self.environment,
        )

    def wait(self, seen: Callable[[], object]) -> None:
        deadline = time.monotonic() + WITHIN_S
        while not seen():
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(WITHIN_S)


@contextmanager
def started(data_dir: Path, **environment: str) -> Iterator[Up]:
    it = Up(data_dir, **environment)
    try:
        yield it
    finally:
        it.stop()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with started(tmp_path_factory.mktemp("up") / "fleet") as it:
        yield it


def answers(url: str) -> bool:
    try:
        return httpx2.get(url).is_success
    except httpx2.HTTPError:
        return False


@requirement("local:prints-addresses")
def test_the_addresses_that_up_prints_answer(up: Up) -> None:
    key = {"Authorization": f"Bearer {up.address('Operator key')}"}
    pages = (f"{up.address('API')}/healthz", up.address("Docs"))
    assert [httpx2.get(page, headers=key).status_code for page in pages] == [200, 200]


@requirement("local:prints-addresses")
def test_the_printed_operator_key_opens_the_api_and_flower(up: Up) -> None:
    key = up.address("Operator key")
    api = httpx2.get(f"{up.address('API')}/v1/keys", headers={"Authorization": f"Bearer {key}"})
    flower = httpx2.get(f"{up.address('Flower')}/api/workers", auth=("operator", key))
    assert (api.status_code, flower.status_code) == (200, 200)


@requirement("local:private-secrets")
def test_flower_is_closed_without_the_operator_key(up: Up) -> None:
    pages = [httpx2.get(up.address("Flower") + path).status_code for path in ("/", "/api/workers")]
    assert pages == [401, 401]


@requirement("local:restarts")
def test_a_killed_api_answers_again(up: Up) -> None:
    first = up.facts()["pids"]["api"]
    os.kill(first, signal.SIGKILL)
    up.wait(lambda: up.facts()["pids"].get("api", first) != first)
    up.wait(lambda: answers(f"{up.address('API')}/healthz"))


@requirement("local:one-fleet-per-folder")
def test_a_second_up_on_the_folder_ends_with_the_address_of_the_first(up: Up) -> None:
    second = Up(up.data_dir)
    assert (second.process.wait(WITHIN_S), up.address("API") in second.said()) == (1, True)


@requirement("command:call")
def test_a_server_added_by_command_answers_a_call_by_command(up: Up) -> None:
    definition = up.data_dir / "time.json"
    definition.write_text(json.dumps(TIME_SERVER))
    up.ask("servers", "add", str(definition))
    up.ask("servers", "refresh", "time")
    arguments = json.dumps({"timezone": "Europe/Paris"})
    done = up.ask("call", "time_get_current_time", "--args", arguments, "--json")
    assert (done.returncode, json.loads(done.stdout)["state"]) == (0, "succeeded"), done.stderr


@requirement("command:problems")
def test_a_refused_command_shows_code_message_and_hint_and_ends_with_status_one(up: Up) -> None:
    refused = up.ask("servers", "show", "nowhere")
    first_line = refused.stderr.splitlines()[0]
    assert (refused.returncode, first_line.split(":")[0]) == (1, "unknown_server")


@requirement("command:problems")
def test_a_command_without_a_fleet_says_how_to_start_one(tmp_path: Path, up: Up) -> None:
    alone = subprocess.run(
        [*COMMAND, "servers", "list"],
        capture_output=True,
        text=True,
        check=False,
        env=up.environment | {"TOOLFLEET_DATA_DIR": str(tmp_path)},
    )
    assert (alone.returncode, "toolfleet up" in alone.stderr) == (1, True)


@requirement("local:leaves-nothing")
def test_sigterm_ends_every_process_and_leaves_no_socket(tmp_path: Path) -> None:
    with started(tmp_path / "fleet") as it:
        family = psutil.Process(it.process.pid).children(recursive=True)
        status = it.stop()
    left = [process for process in family if process.is_running()]
    files = [
        path.name for path in it.data_dir.rglob("*") if path.is_socket() or ".pid" in path.name
    ]
    assert (status, left, files) == (0, [], [])


@requirement("local:embedded-data-survives")
@pytest.mark.long
def test_what_was_registered_is_there_after_a_restart(tmp_path: Path) -> None:
    definition = tmp_path / "time.json"
    definition.write_text(json.dumps(TIME_SERVER))
    with started(tmp_path / "fleet") as it:
        it.ask("servers", "add", str(definition))
    with started(tmp_path / "fleet") as it:
        listed = json.loads(it.ask("servers", "list", "--json").stdout)
    assert [server["name"] for server in listed["servers"]] == ["time"]


@requirement("local:outside-servers")
@pytest.mark.long
def test_the_url_variables_are_honoured(tmp_path: Path, database_url: str, redis_url: str) -> None:
    outside = {"TOOLFLEET_DATABASE_URL": database_url, "TOOLFLEET_REDIS_URL": redis_url}
    with started(tmp_path / "fleet", **outside) as it:
        assert set(it.facts()["pids"]) == {"api", "steward", "flower"}


@pytest.mark.anyio
@requirement("local:one-worker-per-server")
async def test_a_fleet_in_this_process_says_when_a_servers_worker_is_ready(
    empty_fleet: Fleet,
) -> None:
    fleet = empty_fleet.local
    key = {"Authorization": f"Bearer {fleet.operator_key}"}
    async with httpx2.AsyncClient(base_url=fleet.api_url, headers=key) as client:
        await client.post("/v1/servers", json=TIME_SERVER)
        await fleet.wait_ready(["time"])
        assert len(fleet.workers()["time"]) == 1
