"""The sign of life that a process leaves for whoever restarts it: a file, touched every second.

It says that the loop turns, and nothing about Postgres or Redis: a worker that waits for them to
come back is well, and starting it again would mend nothing.
"""

from __future__ import annotations

import logging
from pathlib import Path

logger = logging.getLogger("toolfleet.worker")


async def beat(file: Path | None) -> None:
    """Touch the file, if there is one; where it cannot be touched, say so."""
    if file is None:
        return
    try:
        file.touch()
    except OSError as error:
        logger.warning("no sign of life left in %s: %s", file, type(error).__name__)
