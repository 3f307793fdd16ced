"""What a container's health check asks: whether the process in there still works.

The API and Flower are asked over HTTP, a worker and the steward by the file that they touch. None
of the answers depends on Postgres or Redis: starting a process again does not bring those back.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from registry.settings import Settings, get_settings

ROLES: Final = ("api", "worker", "steward", "flower")
BEATS_WITHIN_S: Final = 15.0
ANSWERS_WITHIN_S: Final = 3.0
_FIRST_PROCESS: Final = Path("/proc/1/cmdline")


def check(role: str | None) -> int:
    """Print what is wrong with the process of a role, if anything; return the exit status."""
    found = role or role_of(_FIRST_PROCESS.read_bytes())
    if found not in ROLES:
        sys.stderr.write(f"toolfleet health: {found or 'nothing'} is none of {', '.join(ROLES)}\n")
        return 2
    if problem := _problem(found, get_settings()):
        sys.stderr.write(f"toolfleet health: {problem}\n")
        return 1
    return 0


def role_of(command_line: bytes) -> str:
    """Return the role in a command line as Linux shows it, or nothing.

    Before it stand the interpreter, this program, and an init process where there is one.
    """
    words = command_line.decode(errors="replace").split("\0")
    return next((word for word in words if word in ROLES), "")


def lateness(file: Path, *, now_s: float) -> str:
    """Say what is wrong with the sign of life in a file (`workers.heartbeat`), or nothing.

    ``now_s`` is counted as the file's own time is, in seconds since 1970.
    """
    try:
        age_s = now_s - file.stat().st_mtime
    except OSError as error:
        return f"{file} is not there yet ({type(error).__name__})"
    return f"the last sign of life is {age_s:.0f} s old" if age_s > BEATS_WITHIN_S else ""


def _problem(role: str, settings: Settings) -> str:
    if role == "api":
        return _silence(f"http://127.0.0.1:{settings.api_port}/healthz")
    if role == "flower":
        return _silence(f"http://127.0.0.1:{settings.flower_port}/healthcheck")
    if settings.heartbeat_file is None:
        return "TOOLFLEET_HEARTBEAT_FILE names no file: set it for this process, and here"
    return lateness(settings.heartbeat_file, now_s=datetime.now(UTC).timestamp())


def _silence(url: str) -> str:
    """Say why there is no good answer at ``url``, or nothing."""
    import httpx2

    try:
        # Docker gives containers the proxy that it is set up with, whose 127.0.0.1 is another.
        answer = httpx2.get(url, timeout=ANSWERS_WITHIN_S, trust_env=False)
    except httpx2.HTTPError as error:
        return f"{url} does not answer ({type(error).__name__})"
    return "" if answer.is_success else f"{url} answers {answer.status_code}"
