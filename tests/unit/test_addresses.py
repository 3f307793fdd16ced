"""Which addresses are public, however they are spelled, and what a definition may allow."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.addresses import (
    is_public,
    literal_address,
    parse_network,
    refuse_address,
    refuse_host,
)
from tests.requirements import requirement

LOOPBACK = [parse_network("127.0.0.0/8")]


@requirement("definitions:addresses")
@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.0.0.1."),
        *("017700000001", "0x7F.0.0.0x1", "[::ffff:127.0.0.1]", "::ffff:7f00:1"),
    ],
)
def test_each_spelling_of_an_address_is_that_address(host: str) -> None:
    with pytest.raises(ValueError, match='networks, such as "127.0.0.0/8"'):
        refuse_host(host)
    refuse_host(host, LOOPBACK)


@requirement("definitions:addresses")
@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.53", "169.254.169.254", "172.16.0.1"),
        *("192.0.0.192", "192.0.2.1", "192.168.1.1", "198.18.0.1", "203.0.113.1", "224.0.0.1"),
        *("239.1.1.1", "240.0.0.1", "255.255.255.255", "168.63.129.16"),
        *("::", "::1", "::127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b:1::1"),
        *("100::1", "2001:db8::1", "2001::1", "2002:7f00:1::1", "3fff::1", "5f00::1", "fc00::1"),
        *("fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1"),
    ],
)
def test_an_address_that_is_not_for_everyone_is_refused(address: str) -> None:
    assert not is_public(ip_address(address))
    with pytest.raises(ValueError, match="is not a public address"):
        refuse_address(ip_address(address))


@requirement("definitions:addresses")
@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2606:4700::1111"]
)
def test_a_public_address_needs_no_leave(address: str) -> None:
    refuse_address(ip_address(address))


@requirement("definitions:addresses")
@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("localhost", "::1/128"),
        ("LOCALHOST.", "127.0.0.0/8"),
        ("crm.localhost", "127.0.0.0/8"),
        ("printer.local", "192.168.0.0/16"),
        ("db.corp.internal", "10.0.0.0/8"),
        ("metadata.google.internal", "169.254.0.0/16"),
        ("metadata.goog", "169.254.0.0/16"),
        ("instance-data", "169.254.0.0/16"),
        ("fe80::1%eth0", "fe80::/10"),
    ],
)
def test_a_private_name_needs_a_network_too(host: str, network: str) -> None:
    with pytest.raises(ValueError, match="networks, such as"):
        refuse_host(host)
    refuse_host(host, [parse_network(network)])


@requirement("definitions:addresses")
@pytest.mark.parametrize("host", ["localhost", "metadata.google.internal", "10.0.0.1", "[::1]"])
def test_leave_for_one_network_is_none_for_another(host: str) -> None:
    with pytest.raises(ValueError, match="is not a public address"):
        refuse_host(host, [parse_network("192.168.0.0/16")])


@requirement("definitions:addresses")
@pytest.mark.parametrize(
    "host", ["example.com", "local", "internal.example", "0x7f.example", "a.b"]
)
def test_any_other_name_passes(host: str) -> None:
    refuse_host(host)


@requirement("definitions:addresses")
@pytest.mark.parametrize(
    "host", ["1.2.3.256", "1.2.3.4.5", "08.0.0.1", "x.1", "99999999999", "::z"]
)
def test_what_is_neither_an_address_nor_a_name_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match=r"neither an address nor a name|does not appear"):
        refuse_host(host)


@requirement("definitions:addresses")
@pytest.mark.parametrize(
    ("network", "why"),
    [
        ("10.0.0.1/8", "write 10.0.0.0/8"),
        ("ten", "is no network"),
        ("10.0.0.0/33", "is no network"),
    ],
)
def test_a_network_that_is_none_is_refused(network: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_network(network)


@requirement("definitions:addresses")
@given(number=st.integers(0, 2**32 - 1), forms=st.lists(st.sampled_from("dox"), min_size=4))
def test_four_parts_in_any_base_are_the_address_that_they_say(
    number: int, forms: list[str]
) -> None:
    written = {"d": "{}", "o": "0{:o}", "x": "0x{:X}"}
    parts = number.to_bytes(4, "big")
    host = ".".join(written[form].format(part) for form, part in zip(forms, parts, strict=False))
    assert literal_address(host) == ip_address(number)


@requirement("definitions:addresses")
@given(host=st.text(max_size=40))
def test_whatever_is_written_for_a_host_the_answer_is_yes_or_no(host: str) -> None:
    try:
        refuse_host(host, LOOPBACK)
    except ValueError as error:
        assert str(error)  # noqa: PT017 - either answer will do
