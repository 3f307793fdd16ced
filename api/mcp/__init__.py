"""The MCP face: the fleet as one MCP server, in every revision of the protocol."""
