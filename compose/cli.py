"""The `toolfleet` command: run the fleet's processes, and ask a running fleet.

Each command imports what it needs when it runs, so that `toolfleet --help` is quick.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from typer.main import get_command

from compose import (
    approving,
    asking,
    auditing,
    consenting,
    credentials,
    doctor,
    governing,
    registry_file,
    tending,
    watching,
)
from compose.bridge import command as bridge
from registry.discretion import die_discreetly

app = typer.Typer(
    name="toolfleet",
    help="Durable tool calls for LLM agents: a fleet of MCP servers behind queues.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
asking.add_to(app)
governing.add_to(app, asking.servers)
tending.add_to(app, asking.servers)
approving.add_to(app)
app.add_typer(auditing.audit, name="audit")
credentials.add_to(app)
consenting.add_to(credentials.credentials)
registry_file.add_to(app)
doctor.add_to(app)
watching.add_to(app)
bridge.add_to(app)


@app.command()
def up(
    free_ports: Annotated[
        bool, typer.Option("--free-ports", help="Take any free ports for API and Flower.")
    ] = False,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where data, secrets and logs live (TOOLFLEET_DATA_DIR).")
    ] = None,
    workers: Annotated[
        list[str] | None, typer.Option(help="SERVER=N: run N workers for a server.")
    ] = None,
) -> None:
    """Run a whole fleet on this machine until Ctrl-C; a second Ctrl-C hastens the end."""
    from compose.up import run_up

    sys.exit(run_up(free_ports=free_ports, data_dir=data_dir, workers=_counts(workers or [])))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def demo(context: typer.Context) -> None:
    """Start a fleet with demo servers and show what it does to their calls."""
    from compose.demo.main import run

    sys.exit(run(context.args))


@contextmanager
def _at_once() -> Iterator[None]:
    """Import what a server runs on without looking for garbage meanwhile, nor in it afterwards.

    Imports make next to none; looking for it took a fifth of a server's start.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@app.command()
def api() -> None:
    """Serve the HTTP and MCP API."""
    with _at_once():
        from api.main import main as serve

    serve()


@app.command()
def worker(server: Annotated[str, typer.Argument(help="The server whose queue to serve.")]) -> None:
    """Run the calls of one server's queue."""
    with _at_once():
        from registry.errors import FleetError
        from workers.process import run_worker

    try:
        sys.exit(run_worker(server))
    except FleetError as error:
        sys.exit(f"toolfleet worker {server}: {error.message}. {error.hint}")


@app.command()
def steward() -> None:
    """Send again what was lost, end what is late, close the calls of dead workers."""
    with _at_once():
        from workers.process import run_steward

    sys.exit(run_steward())


@app.command()
def flower() -> None:
    """Show Celery's view of the fleet on a web page (Flower)."""
    with _at_once():
        from compose.flower import run_flower

    run_flower()


@app.command()
def health(
    role: Annotated[
        str | None, typer.Argument(help="api, worker, steward or flower; this container's own.")
    ] = None,
) -> None:
    """Say whether a process in this container works; the exit status is for its health check."""
    from compose.health import check

    sys.exit(check(role))


@app.command()
def migrate() -> None:
    """Bring the database of TOOLFLEET_DATABASE_URL to this release's shape.

    TOOLFLEET_OPERATOR_KEY, where it is set, is an operator's key from then on: a fleet's first.
    """
    from compose.migrate import adopt_operator_key, upgrade_database
    from registry.settings import get_settings

    settings = get_settings()
    if not settings.database_url:
        sys.exit("toolfleet migrate: set TOOLFLEET_DATABASE_URL; `toolfleet up` migrates its own")
    upgrade_database(settings.database_url)
    if key := settings.operator_key.get_secret_value():
        adopt_operator_key(settings.database_url, key)


@app.command()
def secrets(
    folder: Annotated[Path, typer.Argument(help="Where to; what is there already stays.")],
) -> None:
    """Make the secrets of a fleet in containers: a file each, as compose.yaml mounts them."""
    from compose.container_secrets import make_secrets

    for name in make_secrets(folder):
        typer.echo(f"made {name}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(context: typer.Context) -> None:
    """Measure what the fleet adds to a call, on this machine."""
    from compose.bench.main import run

    sys.exit(run(context.args))


def _counts(pairs: list[str]) -> dict[str, int]:
    counts = {}
    for pair in pairs:
        server, _, count = pair.partition("=")
        if not server or not count.isdigit() or int(count) < 1:
            raise typer.BadParameter(f"{pair!r} is not SERVER=N", param_hint="--workers")
        counts[server] = int(count)
    return counts


def main() -> None:
    """Run the command line; the entry point of the `toolfleet` script."""
    die_discreetly()
    # What Typer itself would call puts a hook of its own in the place of the discreet one.
    get_command(app)()


if __name__ == "__main__":
    main()
