"""Serve mcp-server-time, which speaks stdio alone, over streamable HTTP: ``PORT`` on loopback."""

from __future__ import annotations

import sys

from mcp_server_time.server import create_server  # type: ignore[import-untyped]


def main() -> None:
    """Serve at /mcp of 127.0.0.1 until a signal."""
    create_server("UTC").run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))


if __name__ == "__main__":
    main()
