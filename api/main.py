"""The API process: one uvicorn server on uvloop, until a signal."""

from __future__ import annotations

import gc
import socket
from contextlib import suppress
from typing import Final

import uvicorn
from fastapi import FastAPI

from api.addressed import check_binding
from api.app import create_app
from api.protocol import bounded
from registry.discretion import log_discreetly
from registry.settings import Settings, get_settings

GRACE_S: Final = 3
KEEP_ALIVE_S: Final = 30
"""Longer than clients keep a connection: who closes it last loses no request on it."""
GC_THRESHOLDS: Final = (10_000, 20, 20)


class Server(uvicorn.Server):
    """A server that sends home whoever waits for a call's end before it closes connections."""

    def __init__(self, app: FastAPI, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._fleet_app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer every wait and end every event stream, then stop as uvicorn does."""
        self._fleet_app.state.operations.room.dismiss()
        await super().shutdown(sockets)


def make_server(settings: Settings, app: FastAPI | None = None) -> Server:
    """Return the API's server, not started, on the settings' host and port.

    Raises `ValueError` for a host that others can reach while no allowed host is named.
    """
    check_binding(settings)
    app = app or create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.api_host,
        port=settings.api_port,
        loop="uvloop",
        http=bounded(settings.receive_within),
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )
    return Server(app, config)


def main() -> None:
    """Serve the API until SIGTERM or SIGINT."""
    log_discreetly()
    server = make_server(get_settings())
    # What importing left behind lives as long as the process: collecting it again and again, with
    # every caller waiting, finds nothing.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    with suppress(KeyboardInterrupt):
        server.run()


if __name__ == "__main__":
    main()
