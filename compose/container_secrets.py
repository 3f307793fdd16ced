"""The secrets of a fleet in containers: a folder with a file for each, made once.

The folder is its owner's alone. In it a fleet's private keys are so too, since what reads them
insists; the rest may be read by the other users of the containers that get them.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from registry.signing import make_key
from registry.tenants import new_plaintext

REDIS_USERS: Final = ("api", "steward", "worker", "flower", "orchestrator", "scaler")
_TEMPLATE: Final = Path(__file__).parent / "redis" / "users.acl"
_PRIVATE: Final = frozenset({"encryption.keys"})
_PLACE: Final = re.compile(r"<([a-z]+)>")


def make_secrets(folder: Path) -> list[str]:
    """Make what is missing in ``folder``; return the names of those files."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = []
    for name, content in _files(folder):
        if not (folder / name).exists():
            _write(folder / name, content(), 0o600 if name in _PRIVATE else 0o644)
            made.append(name)
    if not (folder / "audit.key").exists():
        make_key(folder / "audit.key")
        made.append("audit.key")
    return made


def users_file(template: str, passwords: Mapping[str, str]) -> str:
    """Return Redis' file of users: the template with each user's password, as its hash.

    Redis takes no comments, nor rights that go on in a second line: both are ours.
    """
    ours = [line for line in template.splitlines() if line and not line.startswith("#")]
    users = re.sub(r"\n\s+", " ", "\n".join(ours)) + "\n"
    return _PLACE.sub(lambda found: "#" + _hash(passwords[found[1]]), users)


def _files(folder: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield each file's name and what makes its content, those that others are made of first."""

    def read(name: str) -> str:
        return (folder / name).read_text().strip()

    yield "secret_key", partial(secrets.token_urlsafe, 48)
    yield "operator_key", new_plaintext
    yield "grafana_password", partial(secrets.token_urlsafe, 24)
    yield "encryption.keys", lambda: f"first {base64.b64encode(secrets.token_bytes(32)).decode()}"
    yield "postgres_password", partial(secrets.token_urlsafe, 24)
    yield (
        "database_url",
        lambda: f"postgresql://toolfleet:{read('postgres_password')}@postgres:5432/toolfleet",
    )
    for user in REDIS_USERS:
        yield f"redis_url_{user}", partial(_redis_url, user)
    yield (
        "redis_users.acl",
        lambda: users_file(
            _TEMPLATE.read_text(),
            {user: urlsplit(read(f"redis_url_{user}")).password or "" for user in REDIS_USERS},
        ),
    )


def _redis_url(user: str) -> str:
    return f"redis://{user}:{secrets.token_urlsafe(24)}@redis:6379/0"


def _hash(password: str) -> str:
    return hashlib.sha256(password.encode()).hexdigest()


def _write(path: Path, content: str, mode: int) -> None:
    """Write a file with a mode, whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    fresh.touch(mode=0o600)
    fresh.write_text(content.rstrip("\n") + "\n")
    fresh.chmod(mode)
    fresh.replace(path)
