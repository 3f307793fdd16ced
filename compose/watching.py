"""`toolfleet plan` and `toolfleet top`: what each server needs, and how the fleet is right now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from compose.printing import WIDTH_OF_A_PIPE, AsJson, asking, names_of_servers, printable, show

if TYPE_CHECKING:
    from rich.table import Table

_COLOURS = {
    "nothing": "green",
    "shrink": "cyan",
    "add_workers": "yellow",
    "raise_max_size": "yellow",
    "raise_quota": "red",
    "look_again": "dim",
}

Servers = Annotated[
    list[str] | None,
    typer.Argument(help="Only these servers.", autocompletion=names_of_servers),
]


def add_to(app: typer.Typer) -> None:
    """Add these commands to the `toolfleet` command."""
    app.command("plan")(plan)
    app.command("top")(top)


def plan(
    servers: Servers = None,
    p95: Annotated[float, typer.Option(help="Seconds that 95 % of the calls may wait.")] = 0.2,
    window: Annotated[int, typer.Option(help="Seconds to look back on.")] = 3600,
    growth: Annotated[
        float, typer.Option(help="How many times the busiest minute's calls to plan for.")
    ] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Say how many workers and sessions each server needs, going by its calls of the last hour."""
    query: dict[str, Any] = {"p95_queue_wait_s": p95, "window_s": window, "headroom": growth}
    with asking() as fleet:
        answer = fleet.ask("GET", "capacity", query={**query, "server": servers or []})
    if as_json:
        show(answer, as_json)
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else WIDTH_OF_A_PIPE
    console.print(_table(answer))


def top(
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
) -> None:
    """Show the fleet live, every second: calls, waits, sessions, breakers; q or Ctrl-C ends."""
    from compose.top import run_once, run_top

    with asking():
        run_once() if once else run_top()


def _table(answer: dict[str, Any]) -> Table:
    """Return a plan as a table: what was asked, what there is, what is needed, what to do."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    title = (
        f"for {answer['headroom']:g} times the busiest minute of the last "
        f"{answer['window_s'] / 60:g}, and a p95 wait of {_duration(answer['p95_queue_wait_s'])}"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    table.add_column("server", overflow="fold")
    for name in (
        "calls/min, peak", "call, p95", "wait, p95", "workers", "sessions", "busy", "wait then",
    ):  # fmt: skip
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("what to do", overflow="fold", ratio=1)
    for row in answer["servers"]:
        pool = row["max_size"] * row["workers"]
        table.add_row(
            printable(row["server"]),
            f"{row['mean_per_minute']:.3g}, {row['peak_per_minute']:g}",
            f"{_duration(row['service_s'])}, {_duration(row['p95_service_s'])}",
            _duration(row["p95_wait_s"]),
            _change(row["workers"], row["needed_workers"]),
            _change(pool, row["needed_sessions"]),
            _change(_percent(row["utilisation"]), _percent(row["utilisation_then"])),
            _duration(row["expected_p95_wait_then_s"]),
            Text(printable(row["why"]), style=_COLOURS.get(row["advice"], "")),
        )
    return table


def _change(now: Any, then: Any) -> str:
    if now is None:
        return then or "-"
    return str(now) if then is None or now == then else f"{now} → {then}"


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.0%}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
