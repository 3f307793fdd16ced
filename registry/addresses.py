"""Which addresses a server may be reached at: public ones, and those its definition allows.

Pure: nothing here asks DNS. What a definition spells out is held to the rule when it is
registered (`refuse_host`); the addresses that a name turns out to have are held to the same rule
each time that a connection is made (`reachable`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final
from urllib.parse import urlsplit

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# Tables of our own (from IANA's registries of special-purpose addresses): `is_global` of the
# standard library differs between patch releases of Python, and takes multicast for global.
_NOT_PUBLIC: Final = {
    IPv4Network(network): kind
    for network, kind in (
        ("0.0.0.0/8", "reserved"),  # this network
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "carrier's private"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "cloud host's"),  # what is under a virtual machine (Azure)
        ("169.254.0.0/16", "link-local"),  # and the metadata of most clouds
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),  # protocol assignments
        ("192.0.2.0/24", "documentation"),
        ("192.88.99.0/24", "reserved"),  # 6to4 relays
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "reserved"),  # benchmarks
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),  # and broadcast
    )
}
_UNICAST_V6: Final = IPv6Network("2000::/3")
"""What IANA has given out of IPv6; the rest is reserved, local, or stands for IPv4 addresses."""
_NOT_PUBLIC_V6: Final = {
    IPv6Network(network): kind
    for network, kind in (
        ("2001::/23", "reserved"),  # protocol assignments, Teredo
        ("2001:db8::/32", "documentation"),
        ("3fff::/20", "documentation"),
        ("::1/128", "loopback"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "private"),  # site-local
        ("ff00::/8", "multicast"),
    )
}
_NAT64: Final = IPv6Network("64:ff9b::/96")
_METADATA: Final = IPv4Address("169.254.169.254")
_LOOPBACK: Final = (IPv4Address("127.0.0.1"), IPv6Address("::1"))

_LOOPBACK_NAMES: Final = frozenset({"localhost", "ip6-localhost", "ip6-loopback"})
_METADATA_NAMES: Final = frozenset(
    {
        "metadata",
        "metadata.goog",
        "metadata.google.internal",
        "instance-data",
        "instance-data.ec2.internal",
    }
)
_PRIVATE_SUFFIXES: Final = (".local", ".localdomain", ".internal", ".home.arpa")
_NUMBER: Final = re.compile(r"0[xX](?P<hex>[0-9a-fA-F]*)|0(?P<octal>[0-7]*)|(?P<decimal>[1-9]\d*)")


def literal_address(host: str) -> Address | None:
    """Return the address that ``host`` spells, in any way a resolver takes; None for a name.

    IPv4 may come in one to four parts, each decimal, octal or hexadecimal (2130706433, 0x7f.1).
    Raises `ValueError` for what ends in a number and is no address: it is no name either.
    """
    bare = host.removeprefix("[").removesuffix("]")
    if ":" in bare:
        return ip_address(bare.partition("%")[0])  # a scope says on which link, not which address
    parts = bare.removesuffix(".").split(".")
    if not re.fullmatch(r"\d+|0[xX][0-9a-fA-F]*", parts[-1]):
        return None
    if len(parts) > 4:
        raise ValueError(f"{host} is neither an address nor a name")
    *leading, last = [_number(part, host) for part in parts]
    room = 256 ** (4 - len(leading))
    if last >= room or any(part > 255 for part in leading):
        raise ValueError(f"{host} is neither an address nor a name")
    high = sum(part << (24 - 8 * index) for index, part in enumerate(leading))
    return IPv4Address(high + last)


def parse_network(text: str) -> Network:
    """Return the network that ``text`` names in CIDR notation; raise `ValueError` for others."""
    try:
        return ip_network(text)
    except ValueError as error:
        if "host bits" in str(error):
            raise ValueError(
                f"{text} names one host with a network's length: write {ip_network(text, False)}"
            ) from None
        raise ValueError(f"{text!r} is no network like 10.0.0.0/8 or fd00::/8") from None


@lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Say whether a host to bind to, or one that was connected to, is this machine alone."""
    try:
        literal = literal_address(host)
    except ValueError:
        return False
    return host == "localhost" or (literal is not None and _unwrapped(literal).is_loopback)


def as_asked(url: str, host: str) -> str:
    """Return a loopback URL by the loopback name in ``host`` (``name:port``); any other as it is.

    Browsers keep cookies by name, whatever the port: on one machine all pages go by one name.
    """
    parts = urlsplit(url)
    name = urlsplit(f"//{host}").hostname or ""
    if not is_loopback(parts.hostname or "") or not is_loopback(name):
        return url
    port = f":{parts.port}" if parts.port else ""
    return parts._replace(netloc=f"[{name}]{port}" if ":" in name else f"{name}{port}").geturl()


def is_public(address: Address) -> bool:
    """Say whether an address is one that anyone on the internet could have."""
    return not kind_of(address)


def kind_of(address: Address) -> str:
    """Say in a word what sort of address it is that is not public; an empty string for others."""
    address = _unwrapped(address)
    if isinstance(address, IPv4Address):
        return next((kind for network, kind in _NOT_PUBLIC.items() if address in network), "")
    kind = next((kind for network, kind in _NOT_PUBLIC_V6.items() if address in network), "")
    return kind or ("" if address in _UNICAST_V6 else "reserved")


def refuse_address(address: Address, networks: Iterable[Network] = ()) -> None:
    """Raise `ValueError` for an address that is neither public nor in one of ``networks``."""
    if not is_public(address) and not _within(address, networks):
        raise ValueError(_refusal(str(address), _unwrapped(address)))


def reachable(
    host: str, found: Iterable[Address], networks: Iterable[Network] = (), *, public: bool = True
) -> list[Address]:
    """Return those of a host's addresses that may be connected to, in the order they came in.

    Without ``public`` only ``networks`` may be. Raises `ValueError` when there is none, and when
    public addresses come with others: no honest name has both. It names what the caller wrote and
    the kind of an address, never the address.
    """
    found, networks = list(found), tuple(networks)
    kept = [it for it in found if (public and is_public(it)) or _within(it, networks)]
    refused = [it for it in found if it not in kept]
    if not refused or (kept and not any(map(is_public, found))):
        return kept
    kinds = sorted({kind_of(it) for it in refused} - {""})
    if not kinds:
        raise ValueError(f"{host} leads to a public address, which is reached over https:// alone")
    raise ValueError(f"{host} leads to a {' and a '.join(kinds)} address, which is not allowed")


def refuse_host(host: str, networks: Iterable[Network] = ()) -> None:
    """Raise `ValueError` for a host that spells or by convention names a private address.

    Any other name passes: what it stands for is only known when a connection is made.
    """
    networks = tuple(networks)
    address = literal_address(host)
    if address is not None:
        refuse_address(address, networks)
        return
    name = host.lower().removesuffix(".")
    if name in _LOOPBACK_NAMES or name.endswith(".localhost"):
        if not any(address in network for address in _LOOPBACK for network in networks):
            raise ValueError(_refusal(host, _LOOPBACK[0]))
    elif name in _METADATA_NAMES:
        if not any(_METADATA in network for network in networks):
            raise ValueError(_refusal(host, _METADATA))
    elif name.endswith(_PRIVATE_SUFFIXES) and not networks:
        raise ValueError(
            f"{host} is a name of a private network: name the network that it may be in under "
            'networks, such as "10.0.0.0/8"'
        )


def _within(address: Address, networks: Iterable[Network]) -> bool:
    inner = _unwrapped(address)
    return any(address in network or inner in network for network in networks)


def _unwrapped(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address leads to, if it is of a kind that does."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _number(text: str, host: str) -> int:
    found = _NUMBER.fullmatch(text)
    if found is None:
        raise ValueError(f"{host} is neither an address nor a name")
    if found["hex"] is not None:
        return int(found["hex"] or "0", 16)
    if found["octal"] is not None:
        return int(found["octal"] or "0", 8)
    return int(found["decimal"])


def _refusal(host: str, address: Address) -> str:
    network = "127.0.0.0/8" if address == _LOOPBACK[0] else f"{address}/{address.max_prefixlen}"
    return (
        f"{host} is not a public address; if the server is meant to be there, name its network "
        f'under networks, such as "{network}"'
    )
