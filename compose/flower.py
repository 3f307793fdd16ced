"""Flower, Celery's own web page, bound to this machine and to the operator's password."""

from __future__ import annotations

import os

from registry.discretion import log_discreetly
from registry.settings import get_settings


def run_flower() -> None:
    """Serve Flower at 127.0.0.1 on the settings' port until SIGTERM.

    TOOLFLEET_FLOWER_AUTH (``user:password``) opens its page and its HTTP API to that user; without
    it the page is open to every user of the machine and the API is closed. No state is kept on
    disk; no arguments of tasks are shown, as messages carry none.
    """
    from workers.celery_app import app

    log_discreetly()
    # Flower knows how to look into queues by the transport's name, and this is Redis to it.
    app.conf.broker_transport = "redis"
    # Through the environment: every user of the machine can read arguments.
    if auth := os.environ.get("TOOLFLEET_FLOWER_AUTH"):
        os.environ["FLOWER_BASIC_AUTH"] = auth
    app.start(
        [
            "flower",
            "--address=127.0.0.1",
            f"--port={get_settings().flower_port}",
            "--persistent=False",
            # Flower would run a flowerconfig.py of the current folder.
            f"--conf={os.devnull}",
            "--logging=warning",
        ]
    )
