"""What the command line says to the API: one request, its JSON or its problem."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx2

from compose.data_folder import DataFolder
from registry.settings import get_settings

REQUEST_TIMEOUT_S = 75.0


class AskError(Exception):
    """A request that failed: the API's code, message and hint, or ours when it was not reached."""

    def __init__(
        self, code: str, message: str, hint: str = "", details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.details = details or {}


class ApiClient:
    """The API at ``url``, asked as the holder of ``key``."""

    def __init__(self, url: str, key: str, *, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self._url = url
        self._http = httpx2.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=timeout_s,
        )

    def ask(
        self,
        method: str,
        *path: str,
        body: Any = None,
        query: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Any:
        """Return the answer's JSON (None when it has none); raise `AskError` for a problem."""
        with self._reaching():
            response = self._http.request(
                method, _address(path), json=body, params=query or {}, headers=headers
            )
        if response.is_success:
            return response.json() if response.content else None
        raise problem_of(response)

    def download(self, *path: str, query: dict[str, Any] | None = None) -> Iterator[bytes]:
        """Yield an answer's bytes as they come; raise `AskError` for a problem."""
        streaming = self._http.stream("GET", _address(path), params=query or {})
        with self._reaching(), streaming as response:
            if not response.is_success:
                response.read()
                raise problem_of(response)
            yield from response.iter_bytes()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._http.close()

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except httpx2.HTTPError as error:
            raise AskError(
                "unreachable",
                f"no answer from {self._url} ({type(error).__name__})",
                "start a fleet with `toolfleet up`, or set TOOLFLEET_URL",
            ) from error


@dataclass(frozen=True)
class Address:
    """Where a fleet answers, and the key that it is asked with."""

    url: str
    key: str


def find_fleet(*, timeout_s: float = REQUEST_TIMEOUT_S) -> ApiClient:
    """Return the client of the fleet that `find_address` finds."""
    address = find_address()
    return ApiClient(address.url, address.key, timeout_s=timeout_s)


def find_address(url: str = "") -> Address:
    """Return ``url``, else TOOLFLEET_URL, else where the fleet on the data folder answers.

    The key is TOOLFLEET_KEY, else the local operator's. Raises `AskError` where there is none.
    """
    folder = DataFolder(get_settings().data_dir)
    facts = folder.read_facts()
    url = url or os.environ.get("TOOLFLEET_URL") or (facts.api_url if facts else "")
    if not url:
        raise AskError(
            "no_fleet",
            f"no fleet runs on {folder.path}",
            "start one with `toolfleet up`, or set TOOLFLEET_URL and TOOLFLEET_KEY",
        )
    key_file = Path(facts.operator_key_file) if facts else folder.operator_key_file
    key = os.environ.get("TOOLFLEET_KEY") or (
        key_file.read_text().strip() if key_file.exists() else ""
    )
    if not key:
        raise AskError("no_key", "there is no API key to ask with", "set TOOLFLEET_KEY")
    return Address(url, key)


def _address(path: Sequence[str]) -> str:
    return "/v1/" + "/".join(quote(part, safe="") for part in path)


def problem_of(response: httpx2.Response) -> AskError:
    """Return the problem that an answer of the API is."""
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        return AskError("internal", f"the API answered {response.status_code} without a problem")
    message = body.get("detail") or body.get("message") or body.get("title") or "no message"
    details = body.get("details")
    return AskError(
        str(body.get("code", "internal")),
        str(message),
        str(body.get("hint") or ""),
        details if isinstance(details, dict) else None,
    )
