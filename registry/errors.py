"""Every error that leaves Toolfleet: a stable code, whether to retry, and what to do.

One exception class carries them all; a subclass would exist only where a caller acts differently
in code, and callers act on ``code`` and ``retryable``. The table below is the whole vocabulary.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Final


class Code(Enum):
    """A stable error code with its HTTP status and whether the same request may succeed later."""

    INVALID_REQUEST = ("invalid_request", 422, False)
    INVALID_ARGUMENTS = ("invalid_arguments", 422, False)
    INVALID_DEFINITION = ("invalid_definition", 422, False)
    UNAUTHENTICATED = ("unauthenticated", 401, False)
    KEY_EXPIRED = ("key_expired", 401, False)
    TOKEN_EXPIRED = ("token_expired", 401, False)
    TOO_MANY_ATTEMPTS = ("too_many_attempts", 429, True)
    IDENTITY_UNAVAILABLE = ("identity_unavailable", 503, True)
    FORBIDDEN = ("forbidden", 403, False)
    OUT_OF_SCOPE = ("out_of_scope", 403, False)
    HOST_NOT_ALLOWED = ("host_not_allowed", 403, False)
    ORIGIN_NOT_ALLOWED = ("origin_not_allowed", 403, False)
    NOT_FOUND = ("not_found", 404, False)
    UNKNOWN_SERVER = ("unknown_server", 404, False)
    UNKNOWN_RUN = ("unknown_run", 404, False)
    UNKNOWN_CALL = ("unknown_call", 404, False)
    UNKNOWN_TOOL = ("unknown_tool", 404, False)
    UNKNOWN_WORKER = ("unknown_worker", 404, False)
    UNKNOWN_TIER = ("unknown_tier", 404, False)
    UNKNOWN_VERSION = ("unknown_version", 404, False)
    NAME_COLLISION = ("name_collision", 409, False)
    IN_USE = ("in_use", 409, False)
    ROLLOUT_CONFLICT = ("rollout_conflict", 409, False)
    CHANGES_HELD = ("changes_held", 409, False)
    ALREADY_DECIDED = ("already_decided", 409, False)
    APPROVAL_MISMATCH = ("approval_mismatch", 409, False)
    APPROVAL_EXPIRED = ("approval_expired", 409, False)
    APPROVAL_SPENT = ("approval_spent", 409, False)
    VERSION_EXISTS = ("version_exists", 409, False)
    RUN_CLOSED = ("run_closed", 409, False)
    RUN_CANCELLED = ("run_cancelled", 409, False)
    RUN_EXPIRED = ("run_expired", 409, False)
    IDEMPOTENCY_MISMATCH = ("idempotency_mismatch", 422, False)
    POLICY_DENIED = ("policy_denied", 403, False)
    TOOL_HELD = ("tool_held", 409, False)
    TENANT_LIMITED = ("tenant_limited", 429, True)
    LIMITER_UNAVAILABLE = ("limiter_unavailable", 503, True)
    REQUEST_TOO_LARGE = ("request_too_large", 413, False)
    REQUEST_TOO_SLOW = ("request_too_slow", 408, True)
    ADDRESS_TOO_LONG = ("address_too_long", 414, False)
    HEADERS_TOO_LARGE = ("headers_too_large", 431, False)
    ENCODING_NOT_TAKEN = ("encoding_not_taken", 415, False)
    BUSY = ("busy", 503, True)
    STORE_UNAVAILABLE = ("store_unavailable", 503, True)
    BROKER_UNAVAILABLE = ("broker_unavailable", 503, True)
    SERVER_UNAVAILABLE = ("server_unavailable", 502, True)
    BREAKER_OPEN = ("breaker_open", 503, True)
    POOL_TIMEOUT = ("pool_timeout", 503, True)
    POOL_CLOSED = ("pool_closed", 503, True)
    POOL_FULL = ("pool_full", 503, True)
    CALL_TIMEOUT = ("call_timeout", 504, True)
    DEADLINE_EXCEEDED = ("deadline_exceeded", 504, True)
    SESSION_LOST = ("session_lost", 502, True)
    LIMIT_EXCEEDED = ("limit_exceeded", 502, False)
    CREDENTIAL_MISSING = ("credential_missing", 403, False)
    CREDENTIAL_UNAVAILABLE = ("credential_unavailable", 503, True)
    CREDENTIAL_EXPIRED = ("credential_expired", 403, False)
    CREDENTIAL_ROTATED = ("credential_rotated", 503, True)
    CREDENTIAL_REJECTED = ("credential_rejected", 502, False)
    CONSENT_FAILED = ("consent_failed", 502, False)
    UPSTREAM_FORBIDDEN = ("upstream_forbidden", 502, False)
    UPSTREAM_NOT_FOUND = ("upstream_not_found", 502, False)
    UPSTREAM_CONFLICT = ("upstream_conflict", 502, False)
    UPSTREAM_FAILED = ("upstream_failed", 502, True)
    ADDRESS_REFUSED = ("address_refused", 502, False)
    UPSTREAM_UNREACHABLE = ("upstream_unreachable", 502, True)
    RATE_LIMITED = ("rate_limited", 429, True)
    PROTOCOL_ERROR = ("protocol_error", 502, False)
    TOOL_REFUSED = ("tool_refused", 502, False)
    INPUT_REQUIRED = ("input_required", 502, False)
    RESULT_INVALID = ("result_invalid", 502, False)
    RESULT_TOO_LARGE = ("result_too_large", 502, False)
    REDACTION_FAILED = ("redaction_failed", 500, False)
    RESULT_BLOCKED = ("result_blocked", 502, False)
    GUARDRAIL_REFUSED = ("guardrail_refused", 403, False)
    GUARDRAIL_FAILED = ("guardrail_failed", 500, False)
    WORKER_LOST = ("worker_lost", 502, True)
    OUTCOME_UNKNOWN = ("outcome_unknown", 502, False)
    STOPPED = ("stopped", 409, False)
    AUDIT_BROKEN = ("audit_broken", 409, False)
    INTERNAL = ("internal", 500, False)

    def __init__(self, code: str, status: int, retryable: bool) -> None:
        self.code: Final = code
        self.status: Final = status
        self.retryable: Final = retryable


BY_CODE: Final = {member.code: member for member in Code}


class FleetError(Exception):
    """Say what happened, to which server and tool, and what to do about it.

    ``hint`` is the advice, ``retry_after_s`` the seconds to wait before the same request can
    succeed, ``details`` JSON-ready facts (never arguments, never secrets).
    """

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        hint: str = "",
        retry_after_s: float | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.retry_after_s = retry_after_s
        self.details = details or {}

    def as_dict(self) -> dict[str, Any]:
        """Return the error as stored in the ledger and sent to callers (JSON-ready)."""
        body: dict[str, Any] = {
            "code": self.code.code,
            "message": storable(self.message),
            "retryable": self.code.retryable,
        }
        if self.hint:
            body["hint"] = self.hint
        if self.retry_after_s is not None:
            body["retry_after_s"] = round(self.retry_after_s, 3)
        if self.details:
            body["details"] = storable(self.details)
        return body

    @classmethod
    def from_dict(cls, body: dict[str, Any]) -> FleetError:
        """Rebuild an error from `as_dict`; an unknown code becomes `internal`."""
        return cls(
            BY_CODE.get(body.get("code", ""), Code.INTERNAL),
            body.get("message", ""),
            hint=body.get("hint", ""),
            retry_after_s=body.get("retry_after_s"),
            details=body.get("details"),
        )


def storable(value: Any) -> Any:
    """Return JSON without what Postgres' jsonb refuses; servers' own words may hold anything."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [storable(item) for item in value]
    return value
