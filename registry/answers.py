"""Whether a caller may be asked something, and whether what it says is an answer; pure.

An answer is what JSON-RPC has in a response: a ``result``, or an ``error``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from registry.database import to_json
from registry.errors import Code, FleetError
from registry.question_kinds import ELICITATION_URL, kind_of
from registry.schemas import problems_of, refuse_unusable

LOG_LEVELS: Final = (
    "debug", "info", "notice", "warning", "error", "critical", "alert", "emergency",
)  # fmt: skip
"""From the least to the most severe (RFC 5424, as MCP has them)."""

LARGEST_BYTES: Final = 1_000_000
"""Of what is asked, and of an answer: pictures may be part of either."""
DEEPEST: Final = 64
_ACTIONS: Final = ("accept", "decline", "cancel")

Answer = dict[str, Any]
"""``{"result": {...}}`` or ``{"error": {"code", "message"}}``."""
Answers = Mapping[str, Answer] | Mapping[int, Answer]
"""Answers to questions by their keys, or by their numbers."""


@dataclass(frozen=True)
class NewQuestion:
    """What a server asks: a request of MCP, without what JSON-RPC has around it."""

    method: str
    params: dict[str, Any]
    key: str | None = None
    """What its server calls it, where it does."""


class Problem(NamedTuple):
    """What is wrong with an answer, and where."""

    path: str
    problem: str


def unaskable(method: str, params: Any, answers: tuple[str, ...]) -> str:
    """Say why a caller who answers ``answers`` is not asked this; an empty string if it is."""
    if not isinstance(params, dict):
        return "its params are not an object"
    kind = kind_of(method, params)
    if kind is None:
        return f"{method[:80]} is nothing that a client is asked"
    if kind not in answers:
        return f"nobody answers {method} here" + " in url mode" * (kind == ELICITATION_URL)
    return too_large(params)


def too_large(value: Any) -> str:
    """Say that a value is beyond what is kept of a question; an empty string if it is not."""
    level, depth = [value], 0
    while level := [it for it in level if isinstance(it, dict | list)]:
        depth += 1
        if depth > DEEPEST:
            return f"it nests more than {DEEPEST} levels"
        level = [inner for it in level for inner in (it.values() if isinstance(it, dict) else it)]
    try:
        size = len(to_json(value))
    except ValueError as error:
        return f"it is no JSON: {error}"
    return "" if size <= LARGEST_BYTES else f"it is {size} bytes; {LARGEST_BYTES} are allowed"


def refuse_misshapen(answers: Any) -> None:
    """Raise `invalid_request` unless each of ``answers`` is a result or an error of JSON-RPC."""
    problems: list[Problem] = []
    if not isinstance(answers, dict) or not answers:
        problems.append(Problem("/", "is not an object with an answer for each question's key"))
    else:
        for key, answer in answers.items():
            problems += [Problem(f"/{key}{at}", what) for at, what in _misshapen(answer)]
    if problems:
        raise refusal(problems)


def refusal(problems: list[Problem]) -> FleetError:
    """Return the error that says what is wrong with answers."""
    first = problems[0]
    return FleetError(
        Code.INVALID_REQUEST,
        f"an answer is not valid: {first.path} {first.problem}",
        hint="correct what `details.problems` lists: nothing was taken, and the questions are open",
        details={"problems": [{"path": at, "problem": what} for at, what in problems]},
    )


def _misshapen(answer: Any) -> list[Problem]:
    if not isinstance(answer, dict) or len(answer) != 1 or answer.keys() - {"result", "error"}:
        return [Problem("", "has to have either a result or an error")]
    if what := too_large(answer):
        return [Problem("", f"is not taken: {what}")]
    if "error" in answer:
        error = answer["error"]
        if not isinstance(error, dict) or not _is_integer(error.get("code")):
            return [Problem("/error/code", "is not an integer")]
        if not isinstance(error.get("message"), str):
            return [Problem("/error/message", "is not a text")]
    elif not isinstance(answer["result"], dict):
        return [Problem("/result", "is not an object")]
    return []


def problems_with(method: str, params: dict[str, Any], answer: Answer) -> list[Problem]:
    """Return what keeps a well-formed answer from being one to this question."""
    if "error" in answer:
        return []
    check = {"elicitation/create": _elicited, "sampling/createMessage": _sampled}.get(
        method, _rooted
    )
    found = check(params, answer["result"])
    return [Problem(f"/result{at}", what) for at, what in found]


def _elicited(params: dict[str, Any], result: dict[str, Any]) -> list[Problem]:
    """Check the action, and what was filled in against the form (client/elicitation)."""
    content = result.get("content")
    if result.get("action") not in _ACTIONS:
        return [Problem("/action", f"is not one of {', '.join(_ACTIONS)}")]
    if content is not None and not isinstance(content, dict):
        return [Problem("/content", "is not an object")]
    schema = params.get("requestedSchema")
    asks = params.get("mode") != "url" and isinstance(schema, dict)
    if result["action"] != "accept" or not asks or not isinstance(schema, dict):
        return []
    try:
        refuse_unusable(schema)
    except ValueError:
        return []  # then it is the server's to say what it can use
    found = problems_of(schema, content or {})
    return [Problem(f"/content ({it['path']})", it["problem"]) for it in found]


def _sampled(_: dict[str, Any], result: dict[str, Any]) -> list[Problem]:
    """Check the message of a model (client/sampling): one block of content, or several."""
    problems = []
    if result.get("role") not in ("assistant", "user"):
        problems.append(Problem("/role", "is not assistant or user"))
    if not isinstance(result.get("model"), str):
        problems.append(Problem("/model", "is not a text"))
    content = result.get("content")
    blocks = content if isinstance(content, list) else [content]
    if not all(isinstance(it, dict) and isinstance(it.get("type"), str) for it in blocks):
        problems.append(Problem("/content", "is not content with a type"))
    return problems


def _rooted(_: dict[str, Any], result: dict[str, Any]) -> list[Problem]:
    """Check the addresses of folders (client/roots)."""
    roots = result.get("roots")
    if not isinstance(roots, list):
        return [Problem("/roots", "is not a list")]
    return [
        Problem(f"/roots/{index}/uri", "is not a file:// address")
        for index, root in enumerate(roots[:100])
        if not isinstance(root, dict) or not str(root.get("uri")).startswith("file://")
    ]


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
