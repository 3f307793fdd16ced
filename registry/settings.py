"""Where the fleet runs and how long things may take: one object, read from TOOLFLEET_* once.

Durations are `timedelta`; the environment takes seconds or ISO 8601 (``PT30S``).
"""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The configuration of one Toolfleet process."""

    model_config = SettingsConfigDict(env_prefix="TOOLFLEET_", frozen=True)

    database_url: str = ""
    """SQLAlchemy or libpq URL; empty means: `toolfleet up` starts a private PostgreSQL."""
    redis_url: str = ""
    """redis:// or unix:// URL; empty means: `toolfleet up` starts a private Redis."""
    data_dir: Path = Path(".toolfleet")
    """Where the embedded servers and the local secrets live."""
    secret_key: SecretStr = SecretStr("")
    """Signs run tokens; `toolfleet up` makes one in the data folder when it is empty."""

    api_host: str = "127.0.0.1"
    api_port: int = 8080
    flower_port: int = 5555

    default_deadline: timedelta = timedelta(seconds=120)
    """From submit to end, when the caller gives no ``timeout_s``."""
    max_deadline: timedelta = timedelta(hours=24)
    approval_lifetime: timedelta = timedelta(days=7)
    """How long a call waits for its approval; its own deadline begins when it has it."""
    run_lifetime: timedelta = timedelta(hours=24)
    max_wait: timedelta = timedelta(seconds=60)
    """Longest ``Prefer: wait`` / ``?wait=`` an API process honours."""

    worker_lease: timedelta = timedelta(seconds=5)
    """A worker silent for this long is dead; its calls are closed by delivery class."""
    drain_grace: timedelta = timedelta(seconds=20)
    """How long a stopping worker lets running calls finish before it cancels them."""
    stop_grace: timedelta = timedelta(seconds=2)
    """How long a stopped stdio server has to be quiet before SIGTERM to its group."""
    resend_after: timedelta = timedelta(seconds=3)
    """A queued call whose message nobody claimed for this long is sent again."""
    refresh_every: timedelta = timedelta(minutes=5)
    """How often the steward lists the tools of each server."""
    max_attempts: int = 3
    """How often a call that may be re-run is dispatched before it fails (poison limit)."""

    max_arguments_bytes: int = 1_000_000
    inline_result_bytes: int = 262_144
    """A larger result (as redacted JSON) is stored as an artifact and returned as a link to it."""
    max_result_bytes: int = 10_000_000
    """A larger result is refused (`result_too_large`)."""

    credentials_file: Path | None = None
    """Where the file provider reads tenants' credentials; see `registry.credentials`."""

    @field_validator("*", mode="before")
    @classmethod
    def _seconds(cls, value: Any, field: ValidationInfo) -> Any:
        """Take plain numbers for durations: pydantic reads them only where they are no strings."""
        name = field.field_name or ""
        if isinstance(value, str) and cls.model_fields[name].annotation is timedelta:
            with suppress(ValueError):
                return float(value)
        return value


@cache
def get_settings() -> Settings:
    """Return this process's settings, read from the environment at the first call."""
    return Settings()
