"""Whether a server version's tools may differ from those on record, and when to list them again.

Pure decisions; times are the clock's seconds.

1. What is heard is never lost: only a listing that was begun after it answers it.
2. A listing that failed is owed until one succeeds.
3. However often there is news, tools are listed at most once a second, and less and less often,
   down to once in `LONGEST_S`, while that changes nothing. A request by hand waits for nothing more
   than the second.
4. A server that introduces itself otherwise than when its tools were listed is news, unless it has
   done so `STRANGE_LIMIT` times within `STRANGE_S` without listing other tools.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from workers.lending import SessionKey

SHORTEST_S: Final = 0.9  # the watch that asks comes round once a second
LONGEST_S: Final = 10.0
QUIET_S: Final = 60.0
"""After so long without a listing, the next ones are prompt again."""
FREE_LISTINGS: Final = 3
"""So many in a row may change nothing before they become rarer."""
STRANGE_LIMIT: Final = 5
STRANGE_S: Final = 3600.0


class ListingWatch:
    """What one worker knows of one version's tools; ``on_news`` is told when they may have changed.

    A new one owes a listing: nobody listened before. ``on_news`` is not told again before that has
    been answered, nor while a failed listing is on record.
    """

    def __init__(
        self, on_news: Callable[[], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._on_news = on_news
        self._clock = clock
        self._news = 1
        self._asked = self._answered = 0
        self._begun_at = -math.inf
        self._owed = False  # a listing was begun and has not succeeded
        self._in_vain = 0
        self._key: SessionKey | None = None
        self._introductions: set[str] = set()
        self._strange: deque[float] = deque(maxlen=STRANGE_LIMIT)
        self._newest = self._listed_as = ""  # of introductions that no listing has answered
        self._closed = False

    def close(self) -> None:
        """Tell nobody of news any more."""
        self._closed = True

    # -- hearing

    def heard(self) -> None:
        """Note that the tools may have changed; costs nothing, however often."""
        first = self._news == self._asked
        self._news += 1
        if first and not self._owed and not self._closed:
            self._on_news()

    def met(self, introduction: str, key: SessionKey) -> None:
        """Note how the server introduced itself to a new session.

        Only sessions of the holder that the tools are listed for count: what a server says may
        depend on whom it speaks to.
        """
        if self._key is None or key.holder != self._key.holder:
            return
        now = self._clock()
        often = len(self._strange) == STRANGE_LIMIT and now - self._strange[0] < STRANGE_S
        if introduction in (self._newest, *self._introductions) or often:
            return
        self._strange.append(now)
        self._newest = introduction
        self.heard()

    # -- listing

    @property
    def pending(self) -> bool:
        """Say whether there is news that no listing has answered."""
        return self._news > self._answered

    def due(self, *, stale: bool, failed: bool) -> bool:
        """Say whether to list now, given what the record says of the server's tools.

        ``stale``: they are not known to be current; ``failed``: an error is the reason on record.
        """
        if not (stale or self.pending):
            return False
        by_hand = stale and not failed and (self._owed or not self.pending)
        pause_s = SHORTEST_S if by_hand else self.pause_s
        return self._clock() - self._begun_at >= pause_s

    @property
    def pause_s(self) -> float:
        """Return the seconds from the latest listing to the next one, if there is news."""
        if self._in_vain < FREE_LISTINGS:
            return SHORTEST_S
        return float(min(LONGEST_S, 2.0 ** (self._in_vain - FREE_LISTINGS + 1)))

    @property
    def due_in_s(self) -> float:
        """Return the seconds until tools may be listed again."""
        return max(0.0, self._begun_at + self.pause_s - self._clock())

    def outdated(self, introduction: str) -> str:
        """Say why a child that introduced itself so is not to be used any more, if so.

        It was started from what has been replaced since.
        """
        return "outdated" if self._newest and introduction != self._newest else ""

    def begin(self) -> None:
        """Note that a listing begins: it answers all that was heard until now, if it succeeds."""
        now = self._clock()
        if now - self._begun_at > QUIET_S:
            self._in_vain = 0
        self._in_vain += 1
        self._begun_at = now
        self._asked = self._news
        self._owed = True
        self._listed_as = self._newest

    def succeeded(self, introduction: str, key: SessionKey, *, changed: bool) -> None:
        """Note that it did, and how the server introduced itself to the session that it took."""
        self._answered = self._asked
        self._owed = False
        self._key = key
        if changed:
            self._in_vain = 0
            self._strange.clear()
            self._introductions.clear()
        self._introductions |= {introduction, self._listed_as}
        if self._newest == self._listed_as:
            self._newest = ""
