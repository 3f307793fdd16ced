"""Where e-mail and IP addresses stand in a text.

Pure. Addresses that are the same for everybody (this machine, none, masks) are nobody's, and
numbers of versions are no addresses. Addresses of private networks are found like others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv6Address, ip_address
from typing import Final

from registry.spans import Kind, Span

_EMAIL_NAME: Final = frozenset("%'+-._~")  # besides letters and digits
_LONGEST_EMAIL_NAME: Final = 64
_EMAIL_HOST: Final = re.compile(
    r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_](?:[\w-]{0,22}[^\W_])"
)
_AT: Final = re.compile("@|%40")
_IPV4: Final = re.compile(
    r"(?<![^\W_])(?<![0-9][.])(?:[1-9]?[0-9]|1[0-9][0-9]|2[0-4][0-9]|25[0-5])"
    r"(?:\.(?:[1-9]?[0-9]|1[0-9][0-9]|2[0-4][0-9]|25[0-5])){3}(?![^\W_])(?!\.[0-9]|[+~])"
)
IPV4_HINT: Final = re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}")
_VERSION: Final = re.compile(
    r"(?:\bv|ver(?:sion)?|release|[=<>~!]=|<<|>>|\(=|[a-z]-)[\s:=\"']{0,3}\Z"
)
IPV6_HINT: Final = re.compile(":[0-9A-Fa-f]{0,4}:")
_HEX: Final = frozenset("0123456789abcdefABCDEF")
_LONGEST_IPV6: Final = 45
_IPV6_RUN: Final = re.compile(r"[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]*+(?:\.[0-9]{1,3}){0,3}(?![\w:])")
_DIGIT: Final = re.compile("[0-9]")


def find_emails(text: str) -> Iterator[Span]:
    """Yield the e-mail addresses in a text."""
    for at in _AT.finditer(text):
        host = _EMAIL_HOST.match(text, at.end())
        start = at.start()
        if not host:
            continue
        while start > max(0, at.start() - _LONGEST_EMAIL_NAME):
            if not text[start - 1].isalnum() and text[start - 1] not in _EMAIL_NAME:
                break
            start -= 1
        while start < at.start() and text[start] in "%'+-.~":  # quotes, bullets
            start += 1
        if start < at.start():
            yield Span(start, host.end(), Kind.EMAIL)


def find_ipv4(text: str) -> Iterator[Span]:
    """Yield the IPv4 addresses in a text."""
    for hint in IPV4_HINT.finditer(text):
        found = _IPV4.search(text, max(0, hint.start() - 2), hint.end() + 2)
        if found and not _is_nobodys(found.group()):
            before = text[max(0, found.start() - 12) : found.start()]
            if not _VERSION.search(before.lower()):
                yield Span(*found.span(), Kind.IP)


def find_ipv6(text: str) -> Iterator[Span]:
    """Yield the IPv6 addresses in a text."""
    until = 0  # each run of colons is read once
    for hint in IPV6_HINT.finditer(text):
        start = hint.start()
        if start < until:
            continue
        while start > hint.start() - 4 and text[start - 1 : start] in _HEX:
            start -= 1
        run = _IPV6_RUN.match(text, start)
        until = run.end() if run else hint.end()
        written = re.sub("(?<!:):$", "", run.group()) if run else ""
        if _is_somebodys(written) and not text[start - 1 : start].isalnum():
            yield Span(start, start + len(written), Kind.IP)


def _is_nobodys(address: str) -> bool:
    """Say whether an address is the same for everybody: this machine, none, a mask."""
    known = ip_address(address)
    return known.is_loopback or known.is_unspecified or address.startswith(("255.", "0."))


def _is_somebodys(written: str) -> bool:
    """Say whether something is an IPv6 address, and not the same for everybody."""
    if not 6 <= len(written) <= _LONGEST_IPV6 or not _DIGIT.search(written):
        return False
    try:
        known = IPv6Address(written)
    except ValueError:
        return False
    return not (known.is_loopback or known.is_unspecified)
