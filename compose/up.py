"""`toolfleet up`: one fleet in the foreground, from its first line to its last."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

from compose.data_folder import FolderInUseError
from compose.local import LocalFleet
from registry.errors import FleetError


def run_up(*, free_ports: bool, data_dir: Path | None, workers: Mapping[str, int]) -> int:
    """Run a fleet until SIGINT or SIGTERM; return the exit status."""
    console = Console(highlight=False)
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=console, show_path=False)],
    )
    fleet = LocalFleet(data_dir=data_dir, free_ports=free_ports, workers_per_server=workers)
    try:
        asyncio.run(_serve(fleet, console))
    except (FolderInUseError, OSError, RuntimeError, ValueError) as error:
        console.print(f"toolfleet up: {error}", style="red", markup=False)
        return 1
    except FleetError as error:
        console.print(f"toolfleet up: {error.message}. {error.hint}", style="red", markup=False)
        return 1
    return 0


async def _serve(fleet: LocalFleet, console: Console) -> None:
    """Run the fleet until a signal; a second one kills what is still being stopped."""
    serving = asyncio.create_task(_run(fleet, console))
    asked = False

    def on_signal() -> None:
        nonlocal asked
        if asked:
            console.print("killing what has not ended yet")
            fleet.hasten()
        else:
            asked = True
            serving.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    # Not awaited directly: its cancellation is our own doing, not ours to pass on.
    await asyncio.wait([serving])
    if not serving.cancelled() and (error := serving.exception()):
        raise error
    console.print("stopped")


async def _run(fleet: LocalFleet, console: Console) -> None:
    with console.status("starting"):
        await fleet.start()
    try:
        console.print(_addresses(fleet), soft_wrap=True)
        console.print("Ctrl-C stops the fleet; its data stays.", style="dim")
        await asyncio.Event().wait()
    finally:
        console.print("stopping: workers let running calls finish (Ctrl-C again hastens)")
        await fleet.stop()


def _addresses(fleet: LocalFleet) -> Text:
    text = Text()
    for name, value in (
        ("API", fleet.api_url),
        ("Docs", f"{fleet.api_url}/docs"),
        ("Console", f"{fleet.api_url}/console/ (sign in with the operator key)"),
        (
            "Flower",
            f"{fleet.flower_url} (signed in to the console; or any user, password: the key)",
        ),
        ("Postgres", _without_password(fleet.database_url)),
        ("Redis", _without_password(fleet.redis_url)),
        ("Operator key", f"{fleet.operator_key} ({fleet.folder.operator_key_file})"),
        ("Logs", str(fleet.folder.path / "logs")),
    ):
        text.append(f"{name:14}", style="bold").append(f"{value}\n")
    return text


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    user_info, at, place = rest.rpartition("@")
    user, colon, _ = user_info.partition(":")
    return f"{scheme}://{user}{colon and ':***'}{at}{place}"
