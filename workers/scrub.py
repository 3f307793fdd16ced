"""A session's secrets, kept out of whatever leaves the session, and out of the worker's log.

They are the tenant's credential, and what the server's definition has among its variables and
headers that is secret by its name (`registry.discretion`).

Every spelling is replaced in which servers repeat what they were given: as it is, without its
scheme (``Bearer``), escaped once or twice as in JSON within text, and percent-encoded. What a
server encrypts, splits or encodes otherwise is not found: a tool that does so betrays its tenant.
"""

from __future__ import annotations

import json
import logging
import re
from typing import Any, Final, TypeVar
from urllib.parse import quote
from weakref import WeakSet

from pydantic_core import to_json

from registry.discretion import log_discreetly
from registry.errors import FleetError

REPLACEMENT: Final = "[credential]"
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]* (\S{8,})")
_ESCAPES: Final = 2
_SHORTEST_REST: Final = 4
_CONSUMER: Final = "celery.worker.consumer.consumer"

E = TypeVar("E", bound=FleetError)


class Scrubber:
    """Replaces some secrets; without any it changes nothing, at no cost.

    For as long as it lives, its secrets are kept out of the log too (see `set_up_logging`).
    """

    def __init__(self, *secrets: str | None) -> None:
        spellings = set().union(*(_spellings(secret) for secret in secrets if secret))
        self._spellings = sorted(spellings, key=len, reverse=True)
        self._in_json = [to_json(spelling)[1:-1] for spelling in self._spellings]
        if spellings:
            _live.add(self)

    def text(self, text: str) -> str:
        """Return a text without the secret."""
        for spelling in self._spellings:
            if spelling in text:
                text = text.replace(spelling, REPLACEMENT)
        return text

    def excerpt(self, text: str) -> str:
        """Return a text cut from a longer one without the secret, whole or cut in two."""
        text = self.text(text)
        for spelling in self._spellings:
            for size in range(len(spelling) - 1, _SHORTEST_REST - 1, -1):
                if text.startswith(spelling[-size:]):
                    text = REPLACEMENT + text[size:]
                if text.endswith(spelling[:size]):
                    text = text[:-size] + REPLACEMENT
        return text

    def json(self, value: Any, encoded: bytes | None = None) -> Any:
        """Return a JSON value without the secret, in its strings, keys and numbers.

        ``encoded`` is the value as `pydantic_core.to_json` writes it, where it is at hand.
        """
        if not self._spellings:
            return value
        encoded = to_json(value) if encoded is None else encoded
        if not any(spelling in encoded for spelling in self._in_json):
            return value
        return self._walk(value)

    def error(self, error: E) -> E:
        """Take the secret out of an error; return the error."""
        if self._spellings:
            error.message = self.text(error.message)
            error.hint = self.text(error.hint)
            error.details = self.json(error.details)
            error.args = (error.message,)
        return error

    def _walk(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(str(key)): self._walk(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._walk(item) for item in value]
        if isinstance(value, int | float) and (text := self.text(str(value))) != str(value):
            return text
        return value


_live: Final[WeakSet[Scrubber]] = WeakSet()


def _spellings(secret: str) -> set[str]:
    found = {secret}
    if scheme := _SCHEME.fullmatch(secret):
        found.add(scheme[1])
    found |= {quote(spelling, safe="") for spelling in found}
    for _ in range(_ESCAPES):
        for spelling in list(found):
            ascii_only = json.dumps(spelling)[1:-1]
            found |= {
                ascii_only,
                ascii_only.replace("/", "\\/"),
                json.dumps(spelling, ensure_ascii=False)[1:-1],
            }
    return found


def _without_live(line: str) -> str:
    for scrubber in list(_live):
        line = scrubber.text(line)
    return line


class _WithoutBody(logging.Filter):
    """Of what Celery says of a message that it cannot use, leaves the beginning: no part of it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass."""
        if "body" in str(record.msg) or record.name == _CONSUMER:
            said = re.split(r"[%\n]", str(record.msg))[0].strip()
            record.msg, record.args = f"a message was dropped: {said}", ()
            record.exc_info = record.exc_text = None
        return True


def set_up_logging() -> None:
    """Log to stderr from now on, without the secrets of the sessions that this process holds."""
    log_discreetly(_without_live)
    logging.getLogger("celery").setLevel(logging.WARNING)
    # A message may be anybody's, with a run token and arguments in it.
    logging.getLogger(_CONSUMER).addFilter(_WithoutBody())
    # One line per request, and its URL.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    # The MCP SDK quotes, in pieces, what servers send; what matters of it becomes a typed error.
    for name in ("mcp", "client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
