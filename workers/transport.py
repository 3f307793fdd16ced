"""The fleet's Redis transport: what a worker has room for arrives in one round trip.

kombu fetches one message per BRPOP. After each, this channel takes as many more as the prefetch
window has room for with one RPOP (Redis 6.2), so that calls arrive, and are claimed, in groups.
Nothing else differs; messages are hints (D1), so no acknowledgement is kept in Redis.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import redis
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads


class FleetChannel(redis.Channel):
    """A channel that fills its prefetch window at once."""

    def _brpop_read(self, **options: Any) -> Any:
        found = super()._brpop_read(**options)
        for queue in self.active_queues:
            room = self.qos.can_consume_max_estimate()
            if not room:
                break
            with self.conn_or_acquire() as client:
                items = client.rpop(queue, room) or ()
            for item in items:
                self.connection._deliver(loads(bytes_to_str(item)), queue)
        return found


class FleetTransport(redis.Transport):
    """kombu's Redis transport with `FleetChannel`."""

    Channel = FleetChannel
