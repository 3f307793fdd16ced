"""How calls end, counted by whichever process ends them: workers, and the steward for the rest."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from registry.ended import Ended, Outcome

ENDS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
"""A call may wait in a queue for minutes."""


class EndFigures:
    """Ends of calls by server and by the tier of the tenant, in one process's registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.states = Counter(
            "toolfleet_calls",
            "Calls ended by this process, by state (queued: given back)",
            ("server", "state"),
            registry=registry,
        )
        self._outcomes = Counter(
            "toolfleet_call_outcomes",
            "What became of calls: answered, tool_error, failed, refused or stopped",
            ("server", "tier", "outcome"),
            registry=registry,
        )
        self._failures = Counter(
            "toolfleet_call_failures",
            "Calls that ended with an error, by its code",
            ("server", "code"),
            registry=registry,
        )
        self._seconds = Histogram(
            "toolfleet_end_to_end_seconds",
            "From submission (or approval) to the recorded end; calls that were stopped left out",
            ("server", "tier"),
            registry=registry,
            buckets=ENDS_S,
        )
        self._known: set[tuple[str, str]] = set()

    def ended(self, call: Ended) -> None:
        """Count a call that has ended."""
        self._begin(call.server, call.tier)
        self.states.labels(call.server, call.state.value).inc()
        outcome = call.outcome
        self._outcomes.labels(call.server, call.tier, outcome.value).inc()
        if call.code is not None:
            self._failures.labels(call.server, call.code).inc()
        if outcome is not Outcome.STOPPED:
            self._seconds.labels(call.server, call.tier).observe(max(call.lasted_s, 0.0))

    def _begin(self, server: str, tier: str) -> None:
        """Show every outcome from 0 on: the first of a kind is a rise, too."""
        if (server, tier) not in self._known:
            self._known.add((server, tier))
            for outcome in Outcome:
                self._outcomes.labels(server, tier, outcome.value)


class StewardFigures:
    """What the steward counts: the calls that it ends, and the messages that it sends again."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.ends = EndFigures(self._registry)
        self.resent = Counter(
            "toolfleet_calls_resent",
            "Messages sent again: they were lost, or their worker was",
            ("server",),
            registry=self._registry,
        )

    def exposition(self) -> str:
        """Return every figure as Prometheus text."""
        return generate_latest(self._registry).decode()
