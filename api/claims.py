"""Whom a token of the identity provider stands for: its claims as an actor. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from registry.errors import Code, FleetError
from registry.fields import is_tenant_name
from registry.scopes import Scopes, Verb
from registry.settings import Settings
from registry.tenants import Actor, Role
from registry.tokens import Claims

EVERY_TENANT: Final = "*"


@dataclass(frozen=True)
class ClaimMap:
    """Which claims say role, tenant and scopes, and which role each value of the first is."""

    role_claim: str
    roles: Mapping[str, Role]
    tenant_claim: str
    scope_claim: str

    @classmethod
    def of(cls, settings: Settings) -> ClaimMap:
        """Return what the settings say; raise `ValueError` for a role that there is not."""
        named = settings.oidc_roles or {role.value: role.value for role in Role}
        return cls(
            role_claim=settings.oidc_role_claim,
            roles={value: Role(role) for value, role in named.items()},
            tenant_claim=settings.oidc_tenant_claim,
            scope_claim=settings.oidc_scope_claim,
        )

    def actor(self, claims: Claims) -> Actor:
        """Return who holds a token; raise `forbidden` where it does not say that in full."""
        role = self._role(claims)
        return Actor(
            f"{claims.issuer}#{claims.subject}",
            claims.subject,
            role,
            self._tenant(claims, role),
            self._scopes(claims),
            kind="oidc",
        )

    def _role(self, claims: Claims) -> Role:
        values = _words(_at(claims.all, self.role_claim))
        roles = {self.roles[value] for value in values if value in self.roles}
        if len(roles) != 1:
            raise _forbidden(
                f"its claim {self.role_claim!r} names {'more than one' if roles else 'no'} role of "
                "this fleet"
            )
        return roles.pop()

    def _tenant(self, claims: Claims, role: Role) -> str | None:
        tenant = _at(claims.all, self.tenant_claim)
        if role is Role.OPERATOR:
            if tenant not in (None, EVERY_TENANT):
                raise _forbidden("an operator is bound to no tenant, and the token names one")
            return None
        if tenant == EVERY_TENANT and role is not Role.TENANT:
            return None
        if not isinstance(tenant, str) or not is_tenant_name(tenant):
            raise _forbidden(f"its claim {self.tenant_claim!r} names no tenant")
        return tenant

    def _scopes(self, claims: Claims) -> Scopes | None:
        if not self.scope_claim:
            return None
        words = set(_words(_at(claims.all, self.scope_claim)))
        return Scopes(verbs=tuple(verb for verb in Verb if verb.value in words))


def _at(claims: Mapping[str, Any], name: str) -> Any:
    """Return a claim by its name, or by the path of names that its dots make."""
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _words(value: Any) -> list[str]:
    if isinstance(value, str):
        return value.split()
    return [it for it in value if isinstance(it, str)] if isinstance(value, list) else []


def _forbidden(why: str) -> FleetError:
    return FleetError(
        Code.FORBIDDEN,
        f"the token is valid, but {why}",
        hint="the provider's claims and TOOLFLEET_OIDC_* have to fit each other",
    )
