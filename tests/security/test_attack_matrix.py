"""The attack matrix: what is tried against a fleet, what it must do, and the test that tries it.

`MATRIX` is the table of contents. Each attack is made here against real parts: the API over HTTP,
real workers, real servers, a real Postgres and Redis. What a guard promises in detail has tests of
its own beside the guard; `make guards` shows that these here fail without it.
"""

from __future__ import annotations

import ast
import asyncio
import base64
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import httpcore2
import httpx2
import psutil
import pytest
from fastapi.routing import iter_route_contexts
from sqlalchemy import text

from registry import runs
from registry.addresses import parse_network
from registry.errors import Code, FleetError
from registry.runs import sign_run_token
from registry.schemas import check_result
from registry.screening import screen, suspicious, unusable
from registry.settings import Settings
from tests.faulty import faulty
from tests.loop_time import attempts
from tests.process_trees import ask, light, open_session, works
from tests.requirements import requirement
from tests.security import hostile, poisoned
from tests.security.target import (
    SERVERS,
    Target,
    Wiretap,
    command_lines,
    echo,
    echo_over_http,
    everything_of,
    text_of,
)
from tests.tool_search import listings
from tests.waiting import until
from workers.launch import INHERITED
from workers.outbound import open_client
from workers.session import CallError, Credential

pytestmark = pytest.mark.anyio

TESTS: Final = Path(__file__).parents[1]
REGISTRATION: Final = "tests/integration/test_registration_guard.py"
BROKER: Final = "tests/integration/test_broker.py"
CONSOLE: Final = "tests/security/test_console_attacks.py"
SIGN_IN: Final = "tests/integration/test_console_sign_in.py"
OAUTH: Final = "tests/unit/test_oauth.py"


@dataclass(frozen=True)
class Attack:
    """One row: what is tried, what the fleet must do, and the tests that try it."""

    what: str
    must: str
    tests: tuple[str, ...]


MATRIX: Final = (
    Attack(
        "a tenant registers a server whose command is the attack",
        "only operators register; validating starts nothing",
        ("test_forty_hostile_registrations_of_a_tenant_start_no_process",
         "test_validating_a_hostile_registration_starts_no_process",
         f"{REGISTRATION}::test_no_hostile_registration_starts_a_process"),
    ),
    Attack(
        "loader variables and the worker's own secrets in a server's environment",
        "a child's environment is built from nothing; variables that load code are refused",
        ("test_a_child_has_exactly_the_environment_that_it_was_given",
         "test_variables_that_make_programs_load_code_are_refused"),
    ),
    Attack(
        "a server's metadata or an argument ends in a shell or an argument list",
        "no worker opens an address that a server names; arguments never reach a command line",
        ("test_an_address_in_a_servers_refusal_is_never_opened",
         "test_arguments_never_reach_a_command_line"),
    ),
    Attack(
        "an unauthenticated listener",
        "every route wants a key but for health; everything listens on loopback",
        ("test_without_a_key_nothing_but_health_answers",
         "test_a_fleet_listens_on_loopback_unless_told_otherwise"),
    ),
    Attack(
        "DNS rebinding: a web page whose name leads to the fleet",
        "Host and Origin are checked, each alone, before anything looks at the request",
        ("test_a_request_for_another_host_or_of_a_strange_page_is_refused",),
    ),
    Attack(
        "a URL that leads inside (SSRF), by its spelling, its name, or a redirect",
        "a name is resolved once, what is not public refused, the address pinned",
        ("test_no_spelling_of_an_inner_address_is_reached",
         "test_a_name_that_changes_its_mind_is_not_followed_inside",
         "test_a_redirect_inside_is_not_followed",
         "tests/contract/test_outbound.py::test_not_one_packet_goes_to_a_forbidden_address"),
    ),
    Attack(
        "credentials for the wrong authorization server",
        "a secret goes to the endpoints of its own issuer, over TLS, and nowhere else",
        (f"{BROKER}::test_no_secret_goes_to_an_endpoint_that_its_issuer_does_not_list",
         f"{BROKER}::test_who_writes_to_the_database_cannot_send_a_secret_elsewhere",
         f"{OAUTH}::test_a_secret_goes_over_http_only_into_networks_that_are_allowed"),
    ),
    Attack(
        "the caller's own token is passed on",
        "what a caller shows at the door never leaves the fleet",
        ("test_a_callers_key_never_reaches_a_server",),
    ),
    Attack(
        "a confused deputy: the fleet as somebody's authorization server",
        "it is none: it has no authorization, token, registration or consent page",
        ("test_the_fleet_is_no_authorization_server",),
    ),
    Attack(
        "ids that collide between clients",
        "ids are ours, keys are a tenant's own: each caller gets its own answer",
        ("test_colliding_keys_of_many_tenants_over_shared_sessions_mix_nothing",
         "test_ten_thousand_colliding_calls_of_a_hundred_tenants_mix_nothing",
         "test_what_a_server_says_on_stderr_of_one_tenants_call_is_told_to_no_other"),
    ),
    Attack(
        "another tenant's handle is replayed",
        "every object is found by tenant and id: a foreign id is unknown",
        ("test_another_tenants_ids_are_unknown_on_every_route",),
    ),
    Attack(
        "poisoned tool definitions",
        "held for an operator or kept out; in no run, and not to be called",
        ("test_no_run_is_offered_a_poisoned_tool",
         "test_every_poisoned_definition_is_found_and_no_real_one_is"),
    ),
    Attack(
        "a rug pull: a tool changes after it was accepted",
        "the next call is refused and an operator is told",
        ("test_a_tool_that_changed_by_one_byte_is_not_called_again",),
    ),
    Attack(
        "header and body disagree",
        "the body alone decides; what says one thing twice is refused",
        ("test_headers_do_not_decide_which_tool_is_called",
         "test_a_body_that_says_one_thing_twice_is_refused",
         "test_a_name_that_only_looks_like_a_tools_is_unknown"),
    ),
    Attack(
        "schemas and patterns that never end",
        "patterns run in linear time, bombs are kept out, the loop is never held for 50 ms",
        ("test_patterns_that_never_end_hold_no_loop",
         "test_schema_bombs_are_kept_out"),
    ),
    Attack(
        "more than memory holds",
        "bodies, depth, lines and unpacked bodies are bounded before they are read",
        ("test_a_request_too_large_or_too_deep_is_refused_unread",
         "test_a_packed_bomb_from_a_server_is_refused_unread"),
    ),
    Attack(
        "secrets that leak",
        "no log, message, answer, argument list or table has one",
        ("tests/security/test_secrets.py::test_no_sink_has_a_secret",
         "test_a_result_is_stored_without_the_secrets_in_it"),
    ),
    Attack(
        "paths that lead out, and a network that is not the server's",
        "arguments fit the pinned schema before anything runs; a sandbox without network has none",
        ("test_arguments_outside_their_schema_never_reach_the_server",
         "test_a_server_without_network_reaches_nothing"),
    ),
    Attack(
        "forged messages on the broker",
        "a message is a hint: only a committed call runs, once, as it was committed",
        ("test_forged_messages_run_nothing",
         "test_a_message_on_another_servers_queue_runs_nothing_there",
         "test_forged_run_tokens_are_refused"),
    ),
    Attack(
        "one tenant's listing served to another",
        "each run has its own snapshot, by its own tenant's policy",
        ("test_each_tenant_sees_and_calls_what_its_own_policy_admits",),
    ),
    Attack(
        "a form of another page, or of another session, sent by who is signed in (CSRF)",
        "with a session nothing is changed without what that session's own pages carry",
        (f"{CONSOLE}::test_no_form_of_elsewhere_changes_anything",
         f"{SIGN_IN}::test_what_forms_carry_cannot_be_made_without_the_fleets_own_key"),
    ),
    Attack(
        "a session of the console that was forged, has ended, or is used elsewhere",
        "it opens no page; one that goes on opens nothing but pages",
        (f"{CONSOLE}::test_a_session_that_was_forged_or_has_ended_opens_no_page",
         f"{SIGN_IN}::test_a_session_opens_nothing_but_the_console",
         f"{SIGN_IN}::test_a_session_ends_with_its_key",
         f"{SIGN_IN}::test_a_browser_gets_a_new_session_each_time_and_the_old_one_ends"),
    ),
    Attack(
        "a link to the sign-in that leads elsewhere afterwards (open redirect)",
        "it leads to a page of the fleet, whatever the link says",
        (f"{SIGN_IN}::test_the_sign_in_leads_back_into_the_fleet_and_nowhere_else",),
    ),
    Attack(
        "markup in names, descriptions and arguments",
        "pages show it as text, and run no script but their own files",
        (f"{CONSOLE}::test_no_name_and_no_argument_becomes_markup",
         f"{CONSOLE}::test_no_page_can_be_framed_cached_or_runs_scripts_of_its_own"),
    ),
    Attack(
        "the console in a frame of another page (clickjacking)",
        "no page may be framed",
        (f"{CONSOLE}::test_no_page_can_be_framed_cached_or_runs_scripts_of_its_own",),
    ),
    Attack(
        "an approval that was never given",
        "no message and no caller starts a waiting call; the worker asks again for the decision",
        ("test_a_call_that_waits_for_its_approval_is_started_by_nobody",
         "test_a_worker_asks_again_whether_a_call_was_approved",
         "tests/integration/test_approval_attacks.py::test_no_way_around_an_approval_is_found"),
    ),
)  # fmt: skip


def _tests() -> set[str]:
    """Return every test there is, by ``path::name``, those of this file by name alone as well."""
    found: set[str] = set()
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(f"tests/{path.relative_to(TESTS)}::{node.name}")
                if path == Path(__file__):
                    found.add(node.name)
    return found


@requirement("attacks:matrix")
def test_every_row_of_the_matrix_has_tests_and_every_attack_here_has_a_row() -> None:
    there, named = _tests(), {test for row in MATRIX for test in row.tests}
    assert [row.what for row in MATRIX if not row.tests] == []
    assert named - there == set()
    here = {name for name in there if "::" not in name and name.startswith("test_")}
    assert here - named == {
        "test_every_row_of_the_matrix_has_tests_and_every_attack_here_has_a_row"
    }


@pytest.fixture(scope="module")
async def served(fleet: Target) -> Target:
    """The fleet with an echo server that is every tenant's."""
    await fleet.serve(echo("echo"))
    return fleet


def family() -> set[str]:
    """Return what descends from this process, but for databases and what warms up by itself."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            ours = str(SERVERS) in " ".join(process.cmdline())
            if not ours and process.name() not in {"postgres", "redis-server"}:
                found.add(f"{process.pid}: {' '.join(process.cmdline())}")
    return found


# -- registration


@requirement("attacks:registration")
async def test_forty_hostile_registrations_of_a_tenant_start_no_process(
    fleet: Target, tmp_path: Path
) -> None:
    mark, before = tmp_path / "ran", family()
    hostiles = hostile.registrations(mark)
    assert len(hostiles) >= 40
    for role in ("tenant", "approver", "auditor"):
        client = await fleet.tenant("mallory", role)
        for definition in hostiles:
            answers = [
                await client.post("/v1/servers", json=definition),
                await client.post("/v1/servers", json=definition, params={"dry_run": True}),
                await client.post(f"/v1/servers/{definition['name']}/versions", json=definition),
            ]
            assert {answer.status_code for answer in answers} == {403}
        document = {"servers": hostiles}
        assert (await client.put("/v1/registry", json=document)).status_code == 403
    assert family() - before == set()
    assert not mark.exists()
    known = (await fleet.api.http.get("/v1/servers")).json()["servers"]
    assert not [it for it in known if it["name"].startswith("hostile")]


@requirement("attacks:registration")
async def test_validating_a_hostile_registration_starts_no_process(
    fleet: Target, tmp_path: Path
) -> None:
    mark, before = tmp_path / "ran", family()
    for definition in hostile.registrations(mark):
        answer = await fleet.api.http.post("/v1/servers", json=definition, params={"dry_run": True})
        assert answer.status_code in {200, 201, 422}, answer.text
    assert family() - before == set()
    assert not mark.exists()


# -- a server's environment


@requirement("attacks:environment")
async def test_a_child_has_exactly_the_environment_that_it_was_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable in ("AWS_SECRET_ACCESS_KEY", "TOOLFLEET_SECRET_KEY", "TOOLFLEET_DATABASE_URL"):
        monkeypatch.setenv(variable, "the worker's own")
    for variable in hostile.LOADERS:
        if "=" not in variable and not variable.startswith("LD_"):
            monkeypatch.setenv(variable, "")
    monkeypatch.setenv("LC_TIME", "C")
    session = await open_session(
        light(env={"GREETING": "hello"}), Credential("env", "TOKEN", "a tenant's own secret")
    )
    try:
        environment = json.loads(await ask(session, "environment"))
    finally:
        await session.close()
    inherited = {name for name in os.environ if name in INHERITED or name.startswith("LC_")}
    assert set(environment) == inherited | {"GREETING", "TOKEN", "TOOLFLEET_SESSION"}
    assert environment["TOKEN"] == "[credential]"  # it had it, and the session takes it out


@requirement("attacks:environment")
@pytest.mark.parametrize("variable", hostile.LOADERS)
async def test_variables_that_make_programs_load_code_are_refused(
    fleet: Target, variable: str
) -> None:
    definition = echo("loading", env={variable: "/tmp/evil"})
    by_credential = echo("loading", credentials={"inject": "env", "name": variable})
    for wanted in (definition, by_credential):
        answer = await fleet.api.http.post("/v1/servers", json=wanted, params={"dry_run": True})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_definition")
        assert "/tmp/evil" not in answer.text


# -- addresses and arguments that want to be commands


REFUSAL: Final = (
    "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\n"
    'www-authenticate: Bearer resource_metadata="http://127.0.0.1:{port}/$(touch%20{mark})", '
    'authorization_uri="http://127.0.0.1:{port}/`touch {mark}`", as_uri="--upload-pack={mark}"\r\n'
    "link: <http://127.0.0.1:{port}/>; rel=oauth\r\n\r\n"
)


@requirement("attacks:commands")
async def test_an_address_in_a_servers_refusal_is_never_opened(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    async with Wiretap(
        answer=b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
    ).listening() as trap:
        refusal = REFUSAL.format(port=trap.port, mark=mark).encode()
        async with Wiretap(answer=refusal).listening() as server:
            where = {"url": f"http://127.0.0.1:{server.port}/mcp", "networks": ["127.0.0.0/8"]}
            with pytest.raises(Exception, match="401"):
                await open_session({"name": "refusing", "transport": "http", **where})
            assert server.connections
    assert (trap.connections, mark.exists()) == (0, False)


@requirement("attacks:commands")
async def test_arguments_never_reach_a_command_line(served: Target, tmp_path: Path) -> None:
    client = await served.tenant("shells")
    run, mark = await served.run(client), tmp_path / "ran"
    hostile_texts = [f"$(touch {mark})", f"--upload-pack=touch {mark}", f"'; touch {mark} #"]
    before = family()
    for said in hostile_texts:
        assert text_of(await served.call(client, run, "echo_echo", text=said)) == said
    assert not mark.exists()
    assert not [line for line in command_lines() if str(mark) in line]
    assert family() - before == set()


# -- who gets in


def routes(fleet: Target) -> list[tuple[str, str]]:
    """Return method and path of every route, its documents' included."""
    found = [
        (method, route.path)
        for route in iter_route_contexts(fleet.api.app.routes)
        for method in sorted(route.methods or {"GET"})
    ]
    assert len(found) > 40
    return found


@requirement("attacks:front-door")
async def test_without_a_key_nothing_but_health_answers(fleet: Target) -> None:
    every = routes(fleet)
    # A key that is not known is an attempt, of which a source has some thirty.
    few = [route for route in every if route[1] not in {"/healthz", "/readyz"}][::8]
    for shown in (None, "", "Bearer", "Bearer tf_guess", "Basic b3BlcmF0b3I6eA==", "tf_guess"):
        async with fleet.api.client(None) as client:
            headers = {} if shown is None else {"authorization": shown}
            for method, path in few if shown == "Bearer tf_guess" else every:
                concrete = re.sub(r"\{[^}]*\}", "1", path)
                answer = await client.request(method, concrete, headers=headers, content=b"{}")
                if path in {"/healthz", "/readyz"}:
                    assert answer.status_code in {200, 503}
                elif path == "/console/sign-in":
                    assert answer.status_code == (200 if method == "GET" else 401)
                    continue
                else:
                    assert answer.status_code == 401, (method, path, answer.text)
                assert len(answer.content) < 500  # not one word about what is inside


@requirement("attacks:front-door")
def test_a_fleet_listens_on_loopback_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TOOLFLEET_API_HOST", raising=False)
    assert Settings().api_host == "127.0.0.1"


STRANGE_HOSTS: Final = (
    *("evil.example", "evil.example:{port}", "127.0.0.1.evil.example:{port}", "localhost.evil"),
    *("127.0.0.1:1", "127.0.0.2:{port}", "[::2]:{port}", "0.0.0.0:{port}", "2130706433:{port}"),
    *("user@127.0.0.1:{port}", "127.0.0.1:{port}@evil.example", "127.0.0.1:{port}.", "metadata"),
)
STRANGE_ORIGINS: Final = (
    *(
        "http://evil.example",
        "https://evil.example:{port}",
        "null",
        "http://127.0.0.1:1",
        "file://",
    ),
    *(
        "http://127.0.0.1.evil.example:{port}",
        "http://localhost@evil.example",
        "chrome-extension://x",
    ),
    *("http://127.0.0.1:{port}.evil.example", "https://127.0.0.1:{port}", "http://[::2]:{port}"),
)


@requirement("attacks:front-door")
async def test_a_request_for_another_host_or_of_a_strange_page_is_refused(fleet: Target) -> None:
    port = fleet.api.url.rpartition(":")[2]
    paths = ("/v1/servers", "/docs", "/metrics", "/v1/runs", "/nothing")
    for number, host in enumerate(STRANGE_HOSTS):
        headers = {"host": host.format(port=port)}
        answer = await fleet.api.http.get(paths[number % 5], headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "host_not_allowed"), host
    for number, origin in enumerate(STRANGE_ORIGINS):
        headers = {"origin": origin.format(port=port)}
        answer = await fleet.api.http.post(paths[number % 5], headers=headers, json={})
        assert (answer.status_code, answer.json()["code"]) == (403, "origin_not_allowed"), origin
        assert "access-control-allow-origin" not in answer.headers
    assert (await fleet.api.http.get("/v1/servers")).status_code == 200


# -- where requests may go

INNER: Final = (
    *("127.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.1", "017700000001", "0177.0.0.1"),
    *("localhost", "localhost.", "a.localhost", "0.0.0.0", "0", "[::1]", "[::]", "[::ffff:7f00:1]"),
    *("[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[::127.0.0.1]", "10.0.0.1"),
    *("169.254.169.254", "[fd00:ec2::254]", "100.64.0.1", "192.168.1.1", "172.16.0.1", "[fec0::1]"),
    *("[fe80::1]", "metadata.google.internal", "127.0.0.1.", "\uff11\uff12\uff17.0.0.1"),
)


async def leads_nowhere(url: str, *, trap: Wiretap) -> None:
    """Ask for a URL as the fleet asks; see that nobody was reached."""
    async with open_client(timeout_s=2) as client:
        with pytest.raises((FleetError, httpx2.HTTPError, httpx2.InvalidURL)) as refused:
            await client.get(url)
    if isinstance(refused.value, FleetError):
        assert refused.value.code is Code.ADDRESS_REFUSED
    assert trap.connections == 0, url


@requirement("attacks:inner-addresses")
async def test_no_spelling_of_an_inner_address_is_reached(fleet: Target) -> None:
    async with Wiretap(answer=b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").listening() as trap:
        for host in INNER:
            for scheme in ("http", "https"):
                url = f"{scheme}://{host}:{trap.port}/"
                await leads_nowhere(url, trap=trap)
                definition = {"name": "inner", "transport": "http", "url": url}
                answer = await fleet.api.http.post(
                    "/v1/servers", json=definition, params={"dry_run": True}
                )
                assert answer.status_code == 422, host
        assert trap.connections == 0


@requirement("attacks:inner-addresses")
async def test_a_name_that_changes_its_mind_is_not_followed_inside() -> None:
    answers, dialled = cycle(["93.184.216.34", "127.0.0.1"]), []

    async def rebinding(host: str, port: int) -> list[Any]:
        return [ip_address(next(answers))]

    async def dial(host: str, port: int, **_: Any) -> Any:
        dialled.append(host)
        raise httpcore2.ConnectError("nobody is there")

    async with open_client(timeout_s=2, resolve=rebinding, dial=dial) as client:
        for _ in range(3):
            with pytest.raises(httpx2.ConnectError):
                await client.get("https://evil.example/")
            with pytest.raises(FleetError) as refused:
                await client.get("https://evil.example/")
            assert refused.value.code is Code.ADDRESS_REFUSED
    # What was checked is what is connected to: the name itself is asked for once.
    assert dialled == ["93.184.216.34"] * 3


@requirement("attacks:inner-addresses")
async def test_a_redirect_inside_is_not_followed() -> None:
    async with Wiretap(answer=b"").listening() as trap:
        moved = f"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:{trap.port}/\r\n"
        answer = (moved + "content-length: 0\r\nconnection: close\r\n\r\n").encode()
        async with Wiretap(answer=answer).listening("127.0.0.2") as server:
            networks = [parse_network("127.0.0.2/32")]
            async with open_client(timeout_s=2, networks=networks, follow=3) as client:
                with pytest.raises(FleetError) as refused:
                    await client.get(f"http://127.0.0.2:{server.port}/")
            assert server.connections == 1
        assert refused.value.code is Code.ADDRESS_REFUSED
        assert trap.connections == 0


# -- what is passed on


@requirement("attacks:passthrough")
async def test_a_callers_key_never_reaches_a_server(fleet: Target) -> None:
    async with echo_over_http("remote") as definition:
        wire = Wiretap(int(re.findall(r":(\d+)/", definition["url"])[0]))
        async with wire.listening():
            through = {**definition, "url": f"http://127.0.0.1:{wire.port}/mcp"}
            await fleet.serve(through)
            key = await fleet.api.key("tenant", "carol")
            async with fleet.api.client(key) as client:
                client.headers["cookie"] = "session=a-cookie-of-carol"
                client.headers["x-api-key"] = key
                run = await fleet.run(client)
                call = await fleet.call(client, run, "remote_header", name="authorization")
                assert text_of(call) == ""
            heard = bytes(wire.heard)
            await fleet.workers["remote"].close()
            await fleet.api.http.delete("/v1/servers/remote")
    assert b"tools/call" in heard
    for secret in (key, key[-20:], run["run_token"], "a-cookie-of-carol"):
        assert secret.encode() not in heard


@requirement("attacks:passthrough")
async def test_the_fleet_is_no_authorization_server(fleet: Target) -> None:
    paths = (
        *("/authorize", "/oauth/authorize", "/token", "/oauth/token", "/register", "/consent"),
        *("/oauth/register", "/callback", "/oauth/callback", "/login", "/revoke", "/introspect"),
        "/.well-known/oauth-authorization-server",
        "/.well-known/openid-configuration",
    )
    async with fleet.api.client(None) as nobody:
        for path in paths:
            for method in ("GET", "POST"):
                assert (await nobody.request(method, path)).status_code in {401, 404}
                known = await fleet.api.http.request(method, path)
                assert known.status_code == 404, path
                assert "location" not in known.headers


# -- whose it is


async def colliding(fleet: Target, tenants: int, each: int, at_once: int) -> int:
    """Have tenants make calls with the same keys at the same time; return how many got theirs."""
    gate = asyncio.Semaphore(at_once)
    door = asyncio.Semaphore(8)  # a source may show some thirty new keys at once

    async def one(client: httpx2.AsyncClient, run: dict[str, Any], who: str, turn: int) -> str:
        async with gate:
            body = {"tool": "echo_echo", "arguments": {"text": f"canary of {who} {turn}"}}
            answer = await client.post(
                f"/v1/runs/{run['id']}/calls", json={**body, "idempotency_key": f"key-{turn}"}
            )
            call = await fleet.work(client, answer.json())
            return json.dumps(call)

    async def of(number: int) -> int:
        who = f"crowd-{number}-{tenants}"
        async with door:
            client = await fleet.tenant(who)
            run = await fleet.run(client)
        said = await asyncio.gather(*(one(client, run, who, turn) for turn in range(each)))
        for turn, call in enumerate(said):
            assert set(re.findall(r"canary of [\w-]+ \d+", call)) == {f"canary of {who} {turn}"}
        return len(said)

    return sum(await asyncio.gather(*(of(number) for number in range(tenants))))


@requirement("attacks:isolation")
async def test_colliding_keys_of_many_tenants_over_shared_sessions_mix_nothing(
    served: Target,
) -> None:
    assert await colliding(served, tenants=12, each=5, at_once=16) == 60


@requirement("attacks:isolation")
@pytest.mark.long
@pytest.mark.timeout(900)
async def test_ten_thousand_colliding_calls_of_a_hundred_tenants_mix_nothing(
    served: Target,
) -> None:
    assert await colliding(served, tenants=100, each=100, at_once=32) == 10_000


@requirement("attacks:isolation")
async def test_what_a_server_says_on_stderr_of_one_tenants_call_is_told_to_no_other(
    fleet: Target,
) -> None:
    chatty = echo("chatty", pool={"min_idle": 1, "max_size": 1})
    await fleet.serve({**chatty, "args": ["-I", str(SERVERS / "chatty.py")]})
    alice, mallory = await fleet.tenant("alice"), await fleet.tenant("mallory")
    run = await fleet.run(alice, servers=["chatty"])
    await fleet.call(alice, run, "chatty_take", text="a canary of alice")
    theirs = await fleet.run(mallory, servers=["chatty"])
    died = await fleet.call(mallory, theirs, "chatty_die", text="the last words of mallory")
    assert "the last words of mallory" in json.dumps(died["error"])
    assert "canary" not in json.dumps(died)


@requirement("attacks:isolation")
async def test_another_tenants_ids_are_unknown_on_every_route(served: Target) -> None:
    alice, mallory = await served.tenant("alice"), await served.tenant("mallory")
    run = await served.run(alice)
    call = await served.call(alice, run, "echo_echo", text="a canary of alice")
    waiting = await served.ask(alice, run, "echo_echo", text="another canary of alice")
    large = await served.call(alice, run, "echo_around", text="the canary of alice", size=400_000)
    artifact = re.findall(r"/v1/artifacts/([0-9a-f]{32})", json.dumps(large["result"]))[0]
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "alice"}}
    begun = await alice.post(
        "/mcp", json={"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello}
    )
    session = {"mcp-session-id": begun.headers["mcp-session-id"]}
    of = {"run_id": [run["id"]], "call_id": [call["id"], waiting.json()["id"]]}
    of |= {"artifact_id": [artifact], "name": ["alice"]}
    tried = 0
    for method, template in routes(served):
        names = re.findall(r"\{(\w+)\}", template)
        for id_ in of.get("".join(names), []):
            path = re.sub(r"\{\w+\}", id_, template)
            submitted = {"tool": "echo_echo", "arguments": {"text": "mine"}}
            bodies = {"calls": submitted, "answers": {"answers": {"q1": {"result": {}}}}}
            body = bodies.get(path.rpartition("/")[2], {"reason": "mine"})
            if path.startswith("/mcp/"):
                body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
            answer = await mallory.request(
                method, path, params={"query": "text"}, json=body, headers=session
            )
            assert answer.status_code in {403, 404}, (method, path, answer.text)
            assert "canary" not in everything_of(answer)
            tried += 1
    assert tried >= 15
    assert (await alice.get(f"/v1/calls/{waiting.json()['id']}")).json()["state"] == "queued"
    assert (await alice.get(f"/v1/artifacts/{artifact}")).status_code == 200


# -- tools that are not what they seem


@pytest.fixture(scope="module")
async def file(fleet: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of tools, and a served server that lists what is in it."""
    file = tmp_path_factory.mktemp("listed") / "tools.json"
    file.write_text(json.dumps([{"name": "honest", "inputSchema": {"type": "object"}}]))
    await fleet.serve(listing(file, changes={"description": "hold"}))
    return file


def listing(file: Path, name: str = "listed", **rest: Any) -> dict[str, Any]:
    args = ["-I", "-S", str(SERVERS / "listed.py"), str(file)]
    return {**echo(name), "args": args, **rest}


async def list_anew(fleet: Target, file: Path, tools: list[dict[str, Any]]) -> None:
    """Have the server list other tools, and its worker see them."""
    file.write_text(json.dumps(tools))
    answer = await fleet.api.http.post("/v1/servers/listed/refresh", headers={"prefer": "wait=20"})
    assert answer.status_code == 200, answer.text


@requirement("attacks:poisoned-tools")
async def test_no_run_is_offered_a_poisoned_tool(fleet: Target, file: Path) -> None:
    client = await fleet.tenant("reader")
    honest = {"name": "honest", "inputSchema": {"type": "object"}}
    named = [
        {**tool, "name": f"tool_{number}"}
        for number, tool in enumerate(poisoned.poisoned())
        if isinstance(tool["name"], str) and tool["name"] == "look"
    ]
    await list_anew(fleet, file, [honest, *named])
    run = await fleet.run(client, servers=["listed"])
    assert [tool["name"] for tool in run["tools"]] == ["listed_honest"]
    for tool in named[:5]:
        answer = await fleet.ask(client, run, f"listed_{tool['name']}")
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_tool")
    # Nor is a tenant shown the texts that an operator has to judge.
    for path in ("/v1/servers", "/v1/servers/listed", "/v1/servers/listed/changes"):
        shown = (await client.get(path)).text
        assert [text for text in poisoned.SAID if json.dumps(text)[1:-1] in shown] == []
    await list_anew(fleet, file, [honest])


@requirement("attacks:poisoned-tools")
def test_every_poisoned_definition_is_found_and_no_real_one_is() -> None:
    corpus = poisoned.poisoned()
    missed = [tool for tool in corpus if not stands_out(tool)]
    real = [tool for tools in listings().values() for tool in tools]
    alarms = [tool["name"] for tool in real if stands_out(tool)]
    print(f"poisoned: {len(corpus) - len(missed)} of {len(corpus)} found")
    print(f"real tools: {len(alarms)} of {len(real)} taken for poisoned: {alarms}")
    assert len(corpus) >= 40
    assert missed == []
    assert len(alarms) / len(real) <= 0.01


def stands_out(tool: dict[str, Any]) -> bool:
    findings = screen(tool)
    return suspicious(findings) or unusable(findings)


@requirement("attacks:rug-pull")
async def test_a_tool_that_changed_by_one_byte_is_not_called_again(
    fleet: Target, file: Path
) -> None:
    client = await fleet.tenant("trusting")
    tools = [{"name": "rug", "description": "Pay 1 EUR.", "inputSchema": {"type": "object"}}]
    await list_anew(fleet, file, tools)
    run = await fleet.run(client, servers=["listed"])
    assert (await fleet.call(client, run, "listed_rug"))["state"] == "succeeded"
    queued = (await fleet.ask(client, run, "listed_rug")).json()
    calls = file.with_name("tools.json.calls")
    made = len(calls.read_text().splitlines())
    await list_anew(fleet, file, [{**tools[0], "description": "Pay 9 EUR."}])
    refused = await fleet.work(client, queued)
    assert (refused["state"], refused["error"]["code"]) == ("failed", "tool_held")
    await until(lambda: _is_held(fleet, client, run))
    assert len(calls.read_text().splitlines()) == made
    audit = (await fleet.api.http.get("/v1/audit", params={"event": "listing.*"})).json()
    assert "rug" in json.dumps(audit["entries"])
    assert (await fleet.run(client, servers=["listed"]))["tools"] == []


async def _is_held(fleet: Target, client: httpx2.AsyncClient, run: dict[str, Any]) -> bool:
    answer = await fleet.ask(client, run, "listed_rug")
    return answer.json().get("code") == "tool_held"


# -- what decides


@requirement("attacks:what-decides")
async def test_headers_do_not_decide_which_tool_is_called(served: Target) -> None:
    client = await served.tenant("mixed")
    run = await served.run(client)
    allowed = {"mcp-name": "echo_echo", "mcp-method": "tools/call", "x-tool": "echo_echo"}
    body = {"tool": "echo_secret", "arguments": {"text": "x"}}
    answer = await client.post(f"/v1/runs/{run['id']}/calls", json=body, headers=allowed)
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_tool")
    keys = {"idempotency-key": "one"}
    body = {"tool": "echo_echo", "arguments": {"text": "x"}, "idempotency_key": "other"}
    answer = await client.post(f"/v1/runs/{run['id']}/calls", json=body, headers=keys)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


TWICE: Final = (
    '{"tool": "echo_echo", "tool": "echo_secret", "arguments": {"text": "x"}}',
    '{"tool": "echo_secret", "arguments": {}, "tool": "echo_echo"}',
    '{"tool": "echo_echo", "arguments": {"text": "x", "text": "y"}}',
    '{"tool": "echo_echo", "arguments": {"text": "x"}, "arguments": {"text": "y"}}',
    '{"tool": "echo_echo", "to\\u006fl": "echo_secret", "arguments": {"text": "x"}}',
    '{"tool": "echo_echo", "Tool": "echo_secret", "arguments": {"text": "x"}}',
    '{"tool": "echo_echo", "TOOL": "echo_secret", "arguments": {"text": "x"}}',
    '{"tool": "echo_echo", "arguments": {"text": "x"}, "approved": true}',
    '{"tool": "echo_echo", "arguments": {"text": "x"}, "tenant": "alice"}',
    '{"tool": "echo_echo", "arguments": {"text": NaN}}',
)


@requirement("attacks:what-decides")
@pytest.mark.parametrize("body", TWICE)
async def test_a_body_that_says_one_thing_twice_is_refused(served: Target, body: str) -> None:
    client = await served.tenant("twice")
    run = await served.run(client)
    headers = {"content-type": "application/json"}
    answer = await client.post(f"/v1/runs/{run['id']}/calls", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert (await client.get(f"/v1/runs/{run['id']}/calls")).json()["calls"] == []


@requirement("attacks:what-decides")
async def test_a_name_that_only_looks_like_a_tools_is_unknown(served: Target) -> None:
    client = await served.tenant("lookalike")
    run = await served.run(client)
    names = (
        *("ECHO_ECHO", "Echo_Echo", "echo_echo ", " echo_echo", "echo_echo\0", "echo_echo\n"),
        *(
            poisoned.wide("echo_echo"),
            "echo_ech\N{CYRILLIC SMALL LETTER O}",
            "echo\u200b_echo",
            "echo",
        ),
        *("echo/echo", "echo.echo", "../echo_echo", "echo_echo%00", "toolfleet_echo", ""),
    )
    for name in names:
        answer = await served.ask(client, run, name, text="x")
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_tool"), name


# -- what never ends, and what is too large

ENDLESS: Final = "a" * 60 + "!"


@requirement("attacks:endless")
async def test_patterns_that_never_end_hold_no_loop(fleet: Target, file: Path) -> None:
    client = await fleet.tenant("patient")
    tools = [
        {"name": f"pattern_{number}", "inputSchema": of(pattern)}
        for number, pattern in enumerate(poisoned.PATTERNS)
    ]
    await list_anew(fleet, file, [*tools, {"name": "honest", "inputSchema": {"type": "object"}}])
    run = await fleet.run(client, servers=["listed"])
    offered = [tool["name"] for tool in run["tools"] if "pattern" in tool["name"]]
    for attempt in attempts(most=20):
        with attempt:
            for name in offered:
                answer = await fleet.ask(client, run, name, text=ENDLESS)
                assert answer.status_code in {202, 422}
            for pattern in poisoned.PATTERNS:
                with pytest.raises(FleetError, match="does not fit"):
                    check_result("tool", of(pattern), {"structuredContent": {"text": ENDLESS}})
    assert len(offered) >= 4


def of(pattern: str) -> dict[str, Any]:
    return {"type": "object", "properties": {"text": {"type": "string", "pattern": pattern}}}


@requirement("attacks:endless")
async def test_schema_bombs_are_kept_out(fleet: Target, file: Path) -> None:
    client = await fleet.tenant("sapper")
    bombs = [{"name": name, "inputSchema": schema} for name, schema in poisoned.bombs().items()]
    honest = {"name": "honest", "inputSchema": {"type": "object"}}
    for attempt in attempts(most=20):
        await list_anew(fleet, file, [honest])
        with attempt:
            await list_anew(fleet, file, [*bombs, honest])
            run = await fleet.run(client, servers=["listed"])
    assert [tool["name"] for tool in run["tools"]] == ["listed_honest"]


@requirement("attacks:memory")
async def test_a_request_too_large_or_too_deep_is_refused_unread(served: Target) -> None:
    client = await served.tenant("heavy")
    run = await served.run(client)
    path = f"/v1/runs/{run['id']}/calls"

    async def endless() -> AsyncIterator[bytes]:
        yield b'{"tool": "echo_echo", "arguments": {"text": "'
        for _ in range(2000):
            yield b"x" * 65_536

    before = psutil.Process().memory_info().rss
    headers = {"content-type": "application/json"}
    try:
        answer = await client.post(path, content=endless(), headers=headers)
        assert answer.status_code == 413
    except httpx2.TransportError:
        pass  # it hung up while more was coming
    grown = psutil.Process().memory_info().rss - before
    assert grown < 40_000_000
    for deep in ("[" * 100_000 + "]" * 100_000, '{"a":' * 50_000 + "1" + "}" * 50_000):
        body = '{"tool": "echo_echo", "arguments": {"text": "x", "at": ' + deep + "}}"
        answer = await client.post(path, content=body, headers=headers)
        assert answer.status_code in {413, 422}


@requirement("attacks:memory")
async def test_a_packed_bomb_from_a_server_is_refused_unread(tmp_path: Path) -> None:
    async with faulty("http", tmp_path / "journal") as server:
        session = await server.open()
        before = psutil.Process().memory_info().rss
        for way in ("gzip_bomb", "gzip_event"):
            with pytest.raises(CallError):
                await session.call_tool(way, {}, timeout_s=20)
        assert psutil.Process().memory_info().rss - before < 40_000_000


# -- paths and networks


@requirement("attacks:sandbox")
async def test_arguments_outside_their_schema_never_reach_the_server(
    fleet: Target, file: Path
) -> None:
    client = await fleet.tenant("digger")
    schema = of("^notes/[a-z]{1,20}[.]txt$") | {
        "required": ["text"],
        "additionalProperties": False,
    }
    await list_anew(fleet, file, [{"name": "read", "inputSchema": schema}])
    run = await fleet.run(client, servers=["listed"])
    assert (await fleet.call(client, run, "listed_read", text="notes/a.txt"))[
        "state"
    ] == "succeeded"
    calls = file.with_name("tools.json.calls")
    made = calls.read_text()
    paths = (
        *("../../etc/passwd", "notes/../../etc/passwd", "/etc/passwd", "notes/a.txt\0", "~/.ssh"),
        *("notes/a.txt/../../x", "notes//etc/passwd", "notes/%2e%2e/x.txt", "notes\\..\\x.txt"),
        *("file:///etc/passwd", "notes/a.txt\n", "", "\\\\host\\share", "notes/\u2024\u2024/a.txt"),
    )
    for path in paths:
        answer = await fleet.ask(client, run, "listed_read", text=path)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_arguments"), path
    answer = await fleet.ask(client, run, "listed_read", text="notes/a.txt", path="/etc/passwd")
    assert answer.status_code == 422
    assert calls.read_text() == made


@requirement("attacks:sandbox")
@pytest.mark.skipif(
    not works("unshare", "--user", "--map-root-user", "--net", "true"),
    reason="this machine makes no network namespaces",
)
async def test_a_server_without_network_reaches_nothing() -> None:
    session = await open_session(light(sandbox={"network": False}))
    try:
        assert (await ask(session, "interfaces")).split() in (["lo"], [])
    finally:
        await session.close()


# -- messages


@requirement("attacks:forged-messages")
async def test_forged_messages_run_nothing(served: Target, file: Path) -> None:
    alice = await served.tenant("alice")
    run = await served.run(alice)
    done = await served.call(alice, run, "echo_echo", text="once")
    queued = (await served.ask(alice, run, "echo_echo", text="never")).json()
    await alice.post(f"/v1/calls/{queued['id']}/cancel")
    forged = (
        *("", "1", "*", "%", "00000000-0000-4000-8000-000000000000", "' OR '1'='1", "x" * 100_000),
        *(done["id"], done["id"].upper(), queued["id"], run["id"], "alice", "{}", "\ud800"),
    )
    for call_id in forged:
        state = await served.deliver("echo", call_id)
        assert state is None or state.value == "stopped", call_id
    again = (await alice.get(f"/v1/calls/{done['id']}")).json()
    assert (again["attempts"], again["ended_at"]) == (1, done["ended_at"])
    calls = (await alice.get(f"/v1/runs/{run['id']}/calls")).json()["calls"]
    assert {call["id"]: call["state"] for call in calls} == {
        done["id"]: "succeeded",
        queued["id"]: "stopped",
    }


@requirement("attacks:forged-messages")
async def test_a_message_on_another_servers_queue_runs_nothing_there(
    served: Target, file: Path
) -> None:
    alice = await served.tenant("alice")
    run = await served.run(alice, servers=["echo"])
    queued = (await served.ask(alice, run, "echo_echo", text="at home")).json()
    assert await served.deliver("listed", queued["id"]) is None
    assert text_of(await served.work(alice, queued)) == "at home"


@requirement("attacks:forged-messages")
async def test_forged_run_tokens_are_refused(served: Target) -> None:
    key = "a secret of at least thirty-two bytes"
    alice = await served.tenant("alice")
    shown = await served.run(alice)
    run = await runs.get_run(served.database, shown["id"])
    head, body, tail = shown["run_token"].split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    other = _encoded({**claims, "tenant": "mallory"})
    none = _encoded({"alg": "none", "typ": "JWT"})
    forged = [
        *("", "x", "..", shown["run_token"][:-3] + "AAA", f"{head}.{other}.{tail}"),
        *(f"{none}.{body}.", f"{none}.{other}.{tail}", f"{head}.{body}."),
        sign_run_token(run, "another secret of at least thirty-two"),
        sign_run_token(run, "x" * 64),
    ]
    assert runs.read_run_token(shown["run_token"], key) == (run.id, "alice")
    for token in forged:
        with pytest.raises(FleetError) as refused:
            runs.read_run_token(token, key)
        assert refused.value.code is Code.UNAUTHENTICATED, token


def _encoded(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


# -- listings


@requirement("attacks:isolation")
async def test_each_tenant_sees_and_calls_what_its_own_policy_admits(fleet: Target) -> None:
    await fleet.serve(echo("private", tenants=["insider"]))
    insider, outsider = await fleet.tenant("insider"), await fleet.tenant("outsider")
    theirs = await fleet.run(insider)
    others = await fleet.run(outsider)
    again = await fleet.run(insider)
    shown = [{tool["name"] for tool in run["tools"]} for run in (theirs, others, again)]
    assert "private_echo" in shown[0] & shown[2]
    assert not [name for name in shown[1] if name.startswith("private")]
    assert theirs["snapshot"] == again["snapshot"] != others["snapshot"]
    answer = await fleet.ask(outsider, others, "private_echo", text="x")
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_tool")
    assert (await outsider.get("/v1/servers/private")).status_code == 404
    assert "private" not in (await outsider.get("/v1/servers")).text
    assert text_of(await fleet.call(insider, theirs, "private_echo", text="mine")) == "mine"
    for path in (f"/v1/runs/{theirs['id']}", f"/v1/runs/{theirs['id']}/tools?query=echo"):
        assert (await outsider.get(path)).status_code == 404


# -- approvals


@pytest.fixture(scope="module")
async def gated(fleet: Target) -> Target:
    """The fleet with a server whose tool waits for an approval."""
    await fleet.serve(echo("gated", tools={"echo": {"approval": True, "delivery": "write"}}))
    return fleet


@requirement("attacks:approvals")
async def test_a_call_that_waits_for_its_approval_is_started_by_nobody(gated: Target) -> None:
    client = await gated.tenant("impatient")
    run = await gated.run(client, servers=["gated"])
    waiting = (await gated.ask(client, run, "gated_echo", text="now")).json()
    assert waiting["state"] == "awaiting_approval"
    for server in ("gated", "gated"):
        assert await gated.deliver(server, waiting["id"]) is None
    for verb in ("approve", "deny"):
        answer = await client.post(f"/v1/approvals/{waiting['id']}/{verb}", json={})
        assert answer.status_code in {403, 404}
    assert (await client.get(f"/v1/calls/{waiting['id']}")).json()["state"] == "awaiting_approval"


@requirement("attacks:approvals")
async def test_a_worker_asks_again_whether_a_call_was_approved(gated: Target) -> None:
    client = await gated.tenant("forger")
    run = await gated.run(client, servers=["gated"])
    waiting = (await gated.ask(client, run, "gated_echo", text="now")).json()
    async with gated.database.transaction() as connection:
        await connection.execute(
            text("UPDATE calls SET state = 'queued', queued_at = now() WHERE id = :id"),
            {"id": waiting["id"]},
        )
    ended = await gated.work(client, waiting)
    assert (ended["state"], ended["error"]["code"]) == ("failed", "policy_denied")
    assert ended["result"] is None


# -- what results carry


@requirement("attacks:secrets-in-results")
async def test_a_result_is_stored_without_the_secrets_in_it(served: Target) -> None:
    client = await served.tenant("careless")
    run = await served.run(client)
    secret = "AKIA" + "ABCDEFGHIJKLMNOP"
    for tool in ("echo_echo", "echo_fail"):
        call = await served.call(client, run, tool, text=f"the key is {secret}")
        assert secret not in json.dumps([call["result"], call["error"]])
    refused = await served.call(client, run, "echo_refuse", text=f"the key is {secret}")
    assert secret not in json.dumps(refused["error"])
