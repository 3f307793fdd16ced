"""The demo's figures as tables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from rich.table import Table

from compose.demo.comparison import Compared
from compose.demo.tenant import Made


def quantile(values: Sequence[float], share: float) -> float:
    """Return the nearest-rank quantile; NaN of nothing."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)] if ranked else math.nan


def calls_table(made: Iterable[Made]) -> Table:
    """Return a row for each tenant and tool: where the time of its calls went, how they ended."""
    table = Table(title="Calls, by tenant and tool (milliseconds, median)", title_justify="left")
    for column in ("tenant", "tool"):
        table.add_column(column, no_wrap=True)
    for column in ("n", "queue wait", "borrow wait", "call", "caller waits"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    groups: dict[tuple[str, str], list[Made]] = {}
    for one in made:
        groups.setdefault((one.tenant, one.title), []).append(one)
    for (tenant, title), group in sorted(groups.items()):
        outcomes = Counter(one.state for one in group)
        table.add_row(
            tenant,
            title,
            str(len(group)),
            *(_median_ms(group, name) for name in ("queue_wait_s", "borrow_wait_s", "call_s")),
            _ms(quantile([one.total_s for one in group], 0.5)),
            ", ".join(f"{state} {count}" if len(outcomes) > 1 else state
                      for state, count in outcomes.most_common()),
        )  # fmt: skip
    return table


def comparison_table(compared: Compared) -> Table:
    """Return the two ways next to each other."""
    table = Table(
        title=f"{compared.calls} calls of stdio servers, {compared.callers} callers (milliseconds)",
        title_justify="left",
    )
    table.add_column("way", min_width=40)
    for column in ("p50", "p95"):
        table.add_column(column, justify="right")
    rows = (("through the fleet", compared.fleet_s), ("one process per call", compared.spawned_s))
    for way, seconds in rows:
        table.add_row(way, *(_ms(quantile(seconds, share)) for share in (0.5, 0.95)))
    ratios = [
        quantile(compared.spawned_s, share) / quantile(compared.fleet_s, share)
        for share in (0.5, 0.95)
    ]
    table.add_row("ratio", *(f"{ratio:.1f} x" for ratio in ratios))
    return table


def _median_ms(group: Sequence[Made], name: str) -> str:
    known = [one.timings[name] for one in group if name in one.timings]
    return _ms(quantile(known, 0.5)) if known else "-"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f}"
