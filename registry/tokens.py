"""JSON Web Tokens: those that the fleet signs itself, and those of an identity provider.

Pure, and the one home of the library. Invariants of a provider's token:
 1. Only an asymmetric algorithm of `ALGORITHMS` is taken, and only with a key of its own kind; keys
    come from the provider alone, never from the token.
 2. Issuer, audience, subject and expiry are there and right; a token is never used before the time
    that it names. One of `nbf` and `iat` has to be there.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import jwt

from registry.errors import Code, FleetError

ALGORITHMS: Final = {
    "RS256": ("RSA", None),
    "RS384": ("RSA", None),
    "RS512": ("RSA", None),
    "PS256": ("RSA", None),
    "PS384": ("RSA", None),
    "PS512": ("RSA", None),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}
"""What a provider may sign with, and the kind of key (RFC 7517: kty, crv) that each needs."""
LEEWAY_S: Final = 30.0
LONGEST_SUBJECT: Final = 255
MOST_KEYS: Final = 64
_KEYS_IN_TOKEN: Final = ("jwk", "jku", "x5u", "x5c")
_TYPES: Final = frozenset({"jwt", "at+jwt", "application/at+jwt"})
_OWN: Final = "HS256"


@dataclass(frozen=True)
class Header:
    """How a token says it is signed."""

    algorithm: str
    key_id: str


@dataclass(frozen=True)
class Claims:
    """What a token that was checked says."""

    issuer: str
    subject: str
    expires_at: float
    """Seconds since 1970."""
    all: Mapping[str, Any]


def sign(claims: Mapping[str, Any], *, audience: str, expires_at: datetime, key: str) -> str:
    """Return a token of the fleet's own for one audience of the fleet's own."""
    return jwt.encode({**claims, "aud": audience, "exp": expires_at}, key, algorithm=_OWN)


def read(token: str, *, audience: str, key: str) -> dict[str, Any]:
    """Return the claims of a token that `sign` made; raise `token_expired`, `unauthenticated`."""
    try:
        return jwt.decode(token, key, algorithms=[_OWN], audience=audience)
    except jwt.ExpiredSignatureError as error:
        raise _expired() from error
    except jwt.InvalidTokenError as error:
        raise invalid("it was not signed by this fleet") from error


def read_header(token: str) -> Header:
    """Return how a provider's token says it is signed; raise `unauthenticated` unless that will do.

    Nothing of it is believed yet.
    """
    parts = token.split(".")
    if len(parts) != 3 or not all(parts):
        raise invalid("it does not have three parts")
    try:
        raw = base64.urlsafe_b64decode(parts[0] + "=" * (-len(parts[0]) % 4))
        header = json.loads(raw, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise invalid("its header is no JSON") from error
    if not isinstance(header, dict):
        raise invalid("its header is no object")
    algorithm, key_id, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise invalid(f"the algorithm {str(algorithm)[:20]!r} is not taken")
    if any(name in header for name in _KEYS_IN_TOKEN):
        raise invalid("it brings its own key or says where to fetch one")
    if "crit" in header or "b64" in header:
        raise invalid("it asks for extensions that are not known")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise invalid(f"tokens of type {str(kind)[:20]!r} are not taken")
    if not isinstance(key_id, str) or not 0 < len(key_id) <= LONGEST_SUBJECT:
        raise invalid("it does not name its key (kid)")
    return Header(algorithm, key_id)


def public_keys(document: Any) -> dict[str, Mapping[str, Any]]:
    """Return the keys of a provider's JWKS document that can check signatures, by their ids.

    Keys that are symmetric, private, for encryption, without an id or of an id that occurs twice
    are left out.
    """
    listed = document.get("keys") if isinstance(document, dict) else None
    found: dict[str, Mapping[str, Any]] = {}
    twice = set()
    for key in listed[:MOST_KEYS] if isinstance(listed, list) else ():
        if isinstance(key, dict) and isinstance(key.get("kid"), str) and _checks_signatures(key):
            twice |= {key["kid"]} & found.keys()
            found[key["kid"]] = key
    return {key_id: key for key_id, key in found.items() if key_id not in twice}


def check(
    token: str, header: Header, key: Mapping[str, Any], *, issuer: str, audience: str, now_s: float
) -> Claims:
    """Return the claims of a provider's token; raise `unauthenticated` or `token_expired`.

    ``key`` is the public key (RFC 7517) that the provider lists under the header's key id.
    """
    kind, curve = ALGORITHMS[header.algorithm]
    fits = key.get("kty") == kind and (curve is None or key.get("crv") == curve)
    if not fits or key.get("alg", header.algorithm) != header.algorithm:
        raise invalid(f"its key is not one for {header.algorithm}")
    try:
        claims = jwt.decode(
            token,
            jwt.PyJWK(dict(key), header.algorithm).key,
            algorithms=[header.algorithm],
            options={
                "verify_aud": False,
                "verify_exp": False,
                "verify_iat": False,
                "verify_iss": False,
                "verify_jti": False,
                "verify_nbf": False,
                "verify_sub": False,
                "enforce_minimum_key_length": True,
            },
        )
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        raise invalid("its signature does not match") from error
    return _checked(claims, issuer=issuer, audience=audience, now_s=now_s)


def invalid(why: str) -> FleetError:
    """Return the error for a token that is not taken."""
    return FleetError(
        Code.UNAUTHENTICATED,
        f"the token is not valid: {why}",
        hint="get a new token from the identity provider, for this fleet's audience",
    )


def _checked(claims: Mapping[str, Any], *, issuer: str, audience: str, now_s: float) -> Claims:
    if claims.get("iss") != issuer:
        raise invalid("it is of another issuer")
    audiences = claims.get("aud")
    if audience not in (audiences if isinstance(audiences, list) else [audiences]):
        raise invalid("it is for another audience")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= LONGEST_SUBJECT:
        raise invalid("it names no subject")
    if not subject.isprintable():
        raise invalid("its subject is not printable")
    expires_at = _instant(claims, "exp")
    begins = [_instant(claims, name) for name in ("nbf", "iat") if name in claims]
    if not begins:
        raise invalid("it does not say from when on it holds (nbf or iat)")
    if max(begins) > now_s + LEEWAY_S:
        raise invalid("it is not valid yet")
    if expires_at <= now_s - LEEWAY_S:
        raise _expired()
    return Claims(issuer, subject, expires_at, claims)


def _instant(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise invalid(f"{name} is missing, or no time")
    return float(value)


def _checks_signatures(key: Mapping[str, Any]) -> bool:
    kinds = {kind for kind, _ in ALGORITHMS.values()}
    operations = key.get("key_ops", ["verify"])
    return (
        key.get("kty") in kinds
        and "d" not in key
        and key.get("use", "sig") == "sig"
        and isinstance(operations, list)
        and "verify" in operations
    )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _expired() -> FleetError:
    return FleetError(Code.TOKEN_EXPIRED, "the token has expired", hint="get a new one")
