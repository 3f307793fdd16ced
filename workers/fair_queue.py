"""Fair turns between tenants and priorities inside one queue: weights, keys and scripts.

Self-clocked fair queueing (Golestani, 1994). A message gets its turn, a number, when it is sent:
its cost, counted from the turn of its tenant's message before it or, if that is later, from the
turn that was taken last. Workers take the lowest turn; equal turns in the order of arrival. So a
tenant that has sent little waits behind few, whatever others have piled up, and one that was away
has saved nothing up. Sending and taking are O(log n).

The Redis list ``mcp.<server>`` stays what Celery, Flower and autoscalers know: one element for each
waiting message. An element is a ticket, on which whoever takes it asks for the next message, or a
message itself: the first in an empty queue, one that a worker gave back, or one sent by others.

Invariants:
 1. While two tenants wait, what each was served, times its cost, differs by one cost of each at
    most: the lowest priority is served too.
 2. The messages of one tenant are taken in the order in which they were sent.
 3. A message is taken once. A ticket without a message is dropped; messages without a ticket are
    found when others are taken, and by a worker that begins to consume or has had nothing to do.
 4. Nothing is kept about a tenant without waiting messages, nor about a queue without any.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

HIGHEST_PRIORITY: Final = 9


def cost(priority: int) -> int:
    """Return what a message of a priority costs its tenant: half as much for each step up.

    So weights are 2^(priority - 5) beside that of the default 5: at 8 a tenant is served eight
    times as often, at 0 a thirty-second. What is not in 0..9 counts as the nearer end.
    """
    return 1 << HIGHEST_PRIORITY - min(max(priority, 0), HIGHEST_PRIORITY)


def keys(queue: str) -> list[str]:
    """Return the keys of a queue: its list, and three beside it in the same Redis cluster slot."""
    return [queue, *(f"{{{queue}}}:{part}" for part in ("waiting", "tenants", "clock"))]


def _source(name: str) -> str:
    folder = Path(__file__).parent
    return "".join((folder / f"fair_{part}.lua").read_text() for part in ("state", name))


TICKET: Final = "next"
"""What a ticket is once it is read as JSON."""
PUSH: Final = _source("push")
TAKE: Final = _source("take")
