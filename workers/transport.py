"""How messages travel: fetched in groups by workers, composed here and sent without a thread.

kombu fetches one element of the queue's list per BRPOP. A ticket among them stands for the message
whose turn it is, which a script then takes (see `workers.fair_queue`). While a queue is deep this
channel takes, after each, as many more as the prefetch window has room for with one script, so that
calls arrive, and are claimed, in groups.
Nothing else differs; messages are hints (D1), so no acknowledgement is kept in Redis.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import cached_property
from queue import Empty
from time import monotonic
from typing import Any, Final

from celery import Celery
from kombu.connection import Connection
from kombu.transport import redis, virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads

from workers import fair_queue

logger = logging.getLogger("toolfleet.worker")

AT_ONCE_S: Final = 0.002


class _TicketTaken(Exception):
    """A ticket was taken from a queue's list; its message is still to be asked for."""

    def __init__(self, queue: str) -> None:
        super().__init__(queue)
        self.queue = queue


class FleetChannel(redis.Channel):
    """A channel that takes messages in their turn, and fills its window while its queue is deep."""

    _deep = False

    def basic_consume(self, queue: str, *args: Any, **kwargs: Any) -> Any:
        """Consume a queue, once its list tells of every waiting message."""
        if queue not in self._fanout_queues:
            self._find_lost([queue])
        return super().basic_consume(queue, *args, **kwargs)

    def _brpop_read(self, **options: Any) -> Any:
        sent_at: float | None = self._brpop_sent_at
        waited_s = monotonic() - (sent_at or 0.0)
        queues = [] if self._closing else self.active_queues
        ticket = None
        try:
            found = super()._brpop_read(**options)
        except _TicketTaken as taken:
            found, ticket = True, taken.queue
        except Empty:
            self._find_lost(queues)
            raise
        except (ValueError, RecursionError):  # no JSON
            logger.warning("what was no message was dropped from %s", ", ".join(queues))
            found = True
        if ticket is not None and ticket not in queues:
            self._give_back(ticket)
        # A BRPOP that had to wait found the queue empty: asking for more would be a trip for none,
        # or would take what the tickets that came along have woken other workers for.
        elif self._deep or waited_s < AT_ONCE_S:
            filled = [self._fill_from(queue, int(queue == ticket)) for queue in queues]
            self._deep = any(filled)
        elif ticket is not None:
            self._deliver_all(ticket, self._take(ticket, 1, 1))
        return found

    def _fill_from(self, queue: str, tickets: int) -> bool:
        room = max(self.qos.can_consume_max_estimate() or 0, tickets)
        if not room:
            return self._deep
        items = self._take(queue, room, tickets)
        self._deliver_all(queue, items)
        return bool(items)

    def _deliver_all(self, queue: str, items: list[bytes]) -> None:
        for item in items:
            try:
                message = loads(bytes_to_str(item))
            except (ValueError, RecursionError):
                logger.warning("what was no message was dropped from %s", queue)
            else:
                self.connection._deliver(message, queue)

    @cached_property
    def _taker(self) -> Any:
        return self._create_client().register_script(fair_queue.TAKE)

    def _take(self, queue: str, most: int, tickets: int = 0) -> list[bytes]:
        """Take messages in their turn; ``tickets`` of theirs were taken from the list before."""
        found: list[bytes] = self._taker(keys=fair_queue.keys(queue), args=[most, tickets])
        return found

    def _find_lost(self, queues: list[str]) -> None:
        """Have the lists of queues tell of messages whose tickets were lost."""
        for queue in queues:
            self._take(queue, 0)

    def _give_back(self, queue: str) -> None:
        with self.conn_or_acquire() as client:
            client.rpush(queue, dumps(fair_queue.TICKET))

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        items = self._take(queue, 1)
        if not items:
            raise Empty
        return loads(bytes_to_str(items[0]))

    def _restore(self, message: Any, leftmost: bool = False) -> None:
        """Put a message that was not started where it was: its turn has come already."""
        payload = {**message.serializable(), "redelivered": True}
        info = message.delivery_info
        with self.conn_or_acquire() as client:
            for queue in self._lookup(info["exchange"], info["routing_key"]):
                client.rpush(queue, dumps(payload))

    def _purge(self, queue: str) -> Any:
        purged = super()._purge(queue)
        with self.conn_or_acquire() as client:
            client.delete(*fair_queue.keys(queue))
        return purged


class FleetTransport(redis.Transport):
    """kombu's Redis transport with `FleetChannel`."""

    Channel = FleetChannel

    def _deliver(self, message: Any, queue: str) -> None:
        if message == fair_queue.TICKET:
            raise _TicketTaken(queue)
        try:
            super()._deliver(message, queue)
        except self.connection_errors:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is that somebody wrote into Redis
            # It must not end the worker, nor keep a place in it.
            name = type(error).__name__
            logger.warning("a message that cannot be read was dropped from %s: %s", queue, name)
            self._drop(message)

    def _drop(self, message: Any) -> None:
        """Take a message that was delivered in part out of its channel's prefetch window."""
        with suppress(LookupError, TypeError):
            tag = message["properties"]["delivery_tag"]
            for channel in self.channels:
                if tag in channel.qos._delivered:
                    channel.qos.ack(tag)


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
