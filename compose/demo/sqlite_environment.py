"""mcp-server-sqlite in an environment of its own: it is written for version 1 of the MCP SDK.

The fleet does not share a process with its servers, so it need not share their packages either.
``python -m compose.demo.sqlite_environment`` makes the environment, as an installation does; the
demo makes it when it is not there.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

LOCK = Path(__file__).with_name("mcp-server-sqlite.lock")
INSTALL_LIMIT_S = 300


def sqlite_command() -> str:
    """Return the path of the server's command, installing it first if needed.

    Raises `RuntimeError` with pip's own words when that fails.
    """
    home = _home()
    mark = home / "installed"
    wanted = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if not mark.exists() or mark.read_text() != wanted:
        shutil.rmtree(home, ignore_errors=True)
        venv.create(home, with_pip=True)
        _install(home / "bin" / "python")
        mark.write_text(wanted)
    return str(home / "bin" / "mcp-server-sqlite")


def _home() -> Path:
    """Return the environment's folder: inside our own virtual environment, else the user's."""
    ours = sys.prefix != sys.base_prefix
    root = Path(sys.prefix) if ours else Path.home() / ".cache" / "toolfleet"
    return root / "servers" / "sqlite"


def _install(python: Path) -> None:
    # The lock is complete; left to resolve it again, older versions of pip trip over its extras.
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes")
    done = subprocess.run(
        [str(python), "-m", "pip", "install", *options, "-r", str(LOCK)],
        capture_output=True,
        text=True,
        timeout=INSTALL_LIMIT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(
            f"mcp-server-sqlite could not be installed: {done.stderr[-2000:].strip()}"
        )


if __name__ == "__main__":
    sqlite_command()
