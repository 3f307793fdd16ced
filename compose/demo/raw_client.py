"""An orchestrator that knows Celery and nothing else: run as a script, it imports none of our code.

Its one argument is the broker's URL; stdin says what to call, as ``{"run_token", "tool",
"arguments"}``; stdout gets the result.
"""

import json
import sys
from typing import Any

from celery import Celery

RESULT_WITHIN_S = 30


def submit(app: Celery, wish: dict[str, Any]) -> Any:
    """Submit one call and return its result as Celery's own client hands it over."""
    sent = app.send_task(
        "toolfleet.submit",
        args=[wish["run_token"], wish["tool"], wish["arguments"]],
        queue="toolfleet",
    )
    return sent.get(timeout=RESULT_WITHIN_S)


def main() -> None:
    """Submit what stdin asks for; print the result as JSON."""
    broker = sys.argv[1]
    json.dump(submit(Celery(broker=broker, backend=broker), json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()
