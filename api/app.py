"""The HTTP application: which parts there are, and the order in which they open and close."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from prometheus_client import CollectorRegistry

from api import (
    administration,
    approving,
    asking,
    auditing,
    checkup,
    contract,
    credentials,
    errors,
    health,
    metrics,
    rest,
    rollouts,
    tenancy,
    tending,
    watching,
)
from api.addressed import Addressed, Addresses
from api.attempts import Attempts
from api.auditing import Readers
from api.auth import Gate, Keyring
from api.bounds import Bounds
from api.console import pages
from api.console.door import Door
from api.console.frame import Frame
from api.console.lookout import Lookout
from api.console.sessions import Sessions
from api.mcp import endpoint
from api.mcp.face import Face
from api.metrics import Measure
from api.oidc import make_issuer
from api.operations import Operations
from api.own_figures import OwnFigures
from api.tracing import Traced
from api.waiting import WaitingRoom
from registry.database import Database
from registry.settings import Settings
from workers.client import FleetClient, make_client
from workers.encryption_keys import open_keys

TITLE: Final = "Toolfleet"
POOL_SIZE: Final = 4
SHORTEST_KEY_BYTES: Final = 32
"""As long as the output of the hash that it is used with (RFC 7518, section 3.2)."""


class FleetApp(FastAPI):
    """A FastAPI application whose OpenAPI document says who may ask, and every answer."""

    parts: tuple[APIRouter, ...] = (
        rest.router,
        endpoint.router,
        asking.router,
        administration.router,
        rollouts.router,
        tending.router,
        tenancy.router,
        approving.router,
        auditing.router,
        credentials.router,
        checkup.router,
        watching.router,
        health.router,
        metrics.router,
    )

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document."""
        if self.openapi_schema is None:
            document = super().openapi()
            schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
            schemes["key"] = {"type": "http", "scheme": "bearer"}
            document["security"] = [{"key": []}]
            contract.complete(document, self.parts)
        assert self.openapi_schema is not None
        return self.openapi_schema


def create_app(
    settings: Settings, *, connect: Callable[[str], FleetClient] | None = None
) -> FleetApp:
    """Return the application; it starts, and answers, while Postgres or Redis is away.

    ``connect`` makes the client of the workers from the Redis URL. Raises `ValueError` where a
    setting is missing, or too weak, that nothing can work without.
    """
    if len(settings.secret_key.get_secret_value().encode()) < SHORTEST_KEY_BYTES:
        raise ValueError(
            f"TOOLFLEET_SECRET_KEY is empty or shorter than {SHORTEST_KEY_BYTES} bytes: it signs "
            "run tokens; `toolfleet up` sets it, `openssl rand -hex 32` makes one"
        )
    for name in ("database_url", "redis_url"):
        if not getattr(settings, name):
            raise ValueError(f"TOOLFLEET_{name.upper()} is empty; `toolfleet up` sets it")
    database = Database(settings.database_url, pool_size=POOL_SIZE, application="toolfleet api")
    figures = CollectorRegistry()
    issuer = make_issuer(settings)
    attempts = Attempts()
    keyring = Keyring(database, issuer=issuer, attempts=attempts)
    sessions = Sessions(database, settings, attempts=attempts)
    addresses = Addresses(settings.allowed_hosts, settings.allowed_origins)
    # Arguments are escaped in JSON, so their text may be longer than what is stored.
    usual_body = settings.max_arguments_bytes * 2

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        client = (
            connect(settings.redis_url)
            if connect is not None
            else make_client("toolfleet-api", settings)
        )
        room = WaitingRoom(database, client.redis)
        app.state.operations = operations = Operations(settings, database, client, room)
        app.state.lookout = Lookout(operations)
        app.state.mcp = face = Face(operations)
        app.state.own_figures = own_figures = OwnFigures(figures, client)
        await room.open()
        own_figures.open()
        try:
            yield
        finally:
            await own_figures.close()
            await room.close()
            await face.close()
            await operations.close()
            await client.close()
            await sessions.close()
            await keyring.close()
            await database.close()

    app = FleetApp(
        title=TITLE,
        version=version("toolfleet"),
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.keyring = keyring
    app.state.sessions = sessions
    app.state.frame = Frame(pages.router.routes, settings)
    app.state.encryption_keys = open_keys(settings)
    app.state.audit_readers = Readers()
    # The last one added is the first to see a request.
    door = partial(Door, keyring=keyring, sessions=sessions)
    app.add_middleware(Gate, keyring=keyring, door=door)
    app.add_middleware(Addressed, addresses=addresses)
    app.add_middleware(Bounds, most_requests=settings.max_requests, usual_body=usual_body)
    errors.install(app)
    app.add_middleware(Traced)
    app.add_middleware(Measure, figures=figures)
    for part in app.parts:
        app.include_router(part, max_body_size=usual_body)
    app.include_router(pages.router, max_body_size=usual_body)
    return app
