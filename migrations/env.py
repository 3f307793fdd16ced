"""Run by Alembic: apply the migrations to the database of this process's settings.

A migration that cannot get its lock gives up after seconds rather than block every call behind it.
`compose.migrate.upgrade_database` passes another URL in the configuration's attributes.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import create_engine, make_url, pool

from registry.settings import get_settings
from registry.tables import metadata

LOCK_TIMEOUT_MS = 4_000
STATEMENT_TIMEOUT_MS = 60_000


def run() -> None:
    """Apply the wanted migrations, each in a transaction of its own."""
    url = context.config.attributes.get("url") or get_settings().database_url
    if not url:
        raise SystemExit("there is no database to migrate: set TOOLFLEET_DATABASE_URL")
    options = f"-c lock_timeout={LOCK_TIMEOUT_MS} -c statement_timeout={STATEMENT_TIMEOUT_MS}"
    engine = create_engine(
        make_url(url).set(drivername="postgresql+psycopg"),
        poolclass=pool.NullPool,
        connect_args={"application_name": "toolfleet migrate", "options": options},
    )
    with engine.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=metadata,
            transaction_per_migration=True,
            compare_type=True,
            compare_server_default=True,
        )
        with context.begin_transaction():
            context.run_migrations()


run()
