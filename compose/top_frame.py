"""One frame of `toolfleet top`: what `GET /v1/fleet` says, as a table that fits the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from compose.printing import printable

Row = Mapping[str, Any]

STRIP_WIDTH: Final = 16
"""Sessions that a strip shows one by one; of more it shows the shares."""
RECENT: Final = 3
"""Whole beats that rates are taken from."""
_BARS: Final = " ▁▂▃▄▅▆▇█"
_BUSY: Final = ("in_use", "reserved", "validating", "resetting")
_READY: Final = ("idle", "opening")
_BREAKERS: Final = {"closed": "green", "half_open": "yellow", "open": "bold red"}


@dataclass(frozen=True)
class Column:
    """One figure of a server, and how much room it takes."""

    title: str
    width: int
    cell: Callable[[Row, float], Text]
    rank: int
    """In a narrow terminal the highest are left out."""
    justify: Literal["left", "right"] = "right"


def frame(state: Row, width: int, problem: str = "") -> RenderableType:
    """Return the fleet as a table no wider than ``width``; ``problem`` says what is away."""
    servers: Sequence[Row] = state.get("servers", [])
    longest = max((len(printable(it["name"])) for it in servers), default=0)
    longest = min(max(longest, len("server")), width // 3)
    shown = _fitting(width - longest)
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("server", no_wrap=True, width=longest)
    for column in shown:
        table.add_column(column.title, justify=column.justify, no_wrap=True, width=column.width)
    for server in servers:
        cells = [column.cell(server, state["beat_s"]) for column in shown]
        table.add_row(Text(printable(server["name"])), *cells)
    parts: list[RenderableType] = [_headline(state)]
    if problem:
        parts.append(Text(printable(problem), style="bold red"))
    parts += [table] if servers else [Text("no server is registered", style="dim")]
    return Group(*parts)


def _fitting(left: int) -> list[Column]:
    """Return the columns for which ``left`` has room, in their order."""
    kept = []
    for column in sorted(COLUMNS, key=lambda it: it.rank):
        left -= column.width + 1
        if left < 0:
            break
        kept.append(column)
    return [column for column in COLUMNS if column in kept]


def _headline(state: Row) -> Text:
    servers = state.get("servers", [])
    rate = sum(_rate(it, state["beat_s"]) or 0.0 for it in servers)
    queued = sum(it["queued"] for it in servers)
    workers = sum(len(it["workers"]) for it in servers)
    busy = sum(_sessions(it, _BUSY) for it in servers)
    most = sum(it["max_sessions"] for it in servers)
    counts = [
        _plural(len(servers), "server"),
        _plural(workers, "worker"),
        f"{rate:.1f} calls/s",
        f"{queued} queued",
        f"{busy} of {most} sessions in use",
    ]
    waiting = state.get("unfinished", {}).get("awaiting_approval", 0)
    counts += [f"{waiting} await approval"] if waiting else []
    line = Text("  ".join(counts), style="bold")
    if "broker" in state.get("away", []):
        line.append("  Redis is away: no figures of workers", style="bold red")
    return line


def _plural(count: int, name: str) -> str:
    return f"{count} {name}{'s' * (count != 1)}"


# -- figures


def _beats(server: Row) -> Sequence[Row]:
    """Return the last beats that are whole."""
    beats: Sequence[Row] = server["beats"][:-1]
    return beats[-RECENT:]


def _rate(server: Row, beat_s: float) -> float | None:
    beats = _beats(server)
    if not beats:
        return None
    return float(sum(beat["submitted"] for beat in beats)) / (len(beats) * beat_s)


def _sessions(server: Row, states: Sequence[str]) -> int:
    return sum(server["sessions"][state] for state in states)


def _calls(server: Row, beat_s: float) -> Text:
    rate = _rate(server, beat_s)
    return _faint("-") if rate is None else Text(f"{rate:.1f}")


def _trend(server: Row, _: float) -> Text:
    """Return a sparkline of the calls of every whole beat."""
    calls = [beat["submitted"] for beat in server["beats"][:-1]][-STRIP_WIDTH:]
    most = max(calls, default=0)
    steps = len(_BARS) - 1
    return Text("".join(_BARS[-(-steps * it // most)] if most else " " for it in calls), "cyan")


def _errors(server: Row, _: float) -> Text:
    beats = _beats(server)
    ended = sum(beat["ended"] for beat in beats)
    failed = sum(beat["failed"] for beat in beats)
    if not failed:
        return _faint("0 %" if ended else "-")
    return Text(f"{failed / max(ended, 1):.0%}".replace("%", " %"), style="red")


def _latency(name: str) -> Callable[[Row, float], Text]:
    def cell(server: Row, _: float) -> Text:
        known = [beat[name] for beat in _beats(server) if beat[name] is not None]
        return _duration(known[-1]) if known else _faint("-")

    return cell


def _queue(server: Row, _: float) -> Text:
    queued = server["queued"]
    return Text(str(queued), "yellow") if queued else _faint("0")


def _age(server: Row, _: float) -> Text:
    return _duration(server["oldest_queued_s"]) if server["queued"] else _faint("-")


def _strip(server: Row, _: float) -> Text:
    """Return the sessions as a bar: in use, ready, and those that there may be besides."""
    most = server["max_sessions"]
    busy, ready = _sessions(server, _BUSY), _sessions(server, _READY)
    if not most:
        return _faint("-")
    if most > STRIP_WIDTH:
        busy, ready = (-(-it * STRIP_WIDTH // most) for it in (busy, ready))
        ready = min(ready, STRIP_WIDTH - busy)
        most = STRIP_WIDTH
    full = "red" if busy >= most else "green"
    rest = max(0, most - busy - ready)
    return Text.assemble(("█" * busy, full), ("▒" * ready, "cyan"), ("·" * rest, "dim"))


def _counts(server: Row, _: float) -> Text:
    busy, ready = _sessions(server, _BUSY), _sessions(server, _READY)
    return Text(f"{busy}/{busy + ready}/{server['max_sessions']}")


def _waiting(server: Row, _: float) -> Text:
    return Text(str(server["waiting"]), "yellow") if server["waiting"] else _faint("0")


def _breaker(server: Row, _: float) -> Text:
    return Text(server["breaker"].replace("_", "-"), style=_BREAKERS[server["breaker"]])


def _workers(server: Row, _: float) -> Text:
    count = len(server["workers"])
    return Text(str(count), "" if count else "bold red")


def _zombies(server: Row, _: float) -> Text:
    count = sum(worker["zombies"] for worker in server["workers"])
    return Text(str(count), "bold red") if count else _faint("0")


def _faint(text: str) -> Text:
    return Text(text, style="dim")


def _duration(seconds: float) -> Text:
    if seconds < 1:
        return Text(f"{seconds * 1000:.0f} ms")
    if seconds < 100:
        return Text(f"{seconds:.1f} s")
    return Text(f"{seconds / 60:.0f} min", "yellow")


COLUMNS: Final = (
    Column("breaker", 9, _breaker, 0, "left"),
    Column("calls/s", 7, _calls, 1),
    Column("trend", STRIP_WIDTH, _trend, 11),
    Column("errors", 6, _errors, 2),
    Column("p50", 6, _latency("p50_s"), 8),
    Column("p95", 6, _latency("p95_s"), 4),
    Column("queued", 6, _queue, 3),
    Column("oldest", 6, _age, 7),
    Column("sessions", STRIP_WIDTH, _strip, 6, "left"),
    Column("use/open/max", 12, _counts, 10),
    Column("waiting", 7, _waiting, 9),
    Column("workers", 7, _workers, 5),
    Column("zombies", 7, _zombies, 12),
)
