"""Where the fleet runs and how long things may take: one object, read from TOOLFLEET_* once.

Durations are `timedelta`; the environment takes seconds or ISO 8601 (``PT30S``). What is not in the
environment may be in files: one a setting, named like its variable, in the folder that
TOOLFLEET_SECRETS_DIR names. A container's secrets come that way, and are in no `inspect` of it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)


class Settings(BaseSettings):
    """The configuration of one Toolfleet process."""

    model_config = SettingsConfigDict(env_prefix="TOOLFLEET_", frozen=True)

    database_url: str = ""
    """SQLAlchemy or libpq URL; empty means: `toolfleet up` starts a private PostgreSQL."""
    redis_url: str = ""
    """redis:// or unix:// URL; empty means: `toolfleet up` starts a private Redis."""
    data_dir: Path = Path(".toolfleet")
    """Where the embedded servers and the local secrets live."""
    secret_key: SecretStr = SecretStr("")
    """Signs run tokens; `toolfleet up` makes one in the data folder when it is empty."""
    operator_key: SecretStr = SecretStr("")
    """A key that `toolfleet migrate` makes an operator's: where the first one comes from."""

    api_host: str = "127.0.0.1"
    api_port: int = 8080
    allowed_hosts: tuple[str, ...] = ()
    """Names that the API answers to (a JSON list): ``fleet.example``, ``fleet.example:8443`` or
    ``fleet.example:*``. Over loopback it answers to loopback names as well."""
    allowed_origins: tuple[str, ...] = ()
    """Web origins that may ask, such as ``https://console.example``; by default those of the names
    that it answers to."""
    receive_within: timedelta = timedelta(seconds=60)
    """How long a request may take to arrive, headers and body."""
    max_requests: int = 4096
    """Requests that one API process works on at once; the next one is refused (`busy`)."""
    console_session: timedelta = timedelta(hours=8)
    """How long somebody stays signed in to the console."""
    flower_host: str = "127.0.0.1"
    flower_port: int = 5555
    flower_url: str = ""
    """Where people reach Flower, behind the console's sign-in; empty: it is not linked to."""
    flower_api_url: str = ""
    """Where Flower asks who is signed in; empty: at the API of this machine."""
    flower_auth: SecretStr = SecretStr("")
    """``user:password`` that let programs read Flower without a key, its metrics for one."""

    default_deadline: timedelta = timedelta(seconds=120)
    """From submit to end, when the caller gives no ``timeout_s``."""
    max_deadline: timedelta = timedelta(hours=24)
    approval_lifetime: timedelta = timedelta(days=7)
    """How long a call waits for its approval; its own deadline begins when it has it."""
    approval_holds: timedelta = timedelta(hours=1)
    """How long an approval holds, from the decision until a worker runs the call."""
    approval_webhook_url: str = ""
    """Where to tell that a call waits for its approval; empty: nowhere."""
    approval_webhook_secret: SecretStr = SecretStr("")
    """Signs what is told (Standard Webhooks: ``whsec_`` and base64); the URL needs one."""
    public_url: str = ""
    """Where approvers reach the API: the links in webhooks begin with it."""
    run_lifetime: timedelta = timedelta(hours=24)
    max_wait: timedelta = timedelta(seconds=60)
    """Longest ``Prefer: wait`` / ``?wait=`` an API process honours."""
    task_after: timedelta = timedelta(seconds=2)
    """How long an MCP client that knows tasks waits for a call before it is given a task."""
    mcp_wait: timedelta = timedelta(seconds=50)
    """How long any other MCP client waits before it is told that the call goes on, and how to ask
    for it. Clients give up on a request after a while, the SDKs after 60 s."""
    mcp_stream: timedelta = timedelta(minutes=5)
    """How long a call's stream lasts in a session of 2025-11-25; then its client comes back for the
    rest, so that nothing between them has to keep a connection for as long as a call takes."""

    worker_lease: timedelta = timedelta(seconds=5)
    """A worker silent for this long is dead; its calls are closed by delivery class."""
    heartbeat_file: Path | None = None
    """What a worker and the steward touch every second, for `toolfleet health`: a container's."""
    drain_grace: timedelta = timedelta(seconds=20)
    """How long a stopping worker lets running calls finish before it cancels them."""
    stop_grace: timedelta = timedelta(seconds=2)
    """How long a stopped stdio server has to be quiet before SIGTERM to its group."""
    resend_after: timedelta = timedelta(seconds=3)
    """A queued call whose message nobody claimed for this long is sent again."""
    refresh_every: timedelta = timedelta(minutes=5)
    """How often the steward lists the tools of each server."""
    max_attempts: int = 3
    """How often a call that may be re-run is dispatched before it fails (poison limit)."""

    max_arguments_bytes: int = 1_000_000
    inline_result_bytes: int = 262_144
    """A larger result (as redacted JSON) is stored as an artifact and returned as a link to it."""
    max_result_bytes: int = 10_000_000
    """A larger result is refused (`result_too_large`)."""

    limiter_local_share: float = Field(default=0.1, gt=0, le=1)
    """The part of each limit that a process gives out while Redis is away, where it never knew how
    many processes there are; else the limit is divided by their number."""

    oidc_issuer: str = ""
    """The identity provider whose tokens are taken, as its discovery document names it."""
    oidc_audience: str = ""
    """The audience that its tokens have to be for."""
    oidc_role_claim: str = "roles"
    """The claim with the role, a string or a list; dots lead into objects (``realm_access.roles``).
    """
    oidc_roles: dict[str, str] = {}
    """Which role each value of that claim is (a JSON object); by default each role's own name."""
    oidc_tenant_claim: str = "tenant"
    """The claim with the tenant; ``*`` binds an approver or auditor to none."""
    oidc_scope_claim: str = ""
    """The claim with the verbs that a token is narrowed to; empty: tokens are not narrowed."""

    outbound_networks: tuple[str, ...] = ()
    """Networks that are not public and that the fleet's own requests may go into (a JSON list):
    to identity providers, a Vault, webhooks. What servers may reach is in their definitions."""

    guardrails: tuple[str, ...] = ()
    """Checks of calls and results, ``package.module:callable`` (a JSON list); see
    `workers.guardrails`."""
    guardrail_limit: timedelta = timedelta(seconds=2)
    """How long each may take; beyond it the call fails (`guardrail_failed`)."""

    commands_file: Path | None = None
    """What stdio servers may be started as; see `registry.commands`."""
    credentials_file: Path | None = None
    """Where the file provider reads tenants' credentials; see `registry.credentials`."""
    encryption_keys_file: Path | None = None
    """The keys that stored credentials, and secrets in definitions, are encrypted with; see
    `registry.key_file`."""
    credential_folder: Path = Path("/run/secrets")
    """The folder on the worker that credentials of the kind `file` may name files of."""
    vault_address: str = ""
    """URL of a HashiCorp Vault, for credentials of the kind `vault` and for `vault_transit_key`."""
    vault_namespace: str = ""
    vault_token: SecretStr = SecretStr("")
    vault_role_id: str = ""
    """With `vault_secret_id`, instead of a token: log in by AppRole."""
    vault_secret_id: SecretStr = SecretStr("")
    vault_transit_key: str = ""
    """A key of Vault's Transit engine that encrypts credentials from now on."""

    trace_ratio: float = Field(default=1.0, ge=0, le=1)
    """The part of the traces that begin here which is recorded; a caller's ``traceparent`` says
    itself whether its trace is."""
    traces_per_s: float = Field(default=50, ge=0)
    """How many of them each process records a second at most, and as many more of what failed or
    was slow in a trace that is not recorded."""
    trace_slow: timedelta = timedelta(seconds=5)
    """What takes longer counts as slow."""
    traces_kept: int = Field(default=2_000, ge=0)
    """How many traces, the newest, are kept in Redis for the console; 0: none."""
    traces_kept_for: timedelta = timedelta(hours=6)
    log_format: Literal["pretty", "json"] = "pretty"
    """What a line of a process's log is."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    """From which level on a process logs."""

    audit_key_file: Path | None = None
    """The private key (Ed25519, PEM) that signs the audit's checkpoints, beside its public one;
    by default `audit.key` in the data folder, which `toolfleet up` makes."""
    audit_checkpoints: Path | None = None
    """Where the steward keeps the audit's checkpoints outside the database, one a line; by default
    `audit-checkpoints.jsonl` in the data folder. Best on another machine's disk."""
    audit_retention: timedelta | None = None
    """Entries of the audit that are older are removed; by default none is."""

    @property
    def audit_key_path(self) -> Path:
        """Return where the audit's private key is, or would be."""
        return self.audit_key_file or self.data_dir / "audit.key"

    @property
    def audit_checkpoints_path(self) -> Path:
        """Return where the audit's checkpoints are kept outside the database."""
        return self.audit_checkpoints or self.data_dir / "audit-checkpoints.jsonl"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the same
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the environment, then the files of the folder of secrets, if one is named."""
        folder = Path(os.environ.get("TOOLFLEET_SECRETS_DIR") or os.devnull)
        files = (SecretsSettingsSource(settings_cls, folder),) if folder.is_dir() else ()
        return (init_settings, env_settings, *files)

    @field_validator("*", mode="before")
    @classmethod
    def _seconds(cls, value: Any, field: ValidationInfo) -> Any:
        """Take plain numbers for durations: pydantic reads them only where they are no strings."""
        name = field.field_name or ""
        duration = cls.model_fields[name].annotation in {timedelta, timedelta | None}
        if isinstance(value, str) and duration:
            with suppress(ValueError):
                return float(value)
        return value


@cache
def get_settings() -> Settings:
    """Return this process's settings, read from the environment at the first call."""
    return Settings()
