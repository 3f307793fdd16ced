"""Who may open a connection to somewhere else: a few modules, each named here with its reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.requirements import requirement

ROOT = Path(__file__).parents[2]
PACKAGES = ("registry", "workers", "api", "compose", "migrations")
HOMES = {
    # The guard, and what is built on it.
    "workers/guarded.py": {"httpcore2", "_Way"},
    "workers/outbound.py": {"GuardedTransport", "AsyncClient"},
    "workers/upstream.py": {"GuardedTransport", "AsyncClient"},
    "workers/openapi_http.py": {"GuardedTransport", "AsyncClient"},
    # Clients of our own API, at the address that whoever runs the command gave.
    "compose/api_client.py": {"Client"},
    "compose/bridge/endpoint.py": {"AsyncClient"},
    "compose/local.py": {"AsyncClient"},
    "compose/demo/tenant.py": {"AsyncClient"},
    "compose/bench/rig.py": {"AsyncClient"},
    "compose/flower_door.py": {"AsyncClient"},
    "compose/health.py": {"httpx2.get"},
    # Servers that this process started itself, on loopback.
    "compose/embedded.py": {"open_connection"},
    "compose/demo/servers.py": {"create_connection"},
    "compose/bench/ways.py": {"open_connection"},
}
CALLS = {
    *("AsyncClient", "Client", "AsyncHTTPTransport", "HTTPTransport", "GuardedTransport", "_Way"),
    *(
        "create_mcp_http_client",
        "open_connection",
        "create_connection",
        "urlopen",
        "connect_tcp",
        "sse_client",
    ),
    *("OAuthClientProvider", "ClientCredentialsOAuthProvider", "ClientSessionGroup"),
}
MODULES = {
    *("httpcore2", "httpx", "httpcore", "requests", "aiohttp", "urllib3", "urllib.request"),
    *("http.client", "websockets", "ftplib", "smtplib", "telnetlib", "xmlrpc.client"),
}
OF_THE_MODULE = {"get", "post", "put", "patch", "delete", "request", "stream", "head"}


def ways_out(tree: ast.AST) -> Iterator[str]:
    """Yield what a module imports or calls that opens connections."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            yield node.module
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            if isinstance(node.func, ast.Name):
                name = node.func.id
            if name in CALLS:
                yield name
            if ast.unparse(node.func) in {f"httpx2.{it}" for it in OF_THE_MODULE}:
                yield ast.unparse(node.func)


@requirement("outbound:everywhere")
def test_no_other_module_opens_connections_to_somewhere_else() -> None:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if ways := set(ways_out(ast.parse(path.read_text()))):
                found[str(path.relative_to(ROOT))] = ways
    assert {path: ways - HOMES.get(path, set()) for path, ways in found.items()} == {
        path: set() for path in found
    }


@requirement("outbound:everywhere")
def test_a_way_out_that_is_named_here_is_still_one() -> None:
    for path, ways in HOMES.items():
        assert ways & set(ways_out(ast.parse((ROOT / path).read_text()))), path
