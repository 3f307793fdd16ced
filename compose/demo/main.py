"""`toolfleet demo`: a whole fleet on free ports in a temporary folder, shown and taken down."""

from __future__ import annotations

import argparse
import asyncio
import logging
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from rich.console import Console

from compose.demo.acts import ACTS, Play, all_made, invite
from compose.demo.checks import Census, Checks
from compose.demo.comparison import compare
from compose.demo.servers import CRM_WORKERS, TimeOverHttp, set_stage
from compose.demo.tables import calls_table, comparison_table
from compose.demo.tenant import Caller
from compose.local import LocalFleet
from registry.settings import Settings

WIDTH = 132


def run(arguments: Sequence[str] = ()) -> int:
    """Show the fleet; return 0 only if every promise held and nothing was left alive."""
    parser = argparse.ArgumentParser(prog="toolfleet demo", description=run.__doc__)
    parser.add_argument("--keep", action="store_true", help="keep the folder with data and logs")
    options = parser.parse_args(list(arguments))
    logging.basicConfig(level=logging.WARNING, format="       %(message)s")
    terminal = Console(highlight=False)
    console = terminal if terminal.is_terminal else Console(highlight=False, width=WIDTH)
    folder = Path(tempfile.mkdtemp(prefix="toolfleet-demo-"))
    checks = Checks(console)
    started = time.monotonic()
    try:
        asyncio.run(_show(folder, checks, console))
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("interrupted; the fleet is down")
        return 130
    finally:
        if checks.all_held and not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            console.print(f"data and logs are in {folder}", soft_wrap=True)
    held = "all held" if checks.all_held else "[bold red]NOT all held[/]"
    console.print(f"\n{len(checks)} checks, {held}, {time.monotonic() - started:.0f} s")
    return 0 if checks.all_held else 1


async def _show(folder: Path, checks: Checks, console: Console) -> None:
    """Play every act, then print what was measured; take everything down whatever happens."""
    playing = asyncio.current_task()
    assert playing is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, playing.cancel)
    census = Census()
    census.start()
    with checks.act("A whole fleet, started"):
        await _play(folder, checks, console)
    seen, alive = await census.survivors()
    checks.check(
        "no process is left alive",
        not alive,
        f"{seen} were started; left: {alive}" if alive else f"{seen} were started, all are gone",
    )


async def _play(folder: Path, checks: Checks, console: Console) -> None:
    async with AsyncExitStack() as stack:
        over_http = TimeOverHttp(folder)
        stage = await asyncio.to_thread(set_stage, folder, over_http.port)
        if stage.repository is None:
            console.print("there is no git on this machine: mcp-server-git is left out")
        stack.push_async_callback(over_http.stop)
        await over_http.start()
        settings = Settings(data_dir=folder / "data", database_url="", redis_url="")
        began = time.monotonic()
        fleet = await stack.enter_async_context(
            LocalFleet(settings, free_ports=True, workers_per_server={"crm": CRM_WORKERS})
        )
        parts = ", ".join(fleet.children)
        checks.check("a fleet starts", True, f"{parts}: {time.monotonic() - began:.1f} s")
        operator = await stack.enter_async_context(Caller(fleet.api_url, fleet.operator_key))
        play = Play(fleet, stage, checks, operator, await invite(fleet, operator))
        for tenant in play.tenants:
            await stack.enter_async_context(tenant)
        for title, act in ACTS:
            with checks.act(title):
                await act(play)
        made = list(all_made(play))
        console.print()
        console.print(calls_table(made))
        with checks.act("One process per call, for comparison"):
            console.print(comparison_table(await compare(play)))
        console.print("\n[bold]The end[/]")
