"""The report of `tests.bench.pool_exhaustion`: one page with plots, a table and the figures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from tests.bench.charts import Series, bars, linear, lines, logarithmic
from tests.bench.exhaustion_figures import Audited, Measured, Play, Tier

COLOURS = {"free": "#e08e00", "standard": "#3b82c4", "enterprise": "#1f9d78"}
REASONS = {
    "tenant_limited: calls at once": ("refused: calls at once", "#e08e00"),
    "tenant_limited: rate": ("refused: rate", "#f2c14e"),
    "expired": ("expired in the queue", "#b3446c"),
    "outcome_unknown": ("deadline passed while it ran", "#7d6b91"),
    "pool_full": ("failed: pool full", "#5b4b8a"),
    "store_unavailable": ("refused: database busy", "#4a90a4"),
    "other": ("other", "#888888"),
}
POOL = (
    ("queued", "calls queued", "#b3446c"),
    ("in_use", "sessions in use", "#1f9d78"),
    ("waiting", "calls waiting for a session", "#3b82c4"),
)
X = "concurrent runs of each tenant"
STYLE = Path(__file__).with_name("exhaustion.css").read_text()


@dataclass(frozen=True)
class Findings:
    """Everything that the report is about."""

    machine: dict[str, Any]
    options: dict[str, Any]
    tiers: Sequence[Tier]
    plays: Sequence[Play]
    audited: Audited
    seen: Sequence[dict[str, float]]
    plan: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "machine": self.machine,
            "options": self.options,
            "tiers": [{**asdict(it), "weight": it.weight} for it in self.tiers],
            "steps": [
                {
                    "runs": play.step.runs,
                    "jain": round(play.jain, 4),
                    "tiers": [asdict(it) for it in play.measured],
                }
                for play in self.plays
            ],
            "ledger": asdict(self.audited),
            "pool": list(self.seen),
            "plan": self.plan,
        }


def write(path: Path, findings: Findings) -> None:
    """Write the page, and beside it the figures as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = json.dumps(findings.as_dict(), indent=2)
    path.with_suffix(".json").write_text(body + "\n")
    path.write_text(_page(findings, body))


def _page(found: Findings, body: str) -> str:
    options, audited = found.options, found.audited
    tenants = len(found.tiers) * options["tenants"]
    good = not audited.problems
    said = (
        f"No call lost, none run twice: {audited.calls:,} calls were taken and each has ended."
        if good
        else f"{len(audited.problems)} problems: {'; '.join(audited.problems[:3])}"
    )
    ends = ", ".join(f"{count:,} {state}" for state, count in sorted(audited.states.items()))
    last = found.plays[-1]
    capacity = options["sessions"] / options["service"]
    verdict = "good" if good else "bad"
    load = found.machine["load_average"][0]
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>Load test: pool exhaustion by tier</title>
<style>{STYLE}</style></head><body><main>
<h1>Load test: concurrent runs until the pool is exhausted</h1>
<p class="soft">One server over stdio with {options["sessions"]} sessions, calls of
{_time(options["service"])} each: {capacity:.0f} calls/s at the very most. {len(found.tiers)} tiers
with {options["tenants"]} tenants each; every run calls again as soon as it may; a call expires
after {_time(options["timeout"])}. {options["seconds"]:g} s a step, on {found.machine["cores"]}
cores ({escape(str(found.machine["cpu"]))}), load {load:.1f} at the end.</p>
<div class="verdict {verdict}">{escape(said)} <small>{escape(ends)}. Every id that a caller was
given is in the ledger, and the other way round; the server's own journal has one effect for each
call that succeeded, and at most one for any other.</small></div>
{_cards(found, last, tenants)}
<h2>What callers saw</h2><div class="plots">{"".join(_plots(found))}</div>
<h2>Tiers</h2><div class="scroll">{_tiers(found)}</div>
<h2>Figures</h2><p class="soft">Waits are of calls submitted within the step; refusals are of
submissions, which come again after the time that they were told. A fair share is by weight, and no
more than a tier asked for: what its runs would have made had none of their calls waited. Weights
rule among calls that wait in the queue; the few that a worker has claimed ahead take turns.</p>
<div class="scroll">{_table(found)}</div>
<h2>What <code>toolfleet plan</code> says to that</h2><p>{escape(str(found.plan["why"]))}.
<span class="soft">{found.plan["needed_sessions"]} sessions in {found.plan["needed_workers"]}
workers for a p95 wait of 200 ms; it was {_time(found.plan["p95_wait_s"])}.</span></p>
<details><summary>All of it as JSON</summary><pre>{escape(body)}</pre></details>
</main></body></html>
"""


def _cards(found: Findings, last: Play, tenants: int) -> str:
    peak = max(sum(it.served_per_s for it in play.measured) for play in found.plays)
    capacity = found.options["sessions"] / found.options["service"]
    refused = sum(sum(it.refused.values()) for play in found.plays for it in play.measured)
    best, worst = last.measured[-1], last.measured[0]
    cards = (
        (f"{last.step.runs * tenants}", "concurrent runs at the last step"),
        (f"{peak:.1f} calls/s", f"most served: {peak / capacity:.0%} of what sessions can"),
        (_time(_p95(best.queue_wait_s)), f"p95 queue wait of {best.tier}, last step"),
        (_time(_p95(worst.queue_wait_s)), f"p95 queue wait of {worst.tier}, last step"),
        (f"{refused:,}", "submissions refused, and told when to come again"),
        (f"{last.jain:.3f}", "Jain's index at the last step (1 is fair)"),
    )
    return (
        '<div class="cards">'
        + "".join(
            f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>" for value, what in cards
        )
        + "</div>"
    )


def _plots(found: Findings) -> list[str]:
    labels = [str(play.step.runs) for play in found.plays]
    names = [tier.name for tier in found.tiers]

    def of(name: str, figure: Callable[[Measured], float | None]) -> list[float | None]:
        return [figure(it) for play in found.plays for it in play.measured if it.tier == name]

    def waits(figure: Callable[[Measured], tuple[float, float] | None]) -> list[Series]:
        return [
            Series(f"{name}, {what}", COLOURS[name], of(name, _at(figure, place)), place == 0)
            for name in names
            for place, what in ((1, "p95"), (0, "p50"))
        ]

    queue = waits(lambda it: it.queue_wait_s)
    borrow = waits(lambda it: it.borrow_wait_s)
    served = [Series(name, COLOURS[name], of(name, lambda it: it.served_per_s)) for name in names]
    fair = [
        Series("fair share by weight", "", of(name, lambda it: it.fair_per_s)) for name in names
    ]
    capacity = found.options["sessions"] / found.options["service"]
    total = [sum(it.served_per_s for it in play.measured) for play in found.plays]
    pool = [Series(title, colour, [it[key] for it in found.seen]) for key, title, colour in POOL]
    return [
        lines(
            "Queue wait: from submitted to claimed (log scale)", X, labels, queue,
            logarithmic(0.001, _most(queue), _time),
        ),
        lines(
            "Borrow wait: from claimed to a session lent (log scale)", X, labels, borrow,
            logarithmic(0.0001, max(0.2, _most(borrow)), _time),
            rule=(0.2, "alert: p95 over 200 ms"),
        ),
        bars(
            "Served by tier against its fair share (calls/s)", X, labels, [[it] for it in served],
            linear(_most([*served, *fair]) * 1.15), marks=fair,
            heads=[f"Jain {play.jain:.3f}" for play in found.plays],
        ),
        lines(
            "Throughput (calls/s)", X, labels, [Series("all tiers", "#7a5cc0", total)],
            linear(capacity * 1.1), rule=(capacity, "all that the sessions can do"),
        ),
        _refusals(found, labels),
        lines(
            "The pool, second by second (sessions and calls)", "seconds since the first run",
            [f"{it['at_s']:.0f}" for it in found.seen], pool, linear(_most(pool)),
            rule=(found.options["sessions"], "pool.max_size"),
        ),
    ]  # fmt: skip


def _refusals(found: Findings, labels: Sequence[str]) -> str:
    """Return the chart of what was refused and what was not served, for each tier and step."""
    lasts_s = found.options["seconds"]
    stacks = []
    for tier in found.tiers:
        own = [it for play in found.plays for it in play.measured if it.tier == tier.name]
        counts = [_unserved(it) for it in own]
        stacks.append(
            [
                Series(title, colour, [it[reason] / lasts_s for it in counts])
                for reason, (title, colour) in REASONS.items()
                if any(it[reason] for it in counts)
            ]
        )
    heights = [
        sum(one.values[number] or 0.0 for one in stack)
        for stack in stacks
        for number in range(len(labels))
    ]
    names = ", ".join(tier.name for tier in found.tiers)
    title = f"Refused or not served (a second); from left to right: {names}"
    return bars(title, X, labels, stacks, linear(max(heights) or 1.0))


def _unserved(measured: Measured) -> Counter[str]:
    """Return what did not end well, by the reasons that the chart has."""
    found: Counter[str] = Counter()
    failed = {name: n for name, n in measured.endings.items() if name != "succeeded"}
    for reason, count in [*measured.refused.items(), *failed.items()]:
        found[reason if reason in REASONS else "other"] += count
    return found


def _tiers(found: Findings) -> str:
    rows = "".join(
        f"<tr><td>{escape(it.name)}</td><td>{escape(_limits(it))}</td><td>{it.priority}</td>"
        f"<td>{it.weight / found.tiers[0].weight:g}</td><td></td></tr>"
        for it in found.tiers
    )
    return (
        "<table><thead><tr><th>tier</th><th>limits of each tenant</th><th>priority</th>"
        f"<th>weight</th><th></th></tr></thead><tbody>{rows}</tbody></table>"
    )


def _limits(tier: Tier) -> str:
    said = [f"{name.replace('_', ' ')} {value}" for name, value in tier.limits.items()]
    return ", ".join(said) or "none"


def _table(found: Findings) -> str:
    heads = (
        "runs", "tier", "submitted", "served/s", "fair share/s", "queue p50", "queue p95",
        "borrow p50", "borrow p95", "endings and refusals",
    )  # fmt: skip
    rows = []
    for play in found.plays:
        for number, it in enumerate(play.measured):
            what = [f"{count} {name}" for name, count in sorted(it.endings.items())]
            what += [f"{count} refused ({name})" for name, count in sorted(it.refused.items())]
            cells = (
                str(it.runs), it.tier, f"{it.submitted:,}", f"{it.served_per_s:.1f}",
                f"{it.fair_per_s:.1f}", *_both(it.queue_wait_s), *_both(it.borrow_wait_s),
                ", ".join(what),
            )  # fmt: skip
            first = ' class="first"' if number == 0 else ""
            rows.append(f"<tr{first}>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _at(
    figure: Callable[[Measured], tuple[float, float] | None], place: int
) -> Callable[[Measured], float | None]:
    def value(measured: Measured) -> float | None:
        both = figure(measured)
        return both[place] if both else None

    return value


def _most(series: Sequence[Series]) -> float:
    return max((it for one in series for it in one.values if it is not None), default=1.0)


def _p95(both: tuple[float, float] | None) -> float | None:
    return both[1] if both else None


def _both(both: tuple[float, float] | None) -> tuple[str, str]:
    return (_time(both[0]), _time(both[1])) if both else ("-", "-")


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 0.001:
        return f"{seconds * 1e6:.3g} µs"
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
