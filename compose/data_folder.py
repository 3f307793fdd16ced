"""A fleet's data folder: who uses it now, its secrets, and where its parts answer."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from compose.process import end_leftover
from registry.signing import make_key


class FolderInUseError(Exception):
    """Another fleet runs on this data folder: stop it, or use another folder."""


@dataclass(frozen=True)
class FleetFacts:
    """What a running fleet tells about itself in `fleet.json`: URLs, and process ids by name."""

    pid: int
    api_url: str
    flower_url: str
    database_url: str
    redis_url: str
    operator_key_file: str
    pids: Mapping[str, int] = field(default_factory=dict)
    born: Mapping[str, float] = field(default_factory=dict)
    """When each process was created: a process id alone may be somebody else's by now."""


class DataFolder:
    """The files under ``path`` that are not the embedded servers' own."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.operator_key_file = self.path / "operator.key"
        self.audit_key_file = self.path / "audit.key"
        self._facts_file = self.path / "fleet.json"
        self._lock: int | None = None

    def log(self, name: str) -> Path:
        """Return the log file of a child."""
        return self.path / "logs" / f"{name.replace(':', '-').replace('#', '-')}.log"

    def acquire(self) -> None:
        """Take the folder for this fleet alone, making it if needed; raise `FolderInUseError`.

        The kernel gives it back when this process ends, however it ends.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            facts = self.read_facts()
            who = f"process {facts.pid}, API {facts.api_url}" if facts else "it is still starting"
            raise FolderInUseError(
                f"a fleet already runs on {self.path} ({who}): stop it first, or give this one "
                "another folder with TOOLFLEET_DATA_DIR"
            ) from None
        self._lock = lock

    def release(self) -> None:
        """Give the folder back; harmless if it is not ours."""
        if self._lock is not None:
            self._facts_file.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    async def end_earlier_life(self) -> list[str]:
        """End what a crashed fleet left running; return the names of those children."""
        facts = self.read_facts()
        if facts is None:
            return []
        ended = []
        for name, pid in facts.pids.items():
            if await end_leftover(pid, _born_at(facts.born.get(name))):
                ended.append(name)
        return ended

    def secret_key(self) -> str:
        """Return the key that signs run tokens, made once and kept in a private file."""
        path = self.path / "secret.key"
        if not path.exists():
            write_private(path, secrets.token_urlsafe(48) + "\n")
        return path.read_text().strip()

    def audit_key(self) -> Path:
        """Return the file of the key that signs the audit's checkpoints, made once, private."""
        if not self.audit_key_file.exists():
            make_key(self.audit_key_file)
        return self.audit_key_file

    def encryption_keys_file(self) -> Path:
        """Return the file of keys that stored credentials are encrypted with, made once."""
        path = self.path / "encryption.keys"
        if not path.exists():
            key = base64.b64encode(secrets.token_bytes(32)).decode()
            write_private(path, f"local-1 {key}\n")
        return path

    def read_facts(self) -> FleetFacts | None:
        """Return what the fleet on this folder told last, or None."""
        try:
            return FleetFacts(**json.loads(self._facts_file.read_text()))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write_facts(self, facts: FleetFacts) -> None:
        """Tell where the fleet answers; the file is private, URLs may hold passwords."""
        write_private(self._facts_file, json.dumps(asdict(facts), indent=2) + "\n")


def _born_at(instant: float | None) -> Callable[[psutil.Process], bool]:
    return lambda process: process.create_time() == instant


def births(pids: Mapping[str, int]) -> dict[str, float]:
    """Return when each process was created, leaving out those that are gone."""
    found = {}
    for name, pid in pids.items():
        try:
            found[name] = psutil.Process(pid).create_time()
        except psutil.NoSuchProcess:
            continue
    return found


def write_private(path: Path, content: str) -> None:
    """Write a file that nobody else may read, whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(content)
    fresh.replace(path)
