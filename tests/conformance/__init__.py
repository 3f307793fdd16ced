"""The official conformance suite of MCP, against a server of our own and through a whole fleet."""
