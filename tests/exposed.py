"""Which metrics the product exposes, as its own code declares them; and a page that lists them.

``python -m tests.exposed`` writes that page anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from api import metrics as api_metrics
from api import own_figures
from registry import record_figures
from workers.end_figures import StewardFigures
from workers.figures import Figures

PAGE = Path(__file__).parents[1] / "compose" / "prometheus" / "METRICS.md"
_HEAD = """# Metrics

What `/metrics` tells an operator's key, for the whole fleet, whichever API process is asked.
Metrics of *worker* (some of them the steward's, too), of *steward* and of *API* are counted by each
process, which they name in one more label, `worker`; *record* is read from Postgres. *Asked*: what
the API process that is asked finds. Labels are what operators name (servers, versions, tiers) or
what the product does (states, codes, reasons, routes): never a tenant, a run, a call, or a name
that a caller gives. What a dead worker held is not shown; what it counted is, for 15 seconds.

A server may say how long its own part of a call took (`toolfleet_server_seconds`): as a number of
seconds in a result's `_meta` under `toolfleet/server-seconds`, or over HTTP in the header
`Server-Timing`, of which the entry `total` counts, else the longest one.

By OTLP, one steward sends what is not *asked*, where OTEL_EXPORTER_OTLP_ENDPOINT says where to.

| metric | type | labels | from | what it tells |
|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Exposed:
    """One metric: ``name`` is the family's, as in its TYPE line."""

    name: str
    kind: str
    labels: tuple[str, ...]
    origin: str
    what: str

    def samples(self) -> set[str]:
        """Return the names that its samples have."""
        if self.kind == "histogram":
            return {f"{self.name}_{part}" for part in ("bucket", "count", "sum")}
        return {f"{self.name}_total" if self.kind == "counter" else self.name}


def exposed() -> list[Exposed]:
    """Return every metric, by name."""
    requests = CollectorRegistry()
    api_metrics.Measure(None, requests)  # type: ignore[arg-type] # nothing is asked of it
    found = {it.name: it for it in _of(StewardFigures()._registry, "steward")}
    found |= {it.name: it for it in _of(Figures("any")._registry, "worker")}
    found |= {it.name: it for it in _of(requests, "API")}
    name, what, labels = own_figures.SUBMISSIONS
    found[f"toolfleet_{name}"] = Exposed(f"toolfleet_{name}", "gauge", labels, "API", what)
    for figures, origin in ((record_figures.FIGURES, "record"), (api_metrics.FIGURES, "asked")):
        for name, (what, labels) in figures.items():
            full = f"toolfleet_{name}"
            found[full] = Exposed(full, "gauge", labels, origin, what)
    return [found[name] for name in sorted(found)]


def _of(registry: CollectorRegistry, origin: str) -> Iterator[Exposed]:
    collectors: list[Any] = list(registry._collector_to_names)
    for collector in collectors:
        (family,) = collector.describe() or collector.collect()
        yield Exposed(family.name, family.type, collector._labelnames, origin, family.documentation)


def page() -> str:
    """Return the page."""
    rows = [
        f"| `{it.name}{'_total' * (it.kind == 'counter')}` | {it.kind} |"
        f" {', '.join(f'`{label}`' for label in it.labels)} | {it.origin} | {it.what} |"
        for it in exposed()
    ]
    return _HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
