"""What a server asks of a person or a model, as it may leave the fleet.

Pure. What is said is stripped of characters that nobody sees and redacted like a result. What an
answer has to agree with, a form's fields and choices, and an address that is to be opened, stay as
they are: where they would have to be changed, the question is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

from registry.errors import Code, FleetError
from registry.hidden_text import has_hidden, without_hiding
from registry.output_rules import DEFAULT_RULES, OutputRules
from registry.redaction import Redactor, redactor

_SAID_OF_FIELDS: Final = frozenset({"title", "description", "default"})


def let_ask(params: dict[str, Any], rules: OutputRules = DEFAULT_RULES) -> dict[str, Any]:
    """Return the params of a question as they may be put; raise `result_blocked` if they may not.

    Raises `redaction_failed` when they cannot be read.
    """
    reader = redactor(rules)
    exact = _EXACT.keys() & params.keys()
    said = {name: item for name, item in params.items() if name not in exact}
    clean: dict[str, Any] = reader.value(_visible(said))
    return {**clean, **{name: _EXACT[name](reader, params[name]) for name in exact}}


def let_log(body: dict[str, Any], rules: OutputRules = DEFAULT_RULES) -> dict[str, Any]:
    """Return a log message of a server as it may leave; raise `redaction_failed`."""
    clean: dict[str, Any] = redactor(rules).value(_visible(body))
    return clean


def _form(reader: Redactor, schema: Any) -> Any:
    clean = reader.value(_visible(schema))
    if _fields(clean) != _fields(schema):
        raise _blocked("the fields or the choices of its form hold what may not leave")
    return _without_masked_defaults(clean, schema)


def _fields(schema: Any) -> Any:
    """Return what of a form its answer has to agree with."""
    if isinstance(schema, list):
        return [_fields(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    properties = schema.get("properties")
    kept = {name: _fields(it) for name, it in schema.items() if name not in _SAID_OF_FIELDS}
    if isinstance(properties, dict):  # a field may be called title
        kept["properties"] = {name: _fields(it) for name, it in properties.items()}
    return kept


def _without_masked_defaults(clean: Any, schema: Any) -> Any:
    """Leave out the suggestions that are masked: they would be sent back as they are."""
    properties = clean.get("properties") if isinstance(clean, dict) else None
    if not isinstance(properties, dict):
        return clean
    kept = {
        name: {
            member: item
            for member, item in field.items()
            if member != "default" or item == schema["properties"][name]["default"]
        }
        if isinstance(field, dict)
        else field
        for name, field in properties.items()
    }
    return {**clean, "properties": kept}


def _address(_: Redactor, url: Any) -> str:
    if not isinstance(url, str) or has_hidden(url):
        raise _blocked("its url has characters that nobody sees")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _blocked("its url is none") from None
    if parts.scheme not in ("https", "http") or not parts.netloc:
        raise _blocked("its url is not one of http or https")
    return url


def _messages(reader: Redactor, messages: Any) -> Any:
    """Return what a model is to be told: the bytes of pictures stay as they are."""
    if not isinstance(messages, list):
        return reader.value(_visible(messages))
    return [_message(reader, it) for it in messages]


def _message(reader: Redactor, message: Any) -> Any:
    if not isinstance(message, dict) or "content" not in message:
        return reader.value(_visible(message))
    content = message["content"]
    blocks = content if isinstance(content, list) else [content]
    clean = reader.result({"content": [_visible(block) for block in blocks]})["content"]
    rest = {name: item for name, item in message.items() if name != "content"}
    whole = reader.value(_visible(rest))
    return {**whole, "content": clean if isinstance(content, list) else clean[0]}


def _as_it_is(_: Redactor, value: Any) -> Any:
    return value


_EXACT: Final[dict[str, Callable[[Redactor, Any], Any]]] = {
    "requestedSchema": _form,
    "url": _address,
    "elicitationId": _as_it_is,
    "messages": _messages,
}


def _visible(value: Any) -> Any:
    """Return JSON without the characters that act on terminals, or that nobody sees."""
    if isinstance(value, str):
        return without_hiding(value) if has_hidden(value) else value
    if isinstance(value, list):
        return [_visible(item) for item in value]
    if isinstance(value, dict):
        return {_visible(name): _visible(item) for name, item in value.items()}
    return value


def _blocked(why: str) -> FleetError:
    return FleetError(
        Code.RESULT_BLOCKED,
        f"what the server asks is not passed on: {why}",
        hint="an operator can look at the tool, and change what the tenant's `results` say",
    )
