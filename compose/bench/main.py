"""`toolfleet bench`: measure what the fleet adds to a call, on this machine, in one run."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from compose.bench import report
from compose.bench.cpu import Neighbours
from compose.bench.deep import Drained, drain_celery, drain_fleet
from compose.bench.rig import SESSIONS, Rig, running
from compose.bench.rounds import FULL, QUICK, Measured, Plan, open_all, play_round, subjects

RESULTS = Path("bench-results")
WIDTH = 150
CALLS, NOOPS = "fleet, stdio", "Celery no-op, threads"


def run(arguments: Sequence[str] = ()) -> int:
    """Measure and print; return 0 when every call was answered, whatever the figures are."""
    parser = argparse.ArgumentParser(prog="toolfleet bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round: under a minute")
    parser.add_argument("--sessions", type=int, default=SESSIONS, help="warm sessions per server")
    parser.add_argument("--keep", action="store_true", help="keep the folder with data and logs")
    options = parser.parse_args(list(arguments))
    terminal = Console(highlight=False)
    console = terminal if terminal.is_terminal else Console(highlight=False, width=WIDTH)
    folder = Path(tempfile.mkdtemp(prefix="toolfleet-bench-"))
    try:
        return asyncio.run(_bench(folder, console, options))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


async def _bench(folder: Path, console: Console, options: argparse.Namespace) -> int:
    measuring = asyncio.current_task()
    assert measuring is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, measuring.cancel)
    plan = QUICK if options.quick else FULL
    began = time.monotonic()
    facts = report.machine()
    figures: report.Figures = {}
    drains: dict[str, list[Drained]] = {CALLS: [], NOOPS: []}
    async with running(folder, options.sessions) as rig:
        neighbours = Neighbours(rig.meter)
        await _measure(rig, plan, console, figures, drains)
        facts["cores_used_by_others"] = round(neighbours.cores(), 2)
    reached = report.goals(figures, drains)
    setup = {"plan": vars(plan), "sessions_per_server": options.sessions}
    body = report.as_json(facts, setup, figures, drains, reached)
    _show(console, facts, options.sessions, figures, drains, reached)
    path = report.write(body, RESULTS)
    console.print(f"\n{path} written; {time.monotonic() - began:.0f} s in all")
    errors = [error for measured in figures.values() for error in measured.errors]
    for error in errors[:5]:
        console.print(f"failed call: {error}", style="red", markup=False)
    return 1 if errors else 0


async def _measure(
    rig: Rig,
    plan: Plan,
    console: Console,
    figures: dict[tuple[str, str], Measured],
    drains: dict[str, list[Drained]],
) -> None:
    found = await subjects(rig)
    await open_all(rig, found)
    for number in range(plan.rounds):
        console.print(f"round {number + 1} of {plan.rounds}", style="dim")
        await play_round(rig, plan, number, found, figures)
        drains[NOOPS].append(await drain_celery(rig, plan.deep_noops))
        drains[CALLS].append(await drain_fleet(rig, plan.deep_calls))


def _show(
    console: Console,
    facts: dict[str, Any],
    sessions: int,
    figures: report.Figures,
    drains: dict[str, list[Drained]],
    reached: Sequence[dict[str, Any]],
) -> None:
    console.print(
        f"\n{facts['cores']} cores ({facts['cpu']}), Python {facts['python']}; "
        f"{sessions} warm sessions per server, not recycled during the run; others on this machine "
        f"kept {facts['cores_used_by_others']} cores busy meanwhile",
        soft_wrap=True,
    )
    for table in (
        report.latency_table(figures),
        report.cpu_table(figures, drains),
        report.deep_table(drains),
    ):
        console.print()
        console.print(table)
    console.print()
    for goal in reached:
        mark = "[green]reached    [/]" if goal["met"] else "[yellow]not reached[/]"
        console.print(f"{mark} {goal['goal']}: measured {goal['measured']}")
