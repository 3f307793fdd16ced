"""Jobs of a worker's pool, for tests that take the pool's part themselves."""

from __future__ import annotations

from workers.aio_pool import Job


class _NoPool:
    """Stands where Celery's pool is: a job only needs to be cancelled here."""


def make_job() -> Job:
    """Return a job that no pool knows."""
    return Job(_NoPool())  # type: ignore[arg-type]
