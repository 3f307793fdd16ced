"""An MCP server with one tool that gives back its text: what the benchmark calls.

``python -m compose.demo.echo_server`` speaks stdio, with ``--http PORT`` streamable HTTP at /mcp of
127.0.0.1.
"""

from __future__ import annotations

import argparse

from mcp.server.mcpserver import MCPServer
from mcp_types import ToolAnnotations

server = MCPServer("echo", log_level="ERROR")


@server.tool(structured_output=False, annotations=ToolAnnotations(read_only_hint=True))
async def echo(text: str) -> str:
    """Return the text."""
    return text


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--http", type=int, metavar="PORT")
    port = parser.parse_args().http
    if port is None:
        server.run("stdio")
    else:
        server.run("streamable-http", host="127.0.0.1", port=port)


if __name__ == "__main__":
    main()
