"""What `/metrics` tells of the record and of who ends calls, and what leaves by OTLP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from prometheus_client.parser import text_string_to_metric_families

from registry import calls, catalog, rollouts
from registry.calls import CallState, Ending
from registry.database import Database
from registry.record_figures import record_figures
from registry.rollouts import RolloutPlan
from registry.settings import Settings
from tests.approving import gated, waiting_call
from tests.ledger import Ledger, definition, listed, register
from tests.requirements import requirement
from tests.serving import Api
from tests.waiting import until
from workers.signals import Signals
from workers.steward import StewardRuntime

pytestmark = pytest.mark.anyio

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
async def ledger(database: Database) -> Ledger:
    return await Ledger.open(database)


@pytest.fixture
async def steward(database_url: str, redis_url: str) -> AsyncIterator[StewardRuntime]:
    steward = StewardRuntime(Settings(database_url=database_url, redis_url=redis_url))
    yield steward
    await steward.close()


async def scrape(api: Api) -> Series:
    text = (await api.http.get("/metrics")).text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def recorded(database: Database, name: str, **labels: str) -> float | None:
    """Return what the record's figures say; None for nothing."""
    for family in await record_figures(database):
        for sample in family.samples:
            if sample.name == f"toolfleet_{name}" and sample.labels == labels:
                return sample.value
    return None


@contextmanager
def collector() -> Iterator[tuple[str, list[ExportMetricsServiceRequest]]]:
    """Take what is sent by OTLP; yield where to send it, and what came."""
    taken: list[ExportMetricsServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/metrics"
            taken.append(ExportMetricsServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", taken
        finally:
            server.shutdown()
            thread.join()


@requirement("metrics:bounded")
async def test_more_tenants_runs_and_calls_make_no_more_series(api: Api) -> None:
    await api.serve(cost_tag="team-a")

    async def work(tenant: str) -> None:
        run = await api.run(tenant)
        await api.work((await api.submit(run))["id"])
        await api.submit(run)

    await work("acme")
    await scrape(api)
    before = set(await scrape(api))
    for number in range(5):
        await work(f"tenant-{number}")
    after = set(await scrape(api))
    assert after == before
    told = {value for _, labels in after for _, value in labels}
    assert not any("tenant-" in value or "demo_echo" in value for value in told)


@requirement("metrics:any-api")
async def test_any_api_process_tells_what_the_others_count(api: Api) -> None:
    await api.run()
    (key,) = await until(lambda: api.redis.keys("toolfleet:figures:api:*"))
    own = key.decode().removeprefix("toolfleet:figures:")
    asked = {"method": "GET", "route": "/v1/servers", "status": "200"}
    text = "# TYPE toolfleet_http_requests_total counter\ntoolfleet_http_requests_total"
    labels = ",".join(f'{name}="{value}"' for name, value in asked.items())
    await Signals(api.redis).figures("api:other", f"{text}{{{labels}}} 7.0\n")
    shown = await scrape(api)
    started = {"method": "POST", "route": "/v1/runs", "status": "201"}
    for process, request, count in (("api:other", asked, 7), (own, started, 1)):
        series = frozenset({**request, "worker": process}.items())
        assert shown["toolfleet_http_requests_total", series] == count


@requirement("metrics:record", "metrics:cost-tag")
async def test_the_record_tells_of_each_server_and_tier(ledger: Ledger) -> None:
    database = ledger.database
    version = await register(database, definition("paid", cost_tag="team-a"), listed("x"))
    queued = [await ledger.submit(), await ledger.submit()]
    await ledger.running()
    await ledger.age("queued_at", queued)
    demo = {"server": "demo"}
    info = {"server": "paid", "version": "1", "transport": "stdio", "cost_tag": "team-a"}
    assert version
    assert await recorded(database, "server_info", **info) == 1
    assert await recorded(database, "queued_calls", **demo) == 2
    assert await recorded(database, "running_calls", **demo) == 1
    assert await recorded(database, "runs_active", **demo) == 1
    assert await recorded(database, "runs_active", server="paid") == 0
    assert (await recorded(database, "oldest_queued_seconds", **demo) or 0) >= 3600
    assert (await recorded(database, "tier_oldest_queued_seconds", tier="default") or 0) >= 3600
    assert await recorded(database, "tier_unfinished_calls", tier="default", state="queued") == 2
    assert await recorded(database, "listing_failing", **demo) == 0
    assert await recorded(database, "workers", **demo) == 0


@requirement("metrics:record")
async def test_the_record_tells_for_how_long_people_have_let_a_call_wait(
    database: Database,
) -> None:
    ledger = await gated(database)
    call_id = await waiting_call(ledger)
    await ledger.age("created_at", [call_id])
    assert await recorded(database, "approvals_waiting", server="gate") == 1
    assert (await recorded(database, "oldest_approval_seconds", server="gate") or 0) >= 3600
    assert await recorded(database, "oldest_approval_seconds", server="demo") == 0


@requirement("metrics:record")
async def test_a_canary_that_got_worse_is_told_of_while_it_runs_and_an_hour_after(
    ledger: Ledger,
) -> None:
    database = ledger.database
    canary = {"server": "demo", "version": "2"}
    await catalog.add_version(database, definition(version="2"), actor="test", serve=False)
    rollout = await rollouts.put_rollout(
        database, "demo", RolloutPlan(version="2", percent=5), actor="test"
    )
    assert await recorded(database, "canary_percent", **canary) == 5
    assert await recorded(database, "canary_regressed", **canary) == 0
    await rollouts.keep_report(database, rollout, {"decision": "roll_back"})
    assert await recorded(database, "canary_regressed", **canary) == 1
    await rollouts.roll_back(database, "demo", actor="verdict")
    assert await recorded(database, "canary_regressed", **canary) == 1
    assert await recorded(database, "canary_percent", **canary) == 0
    await ledger.sql("UPDATE rollouts SET ended_at = ended_at - interval '61 min'")
    assert await recorded(database, "canary_regressed", **canary) is None


@requirement("metrics:record")
async def test_the_soonest_expiry_of_a_servers_credentials_is_told(ledger: Ledger) -> None:
    await ledger.sql(
        "INSERT INTO credentials (tenant_id, server_name, kind, definition, secret_names, version,"
        " serial, changed_by, expires_at, renew_at, failures, state) VALUES"
        " ('a', 'demo', 'oauth', '{}', '{}', 1, 1, 't', now() + interval '1 min',"
        "  now() + interval '30 s', 0, 'ready'),"
        " ('b', 'demo', 'oauth', '{}', '{}', 2, 2, 't', now() + interval '5 min',"
        "  now() - interval '2 min', 3, 'ready'),"
        " ('c', 'demo', 'oauth', '{}', '{}', 3, 3, 't', now(), now(), 1, 'needs_consent')"
    )
    expiry = await recorded(ledger.database, "credential_expiry_seconds", server="demo")
    unrenewed = "credential_unrenewed_expiry_seconds"
    assert expiry == pytest.approx(60, abs=30)
    assert await recorded(ledger.database, unrenewed, server="demo") == pytest.approx(300, abs=60)
    for state in ("ready", "failing", "needs_consent"):
        assert await recorded(ledger.database, "credentials", server="demo", state=state) == 1


@requirement("metrics:end-to-end")
async def test_calls_that_the_steward_ends_count_for_their_server(
    api: Api, steward: StewardRuntime
) -> None:
    ledger = await Ledger.open(api.database)
    late = await ledger.submit()
    await ledger.age("deadline_at", [late])
    await ledger.age("created_at", [late])
    await steward.expire()
    await steward.say_alive()
    shown = await scrape(api)
    of_steward = {"server": "demo", "worker": steward.id}
    of_tier = {**of_steward, "tier": "default"}

    def value(name: str, **labels: str) -> float | None:
        return shown.get((f"toolfleet_{name}", frozenset(labels.items())))

    assert value("call_outcomes_total", outcome="failed", **of_tier) == 1
    assert value("call_failures_total", code="deadline_exceeded", **of_steward) == 1
    assert value("calls_total", state="expired", **of_steward) == 1
    assert (value("end_to_end_seconds_sum", **of_tier) or 0) >= 3600
    assert value("steward_alive") == 1


@requirement("metrics:end-to-end")
async def test_a_claim_knows_for_how_long_its_call_has_been_under_way(ledger: Ledger) -> None:
    first = await ledger.running()
    ending = Ending(first.id, first.fence, CallState.QUEUED)
    assert await calls.finish(ledger.database, first.worker, [ending]) == [True]
    await ledger.age("created_at", [first.id])
    again = await ledger.claim(first.id)
    assert again.queue_wait_s < 60
    assert again.age_s >= 3600


@requirement("metrics:otlp")
async def test_one_of_several_stewards_sends_the_fleets_figures(
    ledger: Ledger, database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ledger.submit()
    settings = Settings(database_url=database_url, redis_url=redis_url)
    with collector() as (url, taken):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        stewards = [StewardRuntime(settings), StewardRuntime(settings)]
        for steward in stewards:
            await steward.say_alive()
            assert steward._exporting is not None
            await steward._exporting.export_metrics()
        for steward in stewards:
            await steward.close()
    (request,) = taken
    metrics = {
        metric.name: metric
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    (point,) = metrics["toolfleet_queued_calls"].gauge.data_points
    assert point.as_double == 1
    assert {it.key: it.value.string_value for it in point.attributes} == {"server": "demo"}
