"""What tests of approvals share: a gated tool, and people who decide about its calls."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from registry import approvals
from registry.approval_gate import use
from registry.approvals import Decided, Verdict
from registry.bindings import Sealer
from registry.calls import Claim
from registry.catalog import get_definition
from registry.database import Database
from tests.ledger import HOUR, Ledger, definition, listed, register, start

SECRET: Final = "a secret of at least thirty-two bytes"
SEALER: Final = Sealer(SECRET)


async def gated(database: Database, **rule: Any) -> Ledger:
    """Return an open run whose tools `pay` (write) and `look` (read) need an approval."""
    ledger = await Ledger.open(database)
    approval = rule or True
    server = definition(
        "gate",
        tool_prefix="demo_gate_",  # `Ledger.submit` calls tools by such names
        tools={
            "pay": {"approval": approval, "delivery": "write"},
            "look": {"approval": approval, "delivery": "read"},
        },
    )
    await register(database, server, listed("pay"), listed("look"))
    ledger.run = await start(database)
    return ledger


async def waiting_call(ledger: Ledger, tool: str = "gate_pay", **wish: Any) -> str:
    """Return the id of a call that waits."""
    return await ledger.submit(tool, **wish)


async def view(ledger: Ledger, call_id: str) -> dict[str, Any]:
    """Return a call as its approvers see it."""
    return await approvals.shown(ledger.database, SEALER, call_id)


async def decide(
    ledger: Ledger,
    call_id: str,
    *,
    approve: bool = True,
    actor: str = "boss",
    binding: str | None = None,
    holds: timedelta = HOUR,
) -> Decided:
    """Decide about a call, as it is shown now unless another binding is given."""
    binding = binding or (await view(ledger, call_id))["binding"]
    verdict = Verdict(call_id, binding, approve)
    return await approvals.decide(ledger.database, SEALER, verdict, actor=actor, holds=holds)


async def dispatch(
    ledger: Ledger, claim: Claim, *, tool: str = "pay", sealer: Sealer = SEALER
) -> None:
    """Ask for the approval of a claimed call, as a worker does before it sends the call."""
    served = await get_definition(ledger.database, claim.server_version_id)
    await use(ledger.database, SEALER, claim, served, tool, max_attempts=3)
