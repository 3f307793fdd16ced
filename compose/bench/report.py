"""What was measured, as tables for people and as JSON for programs."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich.table import Table

from compose.bench.cpu import FLEET, PARTS, Spent
from compose.bench.deep import Drained
from compose.bench.rounds import Measured
from compose.demo.tables import quantile

Figures = dict[tuple[str, str], Measured]

PACKAGES: Final = (
    "toolfleet", "celery", "kombu", "redis", "mcp", "sqlalchemy", "psycopg", "uvicorn", "uvloop",
)  # fmt: skip
MOST_ADDED_MS: Final = 10.0
LEAST_RATIO: Final = 0.5


def machine() -> dict[str, Any]:
    """Return the facts that figures depend on."""
    return {
        "cores": os.cpu_count(),
        "cpu": _cpu_model(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def latency_table(figures: Figures) -> Table:
    """Return latency and throughput of every subject in every mode."""
    table = Table(title="Latency in milliseconds, calls per second", title_justify="left")
    table.add_column("way", no_wrap=True)
    table.add_column("callers", no_wrap=True)
    for column in ("n", "p50", "p95", "p99", "calls/s"):
        table.add_column(column, justify="right", no_wrap=True)
    for measured in _in_order(figures):
        seconds = measured.all_s
        table.add_row(
            measured.subject,
            measured.mode,
            str(len(seconds)),
            *(f"{quantile(seconds, share) * 1000:.2f}" for share in (0.5, 0.95, 0.99)),
            f"{len(seconds) / measured.elapsed_s:.0f}",
        )
    return table


def cpu_table(figures: Figures, drains: dict[str, list[Drained]]) -> Table:
    """Return what a call cost each process."""
    table = Table(title="CPU milliseconds per call, by process", title_justify="left")
    table.add_column("way", no_wrap=True)
    table.add_column("callers", no_wrap=True)
    for column in (*PARTS, "fleet's own"):
        table.add_column(column, justify="right", no_wrap=True)
    for measured in _in_order(figures):
        spent = per_call_ms(measured.spent_s, len(measured.all_s))
        table.add_row(measured.subject, measured.mode, *_cells(spent))
    for name, drained in drains.items():
        table.add_row(name, "deep queue", *_cells(_drain_ms(drained)))
    return table


def deep_table(drains: dict[str, list[Drained]]) -> Table:
    """Return how fast one worker process drained its queue."""
    table = Table(title="One worker process draining a deep queue", title_justify="left")
    table.add_column("what", no_wrap=True)
    for column in ("queued", "calls/s, median", "by round"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, drained in drains.items():
        rates = [one.rate for one in drained]
        shown = ", ".join(f"{rate:.0f}" for rate in rates)
        table.add_row(name, str(drained[0].calls), f"{median(rates):.0f}", shown)
    return table


def goals(figures: Figures, drains: dict[str, list[Drained]]) -> list[dict[str, Any]]:
    """Return the goals with what was measured: added p50 at 1 caller and at 50/s, deep ratio."""
    found = []
    for mode in ("1 caller", "50/s open"):
        fleet, direct = (figures[subject, mode].all_s for subject in FLEET_AND_DIRECT)
        added_ms = (quantile(fleet, 0.5) - quantile(direct, 0.5)) * 1000
        found.append(
            {
                "goal": f"added p50 over stdio, {mode}: at most {MOST_ADDED_MS:g} ms",
                "measured": round(added_ms, 2),
                "met": added_ms <= MOST_ADDED_MS,
            }
        )
    calls, noops = drains.values()
    ratio = median(one.rate / noop.rate for one, noop in zip(calls, noops, strict=True))
    found.append(
        {
            "goal": "deep queue of stdio calls, against no-ops in the threads pool: "
            f"at least {LEAST_RATIO:g}",
            "measured": round(ratio, 3),
            "met": ratio >= LEAST_RATIO,
        }
    )
    return found


FLEET_AND_DIRECT: Final = ("fleet, stdio", "direct, stdio")


def as_json(
    facts: dict[str, Any],
    setup: dict[str, Any],
    figures: Figures,
    drains: dict[str, list[Drained]],
    reached: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Return everything, with each round's median beside the whole."""
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": facts,
        "setup": setup,
        "goals": list(reached),
        "ways": [_measured_body(measured) for measured in _in_order(figures)],
        "deep": {
            name: {
                "calls_per_s_by_round": [round(one.rate, 1) for one in drained],
                "cpu_ms_per_call": _drain_ms(drained),
            }
            for name, drained in drains.items()
        },
    }


def write(body: dict[str, Any], folder: Path) -> Path:
    """Write the JSON to a file named after its date; return its path."""
    folder.mkdir(exist_ok=True)
    stamp = str(body["measured_at"]).replace(":", "").removesuffix("+0000")
    path = folder / f"{stamp}Z.json"
    path.write_text(json.dumps(body, indent=2) + "\n")
    return path


def per_call_ms(spent_s: Spent, calls: int) -> dict[str, float]:
    """Return CPU milliseconds per call by process, and the fleet's own together."""
    per_call = {part: spent_s[part] * 1000 / max(calls, 1) for part in PARTS}
    per_call["fleet's own"] = sum(per_call[part] for part in FLEET)
    return {part: round(ms, 3) for part, ms in per_call.items()}


def _drain_ms(drained: Sequence[Drained]) -> dict[str, float]:
    total = {part: sum(one.spent_s[part] for one in drained) for part in PARTS}
    return per_call_ms(total, sum(one.metered for one in drained))


def _measured_body(measured: Measured) -> dict[str, Any]:
    seconds = measured.all_s
    return {
        "way": measured.subject,
        "callers": measured.mode,
        "calls": len(seconds),
        **{
            f"p{share}_ms": round(quantile(seconds, share / 100) * 1000, 3)
            for share in (50, 95, 99)
        },
        "p50_ms_by_round": [round(quantile(it, 0.5) * 1000, 3) for it in measured.latencies_s],
        "calls_per_s": round(len(seconds) / measured.elapsed_s, 1),
        "cpu_ms_per_call": per_call_ms(measured.spent_s, len(seconds)),
        "errors": measured.errors,
    }


def _in_order(figures: Figures) -> Iterable[Measured]:
    """Return what was measured, by way in the order of the first round, then by mode."""
    ways = list(dict.fromkeys(way for way, _ in figures))
    return sorted(figures.values(), key=lambda measured: ways.index(measured.subject))


def _cells(per_call: dict[str, float]) -> list[str]:
    return [f"{ms:.2f}" if ms >= 0.005 else "-" for ms in per_call.values()]


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())
