"""A fair queue in plain Python: what the scripts have to do, told without Redis.

Each tenant's messages stand in a line of their own, and the next one is looked for among the heads;
the scripts keep one sorted set instead. So the two agree only if both are right.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from workers.fair_queue import cost

TICKET = '"next"'


@dataclass
class FairQueueModel:
    """One queue; `elements` is its list in Redis, the next element last."""

    elements: list[str] = field(default_factory=list)
    lines: dict[str, deque[tuple[int, int, str]]] = field(default_factory=dict)
    """By tenant: turn, number of arrival, message."""
    now: int = 0
    sent: int = 0

    @property
    def waiting(self) -> int:
        """Return how many messages stand in the lines."""
        return sum(map(len, self.lines.values()))

    def push(self, batch: Sequence[tuple[str, int, str]]) -> None:
        """Send messages: tenant, priority, message."""
        for tenant, priority, message in batch:
            if not self.elements and not self.waiting:
                self.elements.append(message)
                continue
            line = self.lines.setdefault(tenant, deque())
            last = line[-1][0] if line else 0
            self.sent += 1
            line.append((max(self.now, last) + cost(priority), self.sent, message))
            self.elements.insert(0, TICKET)

    def take(self, most: int, tickets: int = 0) -> list[str]:
        """Take up to ``most`` messages; ``tickets`` of theirs are taken from the list already."""
        found = []
        for _ in range(min(most - tickets, len(self.elements))):
            element = self.elements.pop()
            if element != TICKET:
                found.append(element)
        while len(found) < most and self.lines:
            tenant = min(self.lines, key=lambda it: self.lines[it][0])
            self.now, _, message = self.lines[tenant].popleft()
            found.append(message)
            if not self.lines[tenant]:
                del self.lines[tenant]
        if not self.lines:
            self.now = self.sent = 0
        self.elements[:0] = [TICKET] * (self.waiting - len(self.elements))
        return found
