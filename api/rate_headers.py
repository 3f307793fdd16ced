"""How a caller is told of its rates: RateLimit-Policy and RateLimit, as the IETF's draft has them.

draft-ietf-httpapi-ratelimit-headers: each limit is an item, its name quoted; ``q`` calls may be
submitted in ``w`` seconds, ``r`` of them are left, and after ``t`` seconds there are more. For a
bucket ``q`` is what it holds, and ``w`` how long it takes to fill.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from registry.errors import FleetError
from workers.client import Standing

_UNQUOTABLE: Final = re.compile(r"[^ !#-\[\]-~]")


def headers_of(standings: Sequence[Standing]) -> dict[str, str]:
    """Return the headers that tell a caller where it stands; none for one without limits."""
    return _headers([it.as_dict() for it in standings])


def headers_of_refusal(error: FleetError) -> dict[str, str]:
    """Return the headers of an error that a limit is the reason for; none for others."""
    return _headers(error.details.get("limits", ()))


def _headers(limits: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    if not limits:
        return {}
    policy, state = [], []
    for it in limits:
        name = f'"{_UNQUOTABLE.sub("?", it["limit"])} {it["period_s"]}s"'
        window_s = math.ceil(it["burst"] * it["period_s"] / it["calls"])
        policy.append(f"{name};q={it['burst']};w={window_s}")
        state.append(f"{name};r={it['left']};t={math.ceil(it['wait_s'])}")
    return {"ratelimit-policy": ", ".join(policy), "ratelimit": ", ".join(state)}
