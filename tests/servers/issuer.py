"""An identity provider on loopback: its discovery document, its keys, and the tokens it signs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

AUDIENCE = "toolfleet"
_MAKERS = {
    "RS256": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}


@cache
def _private_key(key_id: str, algorithm: str) -> Any:
    """Return a key, made once: an RSA key takes a while."""
    return _MAKERS[algorithm]()


def now_s() -> int:
    return int(datetime.now(UTC).timestamp())


class LocalIssuer:
    """What it answers is changed by its attributes; it counts how often it is asked."""

    def __init__(self) -> None:
        self.url = ""
        self.private: dict[str, tuple[str, Any]] = {}
        self.jwks: dict[str, Any] = {"keys": []}
        self.discovery: dict[str, Any] = {}
        self.status = 200
        self.asked: list[str] = []

    def add_key(self, key_id: str, algorithm: str) -> None:
        """Make a key and list it."""
        private = _private_key(key_id, algorithm)
        self.private[key_id] = (algorithm, private)
        self.jwks["keys"].append({**public_jwk(private, algorithm), "kid": key_id, "use": "sig"})

    def drop_key(self, key_id: str) -> None:
        self.jwks["keys"] = [key for key in self.jwks["keys"] if key["kid"] != key_id]

    def claims(self, **changed: Any) -> dict[str, Any]:
        now = now_s()
        claims = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "user-1",
            "iat": now,
            "nbf": now,
            "exp": now + 600,
            "roles": ["tenant"],
            "tenant": "acme",
            **changed,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def sign(
        self, key_id: str = "k1", headers: dict[str, Any] | None = None, **changed: Any
    ) -> str:
        algorithm, private = self.private[key_id]
        given = {"kid": key_id, **(headers or {})}
        return jwt.encode(self.claims(**changed), private, algorithm=algorithm, headers=given)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split(b" ")[1].decode()
        self.asked.append(path)
        body = json.dumps(self.jwks if path == "/keys" else self.discovery).encode()
        writer.write(
            b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%s" % (self.status, len(body), body)
        )
        await writer.drain()
        writer.close()


def public_jwk(private: Any, algorithm: str) -> dict[str, Any]:
    """Return the public half of a key, as a JWKS document lists it."""
    maker = jwt.get_algorithm_by_name(algorithm)
    return json.loads(maker.to_jwk(private.public_key()))


@asynccontextmanager
async def issuing() -> AsyncIterator[LocalIssuer]:
    """Run an issuer with one RS256 key, `k1`."""
    issuer = LocalIssuer()
    server = await asyncio.start_server(issuer.answer, "127.0.0.1", 0)
    issuer.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    issuer.discovery = {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys"}
    issuer.add_key("k1", "RS256")
    async with server:
        yield issuer
