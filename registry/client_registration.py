"""Who the fleet is to an authorization server: a client that it knows, reads about, or registers.

Pure (RFC 7591; client ID metadata documents). What registers is a native application, whose
redirects go to loopback.
"""

from __future__ import annotations

from typing import Any, Final, cast, get_args
from urllib.parse import urlsplit

from pydantic import ValidationError

from registry.authorization import Authentication, Authority, Document, failed, read
from registry.credential_kinds import Client
from registry.oauth import SAID_CODE

CLIENT_NAME: Final = "Toolfleet"


class _Registered(Document):
    client_id: str
    client_secret: str | None = None
    token_endpoint_auth_method: str | None = None


def known_client(authority: Authority, client_id: str, secret: str | None) -> Client:
    """Return a client that was registered beforehand, as the authorization server takes it."""
    if secret is None:
        return _client(client_id, "none", None)
    takes = [it for it in authority.authentications if it != "none"]
    return _client(client_id, takes[0] if takes else "client_secret_basic", secret)


def documented_client(url: str) -> Client:
    """Return the client that a document at ``url`` is about; raise `consent_failed`."""
    parts = urlsplit(url)
    if parts.scheme != "https" or parts.path in {"", "/"}:
        raise failed(
            f"{url} cannot be the id of a client: it has to be https and have a path",
            "give the URL of the document with --client-document",
        )
    return _client(url, "none", None)


def registration(
    authority: Authority, redirect_uri: str, scopes: tuple[str, ...]
) -> dict[str, Any]:
    """Return what a client says of itself when it registers (RFC 7591)."""
    asked: dict[str, Any] = {
        "client_name": CLIENT_NAME,
        "redirect_uris": [redirect_uri],
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        "token_endpoint_auth_method": (authority.authentications or ("none",))[0],
        "application_type": "native",
    }
    return asked | ({"scope": " ".join(scopes)} if scopes else {})


def read_registration(
    authority: Authority, asked: dict[str, Any], status: int, document: Any
) -> Client:
    """Return the client that was registered; raise `consent_failed` where none was, or no use."""
    who = f"the authorization server {authority.issuer}"
    if status not in {200, 201}:
        raise failed(
            f"{who} registered no client: HTTP {status}{_code_of(document)}",
            "register one there yourself, and give its --client-id"
            if authority.has_metadata
            else "the server names no authorization server, and may be none itself: then set its "
            "credential with `toolfleet credentials set`",
        )
    said = read(_Registered, _without_blanks(document))
    if said is None:
        raise failed(f"{who} answered with what is no registration of a client")
    method = said.token_endpoint_auth_method or asked["token_endpoint_auth_method"]
    if method not in get_args(Authentication):
        raise failed(f"{who} registered the client for a way to authenticate that it has not")
    if method != "none" and said.client_secret is None:
        raise failed(f"{who} registered the client for {method}, and gave it no secret")
    secret = None if method == "none" else said.client_secret
    return _client(said.client_id, cast(Authentication, method), secret)


def _client(client_id: str, method: Authentication, secret: str | None) -> Client:
    try:
        return Client.model_validate({"id": client_id, "authentication": method, "secret": secret})
    except ValidationError:
        raise failed("the client's id or secret is one that cannot be kept") from None


def _without_blanks(document: Any) -> Any:
    """Return a document without the members that some servers leave blank instead of out."""
    if not isinstance(document, dict):
        return document
    return {name: value for name, value in document.items() if value not in (None, "")}


def _code_of(document: Any) -> str:
    code = document.get("error") if isinstance(document, dict) else None
    return f" and {code}" if isinstance(code, str) and SAID_CODE.fullmatch(code) else ""
