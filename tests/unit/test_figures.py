"""What processes count, and how it is put together."""

from __future__ import annotations

from opentelemetry.sdk.metrics import export
from opentelemetry.sdk.resources import Resource
from prometheus_client.parser import text_string_to_metric_families

from registry.calls import CallState
from registry.ended import Ended, Outcome
from registry.errors import Code
from registry.exposition import exposition, merge
from registry.telemetry_metrics import convert, open_outlet
from tests.requirements import requirement
from workers.breaker_state import Verdict
from workers.end_figures import StewardFigures
from workers.figures import Figures

NOW_NS = 1_800_000_000 * 10**9


def ended(
    state: CallState = CallState.SUCCEEDED, code: Code | None = None, **rest: object
) -> Ended:
    facts = {"server": "demo", "tier": "gold", "is_error": None, "lasted_s": 0.2, **rest}
    return Ended(state=state, code=code.code if code else None, **facts)


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(text: str, name: str, **labels: str) -> float | None:
    return samples(text).get((name, frozenset(labels.items())))


@requirement("metrics:end-to-end")
def test_a_server_is_blamed_for_what_got_no_answer_alone() -> None:
    assert ended(is_error=False).outcome is Outcome.ANSWERED
    assert ended(is_error=True).outcome is Outcome.TOOL_ERROR
    assert ended(CallState.STOPPED, Code.STOPPED).outcome is Outcome.STOPPED
    for state, code in (
        (CallState.FAILED, Code.SESSION_LOST),
        (CallState.FAILED, Code.BREAKER_OPEN),
        (CallState.FAILED, Code.RATE_LIMITED),
        (CallState.EXPIRED, Code.DEADLINE_EXCEEDED),
        (CallState.OUTCOME_UNKNOWN, Code.OUTCOME_UNKNOWN),
    ):
        assert ended(state, code).outcome is Outcome.FAILED
    for code in (Code.POLICY_DENIED, Code.TOOL_HELD, Code.CREDENTIAL_MISSING):
        assert ended(CallState.FAILED, code).outcome is Outcome.REFUSED
    assert ended(CallState.EXPIRED, Code.APPROVAL_EXPIRED).outcome is Outcome.REFUSED


@requirement("metrics:end-to-end")
def test_every_outcome_of_a_server_is_shown_from_its_first_end_on() -> None:
    figures = StewardFigures()
    figures.ends.ended(ended(CallState.EXPIRED, Code.DEADLINE_EXCEEDED, lasted_s=31))
    text = figures.exposition()
    labels = {"server": "demo", "tier": "gold"}
    assert value(text, "toolfleet_call_outcomes_total", outcome="failed", **labels) == 1
    assert value(text, "toolfleet_call_outcomes_total", outcome="answered", **labels) == 0
    assert value(text, "toolfleet_end_to_end_seconds_bucket", le="30.0", **labels) == 0
    assert value(text, "toolfleet_end_to_end_seconds_bucket", le="60.0", **labels) == 1


@requirement("metrics:dead-workers")
def test_what_a_dead_worker_held_is_gone_and_what_it_counted_stays() -> None:
    figures = Figures("demo")
    figures.ends.ended(ended())
    figures.call.observe(0.1)
    texts = {"demo-alive": figures.exposition(), "demo-dead": figures.exposition()}
    texts["steward:x"] = StewardFigures().exposition()
    shown = exposition(merge(texts, {"demo-alive"})).decode()
    dead = {"server": "demo", "worker": "demo-dead"}
    assert value(shown, "toolfleet_zombies", server="demo", worker="demo-alive") == 0
    assert value(shown, "toolfleet_zombies", **dead) is None
    assert value(shown, "toolfleet_call_seconds_count", **dead) == 1
    assert value(shown, "toolfleet_calls_total", state="succeeded", **dead) == 1
    unknown = exposition(merge(texts)).decode()
    assert value(unknown, "toolfleet_zombies", **dead) == 0  # the record is away: who knows


@requirement("metrics:bounded")
def test_what_is_counted_grows_with_servers_and_tiers_and_not_with_calls() -> None:
    figures = Figures("demo")

    def work(times: int) -> int:
        for number in range(times):
            figures.ends.ended(ended(lasted_s=number))
            figures.ends.ended(ended(CallState.FAILED, Code.SESSION_LOST))
            figures.attempted(Verdict.FAILED)
            figures.call.observe(number)
            figures.stopped("sigterm", number)
            figures.changed([{"change": "added", "reaction": "accept", "tool": f"tool{number}"}])
        return len(samples(figures.exposition()))

    assert work(1) == work(200)


@requirement("metrics:otlp")
def test_families_are_the_same_numbers_in_opentelemetrys_metrics() -> None:
    figures = Figures("demo")
    figures.attempted(Verdict.FAILED)
    for seconds in (0.003, 0.003, 0.7, 1000):
        figures.call.observe(seconds)
    data = convert(merge({"w": figures.exposition()}), resource=Resource({}), now_ns=NOW_NS)
    metrics = {it.name: it for it in data.resource_metrics[0].scope_metrics[0].metrics}
    assert not any(name.endswith("_created") for name in metrics)

    attempts = metrics["toolfleet_attempts"].data
    assert isinstance(attempts, export.Sum)
    assert attempts.is_monotonic
    assert attempts.aggregation_temporality is export.AggregationTemporality.CUMULATIVE
    (failed,) = [it for it in attempts.data_points if it.attributes["verdict"] == "failed"]
    assert failed.attributes == {"server": "demo", "verdict": "failed", "worker": "w"}
    assert failed.value == 1
    assert 0 < failed.start_time_unix_nano <= failed.time_unix_nano == NOW_NS

    calls = metrics["toolfleet_call_seconds"]
    assert calls.unit == "s"
    (point,) = calls.data.data_points
    assert point.count == sum(point.bucket_counts) == 4
    assert point.sum == 1000.706
    assert len(point.explicit_bounds) == len(point.bucket_counts) - 1
    assert point.bucket_counts[point.explicit_bounds.index(0.005)] == 2
    assert point.bucket_counts[-1] == 1
    assert isinstance(metrics["toolfleet_zombies"].data, export.Gauge)


@requirement("metrics:otlp")
def test_nothing_is_sent_unless_it_is_said_where_to() -> None:
    where = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
    assert open_outlet({}) is None
    assert open_outlet({**where, "OTEL_SDK_DISABLED": "true"}) is None
    assert open_outlet({**where, "OTEL_METRICS_EXPORTER": "none"}) is None
    outlet = open_outlet({**where, "OTEL_METRIC_EXPORT_INTERVAL": "5000"})
    assert outlet is not None
    assert outlet.every_s == 5
    outlet.close()
