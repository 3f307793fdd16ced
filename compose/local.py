"""A whole fleet on one machine: embedded servers, API, steward, Flower, one worker per server.

Start: Postgres and Redis (each unless its URL is set), migrations, the local operator's key, then
the children. Stop: workers first (they drain), then what asks and tends, the servers last. Every
child is a `toolfleet` subcommand configured only by its environment.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2

from api.addressed import check_binding
from compose.data_folder import DataFolder, FleetFacts, births
from compose.embedded import EmbeddedPostgres, EmbeddedRedis, free_port
from compose.migrate import upgrade_database
from compose.process import Process
from compose.supervisor import Child, Supervisor
from registry import catalog, leases, tenants
from registry.database import Database
from registry.errors import FleetError
from registry.settings import Settings

RECONCILE_EVERY_S = 1.0
READY_WITHIN_S = 30.0
POLL_S = 0.05
STOP_GRACE_S = 10.0
EMBEDDED = ("redis", "postgres")
_SECRETS = ("TOOLFLEET_SECRET_KEY", "TOOLFLEET_DATABASE_URL", "TOOLFLEET_CREDENTIALS_FILE")


def toolfleet_command(*arguments: str) -> list[str]:
    """Return the command line of a `toolfleet` subcommand, whatever the PATH and the cwd hold."""
    return [sys.executable, "-P", "-m", "compose.cli", *arguments]


class LocalFleet:
    """One machine's fleet as an async context manager: started on entry, gone on exit.

    ``environment`` is added to that of every child; ``workers_per_server`` gives some servers more
    than one worker process; ``flower=False`` leaves Flower out; ``free_ports`` lets several fleets
    run side by side; ``durable=False`` (tests) gives up crash safety of the embedded servers for
    speed.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        data_dir: Path | None = None,
        free_ports: bool = False,
        durable: bool = True,
        flower: bool = True,
        workers_per_server: Mapping[str, int] | None = None,
        environment: Mapping[str, str] | None = None,
        command: Callable[..., list[str]] = toolfleet_command,
    ) -> None:
        self._settings = settings or Settings()
        self.folder = DataFolder(data_dir or self._settings.data_dir)
        self._durable = durable
        self._flower = flower
        self._workers_per_server = dict(workers_per_server or {})
        self._environment = dict(environment or {})
        self._command = command
        self._supervisor = Supervisor(on_change=lambda _child: self._tell())
        self._reconciler: asyncio.Task[None] | None = None
        self._database: Database | None = None
        self._started = False
        self._api_port = free_port() if free_ports else self._settings.api_port
        self._flower_port = free_port() if free_ports else self._settings.flower_port
        self.database_url = self._settings.database_url
        self.redis_url = self._settings.redis_url
        self.operator_key = ""

    @property
    def api_url(self) -> str:
        """Return where the API answers."""
        return f"http://{_reachable(self._settings.api_host)}:{self._api_port}"

    @property
    def flower_url(self) -> str:
        """Return where Flower answers, to operators who are signed in, or show their key."""
        return f"http://127.0.0.1:{self._flower_port}"

    @property
    def children(self) -> Mapping[str, Child]:
        """Return the children by name: postgres, redis, api, steward, flower, worker:NAME[#N]."""
        return self._supervisor.children

    def workers(self) -> dict[str, list[int]]:
        """Return the process ids of the workers by server."""
        found: dict[str, list[int]] = {}
        for name, pid in self._supervisor.pids().items():
            role, _, rest = name.partition(":")
            if role == "worker":
                found.setdefault(rest.partition("#")[0], []).append(pid)
        return found

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start everything; return when API and Flower answer. Nothing is left behind if it fails.

        Raises `FolderInUseError`, `OSError` when a port is taken, `RuntimeError` when a part does
        not come up, `FleetError` when an outside database is away, `ValueError` for an API that
        others can reach under any name.
        """
        check_binding(self._settings)
        self.folder.acquire()
        try:
            await self.folder.end_earlier_life()
            _refuse_taken_port("API", self._settings.api_host, self._api_port)
            _refuse_taken_port("Flower", "127.0.0.1", self._flower_port)
            await self._start_embedded()
            await asyncio.to_thread(upgrade_database, self.database_url)
            self._database = Database(
                self.database_url, pool_size=1, application="toolfleet supervisor"
            )
            self.operator_key = await tenants.bootstrap_operator_key(
                self._database, self.folder.operator_key_file
            )
            for name in ("steward", "api", *(["flower"] if self._flower else [])):
                await self._supervisor.start(name, self._program(name))
            await self._reconcile()
            self._reconciler = asyncio.create_task(self._keep_reconciling(), name="reconcile")
            await self._until_answers("api", f"{self.api_url}/healthz")
            if self._flower:
                await self._until_answers("flower", f"{self.flower_url}/healthcheck")
        except BaseException:
            await self.stop()
            raise
        self._started = True
        self._tell()

    async def stop(self) -> None:
        """Stop everything, workers first; harmless when nothing runs."""
        self._started = False
        if self._reconciler is not None:
            self._reconciler.cancel()
            await asyncio.wait([self._reconciler])
            self._reconciler = None
        names = list(self.children)
        await self._supervisor.stop(name for name in names if name.startswith("worker:"))
        await self._supervisor.stop(name for name in names if name not in EMBEDDED)
        if self._database is not None:
            await self._database.close()
            self._database = None
        for name in EMBEDDED:
            await self._supervisor.stop([name])
        self.folder.release()

    def hasten(self) -> None:
        """Kill whatever is being stopped right now instead of waiting for it."""
        self._supervisor.hasten()

    async def wait_ready(self, servers: Iterable[str], timeout_s: float = READY_WITHIN_S) -> None:
        """Return when the workers of these servers live and their tools are listed, or cannot be.

        Raises `TimeoutError`.
        """
        deadline = time.monotonic() + timeout_s
        for server in servers:
            while not await self._is_ready(server):
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"server {server} was not ready within {timeout_s:g} s: "
                        f"see {self.folder.log(f'worker:{server}')}"
                    )
                await asyncio.sleep(POLL_S)

    async def _is_ready(self, server: str) -> bool:
        database = self._open_database()
        alive = await leases.live_workers(database, server)
        if len(alive) < self._workers_per_server.get(server, 1):
            return False
        version = await catalog.get_server(database, server)
        return version.refresh_error is not None or not version.stale

    async def _start_embedded(self) -> None:
        if not self.database_url:
            postgres = EmbeddedPostgres(self.folder.path, durable=self._durable)
            await self._supervisor.start("postgres", postgres)
            self.database_url = postgres.url
        if not self.redis_url:
            redis = EmbeddedRedis(self.folder.path, durable=self._durable)
            await self._supervisor.start("redis", redis)
            self.redis_url = redis.url

    def _program(self, name: str) -> Process:
        """Return the program of a child: its name's part before ``#``, split at the colon."""
        drains = name.startswith("worker:")
        drain_s = self._settings.drain_grace.total_seconds() if drains else 0.0
        environment = dict(self._child_environment())
        if name == "flower":  # which asks the broker, and the API as whoever is signed in
            environment = {it: value for it, value in environment.items() if it not in _SECRETS}
        return Process(
            self._command(*name.partition("#")[0].split(":")),
            log=self.folder.log(name),
            env=environment,
            grace_s=STOP_GRACE_S + drain_s,
        )

    def _child_environment(self) -> dict[str, str]:
        secret_key = self._settings.secret_key.get_secret_value() or self.folder.secret_key()
        files = {
            "TOOLFLEET_CREDENTIALS_FILE": self._settings.credentials_file,
            "TOOLFLEET_COMMANDS_FILE": self._settings.commands_file,
            "TOOLFLEET_ENCRYPTION_KEYS_FILE": self._settings.encryption_keys_file
            or self.folder.encryption_keys_file(),
            "TOOLFLEET_AUDIT_KEY_FILE": self._settings.audit_key_file or self.folder.audit_key(),
            "TOOLFLEET_AUDIT_CHECKPOINTS": self._settings.audit_checkpoints,
        }
        return {
            **os.environ,
            **{name: str(path.resolve()) for name, path in files.items() if path},
            "TOOLFLEET_DATABASE_URL": self.database_url,
            "TOOLFLEET_REDIS_URL": self.redis_url,
            "TOOLFLEET_DATA_DIR": str(self.folder.path),
            "TOOLFLEET_SECRET_KEY": secret_key,
            "TOOLFLEET_API_HOST": self._settings.api_host,
            "TOOLFLEET_API_PORT": str(self._api_port),
            "TOOLFLEET_FLOWER_PORT": str(self._flower_port),
            "TOOLFLEET_FLOWER_URL": (self._settings.flower_url or self.flower_url) * self._flower,
            **self._environment,
        }

    async def _keep_reconciling(self) -> None:
        while True:
            await asyncio.sleep(RECONCILE_EVERY_S)
            # While the registry is away the workers of before stay as they are.
            with suppress(FleetError):
                await self._reconcile()

    async def _reconcile(self) -> None:
        """Start workers of servers that were added, retire those of servers that were removed."""
        wanted = {
            name
            for server in await catalog.worker_servers(self._open_database())
            for name in _worker_names(server, self._workers_per_server.get(server, 1))
        }
        present = {name for name in self.children if name.startswith("worker:")}
        for name in sorted(wanted - present):
            await self._supervisor.start(name, self._program(name))
        for name in sorted(present - wanted):
            self._supervisor.retire(name)

    async def _until_answers(self, name: str, url: str) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        async with httpx2.AsyncClient(timeout=2.0) as client:
            while True:
                with suppress(httpx2.HTTPError):
                    if (await client.get(url)).is_success:
                        return
                if time.monotonic() > deadline:
                    raise RuntimeError(
                        f"{name} did not answer at {url} within {READY_WITHIN_S:g} s: "
                        f"see {self.folder.log(name)}"
                    )
                await asyncio.sleep(POLL_S)

    def _tell(self) -> None:
        if self._started:
            pids = self._supervisor.pids()
            self.folder.write_facts(
                FleetFacts(
                    pid=os.getpid(),
                    api_url=self.api_url,
                    flower_url=self.flower_url,
                    database_url=self.database_url,
                    redis_url=self.redis_url,
                    operator_key_file=str(self.folder.operator_key_file),
                    pids=pids,
                    born=births(pids),
                )
            )

    def _open_database(self) -> Database:
        if self._database is None:
            raise RuntimeError("the fleet is not running: start it first")
        return self._database


def _worker_names(server: str, count: int) -> list[str]:
    return [f"worker:{server}" + (f"#{n}" if n > 1 else "") for n in range(1, count + 1)]


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in {"0.0.0.0", "", "::"} else host  # noqa: S104 - it binds nothing


def _refuse_taken_port(what: str, host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_reachable(host), port))
        except OSError as error:
            raise OSError(
                f"port {port} for {what} is taken: stop what uses it, set "
                f"TOOLFLEET_{what.upper()}_PORT, or pass --free-ports"
            ) from error
