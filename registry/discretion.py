"""What a process keeps to itself: no secret in what it logs, no memory in a core dump.

Three kinds of secrets are taken out of every line that a process logs, tracebacks included: those
of its own settings, what has the form of a secret (a password in a URL, a bearer token, a key of
ours), and what the ``sources`` of its role know. What is written to stderr when it dies of an
error goes the same way.

Which variables and headers hold secrets is told by their names (`declared_secrets`).
"""

from __future__ import annotations

import logging
import os
import re
import resource
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Final, Literal
from urllib.parse import unquote

REPLACEMENT: Final = "[secret]"
SHORTEST_SECRET: Final = 8
"""Text shorter than this is found in any text, so it could not be kept out of them."""

_FORMS: Final = (
    # The password may hold what it should not, a slash or an @: it ends at the word's last one.
    (re.compile(r"(?<=://)[^\s/?#'\"<>@]*:[^\s'\"<>]*@"), f"{REPLACEMENT}@"),
    (re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1 {REPLACEMENT}"),
    (re.compile(r"\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,}"), REPLACEMENT),
    (re.compile(r"\btf_[\w-]{20,}"), REPLACEMENT),
)
_SECRET_NAME: Final = re.compile(
    r"(?:key|token|secret|passw(?:or)?d|passphrase|pwd|credentials?|auth|authorization|cookie"
    r"|signature|dsn|pat)s?(?:[_-]?\d+)?$",
    re.IGNORECASE,
)
_PASSWORD: Final = re.compile(r":/{0,2}[^\s:@/]*:(\S*)@")
_kept: Final[set[str]] = set()


def keep(*secrets: str) -> None:
    """Keep these out of the log from now on, whatever they look like."""
    _kept.update(secret for secret in secrets if len(secret) >= SHORTEST_SECRET)


def discreet(text: str) -> str:
    """Return a text without what was kept, and without what has the form of a secret."""
    for secret in sorted(_kept, key=len, reverse=True):
        text = text.replace(secret, REPLACEMENT)
    for form, instead in _FORMS:
        text = form.sub(instead, text)
    return text


class DiscreetFormatter(logging.Formatter):
    """Format a record, traceback included, without secrets; ``sources`` take out theirs first."""

    def __init__(
        self, *sources: Callable[[str], str], form: Literal["pretty", "json"] = "pretty"
    ) -> None:
        from registry.telemetry_logs import formatter

        super().__init__()
        self._sources = sources
        self._inner = formatter(form, self._clean)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return self._clean(self._inner.format(record))

    def _clean(self, text: str) -> str:
        for source in self._sources:
            text = source(text)
        return discreet(text)


def log_discreetly(*sources: Callable[[str], str]) -> None:
    """Log to stderr from now on, without secrets, as the settings have it."""
    from registry.settings import get_settings

    settings = get_settings()
    handler = logging.StreamHandler()
    handler.setFormatter(DiscreetFormatter(*sources, form=settings.log_format))
    logging.basicConfig(level=settings.log_level, handlers=[handler])


def die_discreetly() -> None:
    """Let neither this process nor what it starts leave its memory on disk, nor die telling."""
    ours = {name: value for name, value in os.environ.items() if name.startswith("TOOLFLEET_")}
    keep(*declared_secrets(ours))
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))
    sys.excepthook = _tell


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(discreet("".join(traceback.format_exception(kind, error, trace))))


def declared_secrets(*parts: Mapping[str, str]) -> list[str]:
    """Return the values that are secrets among variables or headers, as their names tell.

    The password within a URL is one whatever its variable is called.
    """
    found = [secret for part in parts for name in part for secret in _secrets(name, part[name])]
    return [secret for secret in found if len(secret) >= SHORTEST_SECRET]


def holds_secret(name: str, value: str) -> bool:
    """Say whether a variable or header holds a secret, be it too short for `declared_secrets`."""
    return any(_secrets(name, value))


def _secrets(name: str, value: str) -> Iterator[str]:
    if _SECRET_NAME.search(name):
        yield value
        if name.lower().endswith("cookie"):
            yield from (pair.partition("=")[2] for pair in value.split(";"))
    password = _PASSWORD.search(value)
    if password:
        # An error about a URL that makes no sense may quote a piece of it.
        yield from (password[1], unquote(password[1]), *re.split(r"[/?#@:]", password[1]))
