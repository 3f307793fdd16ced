# An image for workers whose MCP servers run over stdio: ours, and what starts them. Keep to versions
# that you name: what npx and uvx fetch when a session opens is fetched again for each session, from
# wherever the registry then points to, and a file system that cannot be written has no place for it.
#
#   docker build -f compose/servers.Dockerfile -t toolfleet-servers compose
ARG BASE=toolfleet:latest
FROM ${BASE}
USER root
# Each server in an environment of its own: what one needs is nothing to the other.
RUN python3 -m venv /opt/servers/time \
    && /opt/servers/time/bin/pip install --no-cache-dir mcp-server-time==2026.10.19
# Servers of npm, the same way:
# COPY --from=docker.io/library/node:24-slim /usr/local /usr/local
# RUN npm install --global --ignore-scripts @modelcontextprotocol/server-everything@VERSION
USER 10001:10001
