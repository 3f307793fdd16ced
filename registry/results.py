"""What leaves a worker of a tool's result: checked, searched for hostile text, and redacted.

Pure, and in this order: (1) the raw result has to fit the tool's output schema; (2) characters
that act on terminals or that nobody sees are flagged, taken out, or block the result; (3) words
that are meant for a model and against its user are flagged or block it; (4) it is redacted, and
structured content fits its schema afterwards, or the result is withheld. What was found is said in
``_meta`` under `FINDINGS`, where no server can say it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from registry.errors import Code, FleetError
from registry.hidden_text import first_hidden, has_hidden, without_hiding
from registry.instructions import spoken
from registry.output_rules import DEFAULT_RULES, ControlReaction, OutputRules, Reaction
from registry.quoting import pointer
from registry.redaction import Redactor, redact_text, redactor, refused, unlike
from registry.schema_masks import masked_to_fit
from registry.schemas import check_result, problem_paths

FINDINGS: Final = "toolfleet/findings"
MOST_FINDINGS: Final = 20
_Path = tuple[str | int, ...]
_Text = tuple[_Path, str]
_LONGEST_NAME: Final = 40  # of a member that is no text
_BYTES: Final = ("data", "blob")
_BLOCKS: Final = (("content",), ("contents",), ("messages",))


class Let(NamedTuple):
    """A result that may leave, and what was found in it (JSON-ready)."""

    body: dict[str, Any]
    findings: list[dict[str, str]]


def let_out(
    tool: str,
    schema: dict[str, Any] | None,
    body: dict[str, Any],
    rules: OutputRules = DEFAULT_RULES,
) -> Let:
    """Return a result as it may be stored and returned.

    Raises `result_invalid`, `result_blocked` or `redaction_failed`; the call did run.
    """
    check_result(tool, schema, body)
    try:
        searched, findings = _searched(tool, body, rules)
    except (RecursionError, ValueError, TypeError) as error:
        raise refused(type(error).__name__) from error
    clean = _redacted(redactor(rules), schema, body, searched)
    meta = clean.get("_meta")
    if findings or (isinstance(meta, dict) and FINDINGS in meta):
        said = {**meta} if isinstance(meta, dict) else {}
        said.pop(FINDINGS, None)
        clean = {**clean, "_meta": {**said, FINDINGS: findings} if findings else said}
    return Let(clean, findings)


def text_out(text: str, rules: OutputRules = DEFAULT_RULES) -> str:
    """Return what a server says beside results (errors, progress) as it may leave: for people."""
    return redactor(rules).text(without_hiding(text))


def _searched(
    tool: str, body: dict[str, Any], rules: OutputRules
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Return a result, stripped if it has to be, and what was found in it; raise if that blocks."""
    texts = list(_texts(body))
    findings: list[dict[str, str]] = []
    whole = "\n".join([text for _, text in texts])
    if has_hidden(whole):
        for path, text in texts:
            if found := first_hidden(text):
                findings.append(_finding("hidden_text", path, f"it has {found.what}"))
        if findings and rules.control is ControlReaction.BLOCK:
            raise _blocked(tool, findings)
        if findings and rules.control is ControlReaction.STRIP:
            body = _stripped(body)
    if rules.instructions is not Reaction.IGNORE:
        told = _told(texts, whole)
        if told and rules.instructions is Reaction.BLOCK:
            raise _blocked(tool, told)
        findings += told
    return body, findings[:MOST_FINDINGS]


def _told(texts: list[_Text], whole: str) -> list[dict[str, str]]:
    """Return what texts say to a model: where each says it, or that they do when put together."""
    together = spoken(whole)
    if not together:
        return []
    told = [(path, it) for path, text in texts for it in spoken(text)]
    alone = {it.name for _, it in told}
    told += [((), it) for it in together if it.name not in alone]
    return [_finding("instructions", path, f"{it.reason} ({it.name})") for path, it in told]


def _redacted(
    reader: Redactor, schema: dict[str, Any] | None, raw: dict[str, Any], body: dict[str, Any]
) -> dict[str, Any]:
    if schema is None or body.get("isError") or "structuredContent" not in body:
        return reader.result(body)
    structured = body["structuredContent"]
    if structured is not raw["structuredContent"]:  # it was stripped
        problems = problem_paths(schema, structured)
        if problems:
            raise refused("without hidden characters it fits no schema", pointer(*problems[0]))
    rest = {name: item for name, item in body.items() if name != "structuredContent"}
    return {**reader.result(rest), "structuredContent": masked_to_fit(reader, schema, structured)}


def _texts(body: dict[str, Any]) -> Iterator[_Text]:
    """Yield every text of a result that a model may be shown, with its path; no bytes of media."""
    within = [_parts(body, ())]
    while within:
        for path, part in within[-1]:
            if isinstance(part, str):
                yield path, part
            elif isinstance(part, dict | list):
                within.append(_parts(part, path))
                break
        else:
            within.pop()


def _parts(whole: dict[str, Any] | list[Any], path: _Path) -> Iterator[tuple[_Path, Any]]:
    if isinstance(whole, list):
        for index, item in enumerate(whole):
            yield (*path, index), item
        return
    for name, item in whole.items():
        if len(name) > _LONGEST_NAME or not name.isprintable():
            yield (*path, name), name
        if name not in _BYTES or path[:1] not in _BLOCKS:
            yield (*path, name), item


def _stripped(value: Any) -> Any:
    if isinstance(value, str):
        return without_hiding(value)
    if isinstance(value, list):
        return [_stripped(item) for item in value]
    if isinstance(value, dict):
        clean: dict[str, Any] = {}
        for name, item in value.items():
            clean[unlike(without_hiding(name), clean)] = _stripped(item)
        return clean
    return value


def _finding(kind: str, path: _Path, problem: str) -> dict[str, str]:
    return {"kind": kind, "path": redact_text(pointer(*path)), "problem": problem}


def _blocked(tool: str, findings: list[dict[str, str]]) -> FleetError:
    first = findings[0]
    return FleetError(
        Code.RESULT_BLOCKED,
        f"the result of {tool} is blocked: at {first['path']} {first['problem']}",
        hint="the call itself did run; an operator can look at the tool, and change what the "
        "tenant's `results` say",
        details={"findings": findings[:MOST_FINDINGS]},
    )
