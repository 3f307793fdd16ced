"""The kinds of values that a server definition is made of, and what each of them refuses.

Two sorts of rules. What a value is, holds always. How large or how sane it has to be is asked of a
definition that is registered now (`NEW`): one that is stored kept to the rules of its own day, and
every process has to go on reading it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sized
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field, HttpUrl, UrlConstraints, ValidationInfo

from registry.addresses import parse_network
from registry.environment import refuse_variables

NEW: Final = {"new": True}
"""The validation context of a definition that is registered now."""

DAY_S: Final = 86_400
MOST_ENTRIES: Final = 256
"""Arguments, variables, headers and networks of one server."""
MOST_TOOLS: Final = 10_000
MOST_TENANTS: Final = 10_000
LONGEST_VALUE: Final = 32_768
"""Bytes of one argument, variable or header."""
SEALED: Final = "toolfleet-sealed."
"""What begins a secret of a definition as the record keeps it (`registry.sealed_definitions`)."""
LONGEST_URL: Final = 2083
_LONGEST_STORED_URL: Final = 65_536
LONGEST_NAME: Final = 256
LONGEST_TOOL_NAME: Final = 128
LONGEST_TENANT: Final = 64

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_CONTROL_IN_TEXT: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OF_THE_CONNECTION: Final = frozenset(
    {
        "connection",
        "content-length",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\\/?#][^\s\\]*")


def when_new(rule: Callable[[Any], None]) -> AfterValidator:
    """Return a validator that holds a value to ``rule`` if its definition is registered now."""

    def check(value: Any, info: ValidationInfo) -> Any:
        if is_new(info):
            rule(value)
        return value

    return AfterValidator(check)


def is_new(info: ValidationInfo) -> bool:
    """Say whether the definition that is being validated is registered now."""
    return info.context is NEW


def matching(pattern: str, allowed: str) -> AfterValidator:
    """Return a validator for text of one form; ``allowed`` says in words which."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"takes {allowed}")
        return value

    return AfterValidator(check)


def at_most(limit: float) -> AfterValidator:
    """Return a validator for new numbers."""

    def rule(value: float) -> None:
        if value > limit:
            raise ValueError(f"is more than {limit:,}, the most that makes sense here")

    return when_new(rule)


def entries(most: int) -> AfterValidator:
    """Return a validator for how much a new list or object holds."""

    def rule(value: Sized) -> None:
        if len(value) > most:
            raise ValueError(f"has {len(value):,} entries; {most:,} are the most")

    return when_new(rule)


def line(longest: int = LONGEST_NAME) -> AfterValidator:
    """Return a validator for new text of one line, without control characters."""

    def rule(value: str) -> None:
        if not value:
            raise ValueError("is empty")
        _refuse(_CONTROL, value)
        if len(value) > longest:
            raise ValueError(f"has {len(value):,} characters; {longest:,} are the most")

    return when_new(rule)


def refuse_header_name(name: str) -> None:
    """Raise `ValueError` for what HTTP does not take for a header's name, or keeps for itself."""
    if not _TOKEN.fullmatch(name):
        raise ValueError(
            "is no name of a header: it takes letters, digits and any of !#$%&'*+-.^_`|~"
        )
    if name.lower() in _OF_THE_CONNECTION:
        raise ValueError("is a header that the connection itself sets")


def refuse_twins(headers: Mapping[str, str]) -> None:
    """Raise `ValueError` for a header that is there twice: case does not tell them apart."""
    seen: set[str] = set()
    for name in headers:
        if name.lower() in seen:
            raise ValueError(f"holds the header {name!r} twice, in other letters")
        seen.add(name.lower())


def is_tenant_name(text: str) -> bool:
    """Say whether a tenant may have this name: letters, digits, ``-`` and ``_``, 64 at most."""
    return 0 < len(text) <= LONGEST_TENANT and text.replace("-", "").replace("_", "").isalnum()


def _refuse(pattern: re.Pattern[str], value: str) -> None:
    found = pattern.search(value)
    if found:
        raise ValueError(f"holds the character U+{ord(found[0]):04X}, which it may not")


def _harmless(variable: str) -> str:
    refuse_variables([variable])
    return variable


def _refuse_sealed(value: str) -> None:
    if value.startswith(SEALED):
        raise ValueError("is what the record keeps of a secret: give the secret itself")


def _text(value: str) -> None:
    _refuse(_CONTROL_IN_TEXT, value)
    _refuse_sealed(value)
    _bounded(value)


def _header_value(value: str) -> None:
    _refuse(_CONTROL, value)
    if not value.isascii():
        raise ValueError("holds a character that no header can: headers are ASCII")
    if value != value.strip():
        raise ValueError("begins or ends with a space, which no header can")
    _refuse_sealed(value)
    _bounded(value)


def _bounded(value: str) -> None:
    if (size := len(value.encode())) > LONGEST_VALUE:
        raise ValueError(f"has {size:,} bytes; {LONGEST_VALUE:,} are the most")


def _program(command: str) -> None:
    if not command.strip():
        raise ValueError("is empty: it names the program to start")
    _refuse(_CONTROL, command)
    _bounded(command)
    absolute = command.startswith("/")
    words = command.split()
    if len(words) > 1 and (not absolute or any(word[0] in "-/\"'" for word in words[1:])):
        raise ValueError(f"is a whole command line: put the arguments after {words[0]!r} in args")
    if not absolute and ("/" in command or command.startswith("~")):
        raise ValueError(
            "is a relative path: give the whole path, or the bare name of a program on the PATH"
        )


def _folder(path: str) -> None:
    _refuse(_CONTROL, path)
    _bounded(path)
    if not path.startswith("/"):
        raise ValueError("is a relative path: give the whole path, which starts with /")


def _path_of_url(path: str) -> None:
    _refuse(_CONTROL, path)
    _bounded(path)
    if not path.startswith("/"):
        raise ValueError("has to start with /")
    if path.startswith("//") or "\\" in path:
        raise ValueError("names a host: it is a path of the server that url names")


def _tenant(name: str) -> None:
    if not is_tenant_name(name):
        raise ValueError(
            f"is no name of a tenant: it takes up to {LONGEST_TENANT} letters, digits, '-' and '_'"
        )


def _spelled_out(value: Any, info: ValidationInfo) -> Any:
    # The URL parser repairs what it can, and so would hide what somebody really wrote.
    if is_new(info) and isinstance(value, str) and not _URL.fullmatch(value):
        raise ValueError("is no URL like https://example.com/mcp")
    return value


class _StoredUrl(HttpUrl):
    """A URL of the web; with its secrets sealed it is longer than any that is registered."""

    _constraints = UrlConstraints(max_length=_LONGEST_STORED_URL, allowed_schemes=["http", "https"])


def _endpoint(url: HttpUrl) -> None:
    if len(str(url)) > LONGEST_URL:
        raise ValueError(f"has more than {LONGEST_URL:,} characters")
    if url.username is not None or url.password is not None:
        raise ValueError("holds a user name or password: put credentials in headers or credentials")
    if url.fragment is not None:
        raise ValueError("has a fragment (#...), which is never sent to a server")
    for _, value in url.query_params():
        _refuse_sealed(value)


SERVER_NAME: Final = r"[a-z0-9][a-z0-9-]{0,39}"
ServerName = Annotated[
    str,
    matching(
        SERVER_NAME, "up to 40 small letters, digits and dashes, and does not start with a dash"
    ),
    Field(json_schema_extra={"pattern": f"^{SERVER_NAME}$"}),
]
Prefix = Annotated[
    str, matching(r"[A-Za-z0-9_-]{0,24}", "up to 24 letters, digits, dashes and underscores")
]
Text = Annotated[str, when_new(_text)]
Variable = Annotated[str, AfterValidator(_harmless), line()]
HeaderName = Annotated[str, when_new(refuse_header_name), line()]
HeaderValue = Annotated[str, when_new(_header_value)]
ToolName = Annotated[str, line(LONGEST_TOOL_NAME)]
Tenant = Annotated[str, when_new(_tenant)]
Program = Annotated[str, when_new(_program)]
Folder = Annotated[str, when_new(_folder)]
UrlPath = Annotated[str, when_new(_path_of_url)]
Endpoint = Annotated[
    _StoredUrl,
    BeforeValidator(_spelled_out),
    when_new(_endpoint),
    Field(json_schema_extra={"maxLength": LONGEST_URL}),
]
JsonPointer = Annotated[
    str, matching(r"(/([^~/]|~[01])*)*", "a JSON pointer such as /card/number (RFC 6901)"), line()
]
NetworkName = Annotated[str, AfterValidator(lambda text: str(parse_network(text)))]

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False), at_most(DAY_S)]
"""A time that somebody waits for."""
Lifetime = Annotated[float, Field(gt=0, allow_inf_nan=False), at_most(30 * DAY_S)]
"""A time for which something is kept."""
