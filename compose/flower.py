"""Flower, Celery's own web page, behind the console's sign-in."""

from __future__ import annotations

import os
from typing import Final

from registry.discretion import log_discreetly
from registry.settings import get_settings

FORGET_AFTER_S: Final = 600


def run_flower() -> None:
    """Serve Flower on the settings' host and port until SIGTERM.

    Operators who are signed in to the console see it, and programs that show an operator's key as
    the password of any user (HTTP Basic); see `compose.flower_door`. No state is kept on disk; no
    arguments of tasks are shown, as messages carry none.
    """
    from compose.flower_door import close_doors
    from workers.celery_app import app

    log_discreetly()
    settings = get_settings()
    close_doors(settings)
    # Flower knows how to look into queues by the transport's name, and this is Redis to it.
    app.conf.broker_transport = "redis"
    app.start(
        [
            "flower",
            f"--address={settings.flower_host}",
            f"--port={settings.flower_port}",
            "--persistent=False",
            # A worker's name is its process's: figures of those that are gone would pile up.
            f"--purge_offline_workers={FORGET_AFTER_S}",
            # Flower would run a flowerconfig.py of the current folder.
            f"--conf={os.devnull}",
            "--logging=warning",
        ]
    )
