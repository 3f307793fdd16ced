"""What a protected server, and its authorization server, say of themselves (MCP, authorization).

Pure: where to ask, and what an answer means.

1. What is said counts for who was asked, and for nobody else: the resource is the server's own
   (RFC 9728), the issuer the one whose metadata it is (RFC 8414), compared as strings.
2. An authorization server that does not say that it takes S256 (PKCE) is not used.
3. No error quotes more of an answer than a URL or a code that it has been checked to be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeVar, get_args
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from registry.credential_kinds import Issuer, Url
from registry.errors import Code, FleetError
from registry.oauth import origin, scopes_of

Authentication = Literal["client_secret_basic", "client_secret_post", "none"]
_MOST_ISSUERS: Final = 20
_LONGEST_URL: Final = 2048
_PRM: Final = "/.well-known/oauth-protected-resource"
Said = TypeVar("Said", bound=BaseModel)


class Document(BaseModel):
    """A document of somebody else's: what is not asked about is not looked at."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)


_Url = Annotated[Url, Field(max_length=_LONGEST_URL)]
_Issuer = Annotated[Issuer, Field(max_length=_LONGEST_URL)]


class _ResourceSaid(Document):
    resource: _Url
    authorization_servers: Annotated[tuple[_Issuer, ...], Field(min_length=1)]
    scopes_supported: tuple[str, ...] | None = None


class _AuthoritySaid(Document):
    issuer: _Issuer
    authorization_endpoint: _Url
    token_endpoint: _Url
    registration_endpoint: _Url | None = None
    scopes_supported: tuple[str, ...] | None = None
    token_endpoint_auth_methods_supported: tuple[str, ...] | None = None
    code_challenge_methods_supported: tuple[str, ...] | None = None
    authorization_response_iss_parameter_supported: bool | None = None
    client_id_metadata_document_supported: bool | None = None


@dataclass(frozen=True)
class Resource:
    """A server as its authorization servers know it."""

    identifier: str
    issuers: tuple[str, ...]
    scopes: tuple[str, ...] | None = None
    """What it says is needed at least; None where it does not say."""
    has_metadata: bool = True


@dataclass(frozen=True)
class Authority:
    """An authorization server: where it is asked, and what it takes."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    registration_endpoint: str | None = None
    scopes: tuple[str, ...] = ()
    authentications: tuple[Authentication, ...] = ("client_secret_basic",)
    """What it takes of ours, in our order of preference."""
    names_itself: bool = False
    """It says in each redirect who it is (RFC 9207)."""
    takes_documents: bool = False
    """A client's id may be the URL of a document about the client."""
    has_metadata: bool = True


def failed(message: str, hint: str = "") -> FleetError:
    """Return `consent_failed`."""
    return FleetError(Code.CONSENT_FAILED, message, hint=hint)


# -- the server


def canonical(url: str) -> str:
    """Return what a server is called in a request for a token (RFC 8707)."""
    parts = urlsplit(url)
    path = "" if parts.path == "/" else parts.path
    return urlunsplit((parts.scheme.lower(), parts.netloc.lower(), path, "", ""))


def resource_urls(url: str, stated: str | None) -> tuple[str, ...]:
    """Return where a server's metadata may be: where it says, by its path, at its root."""
    parts = urlsplit(canonical(url))
    root = f"{parts.scheme}://{parts.netloc}{_PRM}"
    return tuple(dict.fromkeys([*([stated] if stated else []), root + parts.path, root]))


def read_resource(url: str, document: Any) -> Resource | None:
    """Return what a server's metadata says, None where it is none.

    Raises `consent_failed` where it speaks of another server: a token for that one would be sent
    to this one.
    """
    said = read(_ResourceSaid, document)
    if said is None:
        return None
    if not _holds(said.resource, url):
        raise failed(
            f"the metadata of {canonical(url)} is about another resource, {said.resource}",
            "check the url of the server; nothing was sent to its authorization server",
        )
    scopes = said.scopes_supported
    return Resource(
        said.resource,
        tuple(dict.fromkeys(said.authorization_servers))[:_MOST_ISSUERS],
        None if scopes is None else scopes_of(" ".join(scopes)),
    )


def resource_by_origin(url: str) -> Resource:
    """Return what a server without metadata is taken for: its own issuer (revision 2025-03-26)."""
    parts = urlsplit(canonical(url))
    issuer = f"{parts.scheme}://{parts.netloc}"
    return Resource(canonical(url), (issuer,), has_metadata=False)


def choose_issuer(resource: Resource, wanted: str | None) -> str:
    """Return the issuer to ask: the one that a client is known to, else the first that is named."""
    first = resource.issuers[0]
    if wanted is None or (not resource.has_metadata and wanted == first + "/"):
        return first
    if wanted not in resource.issuers:
        raise failed(
            f"{resource.identifier} names other authorization servers than {wanted}, which this "
            f"client is registered with: {', '.join(resource.issuers)}",
            "register a client with one of these, and give its --client-id",
        )
    return wanted


def _holds(resource: str, url: str) -> bool:
    """Say whether a URL is at, or below, a resource."""
    if origin(resource) != origin(url):
        return False
    above, below = (urlsplit(it).path.rstrip("/") + "/" for it in (resource, url))
    return below.startswith(above)


# -- the authorization server


def read_authority(issuer: str, document: Any, *, by_origin: bool = False) -> Authority:
    """Return what an issuer's metadata says; raise `consent_failed` where it cannot be used.

    ``by_origin``: the issuer was made up of a server's URL, and may end in a slash of its own.
    """
    said = read(_AuthoritySaid, document)
    if said is None:
        raise failed(f"what {issuer} lists is not the metadata of an authorization server")
    if said.issuer != issuer and not (by_origin and said.issuer == issuer + "/"):
        raise failed(f"what {issuer} lists is the metadata of another issuer, {said.issuer}")
    if "S256" not in (said.code_challenge_methods_supported or ()):
        raise failed(
            f"{issuer} does not say that it takes PKCE with S256, without which a code can be "
            "stolen on its way",
            "code_challenge_methods_supported in its metadata has to list S256",
        )
    methods = said.token_endpoint_auth_methods_supported
    return Authority(
        said.issuer,
        said.authorization_endpoint,
        said.token_endpoint,
        said.registration_endpoint,
        scopes_of(" ".join(said.scopes_supported or ())),
        _ours(methods or ("client_secret_basic",)),
        bool(said.authorization_response_iss_parameter_supported),
        bool(said.client_id_metadata_document_supported),
    )


def authority_by_origin(issuer: str) -> Authority:
    """Return the endpoints of a server that lists none (revision 2025-03-26)."""
    return Authority(
        issuer,
        f"{issuer}/authorize",
        f"{issuer}/token",
        f"{issuer}/register",
        authentications=get_args(Authentication),
        has_metadata=False,
    )


def _ours(methods: tuple[str, ...]) -> tuple[Authentication, ...]:
    return tuple(it for it in get_args(Authentication) if it in methods)


def read(model: type[Said], document: Any) -> Said | None:
    """Return somebody else's document as a model; None for what is none."""
    try:
        return model.model_validate(document)
    except ValidationError:
        return None
