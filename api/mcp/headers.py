"""Headers that repeat what a body says (2026-07-28), held against it. Pure.

Whatever routes requests by their headers, and whatever acts on their bodies, have to see the same:
a header that is missing, twice there or different is a `HeaderMismatch`
(basic/transports/streamable-http, Server Validation).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from api.mcp.asked import HEADER_MISMATCH, RpcError

if TYPE_CHECKING:  # as in `api.mcp.asked`
    from api.mcp.messages import Request

VERSION: Final = "mcp-protocol-version"
METHOD: Final = "mcp-method"
NAME: Final = "mcp-name"
PARAMETER: Final = "mcp-param-"
NAMED: Final = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
    "tasks/get": "taskId",
    "tasks/update": "taskId",
    "tasks/cancel": "taskId",
}
"""By which parameter ``Mcp-Name`` names what a request is about."""
_NAME_REQUIRED: Final = frozenset({"tools/call", "prompts/get", "resources/read"})

_TEXT: Final = re.compile(r"[\t\x20-\x7e]*")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_ENCODED: Final = re.compile(r"=\?base64\?(.*)\?=")
_NUMBER: Final = re.compile(r"-?[0-9]{1,16}(\.0{1,16})?")
_REPEATED: Final = ("string", "integer", "boolean")


class Headers:
    """The headers of a request; a name may occur once."""

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self._found: dict[str, str] = {}
        self._twice: set[str] = set()
        for name, value in raw:
            key = name.decode("latin-1").lower()
            if key in self._found:
                self._twice.add(key)
            self._found[key] = value.decode("latin-1").strip(" \t")

    def get(self, name: str) -> str | None:
        """Return a header's value, None without one; the last one of several."""
        return self._found.get(name)

    def said(self, name: str) -> str | None:
        """Return a header that repeats something; raise `HeaderMismatch` for one that is not plain.

        None without one.
        """
        value = self._found.get(name)
        if name in self._twice:
            raise mismatch(f"the header {name} occurs twice")
        if value is not None and not _TEXT.fullmatch(value):
            raise mismatch(f"the header {name} has letters that no header may have")
        return value

    def decoded(self, name: str) -> str | None:
        """As `said`, for a header whose value may be encoded (``=?base64?...?=``)."""
        value = self.said(name)
        found = _ENCODED.fullmatch(value or "")
        if found is None:
            return value
        try:
            return base64.b64decode(found[1], validate=True).decode()
        except (binascii.Error, UnicodeDecodeError, ValueError) as error:
            raise mismatch(f"the header {name} is not valid base64 of UTF-8") from error


@dataclass(frozen=True, slots=True)
class Repeated:
    """A parameter of a tool that a header repeats (``x-mcp-header``)."""

    header: str
    path: tuple[str, ...]
    type: str


def mismatch(what: str) -> RpcError:
    """Return the error for headers that do not say what the body says."""
    return RpcError(HEADER_MISMATCH, f"Header mismatch: {what}")


def check(headers: Headers, request: Request) -> None:
    """Raise `HeaderMismatch` unless ``Mcp-Method`` and ``Mcp-Name`` say what a request says."""
    method = headers.said(METHOD)
    if method is None:
        raise mismatch("the header Mcp-Method is missing")
    if method != request.method:
        raise mismatch(f"Mcp-Method is {method!r}, and the body's method {request.method!r}")
    named = NAMED.get(request.method)
    if named is None:
        return
    said, meant = headers.decoded(NAME), request.params.get(named)
    if said is None and meant is not None and request.method in _NAME_REQUIRED:
        raise mismatch(f"the header Mcp-Name is missing; it repeats params.{named}")
    if said is not None and said != meant:
        raise mismatch(f"Mcp-Name is {said!r}, and the body's params.{named} is another")


def repeated_in(schema: Mapping[str, Any]) -> tuple[Repeated, ...]:
    """Return which parameters of an input schema headers repeat; none where one of them is wrong.

    A client leaves out a tool whose marks are wrong, so nobody can be asked for its headers.
    """
    found = tuple(_repeated(schema, ()))
    names = [it.header for it in found]
    valid = all(_TOKEN.fullmatch(it.header) and it.type in _REPEATED for it in found)
    return found if valid and len(set(names)) == len(names) else ()


def _repeated(schema: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[Repeated]:
    properties = schema.get("properties")
    for name, inner in properties.items() if isinstance(properties, dict) else ():
        if not isinstance(inner, dict):
            continue
        header = inner.get("x-mcp-header")
        if header is not None:
            yield Repeated(str(header).lower(), (*path, name), str(inner.get("type")))
        yield from _repeated(inner, (*path, name))


def check_parameters(
    headers: Headers, arguments: Mapping[str, Any], repeated: tuple[Repeated, ...]
) -> None:
    """Raise `HeaderMismatch` unless each ``Mcp-Param-*`` header says what its argument says."""
    for parameter in repeated:
        said, meant = headers.decoded(PARAMETER + parameter.header), _at(arguments, parameter.path)
        where = ".".join(parameter.path)
        if said is None and meant is not None:
            raise mismatch(f"Mcp-Param-{parameter.header} is missing; it repeats {where}")
        if said is not None and not _says(said, meant):
            raise mismatch(f"Mcp-Param-{parameter.header} is not what the argument {where} is")


def _at(arguments: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        if not isinstance(arguments, Mapping):
            return None
        arguments = arguments.get(name)
    return arguments


def _says(said: str, meant: Any) -> bool:
    if isinstance(meant, bool):
        return said == ("true" if meant else "false")
    if isinstance(meant, int | float):
        return _NUMBER.fullmatch(said) is not None and float(said) == meant
    return bool(said == meant)
