"""Whether a submission is within its tenant's rates: asked once, before the call is a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

from registry.calls import NewCall
from registry.definitions import Delivery
from registry.errors import Code, FleetError
from registry.rates import Bucket
from workers.limits_redis import Ask, Limiter
from workers.limits_state import Answer

ASKERS: Final = "submissions"
_PERIODS: Final = {1: "a second", 60: "a minute", 3600: "an hour"}
_READS: Final = frozenset({Delivery.READ, Delivery.IDEMPOTENT})


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a caller stands with one of its limits."""

    limit: str
    """What is limited: ``tenant``, ``tier``, or the tools of a pattern (``tool crm/*``)."""
    calls: int
    period_s: int
    burst: int
    left: int
    """Calls that could be submitted at once now."""
    wait_s: float
    """Until there is one more."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as it is told (JSON-ready)."""
        return {**asdict(self), "wait_s": round(self.wait_s, 3)}


class Admission:
    """The door for submissions of this process (`registry.submission.Admission`)."""

    def __init__(
        self, limiter: Limiter, on_standing: Callable[[list[Standing]], None] | None = None
    ) -> None:
        self._limiter = limiter
        self._on_standing = on_standing

    def telling(self, on_standing: Callable[[list[Standing]], None] | None) -> Admission:
        """Return a door that tells where a tenant stands after its call was taken."""
        return Admission(self._limiter, on_standing)

    async def take(self, call: NewCall) -> None:
        """Take a call from its buckets; raise `tenant_limited`.

        Raises `limiter_unavailable` for a call that may change something while Redis is away.
        """
        counts = self._limiter.counts
        try:
            answer = await self._limiter.take(
                Ask(call.buckets, ASKERS), by_share=call.delivery in _READS
            )
        except FleetError:
            counts[call.buckets[0].kind, "unavailable"] += 1
            raise
        if answer.short is not None:
            short = call.buckets[answer.short]
            counts[short.kind, "refused"] += 1
            raise _refusal(short, answer, standings(call.buckets, answer))
        counts[call.buckets[0].kind, "granted"] += 1
        if self._on_standing is not None:
            self._on_standing(standings(call.buckets, answer))

    def give_back(self, call: NewCall) -> None:
        """Put back what was taken for a call that came to nothing."""
        self._limiter.give_back(call.buckets, ASKERS)


def standings(buckets: tuple[Bucket, ...], answer: Answer) -> list[Standing]:
    """Return where a caller stands with each of its limits."""
    return [
        Standing(
            bucket.kind if bucket.kind != "tool" else f"tool {_pattern(bucket)}",
            bucket.calls,
            bucket.period_s,
            bucket.burst,
            left,
            answer.wait_s if number == answer.short else 0.0 if left else bucket.interval_s,
        )
        for number, (bucket, left) in enumerate(zip(buckets, answer.left, strict=True))
    ]


def _refusal(short: Bucket, answer: Answer, found: list[Standing]) -> FleetError:
    who = short.name.split(":")[1]
    of_whom = f"tenant {who!r}"
    if short.kind == "tier":
        of_whom = f"the tenants of tier {who!r} together"
    elif short.kind == "tool":
        of_whom += f", of {_pattern(short)},"
    return FleetError(
        Code.TENANT_LIMITED,
        f"{of_whom} may submit {short.calls} calls {_PERIODS[short.period_s]}, "
        f"{short.burst} of them at once",
        hint="send it again after retry_after_s, or ask an operator for another tier",
        retry_after_s=answer.wait_s,
        details={"limits": [it.as_dict() for it in found]},
    )


def _pattern(bucket: Bucket) -> str:
    """Return the pattern of a tool's bucket; it may hold a colon itself."""
    return bucket.name.split(":", 2)[2].rpartition(":")[0]
