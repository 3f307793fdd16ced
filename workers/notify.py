"""Tells approvers, by a signed webhook, that calls wait (https://www.standardwebhooks.com).

What is told says which call and what to look at, never its arguments. The signature is that of
Standard Webhooks: HMAC-SHA256 over id, time and body. A receiver may get a notice twice, with the
same ``webhook-id``.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
import logging
from datetime import timedelta
from typing import Any, Final

import httpx2

from registry import notices
from registry.addresses import parse_network
from registry.database import Database
from registry.errors import FleetError
from registry.notices import Notice
from registry.settings import Settings
from workers.outbound import open_client

logger = logging.getLogger("toolfleet.steward")

PATIENCE_S: Final = 10.0
AT_ONCE: Final = 20
_LEASE: Final = timedelta(seconds=PATIENCE_S * 3)
_PREFIX: Final = "whsec_"


class Notifier:
    """The sender of one steward; raises `ValueError` for a URL without a secret to sign with."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._database = database
        self._url = settings.approval_webhook_url
        self._key = webhook_key(settings.approval_webhook_secret.get_secret_value())
        self._public_url = public_url(settings)
        self._client: httpx2.AsyncClient | None = None
        if self._url:
            if not self._key:
                raise ValueError(
                    "TOOLFLEET_APPROVAL_WEBHOOK_URL is set, TOOLFLEET_APPROVAL_WEBHOOK_SECRET is "
                    "not: notices are signed with it"
                )
            networks = [parse_network(text) for text in settings.outbound_networks]
            self._client = open_client(networks=networks, timeout_s=PATIENCE_S)

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()

    async def tell(self) -> None:
        """Tell what is due, side by side; nothing is due where no webhook is set."""
        if self._client is None:
            return
        due = await notices.take(self._database, lease=_LEASE, limit=AT_ONCE)
        if not due:
            return
        problems = await asyncio.gather(*(self._send(self._client, notice) for notice in due))
        given_up = await notices.settle(self._database, list(zip(due, problems, strict=True)))
        for notice, problem in zip(due, problems, strict=True):
            if problem is not None:
                logger.warning("approvers not told of call %s: %s", notice.call_id, problem)
        if given_up:
            logger.error("given up to tell approvers of calls %s", ", ".join(given_up))

    async def _send(self, client: httpx2.AsyncClient, notice: Notice) -> str | None:
        """Tell of one call; return why that failed, without the URL: it may hold a secret."""
        body = json.dumps(message(notice, self._public_url), separators=(",", ":")).encode()
        headers = {
            "content-type": "application/json",
            **signed(self._key, f"approval_{notice.call_id}", notice.time_s, body),
        }
        try:
            # The answer's body is of no interest, however long it is.
            async with (
                asyncio.timeout(PATIENCE_S),
                client.stream("POST", self._url, content=body, headers=headers) as answer,
            ):
                status = answer.status_code
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, TimeoutError, FleetError) as error:
            return type(error).__name__
        if 300 <= status < 400:
            return f"status {status}: a redirect, and none is followed"
        return None if 200 <= status < 300 else f"status {status}"


def message(notice: Notice, public: str) -> dict[str, Any]:
    """Return what is told about a call that waits."""
    return {
        "type": "approval.waiting",
        "timestamp": notice.waits_since.isoformat(),
        "data": {
            "call_id": notice.call_id,
            "run_id": notice.run_id,
            "tenant": notice.tenant,
            "server": notice.server,
            "tool": notice.tool,
            "delivery": notice.delivery,
            "requested_by": notice.requested_by,
            "expires_at": notice.expires_at.isoformat(),
            "link": f"{public}/v1/approvals/{notice.call_id}",
        },
    }


def signed(key: bytes, id_: str, time_s: int, body: bytes) -> dict[str, str]:
    """Return the headers that show who sent a body, and when."""
    digest = hmac.digest(key, f"{id_}.{time_s}.".encode() + body, "sha256")
    return {
        "webhook-id": id_,
        "webhook-timestamp": str(time_s),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def webhook_key(secret: str) -> bytes:
    """Return the key of a secret: base64 behind ``whsec_``, else the text itself.

    Raises `ValueError` for what claims to be base64 and is not.
    """
    if not secret.startswith(_PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError(
            f"TOOLFLEET_APPROVAL_WEBHOOK_SECRET is no base64 behind {_PREFIX}"
        ) from error


def public_url(settings: Settings) -> str:
    """Return where approvers reach the API, without a slash at its end."""
    return settings.public_url.rstrip("/") or f"http://{settings.api_host}:{settings.api_port}"
