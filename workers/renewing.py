"""Renewing tokens: when, by whom, and what is told to those who wait for one.

Within a process one task renews a credential, whoever waits for it; among processes the lease of
its row decides (`registry.renewals`). Cancelling who waits cancels no renewal: what an
authorization server has answered must be stored, and is tried until it is. The one gap is a
process that dies between the answer and the record: the server may have replaced the refresh token
by one that nobody has.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import replace as replaced
from datetime import timedelta
from typing import Any, Final

from registry import renewals
from registry.addresses import Network
from registry.credential_kinds import OAuth, RefreshToken
from registry.database import Database
from registry.errors import Code, FleetError
from registry.oauth import Failure, TokenError, Tokens, pause_s, renew_in_s
from registry.stored_credential import Content, CredentialState, StoredCredential
from workers.authorization_servers import AuthorizationServers
from workers.credential_rows import CredentialRows, Known

logger = logging.getLogger("toolfleet.credentials")

LEASE: Final = timedelta(seconds=45)
"""Longer than a renewal takes: login of an exchange, metadata, request and record."""
TAKE_OVER_S: Final = 3.0
"""For how long a lapsed lease is watched before it is taken over."""
PATIENCE_S: Final = 10.0
"""How long a call waits for a token."""
LOOK_S: Final = 0.15
STORE_AGAIN_S: Final = 0.2
CLOSE_LIMIT_S: Final = 8.0


@dataclass(frozen=True)
class _Lapsed:
    holder: str
    since: float


class Renewals:
    """The renewals of one process; ``worker`` is what the audit calls it."""

    def __init__(
        self,
        database: Database,
        rows: CredentialRows,
        servers: AuthorizationServers,
        worker: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._database = database
        self._rows = rows
        self._servers = servers
        self._worker = worker
        self._clock = clock
        self._chance = chance
        self._patience_s = patience_s
        self._running: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._lapsed: dict[tuple[str, str], _Lapsed] = {}

    def start(
        self, stored: StoredCredential, networks: Sequence[Network], *, forced: bool = False
    ) -> asyncio.Task[None]:
        """Renew a credential, unless that is under way here or elsewhere; the task never raises."""
        name = (stored.tenant, stored.server)
        task = self._running.get(name)
        if task is None:
            renewing = self._renew(stored, networks, forced=forced)
            task = self._running[name] = asyncio.create_task(_reported(renewing, name))
            task.add_done_callback(lambda _: self._running.pop(name))
        return task

    async def fresh(self, known: Known, networks: Sequence[Network]) -> tuple[Known, str]:
        """Return a credential whose token lives, renewed by whomever, and that token.

        Raises `credential_expired` when only a consent helps, `credential_unavailable` when there
        is none in time, or the next try has to wait.
        """
        give_up = self._clock() + self._patience_s
        name = (known.stored.tenant, known.stored.server)
        while (token := await self._token(known)) is None:
            self._refuse(known, give_up)
            if name in self._running or not self._renewed_elsewhere(known):
                task = self.start(known.stored, networks)
                await asyncio.wait([task], timeout=max(give_up - self._clock(), 0.0))
                found = await self._rows.get(*name)
            else:
                await asyncio.sleep(LOOK_S * (1 + self._chance()))
                found = await self._rows.read_again(*name)
            if found is None:
                raise _unavailable(known.stored, "it was removed meanwhile", 0.0)
            if found.stored == known.stored:  # Postgres was away, or a lease has to lapse
                await asyncio.sleep(LOOK_S)
            known = found
        return known, token

    async def replace(self, known: Known, networks: Sequence[Network]) -> None:
        """Have a token replaced whose server rejects it; return once it is, or will not be.

        That is so at most once a minute for the whole fleet; who comes second waits for the first.
        """
        give_up = self._clock() + self._patience_s
        name = (known.stored.tenant, known.stored.server)
        task = self.start(known.stored, networks, forced=True)
        await asyncio.wait([task], timeout=self._patience_s)
        now = await self._rows.get(*name)
        while (
            now is not None
            and now.stored.version == known.stored.version
            and self._renewed_elsewhere(now)
            and self._clock() < give_up
        ):
            await asyncio.sleep(LOOK_S * (1 + self._chance()))
            now = await self._rows.read_again(*name)

    async def close(self) -> None:
        """Give the renewals under way a moment to be recorded; what is left is cancelled."""
        running = list(self._running.values())
        if running:
            _, late = await asyncio.wait(running, timeout=CLOSE_LIMIT_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _token(self, known: Known) -> str | None:
        """Return a credential's token, None where it has none that lives."""
        if not known.lives(self._clock()):
            return None
        return (await self._rows.content(known.stored)).access_token

    def _refuse(self, known: Known, give_up: float) -> None:
        stored, now = known.stored, self._clock()
        problem = (stored.problem or {}).get("message", "")
        if stored.state is CredentialState.NEEDS_CONSENT:
            raise FleetError(
                Code.CREDENTIAL_EXPIRED,
                f"the credential of {stored.tenant!r} for server {stored.server} is no longer "
                f"accepted: {problem}",
                hint="somebody has to consent again, with `toolfleet credentials authorize`; or an "
                "operator sets a new one with `toolfleet credentials set`",
            )
        if (pause := known.pausing_s(now)) > 0:
            raise _unavailable(stored, problem, pause)
        if now >= give_up:
            raise _unavailable(stored, problem or "its renewal takes too long", 1.0)

    # -- one renewal

    async def _renew(
        self, stored: StoredCredential, networks: Sequence[Network], *, forced: bool
    ) -> None:
        name = (stored.tenant, stored.server)
        taken = await renewals.take(
            self._database,
            stored,
            by=f"{self._worker}/{uuid.uuid4().hex}",
            lease=LEASE,
            abandoned=self._abandoned(name),
            forced=forced,
        )
        if taken is None:
            now = await self._rows.read_again(*name)
            self._watch(name, now)
            return
        try:
            content = await self._rows.content(taken)
            credential = taken.credential(content)
            assert isinstance(credential, OAuth)
            # At hand before anything is asked: what is answered must not wait for a key.
            key = await self._rows.key(taken)
            tokens = await self._servers.tokens(credential, networks, now=taken.now)
        except TokenError as error:
            await self._failed(taken, error)
        except FleetError as error:
            await self._failed(taken, TokenError(Failure.TRANSIENT, error.message))
        else:
            await self._keep(taken, key, content, tokens)
        with suppress(FleetError):  # the next look at the record brings it
            await self._rows.read_again(*name)

    async def _keep(
        self, taken: StoredCredential, key: bytes, content: Content, tokens: Tokens
    ) -> None:
        secrets = content.secrets
        if tokens.refresh_token is not None and taken.definition["kind"] == _REFRESH:
            secrets = {**secrets, "refresh_token": tokens.refresh_token}
        fresh = replaced(content, secrets=secrets, access_token=tokens.access_token)
        life_s = tokens.life_s

        async def keep() -> bool:
            return await renewals.keep(
                self._database, taken, key, fresh, by=self._worker, life_s=life_s,
                renew_in_s=renew_in_s(life_s, self._chance()) if life_s is not None else None,
            )  # fmt: skip

        if not await self._recorded(keep, taken):
            logger.info("the credential for %s was set anew while it was renewed", taken.server)

    async def _failed(self, taken: StoredCredential, error: TokenError) -> None:
        logger.warning(
            "the credential of %s for %s was not renewed: %s", taken.tenant, taken.server, error
        )
        pause = pause_s(error.failure, taken.failures + 1, error.retry_after_s, self._chance())

        async def fail() -> None:
            await renewals.fail(self._database, taken, error, by=self._worker, pause_s=pause)

        await self._recorded(fail, taken)

    async def _recorded(
        self, write: Callable[[], Coroutine[Any, Any, Any]], taken: StoredCredential
    ) -> Any:
        """Return what a write returns once Postgres takes it: it is known here and nowhere else."""
        while True:
            try:
                return await write()
            except FleetError as error:
                logger.warning(
                    "the renewal for %s is not yet recorded: %s", taken.server, error.message
                )
                await asyncio.sleep(STORE_AGAIN_S)

    # -- leases of others

    def _renewed_elsewhere(self, known: Known) -> bool:
        left_s = known.left_s(known.stored.renewing_for_s, self._clock())
        return left_s is not None and left_s > 0

    def _watch(self, name: tuple[str, str], now: Known | None) -> None:
        """Remember since when the lease of somebody who does not come back has been seen lapsed."""
        stored = now.stored if now is not None else None
        holder = stored.renewing_by if stored is not None else None
        if holder is None or stored is None or (stored.renewing_for_s or 0.0) > 0:
            self._lapsed.pop(name, None)
        elif name not in self._lapsed or self._lapsed[name].holder != holder:
            self._lapsed[name] = _Lapsed(holder, self._clock())

    def _abandoned(self, name: tuple[str, str]) -> str | None:
        lapsed = self._lapsed.get(name)
        if lapsed is None or self._clock() - lapsed.since < TAKE_OVER_S:
            return None
        return lapsed.holder


_REFRESH: Final = RefreshToken.model_fields["kind"].default


async def _reported(renewing: Coroutine[Any, Any, None], name: tuple[str, str]) -> None:
    try:
        await renewing
    except FleetError as error:
        logger.warning("the credential of %s for %s was not renewed: %s", *name, error.message)
    except Exception:  # whoever waits is told that there is no token; the reason is here
        logger.exception("the credential of %s for %s was not renewed", *name)


def _unavailable(stored: StoredCredential, problem: str, pause_s: float) -> FleetError:
    return FleetError(
        Code.CREDENTIAL_UNAVAILABLE,
        f"there is no token of {stored.tenant!r} for server {stored.server} just now"
        + (f": {problem}" if problem else ""),
        hint="it is tried again by itself; `toolfleet credentials show` tells how it stands",
        retry_after_s=pause_s,
    )
