"""Personal data and secrets out of tool results, before they are stored or returned.

Pure, and JSON-aware: every string and number of a result is read, names of members too, JSON that
a text holds, text that is written as base64, and texts that follow each other as if they were one.
What a member is called tells what its value is. Bytes of media stay as they are. A redactor that
fails refuses the result (`redaction_failed`): nothing leaves unread.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

from registry.errors import Code, FleetError
from registry.output_rules import DEFAULT_RULES, OutputRules, compiled
from registry.personal import find, kind_of_name
from registry.plain_text import plain
from registry.secret_text import find_secrets, is_secret, names_secret
from registry.spans import Kind, Span

MAX_DEPTH: Final = 64
_LONGEST_EMBEDDED: Final = 1_000_000
"""Characters of JSON within a text that are read as JSON; what is longer is read as text."""
_WORTH: Final = re.compile("[0-9@:=%_-]|earer|EARER|eyJ|A(?:KIA|SIA|BIA|CCA|Iza)")
_MOMENT: Final = re.compile(
    r"(?:19|20)[0-9]{2}-[01][0-9]-[0-3][0-9]"
    r"(?:[T ][0-2][0-9]:[0-5][0-9](?::[0-6][0-9](?:\.[0-9]{1,9})?)?(?:Z|[+-][0-9]{2}:?[0-9]{2})?)?"
)
_TELLS_IN_NAME: Final = re.compile("[0-9@:=]")
_LONGEST_WORD: Final = 20  # characters that are no token yet
_INDENT: Final = re.compile(r"[\[{]\n([ \t]*)\S")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/\s]*={0,2}\s*")
_MEDIA: Final = ("image/", "audio/", "video/", "font/")
_SHORTEST: Final = 6  # a@b.cd
_LEAST_NUMBER: Final = 100_000
_LARGEST_NUMBER: Final = 10**20  # no card has more digits
_LARGEST_EXACT: Final = 2**53  # of the whole numbers that a float can tell apart


class Redactor:
    """Masks what the rules of a tenant name; made once for all tenants with the same rules."""

    def __init__(self, rules: OutputRules) -> None:
        self._kinds = rules.types
        self._patterns = [(it.name, compiled(it.pattern)) for it in rules.patterns]
        self._reads = bool(self._kinds or self._patterns)

    def value(self, value: Any) -> Any:
        """Return any JSON value with what is found in it masked; raise `redaction_failed`."""
        try:
            return self._walk(value, MAX_DEPTH, "") if self._reads else value
        except MemoryError:
            raise
        except Exception as error:
            raise refused(type(error).__name__) from error

    def result(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return a tool's result with what is found in it masked; raise `redaction_failed`.

        Its blocks of content are read as such: texts that follow each other as one too, and the
        bytes of media not at all. So are the contents of a resource and the messages of a prompt.
        """
        if not self._reads:
            return body
        try:
            return self._members(body, MAX_DEPTH, content=True)
        except MemoryError:
            raise
        except Exception as error:
            raise refused(type(error).__name__) from error

    def text(self, text: str, name: str = "") -> str:
        """Return a text masked; ``name`` is that of the member that holds it."""
        if name and names_secret(name) and Kind.SECRET in self._kinds and is_secret(name, text):
            return f"[{Kind.SECRET}]"
        if text.isascii() and not self._patterns and _is_harmless(text):
            return text
        embedded = self._embedded(text)
        return self._masked(text, self.spans(text, name)) if embedded is None else embedded

    def spans(self, text: str, name: str = "") -> list[Span]:
        """Return what is masked in a text, in order; those that touch each other as one."""
        read = plain(text)
        named = kind_of_name(name) if name else None
        found = list(find(read.text, self._kinds, named))
        if Kind.SECRET in self._kinds:
            found += find_secrets(read.text)
        for word, pattern in self._patterns:
            for it in pattern.finditer(read.text):
                if it.group():
                    found.append(Span(it.start(), it.end(), word))
        return _merged(Span(*read.span(start, end), word) for start, end, word in found)

    def leaf(self, value: Any, name: str = "") -> Any:
        """Return a string, a number, a boolean or null masked."""
        if isinstance(value, str):
            return self.text(value, name)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int | float):
            return self._number(value, name)
        raise TypeError(f"no JSON: {type(value).__name__}")

    def _walk(self, value: Any, depth: int, name: str) -> Any:
        if not isinstance(value, dict | list):
            return self.leaf(value, name)
        if depth == 0:
            raise ValueError("nested too deeply")
        if isinstance(value, dict):
            return self._members(value, depth)
        return [self._walk(item, depth - 1, name) for item in value]

    def _members(
        self, members: dict[str, Any], depth: int, *, content: bool = False
    ) -> dict[str, Any]:
        clean: dict[str, Any] = {}
        for key, item in members.items():
            masked = self._name(key)
            if masked != key:
                masked = unlike(masked, clean)
            if content and key in ("content", "contents") and isinstance(item, list):
                clean[masked] = [self._block(block) for block in self._joined(item)]
                continue
            if content and key == "messages" and isinstance(item, list):
                clean[masked] = [self._message(message, depth - 1) for message in item]
                continue
            clean[masked] = self._walk(item, depth - 1, about(members, key))
        return clean

    def _name(self, name: str) -> str:
        short = len(name) < _LONGEST_WORD and name.isascii() and not self._patterns
        return name if short and not _TELLS_IN_NAME.search(name) else self.text(name)

    def _number(self, number: Any, name: str) -> Any:
        """Return a number, or the mask of what it spells."""
        if not _LEAST_NUMBER < number < _LARGEST_NUMBER:
            return number
        if isinstance(number, float) and (not number.is_integer() or number > _LARGEST_EXACT):
            return number
        spelled = str(int(number))
        if Kind.SECRET in self._kinds and names_secret(name):
            return f"[{Kind.SECRET}]"
        spans = self.spans(spelled, name)
        return f"[{spans[0].word}]" if spans else number

    def _message(self, message: Any, depth: int) -> Any:
        """Return a message of a prompt, its content read as a block."""
        if not isinstance(message, dict) or not isinstance(message.get("content"), dict):
            return self._walk(message, depth, "")
        rest = {name: item for name, item in message.items() if name != "content"}
        return {**self._walk(rest, depth, ""), "content": self._block(message["content"])}

    def _block(self, block: Any) -> Any:
        if isinstance(block, dict):
            blob = block.get("resource", block)
            if block.get("type") in ("image", "audio") and _is_base64(block.get("data")):
                rest = {name: item for name, item in block.items() if name != "data"}
                return {**self._walk(rest, MAX_DEPTH, ""), "data": block["data"]}
            if isinstance(blob, dict) and isinstance(blob.get("blob"), str):
                return self._with_blob(block, blob)
        return self._walk(block, MAX_DEPTH, "")

    def _with_blob(self, block: dict[str, Any], holder: dict[str, Any]) -> Any:
        """Return a resource whose bytes are read if they are text, and stay if they are not."""
        encoded = holder["blob"]
        if not _is_base64(encoded):
            return self._walk(block, MAX_DEPTH, "")
        kept = {name: item for name, item in holder.items() if name != "blob"}
        rest = self._walk(kept if holder is block else {**block, "resource": kept}, MAX_DEPTH, "")
        (rest if holder is block else rest["resource"])["blob"] = self._blob(
            encoded, holder.get("mimeType")
        )
        return rest

    def _blob(self, encoded: str, media_type: Any) -> str:
        if isinstance(media_type, str) and media_type.lower().startswith(_MEDIA):
            return encoded
        try:
            text = base64.b64decode(encoded).decode()
        except ValueError:
            return encoded  # bytes that are no text
        masked = self.text(text)
        return encoded if masked == text else base64.b64encode(masked.encode()).decode()

    def _embedded(self, text: str) -> str | None:
        """Return the JSON that a text is, masked; None for any other text."""
        if len(text) > _LONGEST_EMBEDDED or text[:1] not in '{[" \n\t\r':
            return None
        stripped = text.strip()
        if stripped[:1] + stripped[-1:] not in ("{}", "[]", '""'):
            return None
        try:
            value = json.loads(stripped, object_pairs_hook=_object)
        except (ValueError, RecursionError):
            return None
        clean = self._walk(value, MAX_DEPTH, "")
        if clean == value:
            return text
        indented = _INDENT.match(stripped)
        compact = None if indented or ": " in stripped or ", " in stripped else (",", ":")
        return json.dumps(
            clean,
            ensure_ascii=stripped.isascii(),
            indent=indented[1] if indented else None,
            separators=compact,
        )

    def _joined(self, blocks: list[Any]) -> list[Any]:
        """Return blocks in which what begins in one text and ends in the next is masked."""
        clean = list(blocks)
        start = 0
        while start < len(clean):
            end = start
            while end < len(clean) and _is_text(clean[end]):
                end += 1
            if end - start > 1:
                clean[start:end] = self._run_of_texts(clean[start:end])
            start = max(end, start + 1)
        return clean

    def _run_of_texts(self, blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        ends: list[int] = []
        for block in blocks:
            ends.append((ends[-1] if ends else 0) + len(block["text"]))
        crossing = [
            span
            for span in self.spans("".join(block["text"] for block in blocks).replace("\n", " "))
            if any(span.start < end < span.end for end in ends)
        ]
        if not crossing:
            return blocks
        clean, start = [], 0
        for block, end in zip(blocks, ends, strict=True):
            inside = [
                Span(max(span.start, start) - start, min(span.end, end) - start, span.word)
                for span in crossing
                if span.start < end and span.end > start
            ]
            clean.append({**block, "text": self._masked(block["text"], inside)})
            start = end
        return clean

    @staticmethod
    def _masked(text: str, spans: list[Span]) -> str:
        if not spans:
            return text
        parts: list[str] = []
        at = 0
        for start, end, word in spans:
            parts += text[at:start], f"[{word}]"
            at = end
        return "".join([*parts, text[at:]])


@lru_cache(maxsize=256)
def redactor(rules: OutputRules = DEFAULT_RULES) -> Redactor:
    """Return the redactor of some rules."""
    return Redactor(rules)


def _is_harmless(text: str) -> bool:
    """Say of plain letters whether they are too short, or have nothing that all finds have."""
    return len(text) < _SHORTEST or not _WORTH.search(text) or _MOMENT.fullmatch(text) is not None


def redact(value: Any) -> Any:
    """Return a result, or another JSON value, masked by the built-in rules."""
    return redactor().result(value) if isinstance(value, dict) else redactor().value(value)


def redact_text(text: str) -> str:
    """Return a text masked by the built-in rules."""
    return redactor().text(text)


def refused(why: str, path: str = "") -> FleetError:
    """Return the error for a result that cannot be let out."""
    return FleetError(
        Code.REDACTION_FAILED,
        f"the result could not be redacted{path and f' at {path}'} ({why}) and is withheld",
        hint="the call itself did run; look at the tool's output at its source",
        details={"path": path} if path else None,
    )


def _merged(spans: Iterator[Span]) -> list[Span]:
    merged: list[Span] = []
    for span in sorted(spans, key=lambda it: (it.start, -it.end)):
        last = merged[-1] if merged else None
        if last is not None and span.start < last.end:
            merged[-1] = last._replace(end=max(last.end, span.end))
        else:
            merged.append(span)
    return merged


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):  # of two with one name the first would leave unread
        raise ValueError("a name is there twice")
    return members


def about(members: dict[str, Any], key: str) -> str:
    """Return the name that tells what a member's value is: its own, or its label's."""
    label = members.get("name") if key == "value" else None
    return label if isinstance(label, str) else key


def unlike(name: str, members: dict[str, Any]) -> str:
    """Return a name that no member has yet."""
    number, free = 1, name
    while free in members:
        number += 1
        free = f"{name} {number}"
    return free


def _is_text(block: Any) -> bool:
    return isinstance(block, dict) and isinstance(block.get("text"), str)


def _is_base64(data: Any) -> bool:
    return isinstance(data, str) and _BASE64.fullmatch(data) is not None
