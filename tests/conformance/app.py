"""The API with one thing added: a tenant's key for requests to /mcp that come without any.

The suite's server scenarios cannot send a key. ``python app.py KEY_FILE`` is the API in all else;
the file is read when it is first needed, since the key is made through this API itself.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from api.app import create_app
from api.main import make_server
from registry.discretion import log_discreetly
from registry.settings import get_settings


class WithKey:
    """An ASGI application whose MCP requests all have a key."""

    def __init__(self, app: Any, key_file: Path) -> None:
        self._app = app
        self._key_file = key_file

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/mcp"):
            names = {name for name, _ in scope["headers"]}
            if b"authorization" not in names:
                key = (b"authorization", f"Bearer {self._key_file.read_text()}".encode())
                scope = {**scope, "headers": [*scope["headers"], key]}
        await self._app(scope, receive, send)


def main() -> None:
    """Serve until a signal."""
    log_discreetly()
    settings = get_settings()
    app = create_app(settings)
    app.add_middleware(WithKey, key_file=Path(sys.argv[1]))
    make_server(settings, app).run()


if __name__ == "__main__":
    main()
