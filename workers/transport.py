"""How messages travel: fetched in groups by workers, composed here and sent without a thread.

kombu fetches one message per BRPOP. While a queue is deep this channel takes, after each, as many
more as the prefetch window has room for with one RPOP (Redis 6.2), so that calls arrive, and are
claimed, in groups.
Nothing else differs; messages are hints (D1), so no acknowledgement is kept in Redis.
"""

from __future__ import annotations

from time import monotonic
from typing import Any, Final

from celery import Celery
from kombu.connection import Connection
from kombu.transport import redis, virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads

AT_ONCE_S: Final = 0.002


class FleetChannel(redis.Channel):
    """A channel that fills its prefetch window at once while its queue is deep."""

    _deep = False

    def _brpop_read(self, **options: Any) -> Any:
        sent_at: float | None = self._brpop_sent_at
        waited_s = monotonic() - (sent_at or 0.0)
        found = super()._brpop_read(**options)
        # A BRPOP that had to wait found the queue empty: asking for more would be a trip for none.
        if self._deep or waited_s < AT_ONCE_S:
            filled = [self._fill_from(queue) for queue in self.active_queues]
            self._deep = any(filled)
        return found

    def _fill_from(self, queue: str) -> bool:
        room = self.qos.can_consume_max_estimate()
        if not room:
            return self._deep
        with self.conn_or_acquire() as client:
            items = client.rpop(queue, room) or ()
        for item in items:
            self.connection._deliver(loads(bytes_to_str(item)), queue)
        return bool(items)


class FleetTransport(redis.Transport):
    """kombu's Redis transport with `FleetChannel`."""

    Channel = FleetChannel


class _ComposingChannel(virtual.Channel):
    """A channel that keeps what it would have sent."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.composed: list[tuple[str, str]] = []

    def _put(self, queue: str, message: Any, **_: Any) -> None:
        self.composed.append((queue, dumps(message)))


class _ComposingTransport(virtual.Transport):
    Channel = _ComposingChannel


class Composer:
    """Celery's own publisher up to the wire: what it would push is pushed by an asyncio client.

    A synchronous publish would either block the event loop for as long as Redis is away, or cost a
    thread and two handovers for each message.
    """

    def __init__(self, celery: Celery) -> None:
        self._celery = celery
        connection = Connection(transport=_ComposingTransport)
        self._producer = celery.amqp.Producer(connection, auto_declare=False)
        self._channel: _ComposingChannel = self._producer.channel

    def compose(self, task: str, **options: Any) -> tuple[str, str]:
        """Return (Redis list, message) of a task that is to be sent; ``options`` as `send_task`."""
        self._celery.send_task(task, producer=self._producer, retry=False, **options)
        return self._channel.composed.pop()
