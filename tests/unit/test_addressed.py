"""Which hosts and origins a request may name."""

from __future__ import annotations

from typing import Any

import pytest

from api.addressed import Addresses, check_binding
from registry.errors import Code, FleetError
from registry.settings import Settings
from tests.requirements import requirement

HERE = ("127.0.0.1", 8080)
OUTSIDE = ("10.1.2.3", 8080)
NAMED = Addresses(["fleet.example", "fleet.example:8443", "inside:*", "[2001:db8::7]:8080"])
PAGES = Addresses(["fleet.example"], ["https://console.example", "http://dev.example:3000"])


def ask(
    addresses: Addresses, *headers: tuple[str, str], server: Any = HERE, path: str = "/v1/runs"
) -> str:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    try:
        addresses.refuse({"type": "http", "path": path, "headers": raw, "server": server})
    except FleetError as error:
        return error.code.code
    return "in"


@requirement("door:hosts")
@pytest.mark.parametrize(
    ("host", "there", "answer"),
    [
        ("localhost:8080", HERE, "in"),
        ("LOCALHOST:8080", HERE, "in"),
        ("127.0.0.1:8080", HERE, "in"),
        ("[::1]:8080", ("::1", 8080), "in"),
        ("fleet.example", HERE, "in"),
        ("Fleet.Example:80", HERE, "in"),
        ("fleet.example:8443", OUTSIDE, "in"),
        ("inside:1", OUTSIDE, "in"),
        ("[2001:db8::7]:8080", OUTSIDE, "in"),
        ("localhost", HERE, "out"),
        ("localhost:8081", HERE, "out"),
        ("localhost:8080", OUTSIDE, "out"),
        ("127.0.0.1:8080", OUTSIDE, "out"),
        ("127.0.0.2:8080", HERE, "out"),
        ("2130706433:8080", HERE, "out"),
        ("0.0.0.0:8080", HERE, "out"),
        ("localhost.:8080", HERE, "out"),
        ("localhost.evil.example:8080", HERE, "out"),
        ("evil.example", HERE, "out"),
        ("evil.example:8080", HERE, "out"),
        ("fleet.example.evil.example", HERE, "out"),
        ("notfleet.example", HERE, "out"),
        ("fleet.example:8444", HERE, "out"),
        ("fleet.example@evil.example", HERE, "out"),
        ("user@localhost:8080", HERE, "out"),
        ("localhost:8080:8080", HERE, "out"),
        ("localhost:8080/", HERE, "out"),
        ("localhost :8080", HERE, "out"),
        ("inside:*", OUTSIDE, "out"),
        ("*", HERE, "out"),
        ("", HERE, "out"),
        ("localhost:8080,evil.example", HERE, "out"),
        ("\uff4cocalhost:8080".encode().decode("latin-1"), HERE, "out"),
    ],
)
def test_a_host_is_one_that_the_api_answers_to(host: str, there: Any, answer: str) -> None:
    refused = "host_not_allowed" if answer == "out" else "in"
    assert ask(NAMED, ("host", host), server=there) == refused


@requirement("door:hosts")
def test_a_request_with_no_host_or_two_is_refused() -> None:
    good = ("host", "localhost:8080")
    assert ask(NAMED) == "host_not_allowed"
    assert ask(NAMED, good, good) == "host_not_allowed"
    assert ask(NAMED, good, ("host", "evil.example")) == "host_not_allowed"


@requirement("door:origins")
@pytest.mark.parametrize(
    ("addresses", "origin", "answer"),
    [
        (NAMED, "http://localhost:8080", "in"),
        (NAMED, "https://fleet.example", "in"),
        (NAMED, "http://fleet.example", "in"),
        (NAMED, "https://fleet.example:8443", "in"),
        (NAMED, "null", "out"),
        (NAMED, "", "out"),
        (NAMED, "https://evil.example", "out"),
        (NAMED, "http://localhost", "out"),
        (NAMED, "http://localhost:3000", "out"),
        (NAMED, "https://localhost:8080", "out"),
        (NAMED, "https://fleet.example.evil.example", "out"),
        (NAMED, "https://evil.example/fleet.example", "out"),
        (NAMED, "https://fleet.example@evil.example", "out"),
        (NAMED, "https://user:word@fleet.example", "out"),
        (NAMED, "https://fleet.example/", "out"),
        (NAMED, "https://fleet.example https://evil.example", "out"),
        (NAMED, "file://", "out"),
        (NAMED, "chrome-extension://fleet.example", "out"),
        (NAMED, "fleet.example", "out"),
        (PAGES, "https://console.example", "in"),
        (PAGES, "http://dev.example:3000", "in"),
        (PAGES, "http://console.example", "out"),
        (PAGES, "https://console.example:444", "out"),
        (PAGES, "http://dev.example", "out"),
        (PAGES, "https://fleet.example", "out"),
        (PAGES, "http://localhost:8080", "out"),
    ],
)
def test_an_origin_is_one_that_may_ask_whatever_the_host(
    addresses: Addresses, origin: str, answer: str
) -> None:
    refused = "origin_not_allowed" if answer == "out" else "in"
    for host in ("localhost:8080", "fleet.example"):
        assert ask(addresses, ("host", host), ("origin", origin)) == refused
    assert ask(addresses, ("host", "evil.example"), ("origin", origin)) == "host_not_allowed"


@requirement("door:origins")
def test_two_origins_are_none_and_no_origin_is_no_browser() -> None:
    host, origin = ("host", "localhost:8080"), ("origin", "http://localhost:8080")
    assert ask(NAMED, host, origin, origin) == "origin_not_allowed"
    assert ask(NAMED, host) == "in"


@requirement("door:health-by-address")
def test_health_answers_to_any_host_and_to_no_strange_page() -> None:
    host = ("host", "10.0.0.7:8080")
    assert ask(NAMED, host, path="/healthz") == "in"
    assert ask(NAMED, host, path="/metrics") == "host_not_allowed"
    page = ("origin", "https://evil.example")
    assert ask(NAMED, host, page, path="/healthz") == "origin_not_allowed"


@requirement("door:binding")
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.1.2.3", "fleet.example", "127.1.evil"])
def test_binding_where_others_can_reach_it_needs_the_names_that_lead_there(host: str) -> None:
    with pytest.raises(ValueError, match="TOOLFLEET_ALLOWED_HOSTS"):
        check_binding(Settings(api_host=host))
    check_binding(Settings(api_host=host, allowed_hosts=("fleet.example",)))


@requirement("door:binding")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
def test_binding_to_this_machine_needs_no_names(host: str) -> None:
    check_binding(Settings(api_host=host))


@requirement("door:hosts")
@pytest.mark.parametrize(
    ("hosts", "origins"),
    [(["https://fleet.example"], []), (["a b"], []), (["*"], []), ([], ["fleet.example"])],
)
def test_a_name_that_is_none_is_refused_at_the_start(hosts: list[str], origins: list[str]) -> None:
    with pytest.raises(ValueError, match="TOOLFLEET_ALLOWED"):
        Addresses(hosts, origins)


@requirement("door:hosts")
def test_the_refusals_have_codes_of_their_own() -> None:
    assert (Code.HOST_NOT_ALLOWED.status, Code.ORIGIN_NOT_ALLOWED.status) == (403, 403)
