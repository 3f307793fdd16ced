"""For how long a server wants to be left alone, by the headers of its refusal.

Where dates are compared both are the server's, so its clock need not agree with ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Final

TOO_MANY: Final = 429
_EPOCH_S: Final = 1e9  # what is larger is an instant, not a time to wait
_RESET: Final = re.compile(r";\s*r=0\b[^,]*;\s*t=(\d+)")
_LONG: Final = ("ratelimit-reset", "x-ratelimit-reset", "x-rate-limit-reset")


def retry_after_s(status: int, headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait; None when the server did not say.

    ``Retry-After`` counts first. A 429 without it may tell when the limit is reset: as `RateLimit`
    of the IETF's draft, or as the headers that were usual before.
    """
    value = headers.get("retry-after", "").strip()
    if value:
        return float(value) if value.isdigit() else _until(value, headers)
    if status != TOO_MANY:
        return None
    if waits := _RESET.findall(headers.get("ratelimit", "")):
        return max(map(float, waits))
    for name in _LONG:
        with suppress(ValueError):
            reset = float(headers.get(name, ""))
            if 0 <= reset < _EPOCH_S:
                return reset
            if (now := _instant(headers)) is not None and reset >= now:
                return reset - now
    return None


def _until(value: str, headers: Mapping[str, str]) -> float | None:
    with suppress(ValueError, TypeError):
        later = parsedate_to_datetime(value).timestamp()
        return None if (now := _instant(headers)) is None else max(0.0, later - now)
    return None


def _instant(headers: Mapping[str, str]) -> float | None:
    """Return when the server says that it is now."""
    with suppress(ValueError, TypeError):
        return parsedate_to_datetime(headers.get("date", "")).timestamp()
    return None
