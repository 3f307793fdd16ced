"""Whose credential a session with a server carries, and when it has changed.

1. A secret leaves a provider inside a `Grant` and nowhere else: no repr, error or log line has it.
2. A grant's ``generation`` rises with each change of that identity's secret for that server, its
   removal included, and with nothing else; it means something within one process only.
3. What a provider cannot find out changes nothing: secrets that were good stay good.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Protocol

from registry.definitions import ServerDefinition
from registry.errors import Code, FleetError
from registry.policy import is_named
from registry.private_files import PrivateFile, UnusableError

logger = logging.getLogger("toolfleet.credentials")

SHARED: Final = "*"
"""The identity of a credential that all tenants without one of their own share."""
SHORTEST_SECRET: Final = 8

Secrets = dict[tuple[str, str], str]
"""Secrets by (tenant, server)."""


@dataclass(frozen=True)
class Grant:
    """A credential for one server: whose it is, which one of theirs, and where it goes."""

    identity: str
    """A tenant, or `SHARED`; sessions are shared within an identity and never beyond it."""
    generation: int
    inject: Literal["env", "header", "meta"]
    name: str
    secret: str = field(repr=False)


class CredentialProvider(Protocol):
    """Where credentials come from.

    It is asked at each borrow, and each second for each identity with an open session: it has to
    answer from memory nearly always. Servers with ``inject: none`` are never asked about.
    """

    async def resolve(self, tenant_id: str, definition: ServerDefinition) -> Grant | None:
        """Return the credential for a tenant's calls of a server, None when there is none.

        A grant's identity, asked for as a tenant, gets that same grant. Raises
        `credential_missing` when the server requires a credential and there is no usable one.
        """

    async def resolve_listing(self, definition: ServerDefinition) -> Grant | None:
        """Return the credential to list a server's tools with, None to list them without one.

        The listing is every tenant's, so it is made with the shared credential if there is one;
        a single tenant's is used only where the server requires a credential and no shared one
        exists. Raises `credential_missing` as `resolve` does.
        """

    async def renewed(self, identity: str, generation: int, definition: ServerDefinition) -> bool:
        """Say whether there is a newer credential than one that the server has just rejected.

        One that can be renewed is renewed for that, at most once a minute.
        """


class FileProvider:
    """Credentials in a JSON file, ``{tenant: {server: secret}}``, which only its owner may read.

    Tenant ``*`` stands for all that have no secret of their own for a server; they share sessions.
    The file is looked at each time it is asked about and read when it has changed. Where it cannot
    be used (absent, half-written, open to others), what was read before goes on being used, with
    one warning; with nothing read before, every question is answered by `credential_missing`.
    """

    def __init__(self, path: Path | None) -> None:
        self._file = PrivateFile(path) if path else None
        self._problem = ""
        self._secrets: Secrets | None = None if path else {}
        self._generations: dict[tuple[str, str], int] = {}

    async def resolve(self, tenant_id: str, definition: ServerDefinition) -> Grant | None:
        """See `CredentialProvider.resolve`."""
        for identity in (tenant_id, SHARED):
            if (grant := self.find(identity, definition)) is not None:
                return grant
        if definition.credentials.required:
            raise missing(definition, tenant_id, "")
        return None

    async def resolve_listing(self, definition: ServerDefinition) -> Grant | None:
        """See `CredentialProvider.resolve_listing`; of several tenants it is the first by name."""
        if (grant := self.find(SHARED, definition)) or not definition.credentials.required:
            return grant
        tenants = self.tenants(definition)
        if not tenants:
            raise missing(definition, SHARED, "")
        return self.find(tenants[0], definition)

    async def renewed(self, identity: str, generation: int, definition: ServerDefinition) -> bool:
        """See `CredentialProvider.renewed`; nothing here can be renewed."""
        grant = self.find(identity, definition)
        return grant is not None and grant.generation != generation

    def find(self, identity: str, definition: ServerDefinition) -> Grant | None:
        """Return what the file has for this very identity; raise `credential_missing`.

        It does so where what is there cannot be used, or where nobody knows what is there.
        """
        secrets = self._read_if_changed(identity, definition)
        return (
            self._grant(secrets, identity, definition)
            if (identity, definition.name) in secrets
            else None
        )

    def tenants(self, definition: ServerDefinition) -> list[str]:
        """Return the tenants that may use a server and have a usable secret for it, by name."""
        return [
            tenant
            for (tenant, server), secret in sorted((self._secrets or {}).items())
            if server == definition.name
            and is_named(tenant, definition)
            and not unfit(secret, definition)
        ]

    def _grant(self, secrets: Secrets, identity: str, definition: ServerDefinition) -> Grant:
        pair = (identity, definition.name)
        how = definition.credentials
        assert how.inject != "none", "a server that takes no credential was asked about"
        assert how.name is not None
        if problem := unfit(secrets[pair], definition):
            raise missing(definition, identity, problem)
        return Grant(identity, self._generations[pair], how.inject, how.name, secrets[pair])

    def _read_if_changed(self, tenant: str, definition: ServerDefinition) -> Secrets:
        try:
            if self._file and (data := self._file.read_if_changed()) is not None:
                self._take(_parse(data))
        except UnusableError as error:
            self._problem = str(error)
            logger.warning(
                "TOOLFLEET_CREDENTIALS_FILE cannot be used: %s; %s",
                error,
                "no credential is known" if self._secrets is None else "the last ones stay",
            )
        if self._secrets is None:
            problem = f"TOOLFLEET_CREDENTIALS_FILE cannot be used: {self._problem}"
            raise missing(definition, tenant, problem)
        return self._secrets

    def _take(self, found: Secrets) -> None:
        before = self._secrets or {}
        for pair in before.keys() | found.keys():
            if before.get(pair) != found.get(pair):
                self._generations[pair] = self._generations.get(pair, 0) + 1
        self._secrets = found


def _parse(data: bytes) -> Secrets:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):  # whose texts quote what they are about
        raise UnusableError("it is not JSON, or not whole") from None
    if not isinstance(document, dict):
        raise UnusableError("it is not an object of tenants")
    secrets: Secrets = {}
    for number, (tenant, servers) in enumerate(document.items(), 1):
        if not tenant or not isinstance(servers, dict):
            raise UnusableError(f"its entry {number} is not a tenant with an object of servers")
        for server, secret in servers.items():
            if not isinstance(secret, str):
                raise UnusableError(f"its entry {number} holds a secret that is not a string")
            secrets[tenant, server] = secret
    return secrets


def unfit(secret: str, definition: ServerDefinition) -> str:
    """Say why a secret cannot be used with a server; an empty string if it can."""
    if len(secret) < SHORTEST_SECRET:
        # Text this short is found in any result, so it could not be kept out of them.
        return f"the secret has fewer than {SHORTEST_SECRET} characters"
    inject = definition.credentials.inject
    if inject == "env" and "\0" in secret:
        return "the secret holds a NUL character, which no environment variable can"
    if inject == "header" and not (secret.isascii() and secret.isprintable()):
        return "the secret holds a line end or another character that no header can"
    if inject == "header" and secret != secret.strip():
        return "the secret begins or ends with a space, which no header can"
    return ""


def missing(definition: ServerDefinition, tenant: str, problem: str) -> FleetError:
    """Return `credential_missing`, naming server and tenant, and what is wrong if anything is."""
    whose = "all tenants together" if tenant == SHARED else f"tenant {tenant!r}"
    return FleetError(
        Code.CREDENTIAL_MISSING,
        f"there is no usable credential of {whose} for server {definition.name}"
        + (f": {problem}" if problem else ""),
        hint="an operator has to set one with `toolfleet credentials set`, or `authorize` for a "
        "server that wants OAuth, or put one into the file that TOOLFLEET_CREDENTIALS_FILE names",
    )
