"""Personal data and secrets out of tool results, before they are stored or returned.

Pure, and JSON-aware: every string of a result is read, keys and structure stay as they are, so a
result that fits its schema still does where the schema asks for plain strings. Structured types
only: cards (Luhn), IBANs (mod 97), e-mail addresses, US social security numbers, and tokens of
well-known make. A redactor that fails refuses the result (`redaction_failed`): nothing leaves
unread.
"""

from __future__ import annotations

import re
from typing import Any, Final

from registry.errors import Code, FleetError

_EMAIL: Final = re.compile(r"[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")
_SSN: Final = re.compile(r"\b(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}\b")
_CARD: Final = re.compile(r"\b(?:\d[ -]?){12,18}\d\b")
_IBAN: Final = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b")
_SECRET: Final = re.compile(
    r"\b(?:AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36,}|xox[abprs]-[A-Za-z0-9-]{10,}"
    r"|sk-[A-Za-z0-9_-]{20,})"
)
# Both read a text once, however often it seems to begin such a thing: hence the possessive
# quantifiers. A token (JWT) goes with what is joined to its front; a key ends at the next dashes.
_TOKEN: Final = re.compile(
    r"(?<![\w-])(?=[\w-]++\.[\w-]{10,}+\.[\w-]{10})"
    r"[\w-]*?\beyJ[\w-]{10,}+\.[\w-]{10,}+\.[\w-]{10,}+",
    re.ASCII,
)
_PRIVATE_KEY: Final = re.compile(
    r"-----BEGIN [A-Z ]*+(?<=PRIVATE KEY)-----[^-]*+(?:-(?!----)[^-]*+)*+"
    r"-----END [A-Z ]*+(?<=PRIVATE KEY)-----"
)
_DIGIT: Final = re.compile(r"\d\D?\d\D?\d")
MAX_DEPTH: Final = 64


def redact(value: Any) -> Any:
    """Return ``value`` with personal data and secrets replaced by ``[card]``, ``[email]``, ...

    Raises `redaction_failed` when it cannot be read to the end.
    """
    try:
        return _walk(value, MAX_DEPTH)
    except (RecursionError, ValueError, TypeError) as error:
        raise FleetError(
            Code.REDACTION_FAILED,
            f"the result could not be redacted ({type(error).__name__}) and is withheld",
            hint="the call itself did run; look at the tool's output at its source",
        ) from error


def redact_text(text: str) -> str:
    """Return one string redacted."""
    if "@" in text:
        text = _EMAIL.sub("[email]", text)
    if _DIGIT.search(text):
        text = _SSN.sub("[ssn]", text)
        text = _CARD.sub(_card, text)
        text = _IBAN.sub(_iban, text)
    for secret in (_SECRET, _TOKEN, _PRIVATE_KEY):
        text = secret.sub("[secret]", text)
    return text


def _walk(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return redact_text(value)
    if depth == 0:
        raise ValueError("nested too deeply")
    if isinstance(value, dict):
        if value.get("type") in ("image", "audio") and "data" in value:
            return value  # base64 of a medium, by MCP's content types: not text
        return {key: _walk(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_walk(item, depth - 1) for item in value]
    return value


def _card(match: re.Match[str]) -> str:
    digits = [int(character) for character in match.group() if character.isdigit()]
    doubled = [d * 2 - 9 if d > 4 else d * 2 for d in digits[-2::-2]]
    valid = (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 and len(set(digits)) > 1
    return "[card]" if valid else match.group()


def _iban(match: re.Match[str]) -> str:
    compact = match.group().replace(" ", "")
    number = "".join(str(int(character, 36)) for character in compact[4:] + compact[:4])
    return "[iban]" if int(number) % 97 == 1 else match.group()
