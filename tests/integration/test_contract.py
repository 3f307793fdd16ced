"""The API against its OpenAPI document, as Schemathesis makes requests from it.

It asks with a token of an identity provider: a key it would find in `GET /v1/keys`, and revoke.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from api import app
from api.attempts import Attempts
from registry import artifacts
from registry.artifacts import NewArtifact
from registry.database import Database
from tests.brokering import Keys
from tests.requirements import requirement
from tests.servers.issuer import AUDIENCE, issuing
from tests.serving import Api, serving

pytestmark = pytest.mark.anyio

CONFIG = Path(__file__).parents[1] / "schemathesis.toml"
MANY = partial(Attempts, burst=1_000_000)
"""Schemathesis sends more wrong keys than are answered as such to one address."""
FUZZ_S = int(os.environ.get("TOOLFLEET_FUZZ_S", "120"))
ALL = ("--phases=examples,coverage,fuzzing,stateful", f"--max-time={FUZZ_S}")
LAST = ("DELETE /v1/servers/{name}", "PUT /v1/registry", "POST /v1/runs/{run_id}/close")
"""What would take the known objects away from the others."""


@pytest.fixture(autouse=True)
def _many_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "Attempts", MANY)


@asynccontextmanager
async def fuzzed(
    database: Database, redis_url: str, keys: Keys
) -> AsyncIterator[tuple[Api, str, dict[str, str]]]:
    """Run an API that has a little of everything; yield it, an operator's token, and ids."""
    async with (
        issuing() as provider,
        serving(
            database,
            redis_url,
            oidc_issuer=provider.url,
            oidc_audience=AUDIENCE,
            encryption_keys_file=keys.path,
            outbound_networks=("127.0.0.0/8",),
            max_wait=timedelta(seconds=0.1),
        ) as api,
    ):
        await api.serve()
        run = await api.run()
        call = await api.submit(run)
        await api.work(call["id"])
        content = b'"large"'
        digest = hashlib.sha256(content).hexdigest()
        artifact = NewArtifact("acme", call["id"], 0, digest, content)
        await artifacts.store(api.database, artifact)
        known = {
            "run_id": run["id"],
            "call_id": call["id"],
            "artifact_id": artifact.id,
            "before": run["snapshot"],
            "after": run["snapshot"],
            "name": "demo",
            "server": "demo",
            "tenant": "acme",
        }
        day_s = 86_400
        claims = provider.claims()
        token = provider.sign(roles=["operator"], tenant=None, exp=claims["exp"] + day_s)
        yield api, token, known


async def schemathesis(
    api: Api, token: str, folder: Path, *options: str, known: dict[str, str] | None = None
) -> tuple[int, str]:
    """Run it, with known values of parameters if any; return its exit status and what it said."""
    lines = [f'"path.{name}" = "{value}"' for name, value in (known or {}).items()]
    config = folder / "schemathesis.toml"
    config.write_text("\n".join([CONFIG.read_text(), "[parameters]", *lines, ""]))
    running = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("schemathesis")),
        "--config-file",
        str(config),
        "run",
        f"{api.url}/openapi.json",
        "--header",
        f"Authorization: Bearer {token}",
        "--continue-on-failure",
        "--request-timeout=10",
        "--no-color",
        *options,
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert running.stdout is not None
    said = (await running.stdout.read()).decode()
    return await running.wait(), said


@requirement("contract:kept")
async def test_requests_made_from_the_document_are_answered_as_it_says(
    database: Database, redis_url: str, keys: Keys, tmp_path: Path
) -> None:
    async with fuzzed(database, redis_url, keys) as (api, token, known):
        options = ["--phases=fuzzing", "--max-examples=1", "--no-shrink"]
        status, said = await schemathesis(api, token, tmp_path, *options, known=known)
    assert status == 0, said
    assert "Tested: 0" not in said


@pytest.mark.long
@pytest.mark.timeout(FUZZ_S + 300)
@requirement("contract:kept")
@pytest.mark.parametrize("objects", ["any", "known"])
async def test_all_phases_of_schemathesis_find_nothing(
    database: Database, redis_url: str, keys: Keys, tmp_path: Path, objects: str
) -> None:
    async with fuzzed(database, redis_url, keys) as (api, token, known):
        options = [*ALL]
        if objects == "known":
            options += [f"--exclude-name={name}" for name in LAST]
        given = known if objects == "known" else None
        status, said = await schemathesis(api, token, tmp_path, *options, known=given)
    print(said)
    assert status == 0, said
