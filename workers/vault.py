"""HashiCorp Vault over its HTTP API: logging in, the KV engine (version 2), the Transit engine.

A login's token is renewed at 80 % of its life where it may be, else another is fetched; a token
that Vault no longer takes is replaced once for each request that it refuses. Written by the API's
documentation, and tested against a server of ours that speaks it: no Vault was at hand.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from registry.addresses import Network
from registry.envelope import KEY_BYTES, Wrapped
from registry.errors import Code, FleetError
from registry.oauth import TokenError, refuse_plain
from registry.settings import Settings
from workers.request import Answer, NoAnswerError, OpenClient, request

REQUEST_LIMIT_S: Final = 5.0
RENEW_AT: Final = 0.8
RENEW_AGAIN_S: Final = 5.0
_TRANSIT: Final = "transit:"
_HINT: Final = "check TOOLFLEET_VAULT_ADDRESS, what this process logs in with, and its policies"


class VaultMissingError(Exception):
    """Vault says that there is no such secret."""


@dataclass(frozen=True)
class _Login:
    token: str = field(repr=False)
    renewable: bool
    renew_at: float
    """When to renew it, on this process's monotonic clock."""
    ends_at: float


class Vault:
    """One Vault, as one process of the fleet sees it."""

    def __init__(
        self,
        settings: Settings,
        open_client: OpenClient,
        networks: Sequence[Network] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._open_client = open_client
        self._networks = tuple(networks)
        self._clock = clock
        self._login: _Login | None = None
        self._logging_in = asyncio.Lock()

    async def read(
        self, mount: str, path: str, version: int | None
    ) -> tuple[dict[str, Any], float]:
        """Return the fields of a secret, and for how many seconds they hold (0: not said).

        Raises `VaultMissingError` for one that is deleted or never was, `credential_unavailable`
        where Vault cannot be asked.
        """
        query = f"?version={version}" if version is not None else ""
        answer = await self._ask("GET", f"{mount}/data/{path}{query}")
        if answer.status == 404:
            raise VaultMissingError
        body = _body(answer, "the secret")
        found = body["data"].get("data")
        if not isinstance(found, dict):
            raise VaultMissingError
        lease_s = body.get("lease_duration")
        return found, float(lease_s) if isinstance(lease_s, int | float) else 0.0

    async def transit(self, verb: str, key: str, **fields: str) -> dict[str, Any]:
        """Return what the Transit engine makes of ``fields``: encrypt, decrypt or rewrap."""
        answer = await self._ask("POST", f"transit/{verb}/{key}", fields)
        data: dict[str, Any] = _body(answer, f"transit/{verb}")["data"]
        return data

    async def stay_logged_in(self) -> None:
        """Renew the login if it is due; to be called every second or so."""
        if self._login is not None and self._clock() >= self._login.renew_at:
            await self._token()

    # -- logging in

    async def _ask(self, method: str, path: str, body: Any = None) -> Answer:
        login = await self._token()
        answer = await self._send(method, path, body, login.token)
        if answer.status == 403 and self._settings.vault_role_id:
            async with self._logging_in:
                if self._login is login:
                    self._login = None
            answer = await self._send(method, path, body, (await self._token()).token)
        return answer

    async def _token(self) -> _Login:
        async with self._logging_in:
            now = self._login
            if now is None:
                self._login = await self._log_in()
            elif self._clock() >= now.renew_at:
                self._login = await self._renewed_if_possible(now)
            assert self._login is not None
            return self._login

    async def _log_in(self) -> _Login:
        settings = self._settings
        if token := settings.vault_token.get_secret_value():
            answer = await self._send("GET", "auth/token/lookup-self", None, token)
            data = _body(answer, "the login")["data"]
            return self._kept(token, data.get("ttl"), data.get("renewable"))
        if not settings.vault_role_id:
            raise _unavailable("there is nothing to log in to Vault with")
        answer = await self._send(
            "POST",
            "auth/approle/login",
            {
                "role_id": settings.vault_role_id,
                "secret_id": settings.vault_secret_id.get_secret_value(),
            },
            None,
        )
        return self._of(_body(answer, "the login", "auth")["auth"])

    async def _renewed_if_possible(self, login: _Login) -> _Login:
        """Return the login renewed; as it is while it lives, where Vault cannot be asked."""
        try:
            return await self._renewed(login)
        except FleetError:
            if self._clock() >= login.ends_at:
                raise
            return replace(login, renew_at=self._clock() + RENEW_AGAIN_S)

    async def _renewed(self, login: _Login) -> _Login:
        """Return the login renewed; another one where that is refused, if there can be one."""
        if login.renewable:
            answer = await self._send("POST", "auth/token/renew-self", {}, login.token)
            if answer.status == 200:
                auth = {"client_token": login.token}
                return self._of(auth | _body(answer, "the renewal", "auth")["auth"])
            if answer.status not in {400, 403}:
                raise _unavailable(f"Vault answered the renewal with HTTP {answer.status}")
        if self._settings.vault_role_id:
            return await self._log_in()
        return self._kept(login.token, None, False)

    def _of(self, auth: dict[str, Any]) -> _Login:
        token = auth.get("client_token")
        if not isinstance(token, str) or not token:
            raise _unavailable("Vault answered the login with no token")
        return self._kept(token, auth.get("lease_duration"), auth.get("renewable"))

    def _kept(self, token: str, life_s: Any, renewable: Any) -> _Login:
        # A life of 0 is that of a token that never ends.
        lasts = isinstance(life_s, int | float) and life_s > 0
        life_s = float(life_s) if lasts else float("inf")
        now = self._clock()
        return _Login(token, renewable is True, now + life_s * RENEW_AT, now + life_s)

    async def _send(self, method: str, path: str, body: Any, token: str | None) -> Answer:
        address = self._settings.vault_address.rstrip("/")
        if not address:
            raise _unavailable("no Vault is named")
        headers = {"accept": "application/json", "x-vault-request": "true"}
        headers |= {"x-vault-token": token} if token else {}
        if namespace := self._settings.vault_namespace:
            headers["x-vault-namespace"] = namespace
        try:
            refuse_plain(address, self._networks)
            return await request(
                self._open_client,
                self._networks,
                method,
                f"{address}/v1/{path}",
                timeout_s=REQUEST_LIMIT_S,
                headers=headers,
                body=None if body is None else json.dumps(body).encode(),
            )
        except (NoAnswerError, TokenError) as error:
            raise _unavailable(f"Vault has no answer: {error}") from None


class TransitKeys:
    """A `KeyWrapper` of one key of the Transit engine, in all its versions.

    Wrapping and rewrapping need no more of Vault than `encrypt` and `rewrap`: a process that only
    sets credentials can be kept from reading them by its policy.
    """

    def __init__(self, vault: Vault, key: str) -> None:
        self._vault = vault
        self._key = key

    def knows(self, wrapped: Wrapped) -> bool:
        """Say whether a data key was wrapped by this engine."""
        return wrapped.by.startswith(_TRANSIT)

    async def wrap(self, key: bytes, place: bytes) -> Wrapped:
        """See `KeyWrapper`."""
        plain = base64.b64encode(key + hashlib.sha256(place).digest()).decode()
        data = await self._vault.transit("encrypt", self._key, plaintext=plain)
        return _wrapped(self._key, data)

    async def unwrap(self, wrapped: Wrapped, place: bytes) -> bytes:
        """See `KeyWrapper`."""
        name = wrapped.by.removeprefix(_TRANSIT).rpartition(":")[0]
        data = await self._vault.transit("decrypt", name, ciphertext=wrapped.blob.decode())
        try:
            plain = base64.b64decode(str(data.get("plaintext")), validate=True)
        except (binascii.Error, ValueError):
            plain = b""
        if plain[KEY_BYTES:] != hashlib.sha256(place).digest():
            raise _unavailable("a data key that Vault decrypted is not that of its row")
        return plain[:KEY_BYTES]

    async def rewrap(self, wrapped: Wrapped, place: bytes) -> Wrapped:
        """See `KeyWrapper`."""
        name = wrapped.by.removeprefix(_TRANSIT).rpartition(":")[0]
        if name != self._key:
            return await self.wrap(await self.unwrap(wrapped, place), place)
        data = await self._vault.transit("rewrap", name, ciphertext=wrapped.blob.decode())
        after = _wrapped(name, data)
        return wrapped if after.by == wrapped.by else after


def _wrapped(key: str, data: dict[str, Any]) -> Wrapped:
    ciphertext = str(data.get("ciphertext", ""))
    vault, _, rest = ciphertext.partition(":")
    version, _, _ = rest.partition(":")
    if vault != "vault" or not version.startswith("v"):
        raise _unavailable("Vault answered with what is no ciphertext")
    return Wrapped(f"{_TRANSIT}{key}:{version}", ciphertext.encode())


def _body(answer: Answer, what: str, part: str = "data") -> dict[str, Any]:
    body = answer.json
    if answer.status != 200 or not isinstance(body, dict) or not isinstance(body.get(part), dict):
        raise _unavailable(f"Vault answered {what} with HTTP {answer.status}")
    return body


def _unavailable(problem: str) -> FleetError:
    return FleetError(Code.CREDENTIAL_UNAVAILABLE, problem, hint=_HINT, retry_after_s=5)
