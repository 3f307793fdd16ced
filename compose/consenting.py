"""`toolfleet credentials authorize`: a server that wants OAuth is connected by a person's consent.

The consent is got where the command runs, and what comes of it is stored through the API, which
renews it from then on. Nothing secret is printed.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from compose.printing import AsJson, Server, asking, printable, read_text, show

if TYPE_CHECKING:
    from compose.api_client import ApiClient
    from registry.consent import ConsentRequest
    from registry.definitions import ServerDefinition
    from workers.consent import Consent, Terms

Show = Callable[["ConsentRequest"], Awaitable[None]]
_DEFINED: Final = ("name", "transport", "url", "networks", "credentials", "timeouts")
_REFRESHED: Final = "oauth_refresh_token"
_REGISTERED: Final = "The client registered beforehand"


def add_to(credentials: typer.Typer) -> None:
    """Add this command to those of credentials."""
    credentials.command("authorize")(authorize)


def authorize(
    server: Server,
    tenant: Annotated[
        str, typer.Option(help="Whose credential it is; * for all without one of their own.")
    ],
    scope: Annotated[
        list[str] | None, typer.Option(help="A scope to ask for beside what the server names.")
    ] = None,
    client_id: Annotated[str | None, typer.Option(help=f"{_REGISTERED}: its id.")] = None,
    client_secret_file: Annotated[
        Path | None, typer.Option(help=f"{_REGISTERED}: a file with its secret; - for stdin.")
    ] = None,
    issuer: Annotated[
        str | None, typer.Option(help=f"{_REGISTERED}: the only issuer that knows it.")
    ] = None,
    client_document: Annotated[
        str | None, typer.Option(help="URL of a client ID metadata document of yours.")
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port to come back to; 0 takes a free one.")
    ] = 0,
    timeout_s: Annotated[float, typer.Option(min=1, help="How long to wait for a person.")] = 300,
    browser: Annotated[bool, typer.Option(help="Open the page, and do not only print it.")] = True,
    as_json: AsJson = False,
) -> None:
    """Connect a server that wants OAuth: have somebody consent, and keep what comes of it.

    The page has to be opened on this machine: it comes back to a port of loopback.
    """
    from workers.consent import Terms

    secret = None if client_secret_file is None else read_text(client_secret_file).rstrip("\r\n")
    if client_id is None and (secret is not None or issuer is not None):
        raise typer.BadParameter("--client-secret-file and --issuer are about a --client-id")
    with asking() as fleet:
        definition = _definition(fleet, server)
        known = _known(fleet, tenant, server)
        if client_id is not None and client_id == known.get("client", {}).get("id"):
            issuer = issuer or known["issuer"]
        terms = Terms(
            scopes=tuple(scope or ()),
            granted=tuple(known.get("scopes", ())),
            granted_by=known.get("issuer"),
            client_id=client_id,
            client_secret=secret,
            issuer=issuer,
            client_document=client_document,
        )
        consent = _had(_consent(definition, terms, _shower(browser), port, timeout_s))
        stored = fleet.ask("PUT", "credentials", tenant, server, body=_document(consent))
    if stored["kind"] != _REFRESHED:
        _say(f"{consent.issuer} gave no refresh token: {_ending(consent)}")
    show(stored, as_json)


# -- what is known before


def _definition(fleet: ApiClient, server: str) -> ServerDefinition:
    """Return how a server is reached; refuse one that an OAuth token cannot go to."""
    from compose.api_client import AskError
    from registry.definitions import ServerDefinition

    found = fleet.ask("GET", "servers", server)["definition"]
    how = found.get("credentials", {})
    if found["transport"] != "http":
        raise AskError(
            "invalid_request",
            f"server {server} is reached by {found['transport']}: MCP's authorization is for http",
            "set its credential with `toolfleet credentials set`",
        )
    if how.get("inject") != "header" or str(how.get("name")).lower() != "authorization":
        raise AskError(
            "invalid_request",
            f"server {server} takes no token in its Authorization header",
            "define it with credentials: {inject: header, name: Authorization}",
        )
    # Its headers are shown to nobody, and so are not here to be sent.
    return ServerDefinition.model_validate(
        {name: found[name] for name in _DEFINED if name in found}
    )


def _known(fleet: ApiClient, tenant: str, server: str) -> dict[str, Any]:
    """Return what was consented to before; nothing where nothing was."""
    from compose.api_client import AskError

    try:
        found = fleet.ask("GET", "credentials", tenant, server)
    except AskError as error:
        if error.code != "not_found":
            raise
        return {}
    known: dict[str, Any] = found["definition"]
    return known if found["kind"] == _REFRESHED else {}


# -- the consent


async def _consent(
    definition: ServerDefinition, terms: Terms, shower: Show, port: int, timeout_s: float
) -> Consent:
    from compose.loopback import loopback
    from registry.settings import get_settings
    from workers.consent import Consenting
    from workers.encryption_keys import own_networks
    from workers.outbound import open_client
    from workers.refusal import refusal_of

    refusal = await refusal_of(definition)
    consenting = Consenting(open_client, definition, own_networks(get_settings()))
    async with loopback(port) as redirects:
        return await consenting.get(refusal, terms, redirects, shower, patience_s=timeout_s)


def _had(consent: Coroutine[Any, Any, Consent]) -> Consent:
    """Wait for a consent; raise what went wrong as what the API refuses is raised."""
    from compose.api_client import AskError
    from registry.errors import FleetError

    try:
        return asyncio.run(consent)
    except FleetError as error:
        raise AskError(error.code.code, error.message, error.hint) from None
    except OSError as error:
        raise AskError(
            "port_taken",
            f"the port cannot be listened on: {error.strerror}",
            "choose another --port",
        ) from None


def _shower(browser: bool) -> Show:
    async def shown(asked: ConsentRequest) -> None:
        import threading
        import webbrowser

        _say(f"Somebody has to consent at {asked.authority.issuer}. Open this page:")
        _say(asked.url)
        if browser:
            # A browser of the terminal returns when its user leaves it, and may outlive us.
            threading.Thread(target=webbrowser.open, args=(asked.url,), daemon=True).start()

    return shown


# -- what comes of it


def _document(consent: Consent) -> dict[str, Any]:
    from registry.credential_kinds import spelled_out

    return spelled_out(consent.credential)


def _ending(consent: Consent) -> str:
    if consent.life_s is None:
        return "its token is kept as it is, and somebody has to consent again when it is refused"
    return f"its token is kept as it is, and ends in {consent.life_s:.0f} s"


def _say(text: str) -> None:
    sys.stderr.write(printable(text) + "\n")
    sys.stderr.flush()
