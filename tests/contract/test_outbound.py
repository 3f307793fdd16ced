"""Where the fleet's requests go, whatever a URL says and whoever wrote it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpcore2
import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import workers.guarded
from registry.addresses import Address, parse_network
from registry.definitions import OpenApi, ServerDefinition, parse_definition
from registry.errors import Code, FleetError
from tests.forbidden import LITERALS, NAMES, URLS, WAYS
from tests.forbidden_network import serve
from tests.requirements import requirement
from workers.openapi_http import open_api
from workers.openapi_wire import Brief, told_failure
from workers.outbound import open_client
from workers.session import CallError, Session

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
LOOPBACK = [parse_network("127.0.0.0/8")]
SPACE = ("unshare", "--net", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]))
PUBLIC = "8.8.8.8"


class Network:
    """Answers for a resolver, and notes what is connected to; nothing leaves the process."""

    def __init__(self, **names: str) -> None:
        self.asked: list[str] = []
        self.dialled: list[str] = []
        self._names = names

    async def resolve(self, host: str, port: int) -> list[Address]:
        self.asked.append(host)
        found = self._names.get(host) or NAMES.get(host, ())
        return [ip_address(it) for it in ([found] if isinstance(found, str) else found)]

    async def dial(self, host: str, port: int, **_: Any) -> httpcore2.AsyncNetworkStream:
        self.dialled.append(host)
        raise httpcore2.ConnectError("nothing is there")

    def client(self, **rest: Any) -> httpx2.AsyncClient:
        return open_client(**{"timeout_s": 5, "resolve": self.resolve, "dial": self.dial, **rest})


async def refusal(client: httpx2.AsyncClient, url: str) -> FleetError:
    with pytest.raises(FleetError) as caught:
        await client.get(url)
    assert caught.value.code is Code.ADDRESS_REFUSED
    return caught.value


# -- nothing forbidden is connected to


@requirement("outbound:addresses")
async def test_no_spelling_of_a_forbidden_address_is_connected_to() -> None:
    assert len(LITERALS) + len(NAMES) + len(WAYS) >= 100
    network = Network()
    for url in URLS:
        # Some network is allowed, so that http:// is not refused for itself.
        async with network.client(networks=[parse_network("10.99.0.0/16")]) as client:
            with suppress(FleetError, httpx2.InvalidURL, httpx2.RequestError):
                await client.get(url)
                pytest.fail(f"{url} was reached")
    assert network.dialled == []
    assert len(network.asked) > 20  # names are looked up, and what they turn out to be is judged


@requirement("outbound:addresses")
async def test_an_allowed_and_a_public_address_are_connected_to() -> None:
    network = Network(**{"crm.example": "10.0.0.1", "api.example": PUBLIC})
    async with network.client(networks=[parse_network("10.0.0.0/8")]) as client:
        for url in ("http://crm.example/", "https://crm.example/", "https://api.example/"):
            with pytest.raises(httpx2.ConnectError):
                await client.get(url)
    assert network.dialled == ["10.0.0.1", "10.0.0.1", PUBLIC]


@requirement("outbound:addresses")
@pytest.mark.parametrize("name", ["mixed.example", "mixed-six.example"])
async def test_public_addresses_that_come_with_private_ones_are_not_connected_to(name: str) -> None:
    network = Network()
    async with network.client() as client:
        await refusal(client, f"https://{name}/")
    assert network.dialled == []


@requirement("outbound:addresses")
async def test_of_private_addresses_those_that_are_allowed_are_connected_to() -> None:
    network = Network(localhost=("127.0.0.1", "::1"))  # type: ignore[arg-type]
    async with network.client(networks=LOOPBACK) as client:
        with pytest.raises(httpx2.ConnectError):
            await client.get("http://localhost/")
    assert network.dialled == ["127.0.0.1"]


@requirement("outbound:pinned")
async def test_a_name_is_looked_up_once_for_a_connection_and_judged_for_each() -> None:
    network = Network(**{"rebind.example": PUBLIC})
    async with network.client() as client:
        with pytest.raises(httpx2.ConnectError):
            await client.get("https://rebind.example/")
        network._names["rebind.example"] = "10.0.0.1"
        await refusal(client, "https://rebind.example/")
    assert (network.asked, network.dialled) == (["rebind.example"] * 2, [PUBLIC])


@requirement("outbound:encrypted")
async def test_a_public_address_is_not_reached_without_encryption() -> None:
    network = Network(**{"api.example": PUBLIC})
    async with network.client(networks=LOOPBACK) as client:
        error = await refusal(client, "http://api.example/")
    assert "https://" in error.message
    assert network.dialled == []


@requirement("outbound:refusal")
async def test_a_refusal_names_what_was_written_and_not_what_was_found() -> None:
    network = Network(**{"crm.example": "10.20.30.40"})
    async with network.client() as client:
        error = await refusal(client, "https://crm.example/secret?token=hush")
    told = json.dumps(error.as_dict())
    assert "crm.example leads to a private address" in told
    assert "networks" in error.hint
    assert not any(it in told for it in ("10.20.30.40", "hush", "secret"))
    assert (error.code.retryable, error.details) == (False, {"host": "crm.example"})


@requirement("outbound:pinned")
async def test_a_name_that_is_not_found_in_time_is_an_error_of_its_own() -> None:
    async def never(host: str, port: int) -> list[Address]:
        await asyncio.Event().wait()
        raise AssertionError

    async with open_client(timeout_s=0.05, resolve=never) as client:
        with pytest.raises(httpx2.TimeoutException):
            await client.get("https://api.example/")


# -- what a real server sees


@asynccontextmanager
async def server(
    answer: Callable[[str], bytes], tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[int, list[str]]]:
    """Answer each request; yield the port, and the heads of the requests."""
    heads: list[str] = []
    tasks: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.current_task())
        number = len(tasks)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                heads.append(f"{number} {head}")
                writer.write(answer(head.split(" ")[1]))
                await writer.drain()
        writer.close()
        with suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with listener:
        yield listener.sockets[0].getsockname()[1], heads
        await asyncio.gather(*filter(None, tasks))


def ok(body: bytes = b"ok", *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def moved(location: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n".encode()


@requirement("outbound:pinned")
async def test_a_connection_that_is_kept_is_used_without_another_look() -> None:
    network = Network(**{"crm.example": "127.0.0.1"})
    async with server(lambda _: ok()) as (port, heads):
        client = open_client(timeout_s=5, networks=LOOPBACK, resolve=network.resolve)
        async with client:
            for _ in range(3):
                assert (await client.get(f"http://crm.example:{port}/")).text == "ok"
    assert network.asked == ["crm.example"]
    assert [head[0] for head in heads] == ["1", "1", "1"]
    assert f"host: crm.example:{port}" in heads[0].lower()


@requirement("outbound:pinned")
async def test_the_certificate_has_to_be_the_names_whatever_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = certificate("crm.example", tmp_path)
    monkeypatch.setattr(workers.guarded, "tls", lambda: ours)
    network = Network(**{"crm.example": "127.0.0.1", "other.example": "127.0.0.1"})
    async with server(lambda _: ok(), theirs) as (port, _):
        client = open_client(timeout_s=5, networks=LOOPBACK, resolve=network.resolve)
        async with client:
            assert (await client.get(f"https://crm.example:{port}/")).text == "ok"
            with pytest.raises(httpx2.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await client.get(f"https://other.example:{port}/")


def certificate(name: str, folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the contexts of a server of that name, and of a client that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    file = folder / "server.pem"
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + made.public_bytes(pem))
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(file)
    return theirs, ssl.create_default_context(cadata=made.public_bytes(pem).decode())


# -- redirects


@requirement("outbound:redirects")
async def test_a_redirect_is_an_answer_unless_a_client_was_told_to_follow() -> None:
    async with (
        server(lambda path: moved("/b") if path == "/a" else ok()) as (port, heads),
        open_client(timeout_s=5, networks=LOOPBACK) as client,
    ):
        assert (await client.get(f"http://127.0.0.1:{port}/a")).status_code == 302
        with pytest.raises(httpx2.TooManyRedirects):
            await client.get(f"http://127.0.0.1:{port}/a", follow_redirects=True)
    assert not any("/b" in head for head in heads)


@requirement("outbound:redirects")
async def test_at_most_as_many_redirects_are_followed_as_was_said() -> None:
    async with (
        server(lambda path: moved(f"{path}a")) as (port, heads),
        open_client(timeout_s=5, networks=LOOPBACK, follow=3) as client,
    ):
        assert (await client.get(f"http://127.0.0.1:{port}/")).status_code == 302
    assert len(heads) == 4


@requirement("outbound:redirects")
@pytest.mark.parametrize(
    ("method", "rest"),
    [
        ("GET", {"headers": {"authorization": "Bearer hush"}}),
        ("GET", {"headers": {"cookie": "a=b"}}),
        ("GET", {"headers": {"x-vault-token": "hush"}}),
        ("GET", {"content": b"body"}),
        ("GET", {"auth": ("user", "word")}),
        ("POST", {}),
        ("POST", {"json": {}}),
        ("HEAD", {}),
    ],
)
async def test_nothing_with_a_secret_or_a_body_is_ever_redirected(
    method: str, rest: dict[str, Any]
) -> None:
    async with (
        server(lambda path: moved("/b") if path == "/a" else ok()) as (port, heads),
        open_client(timeout_s=5, networks=LOOPBACK, follow=3) as client,
    ):
        answer = await client.request(method, f"http://127.0.0.1:{port}/a", **rest)
    assert answer.status_code == 302
    assert len(heads) == 1


@requirement("outbound:redirects")
async def test_a_redirect_leads_to_no_other_origin_that_is_not_public() -> None:
    async with (
        server(lambda _: ok(b"canary")) as (inside, canary),
        server(lambda path: moved(path[1:])) as (port, _),
        open_client(timeout_s=5, networks=LOOPBACK, follow=3) as client,
    ):
        for target in (
            *(f"http://127.0.0.1:{inside}/", f"https://127.0.0.1:{inside}/"),
            *("https://10.0.0.1/", "http://example.com/", "https://u:p@example.com/"),
            *(f"https://127.0.0.1:{port}/", f"//127.0.0.1:{inside}/", "file:///etc/passwd"),
        ):
            await refusal(client, f"http://127.0.0.1:{port}/{target}")
    assert canary == []


# -- answers


@requirement("outbound:bounded")
async def test_an_answer_ends_where_it_is_too_large_too_slow_or_packed() -> None:
    answers = {
        "/large": ok(b"x" * 2000),
        "/slow": b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx",
        "/packed": ok(b"x", "content-encoding: gzip"),
    }
    async with (
        server(answers.__getitem__) as (port, _),
        open_client(timeout_s=0.5, networks=LOOPBACK, max_body_bytes=1000) as client,
    ):
        for path, error in (
            ("/large", FleetError),
            ("/slow", httpx2.ReadTimeout),
            ("/packed", FleetError),
        ):
            with pytest.raises(error):
                await client.get(f"http://127.0.0.1:{port}{path}")


@requirement("outbound:bounded")
async def test_no_cookie_is_kept_and_no_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with (
        server(lambda _: ok(b"ok", "set-cookie: a=b")) as (port, heads),
        open_client(timeout_s=5, networks=LOOPBACK) as client,
    ):
        for _ in range(2):
            await client.get(f"http://127.0.0.1:{port}/")
    assert not any("cookie" in head.lower() for head in heads)


# -- everything else that takes a URL


@requirement("outbound:everywhere")
@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "https://10.0.0.1/", "https://[::1]/"])
async def test_a_session_of_a_definition_from_before_the_rule_is_refused(url: str) -> None:
    stored = ServerDefinition.model_validate({"name": "x", "transport": "http", "url": url})
    with pytest.raises(FleetError) as caught:
        await Session.open(
            stored, connect_timeout_s=5, stop_grace_s=0.1, max_result_bytes=1_000_000
        )
    assert caught.value.code is Code.ADDRESS_REFUSED
    assert "server x is not reached" in caught.value.message


@requirement("outbound:pinned", "outbound:everywhere")
async def test_a_name_that_turns_private_in_a_session_keeps_its_next_call_from_being_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, address = socket.getaddrinfo, "127.0.0.1"
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *rest, **more: real(address if "crm" in str(host) else host, *rest, **more),
    )
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        where = {"url": f"http://crm.example:{port}/mcp", "networks": ["127.0.0.0/8"]}
        definition = parse_definition({"name": "x", "transport": "http", **where})
        session = await Session.open(
            definition, connect_timeout_s=5, stop_grace_s=0.1, max_result_bytes=1_000_000
        )
        assert not (await session.call_tool("lure", {}, timeout_s=5)).is_error
        address = "10.0.0.1"
        with pytest.raises(
            CallError, match="was not sent to server x: crm.example leads"
        ) as caught:
            await session.call_tool("lure", {}, timeout_s=5)
        await session.close()
    assert (caught.value.code, caught.value.dispatched) == (Code.ADDRESS_REFUSED, False)


@requirement("outbound:everywhere")
async def test_the_program_in_front_of_an_api_is_held_to_the_same() -> None:
    brief = Brief("x", "https://10.0.0.1", (), OpenApi(), {}, frozenset(), 5, 1000)
    async with open_api(brief) as client:
        with pytest.raises(Exception, match="not a public address") as caught:
            await client.get("/x")
    told = told_failure(caught.value)  # type: ignore[arg-type]
    assert told is not None
    assert (told[0].code, told[1]) == (Code.ADDRESS_REFUSED, False)


# -- packets


def in_a_network_of_its_own(*parts: str, limit_s: float = 100) -> dict[str, Any]:
    if sys.platform != "linux" or subprocess.run([*SPACE, "true"], check=False).returncode:
        pytest.skip("this machine gives no network and mount namespaces")
    told = subprocess.run(
        [*SPACE, sys.executable, "-m", "tests.forbidden_network", *parts],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=limit_s,
    )
    return json.loads(told.stdout)


LURES = {"127.0.0.9"}
"""The address of the servers that lure away; it is allowed."""


def assert_no_packets(told: dict[str, Any]) -> None:
    allowed = told.pop("allowed")
    assert allowed["ends"] == {"answered": 200}
    assert allowed["packets"] == {"10.0.0.1": 1}  # so the sniffer sees what is sent
    rebound = told.pop("rebound")
    assert rebound["ends"]["address_refused"] == 2
    assert set(rebound["packets"]) == {PUBLIC}
    for name, part in told.items():
        assert set(part["packets"]) <= LURES, name
        assert (part["processes"] == 0) == (name != "program"), name  # whatever a URL holds


@requirement("outbound:no-packets", "outbound:no-process")
def test_not_one_packet_goes_to_a_forbidden_address() -> None:
    parts = ("asked", "session", "talk")
    told = in_a_network_of_its_own("allowed", *parts, "rebound")
    assert sum(told["asked"]["ends"].values()) == len(URLS)
    assert told["talk"]["ends"] == {"tools": 1, "content": len(URLS) + 1}
    assert_no_packets(told)


@requirement("outbound:no-packets", "outbound:no-process")
@pytest.mark.long
@pytest.mark.timeout(300)
def test_not_one_packet_goes_to_a_forbidden_address_by_any_way() -> None:
    assert_no_packets(in_a_network_of_its_own(limit_s=280))


@requirement("outbound:no-packets")
@pytest.mark.long
@pytest.mark.timeout(300)
def test_without_the_guard_the_same_targets_are_reached() -> None:
    told = in_a_network_of_its_own("--unguarded", "asked", "followed", "session", limit_s=280)
    for part in told.values():
        assert len(set(part["packets"]) - LURES) >= 35
        assert {"127.0.0.1", "10.0.0.1", "169.254.169.254", "::1"} <= set(part["packets"])
