"""How the fleet is asked: HTTP and, later, MCP over the same verbs."""
