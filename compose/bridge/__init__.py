"""`toolfleet mcp`: the fleet as an MCP server over stdio, for clients that start their servers."""
