"""Tenants' rates as callers of the API and raw clients meet them."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from compose.embedded import EmbeddedRedis
from registry import policies
from registry.database import Database
from registry.errors import FleetError
from registry.runs import get_run, sign_run_token
from registry.snapshots import Shelf
from registry.tiers import parse_tenant, parse_tier
from tests.requirements import requirement
from tests.serving import Api, problem_of, serving
from tests.waiting import until
from workers.steward import StewardRuntime

pytestmark = pytest.mark.anyio

READ = {"tools": {"echo": {"delivery": "read"}}}


async def limited(api: Api, *tenants: str, **tier: Any) -> None:
    """Put a tier, and tenants into it."""
    await policies.put_tier(api.database, parse_tier({"name": "free", **tier}), actor="ops")
    for name in tenants or ("acme",):
        tenant = parse_tenant({"name": name, "tier": "free"})
        await policies.put_tenant(api.database, tenant, actor="ops")


async def ask(api: Api, run: dict[str, Any], **rest: Any) -> httpx2.Response:
    body = {"tool": "demo_echo", "arguments": {"text": "hi"}, **rest}
    return await api.http.post(f"/v1/runs/{run['id']}/calls", json=body)


async def statuses(api: Api, run: dict[str, Any], count: int, **rest: Any) -> list[int]:
    return [(await ask(api, run, **rest)).status_code for _ in range(count)]


@requirement("policy:limits", "limits:headers")
async def test_a_tenant_that_asks_too_often_is_told_when_to_come_again_and_then_succeeds(
    api: Api,
) -> None:
    await api.serve()
    await limited(api, limits={"calls_per_second": 5, "burst": 2})
    run = await api.run()
    answers = [await ask(api, run) for _ in range(3)]
    assert [it.status_code for it in answers] == [202, 202, 429]
    problem = problem_of(answers[2])
    assert (problem["code"], problem["retryable"]) == ("tenant_limited", True)
    assert answers[2].headers["retry-after"] == "1"
    assert 0 < problem["retry_after_s"] <= 0.2
    await asyncio.sleep(problem["retry_after_s"])
    assert (await ask(api, run)).status_code == 202


@requirement("limits:headers")
async def test_a_limited_tenant_is_told_where_it_stands_and_others_are_told_nothing(
    api: Api,
) -> None:
    await api.serve()
    await limited(api, limits={"calls_per_minute": 60, "burst": 2})
    run, other = await api.run(), await api.run("other")
    answers = [await ask(api, run) for _ in range(3)]
    assert {it.headers["ratelimit-policy"] for it in answers} == {'"tenant 60s";q=2;w=2'}
    assert [it.headers["ratelimit"] for it in answers] == [
        '"tenant 60s";r=1;t=0',
        '"tenant 60s";r=0;t=1',
        '"tenant 60s";r=0;t=1',
    ]
    assert "ratelimit" not in (await ask(api, other)).headers


@requirement("limits:tools", "limits:all-or-nothing")
async def test_a_tools_limit_holds_beside_the_tenants_and_what_it_refuses_costs_neither(
    api: Api,
) -> None:
    await api.serve()
    tools = {"demo/e*": {"calls_per_hour": 60, "burst": 1}}
    await limited(api, limits={"calls_per_hour": 60, "burst": 2, "tools": tools})
    await api.serve("wiki")
    run = await api.run()
    assert await statuses(api, run, 3) == [202, 429, 429]
    assert await statuses(api, run, 2, tool="wiki_echo") == [202, 429]


@requirement("limits:tools")
async def test_a_tiers_tenants_share_what_they_have_together(api: Api) -> None:
    await api.serve()
    await limited(api, "acme", "zoe", together={"calls_per_hour": 60, "burst": 3})
    runs = [await api.run("acme"), await api.run("zoe")]
    said = [status for run in runs for status in await statuses(api, run, 2)]
    assert said == [202, 202, 202, 429]


@requirement("limits:charged-once")
async def test_what_is_known_or_refused_costs_nothing(api: Api) -> None:
    await api.serve()
    await limited(api, limits={"calls_per_hour": 60, "burst": 2})
    run, closed = await api.run(), await api.run()
    await api.http.post(f"/v1/runs/{closed['id']}/close")
    assert await statuses(api, run, 1, idempotency_key="k") == [202]
    assert await statuses(api, run, 3, arguments={"wrong": 1}) == [422] * 3
    assert await statuses(api, run, 3, idempotency_key="k") == [202] * 3
    assert await statuses(api, closed, 3) == [409] * 3
    assert await statuses(api, run, 2) == [202, 429]
    assert await statuses(api, run, 1, idempotency_key="k") == [202]


@requirement("limits:charged-once")
async def test_of_submissions_with_one_key_that_come_together_one_is_charged(api: Api) -> None:
    await api.serve()
    await limited(api, limits={"calls_per_hour": 60, "burst": 6})
    run = await api.run()
    answers = await asyncio.gather(*(ask(api, run, idempotency_key="k") for _ in range(5)))
    assert {it.status_code for it in answers} == {202}
    bucket = api.app.state.operations.client.limiter
    while bucket._background._tasks:  # what is put back is put back soon
        await asyncio.wait(bucket._background._tasks)
    assert await statuses(api, run, 6) == [202] * 5 + [429]


@requirement("policy:limits")
async def test_two_processes_of_the_api_share_a_bucket(database: Database, redis_url: str) -> None:
    async with serving(database, redis_url) as one, serving(database, redis_url) as two:
        await one.serve()
        await limited(one, limits={"calls_per_hour": 60, "burst": 3})
        run = await one.run()
        said = [await statuses(api, run, 2) for api in (one, two)]
    assert said == [[202, 202], [202, 429]]


@requirement("policy:limits")
async def test_a_raw_clients_submission_takes_from_the_same_bucket(
    api: Api, redis_url: str
) -> None:
    await api.serve()
    await limited(api, limits={"calls_per_hour": 60, "burst": 2})
    run = await api.run()
    await ask(api, run)
    settings = api.app.state.operations.settings
    steward = StewardRuntime(settings)
    found = await get_run(api.database, run["id"], shelf=Shelf(api.database))
    token = sign_run_token(found, settings.secret_key.get_secret_value())
    try:
        said = []
        for task in ("one", "one", "two"):
            try:
                await steward.submit(task, token, "demo_echo", {"text": "hi"}, None, None)
                said.append("submitted")
            except FleetError as error:
                said.append(error.code.code)
    finally:
        await steward.close()
    assert said == ["submitted", "submitted", "tenant_limited"]


@requirement("limits:redis-away")
async def test_without_redis_a_write_is_refused_a_read_goes_on_and_the_unlimited_notice_nothing(
    database: Database,
) -> None:
    with tempfile.TemporaryDirectory(prefix="toolfleet-") as folder:
        redis = EmbeddedRedis(Path(folder), durable=False)
        await redis.start()
        async with serving(database, redis.url) as api:
            await api.serve(**READ)
            await api.serve("wiki")
            await limited(api, limits={"calls_per_hour": 3600, "burst": 100})
            run, other = await api.run(), await api.run("other")
            assert await statuses(api, run, 1) == [202]
            await redis.stop()
            refused = await ask(api, run, tool="wiki_echo")
            assert refused.status_code == 503
            assert problem_of(refused)["code"] == "limiter_unavailable"
            assert refused.headers["retry-after"] == "1"
            assert await statuses(api, run, 2) == [202, 202]
            assert await statuses(api, other, 2, tool="wiki_echo") == [202, 202]
            await redis.start()

            async def accepted() -> bool:
                return (await ask(api, run, tool="wiki_echo")).status_code == 202

            await until(accepted, every_s=0.2)
        await redis.stop()


@requirement("limits:figures")
async def test_figures_tell_what_each_kind_of_limit_did_and_name_no_tenant(api: Api) -> None:
    await api.serve()
    await limited(api, limits={"calls_per_hour": 60, "burst": 2})
    run = await api.run()
    await statuses(api, run, 3)
    text = (await api.http.get("/metrics")).text
    assert "acme" not in text
    found = {
        (sample.labels["limit"], sample.labels["outcome"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "toolfleet_submissions_weighed"
    }
    assert found == {("tenant", "granted"): 2, ("tenant", "refused"): 1}


@requirement("limits:charged-once")
async def test_a_tenant_without_limits_costs_no_question(api: Api, redis_url: str) -> None:
    await api.serve()
    await statuses(api, await api.run(), 3)
    async with Redis.from_url(redis_url) as redis:
        assert await redis.keys("toolfleet:{limits}*") == []
