"""What a failed exchange with a server means, in our words; nothing here waits or does I/O.

1. `judge` looks first at what was seen on the wire, then at what was said.
2. ``CallError.dispatched`` is False only where provably nothing ran: no byte of the request left,
   or an HTTP server refused it by its status, or did not know the session any more, or our own
   server found no way to the API that it stands in front of.
3. A handshake that failed is judged by `why_not_open`: nothing was asked of a tool yet.
"""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

import anyio
import httpx2
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CONNECTION_CLOSED,
    INVALID_PARAMS,
    INVALID_REQUEST,
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    PARSE_ERROR,
    URL_ELICITATION_REQUIRED,
)
from pydantic import ValidationError

from registry.challenge import Challenge, read_challenge
from registry.errors import Code, FleetError
from workers.exchange import Exchange
from workers.large_reader import UNREADABLE
from workers.openapi_wire import told_failure
from workers.requests import METHODS

_EVENT_TOO_LARGE: Final = "Server-sent event exceeded the"
# The codes that servers are known to answer with, HTTP 200, to a session that they forgot.
_GONE_CODES: Final = {INVALID_REQUEST, -32001}
_GONE: Final = re.compile(
    r"\bsession\b.{0,80}\b(not found|not exist|unknown|expired|invalid|terminated|closed|no longer)"
    r"|\b(no|unknown|expired|invalid|missing|valid)\b.{0,40}\bsession\b",
    re.IGNORECASE,
)
# In what pydantic says of an answer: where, and what is wrong there.
_PROBLEM: Final = re.compile(
    r"^(?:JSONRPC(?:Response|Error)\.(\S+)\n)? +(?! |Field required)(.+?) \[type=", re.MULTILINE
)
# Of a client's capabilities, those that a server can lack.
_CAPABILITIES: Final = ("elicitation", "sampling", "roots")
# What a server refuses by one of these statuses was refused before anything ran.
_REFUSALS: Final = {
    401: (Code.CREDENTIAL_REJECTED, "check the credential of this server"),
    403: (Code.UPSTREAM_FORBIDDEN, "check what the credential of this server may do"),
    404: (Code.UPSTREAM_NOT_FOUND, "check the url of this server"),
    409: (Code.UPSTREAM_CONFLICT, "resolve the conflict in the target system, then call again"),
    429: (Code.RATE_LIMITED, "call less often, or give the server a quota"),
}
WANT_A_TOKEN: Final = frozenset({401, 403})
"""How an HTTP server refuses who shows none that is good enough."""


class CallError(FleetError):
    """A call that has no result; ``dispatched`` says whether the server may have seen it."""

    def __init__(self, code: Code, message: str, *, dispatched: bool, **rest: Any) -> None:
        super().__init__(code, message, **rest)
        self.dispatched = dispatched


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of an exchange that failed, and of the session that it was part of."""

    server: str
    what: str
    """The tool that was called, or what else was asked."""
    seen: Exchange
    stdio: bool
    api: bool
    """The server is our own, and stands in front of an HTTP API."""
    era: Literal["legacy", "modern"]
    protocol_version: str
    max_result_bytes: int
    endless_line: bool
    """A line that was too long ended the session with a stdio server."""
    unread: FleetError | None
    """Why a large message of a stdio server could not be read."""
    evidence: dict[str, Any]
    """What a stdio server left behind: its last words, its exit code, the limit it exceeded."""
    scrub: Callable[[str], str]
    """Takes the session's secret out of a text."""
    alone: bool = True
    """No other call of the session was under way."""
    fresh: bool = True
    """The session is too young, and too unused, to have been forgotten."""

    @property
    def asked(self) -> str:
        """Return how a message names what was asked."""
        return self.what if self.what in METHODS else f"tool {self.what}"

    @property
    def traces(self) -> dict[str, Any]:
        """Return the evidence, the HTTP status and what it asks for, as far as there are any."""
        status = self.seen.status
        if status is None:
            return self.evidence
        challenge = self.challenge
        wanted = {"challenge": challenge.as_dict()} if challenge is not None else {}
        return {**self.evidence, "status": status, **wanted}

    @property
    def challenge(self) -> Challenge | None:
        """Return what a refusal says is to be shown instead, if it says so."""
        return read_challenge(self.seen.challenge)


@dataclass(frozen=True, slots=True)
class Ending:
    """How an exchange ended; ``tell`` makes the error of it, from the facts as they are then."""

    tell: Callable[[Facts], CallError]
    poisons: bool = True
    """The session must not be used again."""
    abrupt: bool = False
    """The server went without a word: the evidence may still be on its way."""


# -- how it ended


def judge(error: Exception, facts: Facts) -> Ending:
    """Say what it means that the SDK raised this."""
    if _is_too_large(error, facts):
        return Ending(too_large)
    if facts.seen.problem:
        return Ending(_no_answer)
    if (failure := facts.unread or facts.seen.failure) is not None:
        if isinstance(failure, FleetError):
            tell = _unread if facts.seen.sent else _kept_back
            return Ending(partial(tell, failure=failure))
        return Ending(partial(_lost, how=_describe(failure)))
    if isinstance(error, MCPError):
        return _judge_answer(error, facts)
    if isinstance(error, ValidationError):
        return Ending(partial(not_mcp, problem=_first_problem(error)))
    return Ending(partial(_lost, how=_describe(error)), abrupt=True)


def _judge_answer(error: MCPError, facts: Facts) -> Ending:
    """Tell a session that is gone, which the SDK reports as an answer, from a refusal."""
    if facts.api and (told := told_failure(error)) is not None:
        failure, dispatched = told
        return Ending(partial(_of_api, failure=failure, dispatched=dispatched), poisons=False)
    if _is_forgotten(error, facts):
        return Ending(_forgotten)
    if error.code == CONNECTION_CLOSED:
        if error.message == "Connection closed":
            return Ending(partial(_lost, how="the connection closed"), abrupt=True)
        if error.message.startswith("SSE stream"):
            return Ending(partial(_lost, how=error.message))
    status = facts.seen.status
    if status is not None and (status in _REFUSALS or status >= 500):
        return Ending(_refused_by_status, poisons=False)
    if error.code == URL_ELICITATION_REQUIRED:
        return Ending(partial(input_required, requests=["elicitation/url"]), poisons=False)
    if error.code == PARSE_ERROR and error.message.startswith(UNREADABLE):
        return Ending(partial(not_mcp, problem=_first_problem_of(error.message)))
    if status is not None and error.code == PARSE_ERROR:
        # The SDK's own word for a broken body, of which it quotes pieces: a cut secret among them.
        error = MCPError(code=PARSE_ERROR, message=_first_problem_of(error.message))
        return Ending(partial(_refused, error=error, code=Code.PROTOCOL_ERROR))
    code = Code.INVALID_ARGUMENTS if error.code == INVALID_PARAMS else Code.TOOL_REFUSED
    return Ending(partial(_refused, error=error, code=code), poisons=False)


def _is_too_large(error: Exception, facts: Facts) -> bool:
    if facts.stdio:
        # The line ends the session; with several calls in flight, nobody knows whose it was.
        return facts.endless_line and facts.seen.sent and facts.alone
    return facts.seen.oversize or (
        isinstance(error, MCPError) and _EVENT_TOO_LARGE in error.message
    )


def _is_forgotten(error: MCPError, facts: Facts) -> bool:
    """Say whether the server refused the session, and so the call before anything ran.

    A session that never worked cannot have been forgotten: what its server says is a refusal,
    so that no call opens session after session.
    """
    seen = facts.seen
    if facts.fresh or not seen.in_session or facts.era != "legacy":
        return False
    if seen.status == 404:
        return True
    if seen.status == 400:
        return bool(_GONE.search(seen.said))
    return error.code in _GONE_CODES and bool(_GONE.search(error.message))


# -- in our words: the call did not reach the tool, or its session ended


def ended_before(facts: Facts, cause: BaseException | None) -> CallError:
    """Tell of a call whose session had ended, for this reason, before it was made."""
    how = _describe(cause) if cause else "the session had ended before"
    return _session_lost(facts, how, dispatched=False, details=facts.evidence)


def _lost(facts: Facts, *, how: str) -> CallError:
    sent = facts.seen.sent
    if not sent or (exceeded := facts.evidence.get("exceeded")) is None:
        return _session_lost(facts, how, dispatched=sent, details=facts.evidence)
    return CallError(
        Code.LIMIT_EXCEEDED,
        f"server {facts.server} was killed in a call of {facts.asked}: it used more than its "
        f"sandbox.{exceeded} allows",
        hint=f"ask for less, or raise sandbox.{exceeded} in the definition of the server",
        dispatched=True,
        details=facts.evidence,
    )


def _forgotten(facts: Facts) -> CallError:
    how = "the server no longer knows the session"
    return _session_lost(facts, how, dispatched=False, details=facts.traces)


def _session_lost(
    facts: Facts, how: str, *, dispatched: bool, details: dict[str, Any]
) -> CallError:
    return CallError(
        Code.SESSION_LOST,
        f"the session with server {facts.server} was lost in a call of {facts.asked}: {how}",
        hint="" if dispatched else "the call never reached the tool: submit it again",
        dispatched=dispatched,
        details=details,
    )


# -- in our words: the server refused


def _refused(facts: Facts, *, error: MCPError, code: Code) -> CallError:
    details: dict[str, Any] = {"jsonrpc_code": error.code, **_capabilities(error)}
    if facts.seen.status is not None and facts.seen.status != 200:
        details["status"] = facts.seen.status
    if facts.what in METHODS:  # the protocol says what its answers mean: callers are told them
        details["jsonrpc_message"] = facts.scrub(error.message)[:500]
    return CallError(
        code,
        f"server {facts.server} refused the call of {facts.asked}: "
        f"{facts.scrub(error.message)[:500]}",
        dispatched=facts.seen.sent,
        details=details,
    )


def _capabilities(error: MCPError) -> dict[str, Any]:
    """Return what a server says that its caller has to be able to answer, if it says so."""
    data = error.data if error.code == MISSING_REQUIRED_CLIENT_CAPABILITY else None
    named = data.get("requiredCapabilities") if isinstance(data, dict) else None
    if not isinstance(named, dict):
        return {}
    return {"required_capabilities": [name for name in _CAPABILITIES if name in named]}


def _refused_by_status(facts: Facts) -> CallError:
    failed = (Code.UPSTREAM_FAILED, "see whether the server, and what stands before it, is up")
    code, hint = _REFUSALS.get(facts.seen.status or 0, failed)
    return CallError(
        code,
        f"server {facts.server} answered the call of {facts.asked} with HTTP {facts.seen.status}",
        hint=_consent_hint(facts) or hint,
        retry_after_s=facts.seen.retry_after_s,
        dispatched=code is Code.UPSTREAM_FAILED,
        details=facts.traces,
    )


def _consent_hint(facts: Facts) -> str:
    """Say what brings a token that the server would take; an empty string where none is wanted."""
    challenge = facts.challenge
    if challenge is None or facts.seen.status not in WANT_A_TOKEN:
        return ""
    command = f"toolfleet credentials authorize {facts.server}"
    if not challenge.wants_more:
        return f"check the credential of this server; `{command}` gets a new one"
    # They are the server's own words, on their way into somebody's shell.
    more = "".join(f" --scope {shlex.quote(scope)}" for scope in challenge.scopes or ())
    return f"its credential lacks what this needs: `{command}{more}` asks for it"


def input_required(facts: Facts, *, requests: list[str], why: str = "") -> CallError:
    """Tell of a tool that asks for input, by these requests."""
    return CallError(
        Code.INPUT_REQUIRED,
        f"{facts.asked} of server {facts.server} asks its user for input, "
        "and there is none here" + (why and f": {why}"),
        hint="give what it asks for in the arguments, or use a tool that needs no dialogue",
        dispatched=True,
        details={"requests": requests},
    )


# -- in our words: there is no answer, or none that can be used


def timed_out(facts: Facts, timeout_s: float) -> CallError:
    """Tell of a call that took too long."""
    return CallError(
        Code.CALL_TIMEOUT,
        f"{facts.asked} of server {facts.server} did not answer within {timeout_s:g} s",
        hint="raise the tool's timeout_s, or ask for less",
        dispatched=facts.seen.sent,
    )


def too_large(facts: Facts) -> CallError:
    """Tell of a result beyond the limit."""
    return CallError(
        Code.RESULT_TOO_LARGE,
        f"the result of {facts.asked} of server {facts.server} is larger than "
        f"{facts.max_result_bytes} bytes",
        hint="ask for less, or raise TOOLFLEET_MAX_RESULT_BYTES",
        dispatched=True,
    )


def not_mcp(facts: Facts, *, problem: str) -> CallError:
    """Tell of a result that is none by the protocol."""
    return CallError(
        Code.PROTOCOL_ERROR,
        f"{facts.asked} of server {facts.server} answered with a result that is not MCP "
        f"{facts.protocol_version}: {problem}",
        hint="report it to the server's maintainer",
        dispatched=True,
        details={"problem": problem},
    )


def _no_answer(facts: Facts) -> CallError:
    return CallError(
        Code.PROTOCOL_ERROR,
        f"server {facts.server} answered the call of {facts.asked} with {facts.seen.problem}",
        hint="check that its url is that of an MCP server, with nothing in between",
        # A redirect says that it was not done here.
        dispatched=not 300 <= (facts.seen.status or 0) < 400,
        details=facts.traces,
    )


def _unread(facts: Facts, *, failure: FleetError) -> CallError:
    return CallError(
        failure.code,
        f"server {facts.server} answered the call of {facts.asked}: {failure.message}",
        hint=failure.hint,
        dispatched=True,
    )


def _kept_back(facts: Facts, *, failure: FleetError) -> CallError:
    return CallError(
        failure.code,
        f"the call of {facts.asked} was not sent to server {facts.server}: {failure.message}",
        hint=failure.hint,
        dispatched=False,
        details=failure.details,
    )


def _of_api(facts: Facts, *, failure: FleetError, dispatched: bool) -> CallError:
    return CallError(
        failure.code,
        f"{facts.asked} of server {facts.server} has no result: {failure.message}",
        hint=failure.hint,
        retry_after_s=failure.retry_after_s,
        dispatched=dispatched,
    )


# -- handshakes


def why_not_open(cause: BaseException | None, facts: Facts) -> FleetError:
    """Say why a session could not be opened, by what ended its handshake."""
    seen = facts.seen
    if isinstance(seen.failure, FleetError) and not seen.sent:
        failure = seen.failure
        return not_open(facts, f"is not reached: {failure.message}", failure.code, failure.hint)
    if isinstance(cause, FleetError):
        return cause
    if seen.failure is not None:
        return not_open(facts, f"could not be reached: {_describe(seen.failure)}")
    if seen.status is not None and seen.status >= 400:
        problem = f"answered the MCP handshake with HTTP {seen.status}"
        refusal, hint = _REFUSALS.get(seen.status, (Code.SERVER_UNAVAILABLE, ""))
        return not_open(facts, problem, refusal, _consent_hint(facts) or hint)
    if seen.problem:
        return not_open(facts, f"answered the MCP handshake with {seen.problem}")
    if facts.endless_line:
        return not_open(facts, "wrote a line without an end during the MCP handshake")
    if isinstance(cause, ValidationError):
        problem = f"answered the MCP handshake with what is not MCP: {_first_problem(cause)}"
        return not_open(facts, problem)
    if isinstance(cause, RuntimeError) or (
        isinstance(cause, MCPError) and cause.code != CONNECTION_CLOSED
    ):
        return not_open(facts, f"refused the MCP handshake: {cause}")
    if (code := facts.evidence.get("exit_code")) is not None:
        return not_open(facts, f"ended during the MCP handshake with exit code {code}")
    return not_open(facts, f"could not be reached: {_describe(cause)}")


def not_open(
    facts: Facts, problem: str, code: Code = Code.SERVER_UNAVAILABLE, hint: str = ""
) -> FleetError:
    """Tell what is wrong with a server that was to be opened; quote the last words of a child."""
    if (exceeded := facts.evidence.get("exceeded")) is not None:
        problem += f"; it used more than its sandbox.{exceeded} allows"
    if said := str(facts.evidence.get("stderr", "")):
        problem += f"; its last words: {said.splitlines()[-1][:300]}"
    if not hint and facts.stdio:
        hint = "check the definition and what the server says on stderr"
    return FleetError(
        code,
        f"server {facts.server} {problem}",
        hint=hint or "check the url, the credentials and whether the server is up",
        retry_after_s=facts.seen.retry_after_s,
        details=facts.traces,
    )


# -- causes


def _describe(error: BaseException | None) -> str:
    if error is None:
        return "unknown"
    if isinstance(error, httpx2.HTTPError | MCPError | OSError):
        return str(error) or type(error).__name__
    if isinstance(error, anyio.BrokenResourceError | anyio.ClosedResourceError):
        return "the connection closed"
    if isinstance(error, asyncio.CancelledError):
        return "it was cancelled"
    return f"{type(error).__name__}: {error}"


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    return f"{'/'.join(str(part) for part in first['loc'])}: {first['msg']}"


def _first_problem_of(said: str) -> str:
    """Return what is wrong with an answer, without the answer itself, which may hold anything."""
    said = said.removeprefix(UNREADABLE)
    found = _PROBLEM.search(said)
    return ": ".join(filter(None, found.groups())) if found else said.partition("\n")[0][:200]
