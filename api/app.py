"""The HTTP application: which parts there are, and the order in which they open and close."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, Final

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from api import administration, checkup, errors, health, metrics, rest, rollouts, tenancy
from api.auth import Gate, Keyring
from api.metrics import Measure
from api.operations import Operations
from api.waiting import WaitingRoom
from registry.database import Database
from registry.settings import Settings
from workers.client import FleetClient

TITLE: Final = "Toolfleet"
POOL_SIZE: Final = 4


class FleetApp(FastAPI):
    """A FastAPI application whose OpenAPI document says that every route takes a key."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document."""
        if self.openapi_schema is None:
            document = super().openapi()
            schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
            schemes["key"] = {"type": "http", "scheme": "bearer"}
            document["security"] = [{"key": []}]
        assert self.openapi_schema is not None
        return self.openapi_schema


def create_app(
    settings: Settings, *, connect: Callable[[str], FleetClient] = FleetClient
) -> FastAPI:
    """Return the application; it starts, and answers, while Postgres or Redis is away.

    ``connect`` makes the client of the workers from the Redis URL. Raises `ValueError` where a
    setting is missing that nothing can work without.
    """
    if not settings.secret_key.get_secret_value():
        raise ValueError(
            "TOOLFLEET_SECRET_KEY is empty: it signs run tokens; `toolfleet up` sets it"
        )
    for name in ("database_url", "redis_url"):
        if not getattr(settings, name):
            raise ValueError(f"TOOLFLEET_{name.upper()} is empty; `toolfleet up` sets it")
    database = Database(settings.database_url, pool_size=POOL_SIZE, application="toolfleet api")
    figures = CollectorRegistry()
    keyring = Keyring(database)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        client = connect(settings.redis_url)
        room = WaitingRoom(database, client.redis)
        app.state.operations = operations = Operations(settings, database, client, room)
        await room.open()
        try:
            yield
        finally:
            await room.close()
            await operations.close()
            await client.close()
            await database.close()

    app = FleetApp(
        title=TITLE,
        version=version("toolfleet"),
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
        # Arguments are escaped in JSON, so their text may be longer than what is stored.
        max_body_size=settings.max_arguments_bytes * 2,
    )
    app.state.keyring = keyring
    app.state.figures = figures
    # The last one added is the first to see a request.
    app.add_middleware(Gate, keyring=keyring)
    errors.install(app)
    app.add_middleware(Measure, figures=figures)
    for part in (rest, administration, rollouts, tenancy, checkup, health, metrics):
        app.include_router(part.router)
    return app
