"""What an operator says about a credential: its kind, and what the kind takes.

Pure values. Secrets are taken in and never shown again: `split` parts them from the rest, which is
what may be stored in the clear, shown and audited.
"""

from __future__ import annotations

import re
import warnings
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import jwt
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    SecretStr,
    model_validator,
)

from registry.credentials import SHORTEST_SECRET
from registry.fields import LONGEST_VALUE
from registry.problems import invalid, misplaced, validated

ENV_PREFIX: Final = "TOOLFLEET_CREDENTIAL_"
"""What the name of a worker's variable begins with that a credential may be read from."""
_WHAT: Final = "credential"
_LONGEST_TEXT: Final = 1024
_LONGEST_PREFIX: Final = 32
MOST_SCOPES: Final = 100
SCOPE: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,256}")  # RFC 6749, 3.3


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def _secret(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if len(text) < SHORTEST_SECRET:
        raise ValueError(f"has fewer than {SHORTEST_SECRET} characters")
    if len(text.encode("utf-8", "surrogatepass")) > LONGEST_VALUE:
        raise ValueError(f"has more than {LONGEST_VALUE:,} bytes")
    if re.search("[\0\ud800-\udfff]", text):
        raise ValueError("holds a character that no secret can: NUL, or half of a pair")
    return value


def _text(value: str) -> str:
    if not 0 < len(value) <= _LONGEST_TEXT or not value.isprintable():
        raise ValueError(f"takes 1 to {_LONGEST_TEXT:,} printable characters")
    return value


def _url(value: str) -> str:
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in {"https", "http"} or re.search(r"[\s\\]", value):
        raise ValueError("is no URL like https://login.example.com")
    if "@" in parts.netloc:
        raise ValueError("holds a user name or password: they have fields of their own")
    if "#" in value or not value.isascii() or not value.isprintable():
        raise ValueError("holds a fragment, or a character that no URL can")
    return value


def _issuer(value: str) -> str:
    if "?" in _url(value):
        raise ValueError("has a query (?...), which no issuer has")
    return value


def _scope(value: str) -> str:
    if not SCOPE.fullmatch(value):
        raise ValueError("is no scope: it takes printable characters without spaces and quotes")
    return value


def _variable(value: str) -> str:
    if not re.fullmatch(ENV_PREFIX + r"[A-Z0-9_]{1,100}", value):
        raise ValueError(f"has to begin with {ENV_PREFIX}: no other variable may be read")
    return value


def _file(value: str) -> str:
    if not _text(value).startswith("/") or ".." in value.split("/"):
        raise ValueError("has to be the whole path of a file, without ..")
    return value


def _vault_path(value: str) -> str:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", value, re.ASCII) or ".." in value.split("/"):
        raise ValueError("takes names of letters, digits and any of _.- with / between them")
    return value


def _prefix(value: str) -> str:
    if len(value) > _LONGEST_PREFIX or not (value.isascii() and value.isprintable()):
        raise ValueError(f"takes at most {_LONGEST_PREFIX} printable ASCII characters")
    return value


Secret = Annotated[SecretStr, AfterValidator(_secret)]
Line = Annotated[str, AfterValidator(_text)]
Url = Annotated[str, AfterValidator(_url)]
Issuer = Annotated[str, AfterValidator(_issuer)]
Scope = Annotated[str, AfterValidator(_scope)]
VaultPath = Annotated[str, AfterValidator(_vault_path)]


class _Kind(_Strict):
    prefix: Annotated[str, AfterValidator(_prefix)] | None = None
    """What stands before the secret; None: ``Bearer `` for a token in a header, else nothing."""


class Static(_Kind):
    """A secret that is the same until an operator changes it."""

    kind: Literal["static"] = "static"
    secret: Secret


class FromFile(_Kind):
    """A file on the worker, below `credential_folder`; it is read again when it changes."""

    kind: Literal["file"] = "file"
    path: Annotated[str, AfterValidator(_file)]


class FromEnvironment(_Kind):
    """A variable of the worker whose name begins with `ENV_PREFIX`."""

    kind: Literal["env"] = "env"
    variable: Annotated[str, AfterValidator(_variable)]


class FromVault(_Kind):
    """A field of a secret in HashiCorp Vault's KV engine, version 2."""

    kind: Literal["vault"] = "vault"
    mount: VaultPath = "secret"
    path: VaultPath
    field: Line = "value"
    version: int | None = Field(default=None, ge=1, le=2**31)
    """None means the newest."""


class Client(_Strict):
    """Who the fleet is to an authorization server, and how it shows that."""

    id: Line
    authentication: Literal[
        "client_secret_basic", "client_secret_post", "private_key_jwt", "none"
    ] = "client_secret_basic"
    secret: Secret | None = None
    private_key: Secret | None = None
    """PEM; RSA signs RS256, P-256 signs ES256."""
    key_id: Line | None = None
    assertion_audience: Line | None = None
    """Whom an assertion is for, where that is not the token endpoint but the issuer."""

    @model_validator(mode="after")
    def _complete(self) -> Client:
        wanted = {"private_key_jwt": "private_key", "none": None}.get(self.authentication, "secret")
        for name in ("secret", "private_key"):
            if (getattr(self, name) is not None) != (name == wanted):
                is_wanted = "is required" if name == wanted else "is not taken"
                raise misplaced(name, f"{is_wanted} with authentication {self.authentication}")
        if self.private_key is not None:
            _algorithm_of(self.private_key)
        elif self.assertion_audience is not None:
            raise misplaced(
                "assertion_audience", f"is not taken with authentication {self.authentication}"
            )
        return self

    @property
    def algorithm(self) -> str:
        """Return how the private key signs."""
        assert self.private_key is not None
        return _algorithm_of(self.private_key)


def _algorithm_of(key: SecretStr) -> str:
    for algorithm in ("RS256", "ES256"):
        with warnings.catch_warnings():
            warnings.simplefilter("error", jwt.InsecureKeyLengthWarning)
            try:
                jwt.encode({}, key.get_secret_value(), algorithm)
            except (jwt.PyJWTError, jwt.InsecureKeyLengthWarning, ValueError):
                continue
        return algorithm
    raise misplaced("private_key", "has to be an unencrypted PEM: RSA of 2048 bits or more, P-256")


class _OAuth(_Kind):
    issuer: Issuer
    """Credentials of one issuer go to its own endpoints and to those that its metadata lists."""
    token_endpoint: Url | None = None
    """None means: what the issuer's metadata says (RFC 8414)."""
    client: Client
    scopes: Annotated[tuple[Scope, ...], Field(max_length=MOST_SCOPES)] = ()
    resource: Url | None = None
    """The server that a token is for (RFC 8707)."""
    audience: Line | None = None


class ClientCredentials(_OAuth):
    """An access token for the client itself (RFC 6749, 4.4)."""

    kind: Literal["oauth_client_credentials"] = "oauth_client_credentials"


class RefreshToken(_OAuth):
    """An access token by a refresh token, which the server may replace at each use."""

    kind: Literal["oauth_refresh_token"] = "oauth_refresh_token"
    refresh_token: Secret


class Subject(_Strict):
    """Whose token is exchanged: a stored one, or one that a client of its own gets for itself."""

    token: Secret | None = None
    token_type: Line = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a name
    login: ClientCredentials | None = None

    @model_validator(mode="after")
    def _one(self) -> Subject:
        if (self.token is None) == (self.login is None):
            raise misplaced("token", "or login has to be given, and not both")
        return self


class TokenExchange(_OAuth):
    """An access token for another token (RFC 8693); never for that of a caller."""

    kind: Literal["token_exchange"] = "token_exchange"
    subject: Subject


OAuth = ClientCredentials | RefreshToken | TokenExchange
Credential = Static | FromFile | FromEnvironment | FromVault | OAuth
_KINDS: Final[dict[str, type[Credential]]] = {
    model.model_fields["kind"].default: model
    for model in (
        Static,
        FromFile,
        FromEnvironment,
        FromVault,
        ClientCredentials,
        RefreshToken,
        TokenExchange,
    )
}


class AnyCredential(RootModel[Annotated[Credential, Field(discriminator="kind")]]):
    """A credential of any kind."""


def parse_credential(document: Any) -> Credential:
    """Validate a credential; raise `invalid_definition` by path, quoting nothing that was sent."""
    kind = document.get("kind") if isinstance(document, dict) else None
    model = _KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        problem = f"has to be one of {', '.join(_KINDS)}"
        raise invalid(_WHAT, [{"path": "kind", "problem": problem}])
    return validated(model, document, _WHAT)


def split(credential: Credential) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what may be seen of a credential, and its secrets, both as JSON-ready objects."""
    return _split(credential.model_dump(exclude_none=True))


def spelled_out(credential: Credential) -> dict[str, Any]:
    """Return a credential as an operator would write it, secrets and all."""
    return _merged(*split(credential))


def join(public: dict[str, Any], secrets: dict[str, Any]) -> Credential:
    """Return the credential that was split so; raise `ValueError` where it was not."""
    return AnyCredential.model_validate(_merged(public, secrets)).root


def names_of(secrets: dict[str, Any], above: str = "") -> list[str]:
    """Return the paths of secrets, for a reader who may know which there are."""
    found: list[str] = []
    for name, value in secrets.items():
        path = f"{above}{name}"
        found += names_of(value, path + "/") if isinstance(value, dict) else [path]
    return found


def _split(fields: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    public: dict[str, Any] = {}
    secrets: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, SecretStr):
            secrets[name] = value.get_secret_value()
        elif isinstance(value, dict):
            public[name], inner = _split(value)
            secrets |= {name: inner} if inner else {}
        else:
            public[name] = list(value) if isinstance(value, tuple) else value
    return public, secrets


def _merged(public: dict[str, Any], secrets: dict[str, Any]) -> dict[str, Any]:
    merged = dict(public)
    for name, value in secrets.items():
        merged[name] = _merged(public.get(name, {}), value) if isinstance(value, dict) else value
    return merged
