"""How a server refuses who comes without a token, or with one that is not good enough."""

from __future__ import annotations

from typing import Final

from registry.challenge import Challenge
from registry.definitions import ServerDefinition
from registry.errors import Code, FleetError
from workers.connection import Credential
from workers.session import Session

_STOP_GRACE_S: Final = 1.0
_LARGEST_LISTING: Final = 10_000_000
_REFUSED: Final = frozenset({Code.CREDENTIAL_REJECTED, Code.UPSTREAM_FORBIDDEN})


async def refusal_of(
    definition: ServerDefinition, credential: Credential | None = None
) -> FleetError | None:
    """Return how a server refuses who comes like this; None if it lists its tools.

    Raises what else is wrong with it.
    """
    session = None
    try:
        session = await Session.open(
            definition,
            credential=credential,
            connect_timeout_s=definition.timeouts.connect_s,
            stop_grace_s=_STOP_GRACE_S,
            max_result_bytes=_LARGEST_LISTING,
        )
        await session.list_tools()
    except FleetError as error:
        if error.code not in _REFUSED:
            raise
        return error
    finally:
        if session is not None:
            await session.close()
    return None


def challenge_of(refusal: FleetError | None) -> Challenge | None:
    """Return what a refusal asks for, None where it does not say."""
    said = refusal.details.get("challenge") if refusal is not None else None
    return Challenge.of(said) if isinstance(said, dict) else None
