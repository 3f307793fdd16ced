"""One subscription to changes of what a server has (``subscriptions/listen``, 2026-07-28)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextlib import AsyncExitStack
from typing import Final

from mcp.client.session import ClientSession
from mcp.client.subscriptions import SubscriptionLost, listen

from registry.errors import Code, FleetError

CONFIRM_LIMIT_S: Final = 5.0


async def subscribe(
    client: ClientSession,
    server: str,
    *,
    lists: Collection[str] = ("tools",),
    resources: Collection[str] = (),
    on_hearing: Callable[[bool], None],
) -> None:
    """Have the server tell when some of its lists or resources change; return when it ends that.

    ``on_hearing`` is told when it is confirmed and when it is over. What the server tells is heard
    by the connection's read stream (`workers.exchange.Sieve`). Raises `protocol_error` when it is
    not confirmed, not in time, or without tools or resources that were asked for; what the SDK
    raises, when the connection is lost.
    """
    try:
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(CONFIRM_LIMIT_S):
                subscription = await stack.enter_async_context(
                    listen(
                        client,
                        tools_list_changed="tools" in lists,
                        prompts_list_changed="prompts" in lists,
                        resources_list_changed="resources" in lists,
                        resource_subscriptions=sorted(resources),
                    )
                )
            honored = subscription.honored
            heard = {name for name in lists if getattr(honored, f"{name}_list_changed")}
            if "tools" in set(lists) - heard or (lists and not heard):
                raise _not_confirmed(server, f"was confirmed without its {', '.join(lists)}")
            if not set(resources) <= set(honored.resource_subscriptions or ()):
                raise _not_confirmed(server, "was confirmed without all of its resources")
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
        f"server {server} says that it tells when what it has changes, but a subscription to that "
        f"{how}",
        hint="its lists are asked for at intervals; report it to the server's maintainer",
    )
