"""Task events in groups: Flower sees every one, a fifth of a second late at most, no arguments.

Celery sends the events of each turn of its hub by a synchronous publish of their own (measured:
half of the consumer thread's time under load); here they wait for company.
"""

from __future__ import annotations

from typing import Any, Final

from celery import bootsteps
from celery.events.dispatcher import EventDispatcher
from celery.worker.consumer.events import Events

FLUSH_EVERY_S: Final = 0.2
BUFFER_LIMIT: Final = 512


class GroupedEvents(bootsteps.StartStopStep):  # type: ignore[misc]
    """A step of the consumer that spaces out the flushes of its event dispatcher."""

    requires = (Events,)

    def start(self, consumer: Any) -> None:
        """Replace the flush of every hub turn by one per `FLUSH_EVERY_S`."""
        dispatcher = consumer.event_dispatcher
        waiting = False

        def flush() -> None:
            nonlocal waiting
            waiting = False
            dispatcher.flush()

        def on_send_buffered() -> None:
            nonlocal waiting
            if not waiting:
                waiting = True
                consumer.hub.call_later(FLUSH_EVERY_S, flush)

        dispatcher.buffer_limit = BUFFER_LIMIT
        dispatcher.on_send_buffered = on_send_buffered

    def stop(self, consumer: Any) -> None:
        """Send what waits before the connection closes."""
        if consumer.event_dispatcher is not None:
            consumer.event_dispatcher.flush()


class QuietDispatcher(EventDispatcher):  # type: ignore[misc]
    """A dispatcher of events that tell of no task what it was given.

    Who composes a message decides how its arguments are shown: a raw client shows a run token.
    """

    def send(self, type: str, *args: Any, **fields: Any) -> Any:  # noqa: A002 - Celery's own name
        """Send an event."""
        shown = {"args": "()", "kwargs": "{}"}
        fields |= {name: nothing for name, nothing in shown.items() if name in fields}
        return super().send(type, *args, **fields)
