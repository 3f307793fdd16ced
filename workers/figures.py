"""What a worker process counts, as Prometheus text that the API gathers from all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from registry.calls import CallState
from registry.definitions import ChangeReactions, Reaction
from registry.telemetry import PARTS, Tracer
from workers.breaker_state import Verdict
from workers.census import Census
from workers.end_figures import EndFigures
from workers.lending import SessionState

if TYPE_CHECKING:
    from workers.quota import Quotas
    from workers.versions import ServedVersion

WAITS_S: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2.5, 5, 10, 30, 60)
POOL_EVENTS: Final = (
    "borrowed", "spawned", "opened", "open_failures", "timeouts", "refused", "probed",
    "probes_failed", "leaked",
)  # fmt: skip
SIZES: Final = (256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576, 10_485_760)


class Figures:
    """The counters of one worker; every figure carries the server it is about."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._registry = CollectorRegistry()
        self.ends = EndFigures(self._registry)
        for state in (CallState.QUEUED, *(it for it in CallState if it.final)):
            self.ends.states.labels(server, state.value)
        self._attempts = Counter(
            "toolfleet_attempts",
            "Attempts at calls, by what the breaker heard of each",
            ("server", "verdict"),
            registry=self._registry,
        )
        for verdict in Verdict:
            self._attempts.labels(server, verdict.value)
        self._changes = Counter(
            "toolfleet_listing_changes",
            "Changes found in what a server lists, by kind and by what became of them",
            ("server", "change", "reaction"),
            registry=self._registry,
        )
        for change in ChangeReactions.model_fields:  # the first of a kind is a rise, too
            for reaction in get_args(Reaction):
                self._changes.labels(server, change, reaction)
        self._findings = Counter(
            "toolfleet_result_findings",
            "Hidden characters and instructions found in results, by kind",
            ("server", "kind"),
            registry=self._registry,
        )
        self.queue_wait = self._histogram("queue_wait_seconds", "From queued to claimed", WAITS_S)
        self.borrow_wait = self._histogram(
            "borrow_wait_seconds", "Wait for a warm session", WAITS_S
        )
        self.call = self._histogram("call_seconds", "tools/call round trip", WAITS_S)
        self.server_time = self._histogram(
            "server_seconds", "Server-side time of calls, where the server reports it", WAITS_S
        )
        self._stops = Histogram(
            "toolfleet_stop_seconds",
            "From a call's cancellation in its worker until its work had stopped, by what did it",
            ("server", "rung"),
            registry=self._registry,
            buckets=WAITS_S,
        )
        self.result_bytes = self._histogram("result_bytes", "Size of results", SIZES)
        self._sessions = Gauge(
            "toolfleet_sessions",
            "Sessions by state",
            ("server", "version", "state"),
            registry=self._registry,
        )
        self._waiting = Gauge(
            "toolfleet_pool_waiting",
            "Calls waiting for a session",
            ("server", "version"),
            registry=self._registry,
        )
        self._pool_size = Gauge(
            "toolfleet_pool_max_size",
            "Sessions that may exist at once",
            ("server", "version"),
            registry=self._registry,
        )
        self._pool_events = Gauge(
            "toolfleet_pool_events",
            "What happened in a pool since the worker started, by kind",
            ("server", "version", "event"),
            registry=self._registry,
        )
        self._closed = Gauge(
            "toolfleet_sessions_closed",
            "Sessions closed since the worker started, by reason",
            ("server", "version", "reason"),
            registry=self._registry,
        )
        self._listening = Gauge(
            "toolfleet_listening",
            "Sessions in which a change of the server's tools would be heard",
            ("server", "version"),
            registry=self._registry,
        )
        self._breaker = Gauge(
            "toolfleet_breaker_state",
            "Breaker of a server version: 0 closed, 1 half-open, 2 open",
            ("server", "version"),
            registry=self._registry,
        )
        self._quota = Gauge(
            "toolfleet_quota_events",
            "What the server's quota and pauses did with calls since the worker started",
            ("server", "event"),
            registry=self._registry,
        )
        self._paused = self._gauge("paused_seconds", "For how long the server is left alone yet")
        self._limiter_away = self._gauge("limiter_away", "Whether the shared limits are away")
        name, help_, labels = PARTS
        self._traces = Gauge(f"toolfleet_{name}", help_, labels, registry=self._registry)

        self._processes = self._gauge("processes", "Processes below the worker's own")
        self._zombies = self._gauge("zombies", "Zombies among the processes below the worker")
        self._open_fds = self._gauge("open_fds", "Open file descriptors of the worker")
        self._children_open_fds = self._gauge(
            "children_open_fds", "Open file descriptors of the processes below it"
        )

    def given_back(self) -> None:
        """Count a call that goes back to its queue."""
        self.ends.states.labels(self._server, CallState.QUEUED.value).inc()

    def attempted(self, verdict: Verdict) -> None:
        """Count what an attempt said about the server."""
        self._attempts.labels(self._server, verdict.value).inc()

    def stopped(self, rung: str, elapsed_s: float) -> None:
        """Note how long it took to stop a call's work, and what did it."""
        self._stops.labels(self._server, rung).observe(elapsed_s)

    def changed(self, changes: Iterable[Mapping[str, Any]]) -> None:
        """Count what changed in a listing."""
        for change in changes:
            self._changes.labels(self._server, change["change"], change["reaction"]).inc()

    def found(self, findings: Iterable[Mapping[str, str]]) -> None:
        """Count what was found in a result."""
        for finding in findings:
            self._findings.labels(self._server, finding["kind"]).inc()

    def count(self, census: Census) -> None:
        """Take over what a census found."""
        self._processes.set(census.processes)
        self._zombies.set(census.zombies)
        self._open_fds.set(census.open_fds)
        self._children_open_fds.set(census.children_open_fds)

    def take(self, served: Sequence[ServedVersion]) -> None:
        """Read the pools and breakers of this process; forget those of versions that are gone."""
        for gauge in (
            self._sessions, self._waiting, self._pool_size, self._pool_events, self._closed,
            self._breaker, self._listening,
        ):  # fmt: skip
            gauge.clear()
        for version in served:
            labels = (version.definition.name, version.definition.version)
            stats = version.pool.stats()
            for state in SessionState:
                if state is not SessionState.CLOSED:
                    self._sessions.labels(*labels, state.value).set(getattr(stats, state.value))
            self._waiting.labels(*labels).set(stats.waiting)
            self._pool_size.labels(*labels).set(stats.max_size)
            self._listening.labels(*labels).set(version.listening.ears)
            for event in POOL_EVENTS:
                self._pool_events.labels(*labels, event).set(getattr(stats, f"{event}_total"))
            for reason, count in stats.closed_total.items():
                self._closed.labels(*labels, reason).set(count)
            level = {"closed": 0, "half_open": 1, "open": 2}
            self._breaker.labels(*labels).set(level[version.breaker.known.state.value])

    def take_quota(self, quotas: Quotas, *, limiter_away: bool) -> None:
        """Read what the server's quota and pauses did."""
        for event, count in quotas.counts.items():
            self._quota.labels(self._server, event).set(count)
        self._paused.set(quotas.paused_for())
        self._limiter_away.set(limiter_away)

    def take_traces(self, tracer: Tracer) -> None:
        """Read what became of this process's traces."""
        for way, outcome, count in tracer.tally():
            self._traces.labels(way, outcome).set(count)

    def exposition(self) -> str:
        """Return every figure as Prometheus text."""
        return generate_latest(self._registry).decode()

    def _gauge(self, name: str, help_: str) -> Gauge:
        gauge = Gauge(f"toolfleet_{name}", help_, ("server",), registry=self._registry)
        return gauge.labels(self._server)

    def _histogram(self, name: str, help_: str, buckets: Sequence[float]) -> Histogram:
        histogram = Histogram(
            f"toolfleet_{name}", help_, ("server",), registry=self._registry, buckets=buckets
        )
        return histogram.labels(self._server)
