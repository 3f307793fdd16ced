"""A Vault for tests, over real HTTP: AppRole, KV version 2, Transit, and tokens that end.

It answers as HashiCorp's API documentation says that Vault does: paths, fields, statuses. It is no
Vault: policies are a list of (method, path prefix) that a login may use.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.servers.authorization import Reply, http

ROLE_ID, SECRET_ID, ROOT = "role-of-the-fleet", "secret-id-of-the-fleet", "hvs.root"


def _denied() -> Reply:
    return Reply(403, {"errors": ["1 error occurred:\n\t* permission denied\n\n"]})


@dataclass
class VaultServer:
    """One Vault; make one with `vault_server`."""

    url: str = ""
    lease_s: int = 3600
    renewable: bool = True
    sealed: bool = False
    secret_lease_s: int = 0
    allowed: list[tuple[str, str]] = field(default_factory=lambda: [("", "")])
    asked: Counter[str] = field(default_factory=Counter)
    tokens: set[str] = field(default_factory=lambda: {ROOT})
    _kv: dict[str, list[dict[str, Any] | None]] = field(default_factory=dict)
    _transit: dict[str, dict[int, bytes]] = field(default_factory=dict)

    # -- as an operator of Vault

    def write(self, path: str, **fields: Any) -> None:
        """Add a version of a secret."""
        self._kv.setdefault(path, []).append(fields)

    def delete(self, path: str) -> None:
        """Delete a secret's newest version, softly."""
        self._kv[path].append(None)

    def rotate(self, key: str) -> None:
        """Add a version of a Transit key."""
        versions = self._transit.setdefault(key, {})
        versions[len(versions) + 1] = AESGCM.generate_key(256)

    def retire(self, key: str, *, before: int) -> None:
        """Raise a key's min_decryption_version."""
        for version in range(1, before):
            self._transit[key].pop(version, None)

    # -- as the fleet sees it

    def answer(self, method: str, url: str, headers: dict[str, str], body: bytes) -> Reply:
        parts = urlsplit(url)
        path = parts.path.removeprefix("/v1/")
        said = json.loads(body) if body else {}
        self.asked[f"{method} {path}"] += 1
        if self.sealed:
            return Reply(503, {"errors": ["Vault is sealed"]})
        if path == "auth/approle/login":
            if (said.get("role_id"), said.get("secret_id")) != (ROLE_ID, SECRET_ID):
                return Reply(400, {"errors": ["invalid role or secret ID"]})
            token = f"hvs.{secrets.token_hex(12)}"
            self.tokens.add(token)
            return self._auth(token)
        token = headers.get("x-vault-token", "")
        if token not in self.tokens:
            return _denied()
        if path == "auth/token/lookup-self":
            data = {"id": token, "ttl": self.lease_s, "renewable": self.renewable}
            return self._data(data)
        if path == "auth/token/renew-self":
            return (
                self._auth(token) if self.renewable else Reply(400, {"errors": ["not renewable"]})
            )
        if not any(method.startswith(verb) and path.startswith(at) for verb, at in self.allowed):
            return _denied()
        if path.startswith("transit/"):
            return self._in_transit(*path.split("/")[1:], said)
        return self._read(path.replace("/data/", "/", 1), parse_qs(parts.query))

    def _read(self, path: str, query: dict[str, list[str]]) -> Reply:
        versions = self._kv.get(path, [])
        number = int(query.get("version", [str(len(versions))])[0])
        if not 0 < number <= len(versions):
            return Reply(404, {"errors": []})
        metadata = {"version": number, "destroyed": False, "deletion_time": ""}
        found = versions[number - 1]
        if found is None:
            metadata["deletion_time"] = "2026-11-25T00:00:00Z"
            return Reply(404, self._body({"data": None, "metadata": metadata}))
        return self._data({"data": found, "metadata": metadata}, self.secret_lease_s)

    def _in_transit(self, verb: str, key: str, said: dict[str, Any]) -> Reply:
        versions = self._transit.get(key)
        if not versions:
            return Reply(400, {"errors": ["encryption key not found"]})
        if verb == "encrypt":
            return self._data(self._encrypt(versions, base64.b64decode(said["plaintext"])))
        _, version, blob = said["ciphertext"].split(":", 2)
        used = versions.get(int(version.removeprefix("v")))
        if used is None:
            return Reply(400, {"errors": ["ciphertext version is disallowed by policy"]})
        raw = base64.b64decode(blob)
        plain = AESGCM(used).decrypt(raw[:12], raw[12:], None)
        if verb == "decrypt":
            return self._data({"plaintext": base64.b64encode(plain).decode()})
        return self._data(self._encrypt(versions, plain))

    def _encrypt(self, versions: dict[int, bytes], plain: bytes) -> dict[str, Any]:
        newest = max(versions)
        nonce = os.urandom(12)
        raw = nonce + AESGCM(versions[newest]).encrypt(nonce, plain, None)
        return {
            "ciphertext": f"vault:v{newest}:{base64.b64encode(raw).decode()}",
            "key_version": newest,
        }

    def _auth(self, token: str) -> Reply:
        auth = {
            "client_token": token,
            "accessor": "an-accessor",
            "policies": ["default", "fleet"],
            "lease_duration": self.lease_s,
            "renewable": self.renewable,
        }
        return Reply(200, {**self._body(None), "auth": auth})

    def _data(self, data: Any, lease_s: int = 0) -> Reply:
        return Reply(200, self._body(data, lease_s))

    def _body(self, data: Any, lease_s: int = 0) -> dict[str, Any]:
        return {
            "request_id": secrets.token_hex(8),
            "lease_id": "",
            "renewable": False,
            "lease_duration": lease_s,
            "data": data,
            "wrap_info": None,
            "warnings": None,
            "auth": None,
        }


@contextmanager
def vault_server() -> Iterator[VaultServer]:
    """Run a Vault on a free port of loopback."""
    server = VaultServer()
    with http(server.answer) as url:
        server.url = url
        yield server
