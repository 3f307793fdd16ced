"""The demo: real MCP servers, two tenants, and checks that must hold."""
