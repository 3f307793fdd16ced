"""One subscription to changes of a server's tools (``subscriptions/listen``, 2026-07-28)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Final

from mcp.client.session import ClientSession
from mcp.client.subscriptions import SubscriptionLost, listen

from registry.errors import Code, FleetError

CONFIRM_LIMIT_S: Final = 5.0


async def subscribe(
    client: ClientSession, server: str, *, on_hearing: Callable[[bool], None]
) -> None:
    """Have the server tell when its tools change; return when it ends the subscription.

    ``on_hearing`` is told when it is confirmed and when it is over. What the server tells is heard
    by the connection's read stream (`workers.exchange.Sieve`). Raises `protocol_error` when it is
    not confirmed, not for tools, or not in time; what the SDK raises, when the connection is lost.
    """
    try:
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(CONFIRM_LIMIT_S):
                subscription = await stack.enter_async_context(
                    listen(client, tools_list_changed=True)
                )
            if not subscription.honored.tools_list_changed:
                raise _not_confirmed(server, "was confirmed without its tools")
            on_hearing(True)
            async for _ in subscription:
                pass
    except TimeoutError:
        raise _not_confirmed(server, f"was not confirmed in {CONFIRM_LIMIT_S:g} s") from None
    except SubscriptionLost as lost:
        if isinstance(lost.__cause__, Exception):
            raise lost.__cause__ from lost
        # The server has cancelled it: that is its right.
    finally:
        on_hearing(False)


def _not_confirmed(server: str, how: str) -> FleetError:
    return FleetError(
        Code.PROTOCOL_ERROR,
        f"server {server} says that it tells when its tools change, but a subscription to that "
        f"{how}",
        hint="its tools are listed at intervals; report it to the server's maintainer",
    )
