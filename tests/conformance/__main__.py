"""Run the official conformance suite: ``make conformance``.

Directly against the everything-server, through a whole fleet in front of it, and, as the client
that a server sees, against our own upstream side. Exit status 1 unless the server has what it is
required to have, not one check fewer passes through the fleet, the Tasks extension passes there
(the server behind it knows nothing of tasks), and so do the client scenarios.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from tests.conformance import suite
from tests.conformance.fleet import in_front_of
from tests.conformance.report import (
    TASKS,
    Leg,
    missing,
    part,
    scenario_passed,
    summary,
    table,
    words,
)
from tests.everything import running_everything

AUTHORIZATION = "auth/"
LEGS = ("direct", "fleet", "client")


@dataclass
class Results:
    """What each leg came to, by revision."""

    direct: dict[str, Leg] = field(default_factory=dict)
    fleet: dict[str, Leg] = field(default_factory=dict)
    client: dict[str, Leg] = field(default_factory=dict)
    kills: int = 0


async def measured(options: argparse.Namespace, folder: Path) -> Results:
    """Run the legs that are wished for."""
    results = Results()
    async with running_everything() as url:
        if "direct" in options.legs:
            for revision in suite.REVISIONS:
                _say(f"directly, {revision}")
                where = folder / "results" / "direct" / revision
                results.direct[revision] = await suite.test_server(url, revision, where)
        if "fleet" in options.legs:
            async with in_front_of(url, folder, options.kill_every) as front:
                for revision in suite.REVISIONS:
                    _say(f"through the fleet, {revision}")
                    where = folder / "results" / "fleet" / revision
                    results.fleet[revision] = await suite.test_server(front.url, revision, where)
                results.kills = front.kills
    if "client" in options.legs:
        for revision in suite.REVISIONS:
            _say(f"as a client, {revision}")
            wanted = suite.wanted(revision)
            known = [name for name in wanted.client if ours(name, wanted)]
            where = folder / "results" / "client" / revision
            results.client[revision] = await suite.test_client(revision, known, where)
    return results


def ours(name: str, wanted: suite.Wanted) -> bool:
    """Say whether a client scenario is one to act in: any but the extensions of authorization.

    The suite takes those for no revision's. A scenario that nobody acts in fails.
    """
    return not (name.startswith(AUTHORIZATION) and name in wanted.unscored)


def shown(results: Results, kill_every_s: float | None) -> list[str]:
    """Return the table, and what failed in the suite's own words."""
    through = "through the fleet"
    if kill_every_s is not None:
        through += f", a worker killed every {kill_every_s:g} s ({results.kills} times)"
    rows = []
    for revision in suite.REVISIONS:
        direct, fleet = results.direct.get(revision, {}), results.fleet.get(revision, {})
        for kind, names in _kinds(revision).items():
            cells = [summary(part(leg, names)) for leg in (direct, fleet)]
            rows.append([f"{revision} {kind}", *cells])
    for revision, leg in results.client.items():
        rows.append([f"{revision} client", "-", summary(leg)])
    lines = table(["", "directly", through], rows)
    for revision in suite.REVISIONS:
        direct, fleet = results.direct.get(revision, {}), results.fleet.get(revision, {})
        own = {name: made for name, made in direct.items() if not name.startswith(TASKS)}
        lines += words(f"directly, {revision}", own)
        lines += words(f"through the fleet, {revision}", fleet)
        lines += words(f"as a client, {revision}", results.client.get(revision, {}))
    return lines


def verdict(results: Results) -> list[str]:
    """Return what is not as it has to be, in words."""
    wrong = []
    for revision in suite.REVISIONS:
        direct, fleet = results.direct.get(revision, {}), results.fleet.get(revision, {})
        kinds = _kinds(revision)
        wanted = {
            "the everything-server": part(direct, kinds["required"]),
            "the fleet": part(fleet, [*kinds["required"], *kinds.get("tasks", ())]),
            "our upstream side": results.client.get(revision, {}),
        }
        for who, leg in wanted.items():
            wrong += [
                f"{who} fails {name} ({revision})"
                for name, checks in leg.items()
                if not scenario_passed(checks)
            ]
        if direct and fleet:
            lost = missing(direct, fleet)
            wrong += [f"passes directly alone ({revision}): {it}" for it in lost]
    return wrong


def _kinds(revision: str) -> dict[str, list[str]]:
    """Return a revision's server scenarios by kind: required, tasks, and what else is reported."""
    wanted = suite.wanted(revision)
    kinds: dict[str, list[str]] = {"required": [], "tasks": [], "others": []}
    for name in wanted.server:
        others = "tasks" if name.startswith(TASKS) else "others"
        kinds[others if name in wanted.unscored else "required"].append(name)
    return {kind: names for kind, names in kinds.items() if names or kind == "required"}


def _say(what: str) -> None:
    print(f"... {what}", file=sys.stderr, flush=True)


def main() -> int:
    """Parse the command line, run, and print; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance")
    parser.add_argument(
        "--kill-every", type=float, metavar="SECONDS", help="kill workers meanwhile"
    )
    parser.add_argument("--legs", nargs="+", choices=LEGS, default=LEGS)
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep what the suite and the fleet wrote"
    )
    options = parser.parse_args()
    print(f"suite {suite.install()}")
    folder = Path(tempfile.mkdtemp(prefix="conf-"))  # short: sockets' paths are
    try:
        results = asyncio.run(measured(options, folder))
        if options.keep:
            for kept in ("results", "data/logs"):
                if (folder / kept).exists():
                    shutil.copytree(folder / kept, options.keep / kept, dirs_exist_ok=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("\n".join(shown(results, options.kill_every)))
    wrong = verdict(results)
    print("\n".join(["", *wrong]) if wrong else "\nall as it has to be")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
