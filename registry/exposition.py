"""The figures of many processes as one Prometheus exposition.

A process leaves its figures as text, which outlives it for a while. What a dead worker held (its
sessions, processes, waiting calls) is nobody's any more and is not shown; what it counted stays
until it is forgotten, so that a scraper sees the last of it. Every sample carries its process as
the label ``worker``: no counter is ever added to another's, so none goes backwards.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

COUNTS: Final = frozenset({"counter", "histogram"})
PROCESS_LABEL: Final = "worker"
OTHERS: Final = ":"
"""In the name of a process that is no worker, and so has no lease."""


class Families(Collector):
    """Families that were gathered already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        """Return the families as they were gathered."""
        return self._families


def merge(expositions: Mapping[str, str], living: Collection[str] | None = None) -> list[Metric]:
    """Return the families of several processes as one, each sample labelled with its process.

    ``living`` are the workers whose lease holds; None while nobody knows.
    """
    merged: dict[str, Metric] = {}
    for process, exposition in sorted(expositions.items()):
        lives = living is None or OTHERS in process or process in living
        for family in text_string_to_metric_families(exposition):
            known = merged.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            if not lives and family.type not in COUNTS:
                continue
            for sample in family.samples:
                labels = {**sample.labels, PROCESS_LABEL: process}
                known.add_sample(sample.name, labels, sample.value, sample.timestamp)
    return list(merged.values())


def exposition(families: Iterable[Metric]) -> bytes:
    """Return families as Prometheus text; those of one name are written as one."""
    joined: dict[str, Metric] = {}
    for family in families:
        known = joined.setdefault(
            family.name, Metric(family.name, family.documentation, family.type)
        )
        known.samples = [*known.samples, *family.samples]
    return generate_latest(Families(joined.values()))
