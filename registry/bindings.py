"""What an approval binds, and how nobody but the fleet can make one: pure.

A binding is a keyed digest of everything about a call that an approver is shown and a server will
be told: equal bindings, the same call of the same tool with the same arguments. Being keyed it
tells nobody which arguments it was made of. A decision is sealed with the same secret, so that who
can write to the database, and to nothing else, can neither change a call after its approval nor
approve one.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from registry.definitions import Delivery, canonical
from registry.errors import Code, FleetError

HIDDEN: Final = "[hidden]"
_PURPOSE: Final = b"toolfleet.approvals.1"


@dataclass(frozen=True)
class Facts:
    """What is approved of a call: who asked, under which snapshot, and what a server is told."""

    call: str
    tenant: str
    run: str
    snapshot: str
    requested_by: tuple[str, str]
    """Who submitted the call, and who started its run."""
    server: str
    server_version: int
    server_digest: str
    tool: str
    """As the model calls it."""
    tool_name: str
    """As the server calls it."""
    tool_version: int
    tool_digest: str
    delivery: Delivery
    approvers: int
    """How many have to approve."""
    arguments: Any


@dataclass(frozen=True)
class Decision:
    """One approver's word about one binding."""

    binding: str
    approve: bool
    decided_by: str
    decided_at: datetime
    holds_until: datetime
    reason: str | None = None
    seal: str = ""


class Sealer:
    """Makes and checks bindings and seals with the fleet's secret key (`Settings.secret_key`).

    Raises `internal` without one: an approval that cannot be checked is none.
    """

    def __init__(self, secret_key: str) -> None:
        if not secret_key:
            raise FleetError(
                Code.INTERNAL,
                "approvals cannot be made or checked: TOOLFLEET_SECRET_KEY is empty",
                hint="give every process of the fleet the same key",
            )
        self._key = hmac.digest(secret_key.encode(), _PURPOSE, "sha256")

    def binding(self, facts: Facts) -> str:
        """Return the binding of a call, as 64 hex digits."""
        return self._of("call", {**vars(facts), "delivery": facts.delivery.value})

    def seal(self, decision: Decision) -> str:
        """Return what shows that a decision is the fleet's own, as 64 hex digits."""
        return self._of(
            "decision",
            {
                "binding": decision.binding,
                "approve": decision.approve,
                "decided_by": decision.decided_by,
                "holds_until": _micros(decision.holds_until),
            },
        )

    def genuine(self, decision: Decision) -> bool:
        """Say whether a decision carries its own seal."""
        return hmac.compare_digest(self.seal(decision), decision.seal)

    def _of(self, kind: str, said: Mapping[str, Any]) -> str:
        try:
            body = canonical([kind, dict(said)])
        except (ValueError, RecursionError) as error:
            raise mismatch("its arguments are not what was ever submitted") from error
        return hmac.digest(self._key, body, "sha256").hex()


def approvers(decisions: Iterable[Decision], binding: str, sealer: Sealer) -> set[str]:
    """Return who has approved exactly this binding."""
    return {
        it.decided_by
        for it in decisions
        if it.approve and it.binding == binding and sealer.genuine(it)
    }


def refuse_unless_approved(
    facts: Facts,
    decisions: Sequence[Decision],
    sealer: Sealer,
    *,
    now: datetime,
) -> None:
    """Raise unless a call, as it is about to be dispatched, has all the approvals that it needs.

    Raises `policy_denied` when somebody denied it, `approval_mismatch` when too few approved this
    very call, `approval_expired` when too few of those approvals still hold.
    """
    if any(not it.approve for it in decisions):
        raise FleetError(Code.POLICY_DENIED, f"call {facts.call} of {facts.tool} was denied")
    binding = sealer.binding(facts)
    others = [it for it in decisions if it.decided_by not in facts.requested_by]
    if len(approvers(others, binding, sealer)) < facts.approvers:
        raise mismatch("too few others approved it as it is now")
    holding = [it for it in others if it.holds_until > now]
    if len(approvers(holding, binding, sealer)) < facts.approvers:
        raise approval_expired()


def approval_expired() -> FleetError:
    """Return the error that ends a call whose approval was not used in time."""
    return FleetError(
        Code.APPROVAL_EXPIRED,
        "the approval of the call expired before a worker could run it",
        hint="submit the call again; TOOLFLEET_APPROVAL_HOLDS says how long an approval holds",
    )


def mismatch(why: str) -> FleetError:
    """Return the error for a call that differs from the one that was approved."""
    return FleetError(
        Code.APPROVAL_MISMATCH,
        f"the call is not the one that was approved: {why}",
        hint="submit the call again, and look in the audit for who changed what",
    )


def holds_until(now: datetime, waits_until: datetime, holds: timedelta, *, last: bool) -> datetime:
    """Return until when an approval holds: ``holds`` from the moment that the last one is given.

    One that others have yet to join holds for as long as the call may wait for them, and then so.
    """
    return (now if last else max(now, waits_until)) + holds


def hide(arguments: Any, pointers: Iterable[str]) -> tuple[Any, list[str]]:
    """Return arguments without what is at these JSON pointers, and those that hid something."""
    hid = []
    for pointer in pointers:
        keys = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]
        found, arguments = _hide(arguments, keys)
        if found:
            hid.append(pointer)
    return arguments, hid


def _hide(value: Any, keys: Sequence[str]) -> tuple[bool, Any]:
    if not keys:
        return True, HIDDEN
    key, rest = keys[0], keys[1:]
    if isinstance(value, dict) and key in value:
        found, inner = _hide(value[key], rest)
        return found, {**value, key: inner}
    if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
        found, inner = _hide(value[int(key)], rest)
        return found, [*value[: int(key)], inner, *value[int(key) + 1 :]]
    return False, value


def _micros(at: datetime) -> str:
    """Return an instant as text that does not depend on the session's time zone."""
    return f"{at.timestamp():.6f}"
