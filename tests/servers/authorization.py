"""An authorization server without leeway, and a Vault, for tests; both over real HTTP.

A refresh token works exactly once: its second use revokes every token that came of the same
consent. What was asked is counted; how it answers can be changed while it runs.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote_plus, urlencode

CLIENT_ID, CLIENT_SECRET = "fleet:1", "the client's own secret, with % and +"


@dataclass
class Reply:
    """An HTTP answer."""

    status: int
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)


@contextmanager
def http(answer: Callable[[str, str, dict[str, str], bytes], Reply]) -> Iterator[str]:
    """Serve on loopback; yield the URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            size = int(self.headers.get("content-length") or 0)
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = answer(self.command, self.path, headers, self.rfile.read(size))
            body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.close_connection = True
            if reply.status == 0:  # a connection that just ends
                return
            self.send_response(reply.status)
            for name, value in {"content-type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.send_header("connection", "close")
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = handle_any  # noqa: N815 - the names of http.server

        def log_message(self, *_: Any) -> None:
            return

    class Server(ThreadingHTTPServer):
        request_queue_size = 256

        def handle_error(self, *_: Any) -> None:
            return  # a client that went away

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class AuthorizationServer:
    """One authorization server; make one with `authorization_server`."""

    url: str = ""
    life_s: float = 3600.0
    delay_s: float = 0.0
    """Between what a request changes and its answer."""
    broken: Reply | None = None
    """What every token request gets instead, before it changes anything."""
    broken_once: bool = False
    lose_answers: bool = False
    """Change what is asked, then say nothing."""
    metadata: dict[str, Any] | None = None
    resource_metadata: dict[str, Any] | None = None
    """What the resource says of itself, where it is on the same port."""
    redirects: dict[str, str | None] = field(default_factory=dict)
    """Parameters of redirects that are others than they should be; None leaves one out."""
    refreshes: bool = True
    """Whether a code brings a refresh token."""
    asked: list[dict[str, str]] = field(default_factory=list)
    """Every authorization request."""
    registered: list[dict[str, Any]] = field(default_factory=list)
    """What clients said of themselves."""
    slow_metadata: bool = False
    """Metadata waits for the gate, too."""
    said: Counter[str] = field(default_factory=Counter)
    """How often each kind of answer was given."""
    forms: list[dict[str, str]] = field(default_factory=list)
    live: dict[str, str] = field(default_factory=dict)
    """Access tokens that work, each with the subject it stands for."""
    gate: threading.Event = field(default_factory=threading.Event)
    """Token requests wait for it."""
    arrived: threading.Event = field(default_factory=threading.Event)
    _codes: dict[str, dict[str, str]] = field(default_factory=dict)
    _families: dict[str, str] = field(default_factory=dict)
    _used: dict[str, str] = field(default_factory=dict)
    _revoked: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def consent(self, subject: str = "alice") -> str:
        """Return the refresh token of a new consent."""
        family = f"{subject}/{secrets.token_hex(4)}"
        return self._new_refresh(family)

    def speaks(self, **other: Any) -> dict[str, Any]:
        """Have metadata that says what it can; return it."""
        self.metadata = {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "registration_endpoint": f"{self.url}/register",
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
            **other,
        }
        return self.metadata

    def revoke(self, token: str) -> None:
        """Let an access token work no more."""
        self.live.pop(token, None)

    def forget(self, subject: str) -> None:
        """Let no access token of a subject work any more."""
        for token in [token for token, of in self.live.items() if of == subject]:
            self.revoke(token)

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Reply:
        page, _, query = path.partition("?")
        if "/.well-known/oauth-protected-resource" in path:
            self.said["resource"] += 1
            resource = self.resource_metadata
            return Reply(200, resource) if resource else Reply(404, {})
        if page == "/authorize" and method == "GET":
            return self._authorize(dict(parse_qsl(query)))
        if path == "/register" and method == "POST":
            return self._register(json.loads(body))
        if "/.well-known/" in path:
            self.said["metadata"] += 1
            if self.slow_metadata:
                self.arrived.set()
                self.gate.wait(60)
            return Reply(200, self.metadata) if self.metadata else Reply(404, {})
        if path != "/token" or method != "POST":
            return Reply(404, {})
        form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        self.forms.append({**form, "authorization": headers.get("authorization", "")})
        self.arrived.set()
        self.gate.wait(60)
        if (broken := self.broken) is not None:
            self.broken = None if self.broken_once else broken
            self.said["broken"] += 1
            return broken
        reply = self._grant(form, headers)
        if self.lose_answers:
            return Reply(0)
        time.sleep(self.delay_s)
        return reply

    def _register(self, said: dict[str, Any]) -> Reply:
        self.registered.append(said)
        return Reply(201, {**said, "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET})

    def _authorize(self, asked: dict[str, str]) -> Reply:
        """Ask nobody, and consent."""
        self.asked.append(asked)
        code = f"code-{secrets.token_hex(8)}"
        self._codes[code] = asked
        back = {"code": code, "state": asked["state"], "iss": self.url, **self.redirects}
        told = urlencode({name: value for name, value in back.items() if value is not None})
        return Reply(302, b"", {"location": f"{asked['redirect_uri']}?{told}"})

    def _exchange(self, form: dict[str, str]) -> Reply:
        """Give tokens for a code, once, to who asked for it."""
        asked = self._codes.pop(form.get("code", ""), None)
        if asked is None:
            return self._refuse("invalid_grant")
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        proof = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        same = all(form.get(name) == asked.get(name) for name in ("redirect_uri", "resource"))
        if proof != asked.get("code_challenge") or not same:
            return self._refuse("invalid_grant")
        more = {"refresh_token": self.consent("alice")} if self.refreshes else {}
        return self._give("alice", **more)

    def _grant(self, form: dict[str, str], headers: dict[str, str]) -> Reply:
        if not self._knows(form, headers):
            return self._refuse("invalid_client", 401)
        match form.get("grant_type"):
            case "authorization_code":
                return self._exchange(form)
            case "refresh_token":
                return self._refresh(form.get("refresh_token", ""))
            case "client_credentials":
                return self._give("client")
            case "urn:ietf:params:oauth:grant-type:token-exchange":
                subject = self.live.get(form.get("subject_token", ""))
                return self._give(f"for:{subject}") if subject else self._refuse("invalid_grant")
        return self._refuse("unsupported_grant_type")

    def _knows(self, form: dict[str, str], headers: dict[str, str]) -> bool:
        basic = headers.get("authorization", "")
        if basic.startswith("Basic "):
            name, _, secret = base64.b64decode(basic[6:]).decode().partition(":")
            return (unquote_plus(name), unquote_plus(secret)) == (CLIENT_ID, CLIENT_SECRET)
        if "client_assertion" in form:
            return form.get("client_id") == CLIENT_ID
        return (form.get("client_id"), form.get("client_secret")) == (CLIENT_ID, CLIENT_SECRET)

    def _refresh(self, token: str) -> Reply:
        with self._lock:
            if token in self._used:  # no leeway: whoever has it now, nobody may go on
                self._revoked.add(self._used[token])
                return self._refuse("invalid_grant")
            family = self._families.pop(token, None)
            if family is None or family in self._revoked:
                return self._refuse("invalid_grant")
            self._used[token] = family
        self.said["refreshed"] += 1
        return self._give(family.partition("/")[0], refresh_token=self._new_refresh(family))

    def _give(self, subject: str, **more: Any) -> Reply:
        token = f"at-{secrets.token_hex(16)}"
        self.live[token] = subject
        self.said["token"] += 1
        given = {"access_token": token, "token_type": "Bearer", "expires_in": self.life_s, **more}
        return Reply(200, given, {"cache-control": "no-store"})

    def _refuse(self, code: str, status: int = 400) -> Reply:
        self.said[code] += 1
        return Reply(status, {"error": code, "error_description": "you sent: a secret"})

    def _new_refresh(self, family: str) -> str:
        token = f"rt-{secrets.token_hex(16)}"
        self._families[token] = family
        return token


@contextmanager
def authorization_server() -> Iterator[AuthorizationServer]:
    """Run an authorization server on a free port of loopback."""
    server = AuthorizationServer()
    server.gate.set()
    with http(server.answer) as url:
        server.url = url
        yield server
