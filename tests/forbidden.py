"""Where nothing may lead: addresses that are not public, in each way to write or to name them."""

from __future__ import annotations

from typing import Final

LITERALS: Final = (
    # loopback, this network, and what is only here
    *("127.0.0.1", "127.0.0.2", "127.255.255.254", "127.1", "127.0.1", "0.0.0.0", "0", "0.0.0.1"),
    # numbers that a resolver takes for 127.0.0.1, 10.0.0.1 and 169.254.169.254
    *("2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001", "0x7F.0x0.0x0.0x1"),
    *("167772161", "0x0a000001", "012.0.0.1", "10.1", "2852039166", "0xa9fea9fe", "169.16689662"),
    *("127.0.0.1.", "10.0.0.1.", "169.254.169.254."),
    # private, link-local, shared, special
    *("10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.254", "192.168.1.1", "100.64.0.1"),
    *("169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200", "192.0.0.192"),
    *("192.0.2.1", "198.18.0.1", "203.0.113.1", "192.88.99.1", "224.0.0.1", "240.0.0.1"),
    *("255.255.255.255",),
    # IPv6, and IPv4 within it
    *("[::1]", "[::]", "[fd00::1]", "[fd00:ec2::254]", "[fc00::1]", "[fe80::1]", "[fec0::1]"),
    *("[ff02::1]", "[2001:db8::1]", "[3fff::1]", "[100::1]", "[5f00::1]"),
    *("[::ffff:10.0.0.1]", "[::ffff:7f00:1]", "[::ffff:a9fe:a9fe]", "[::10.0.0.1]"),
    *("[64:ff9b::10.0.0.1]", "[64:ff9b::a9fe:a9fe]", "[64:ff9b:1::1]"),
    *("[2002:a00:1::1]", "[2002:7f00:1::]", "[2002:a9fe:a9fe::1]", "[2001:0:a00:1::1]"),
    *("[fe80::1%25lo]", "[::1%25lo]"),
    # in letters that are turned into digits and dots
    *("\uff11\uff10.0.0.1", "127\u30020\u30020\u30021", "\u2460\u2461\u2466.0.0.1"),
)
NAMES: Final = {
    "localhost": ("127.0.0.1", "::1"),
    "LOCALHOST": ("127.0.0.1",),
    "localhost.": ("127.0.0.1",),
    "crm.localhost": ("127.0.0.1",),
    "metadata.google.internal": ("169.254.169.254",),
    "metadata": ("169.254.169.254",),
    "instance-data": ("169.254.169.254",),
    "printer.local": ("192.168.1.9",),
    "db.corp.internal": ("10.0.0.5",),
    # What looks like anybody's name says nothing before it is resolved.
    "private.example": ("10.0.0.1",),
    "loop.example": ("127.0.0.1",),
    "zero.example": ("0.0.0.0",),
    "meta.example": ("169.254.169.254",),
    "shared.example": ("100.64.0.1",),
    "six.example": ("fd00::1",),
    "site.example": ("fec0::1",),
    "mapped.example": ("::ffff:10.0.0.1",),
    "compatible.example": ("::10.0.0.1",),
    "nat64.example": ("64:ff9b::a00:1",),
    "sixtofour.example": ("2002:a00:1::1",),
    "teredo.example": ("2001:0:a00:1::1",),
    "mixed.example": ("8.8.8.8", "10.0.0.1"),
    "mixed-six.example": ("2606:4700::1111", "fd00::1"),
    "\uff50rivate.example": ("10.0.0.1",),
}
"""Names, and the addresses that they are given."""
WAYS: Final = (
    *("http://example.com@10.0.0.1/", "https://user:word@private.example/"),
    *("https://10.0.0.1#@example.com/", "https://10.0.0.1?@example.com/", "http://10.0.0.1:80/"),
    *("https://10.0.0.1/$(touch x)", "https://$(touch${IFS}x).example/", "https://10.0.0.1/`id`"),
    *("http:10.0.0.1/", "http:///10.0.0.1/", "//10.0.0.1/", "http://10.0.0.1%2eexample.com/"),
    *("http://10.0.0.1\\@example.com/", "http://example.com:80@10.0.0.1:80/", "ws://10.0.0.1/"),
    *("file:///etc/passwd", "gopher://10.0.0.1:80/_x", "ftp://10.0.0.1/", "dict://10.0.0.1:80/"),
)
URLS: Final = (
    *(f"{scheme}://{host}/mcp" for host in (*LITERALS, *NAMES) for scheme in ("http", "https")),
    *WAYS,
)
