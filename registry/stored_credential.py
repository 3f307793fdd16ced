"""A credential as the record holds it, and the states that it goes through.

What is sealed opens only beside the very definition it was stored with: whoever can write to the
database, but has no key, cannot have a secret sent to an endpoint of their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from registry import envelope
from registry.credential_kinds import Credential, join
from registry.envelope import SealedError, Wrapped
from registry.errors import Code, FleetError


class CredentialState(StrEnum):
    """Whether a credential can be used, and what would change that."""

    READY = "ready"
    NEEDS_CONSENT = "needs_consent"
    """The authorization server says that its grant is gone; what it had is kept."""
    REMOVED = "removed"


TRANSITIONS: Final[dict[CredentialState, frozenset[CredentialState]]] = {
    CredentialState.READY: frozenset({CredentialState.NEEDS_CONSENT, CredentialState.REMOVED}),
    CredentialState.NEEDS_CONSENT: frozenset({CredentialState.READY, CredentialState.REMOVED}),
    CredentialState.REMOVED: frozenset({CredentialState.READY}),
}
"""Only `put` leads to READY, only `remove` to REMOVED, only `invalid_grant` to NEEDS_CONSENT."""


@dataclass(frozen=True)
class Content:
    """What is sealed: the secrets of a definition, and the token that was got with them last."""

    secrets: dict[str, Any] = field(repr=False)
    access_token: str | None = field(default=None, repr=False)

    def encode(self) -> bytes:
        """Return the content as it is sealed."""
        return json.dumps({"secrets": self.secrets, "access_token": self.access_token}).encode()


@dataclass(frozen=True)
class StoredCredential:
    """A row; the seconds are counted from when the record was asked, by the record's clock."""

    tenant: str
    server: str
    definition: dict[str, Any]
    state: CredentialState
    version: int
    """Rises with what is sealed, and with nothing else."""
    serial: int
    """Rises with each change of the row."""
    sealed: bytes | None = field(repr=False)
    data_key_id: str | None
    wrapped: Wrapped | None
    expires_in_s: float | None
    renew_in_s: float | None
    retry_in_s: float | None
    failures: int
    problem: dict[str, Any] | None
    renewing_by: str | None
    renewing_for_s: float | None
    """How long the lease of whoever renews it lasts; not above 0 when that has not come back."""
    now: datetime

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> StoredCredential:
        """Return the credential of a row of `COLUMNS`."""
        return cls(
            tenant=row["tenant_id"],
            server=row["server_name"],
            definition=row["definition"],
            state=CredentialState(row["state"]),
            version=row["version"],
            serial=row["serial"],
            sealed=bytes(row["sealed"]) if row["sealed"] is not None else None,
            data_key_id=row["data_key_id"],
            wrapped=Wrapped(row["wrapped_by"], bytes(row["wrapped"])) if row["wrapped"] else None,
            expires_in_s=row["expires_in_s"],
            renew_in_s=row["renew_in_s"],
            retry_in_s=row["retry_in_s"],
            failures=row["failures"],
            problem=row["problem"],
            renewing_by=row["renewing_by"],
            renewing_for_s=row["renewing_for_s"],
            now=row["now"],
        )

    def open(self, key: bytes) -> Content:
        """Return what is sealed; raise `credential_unavailable` where it does not open."""
        assert self.sealed is not None
        try:
            plain = envelope.unseal(key, self.sealed, self.place(self.version))
        except SealedError as error:
            raise FleetError(
                Code.CREDENTIAL_UNAVAILABLE,
                f"the stored credential of {self.tenant!r} for server {self.server} cannot be "
                f"opened: {error}",
                hint="its row or its keys are not those it was stored with: set it again",
            ) from None
        return Content(**json.loads(plain))

    def credential(self, content: Content) -> Credential:
        """Return the whole credential, secrets included."""
        return join(self.definition, content.secrets)

    def seal(self, key: bytes, content: Content, version: int) -> bytes:
        """Return new content as it is stored under the next version."""
        return envelope.seal(key, content.encode(), self.place(version))

    def place(self, version: int) -> bytes:
        """Return what the content of a version is bound to."""
        return place(self.tenant, self.server, version, self.definition)


def place(tenant: str, server: str, version: int, definition: dict[str, Any]) -> bytes:
    """Return what a sealed content is bound to."""
    return envelope.place_of("credential", tenant, server, version, definition)
