"""What stands around every page: the navigation of who is signed in, and the ways out of it.

What a page is for is said once, by its route: the navigation shows what the route admits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from fastapi import Request
from fastapi.routing import iter_route_contexts
from starlette.routing import BaseRoute

from api.auth import CONSOLE, verb_of
from api.wire import StrictRoute
from registry.addresses import as_asked
from registry.settings import Settings
from registry.tenants import Actor, Role

SECTIONS: Final = (
    ("", "Fleet"), ("runs", "Runs"), ("calls", "Calls"), ("approvals", "Approvals"),
    ("changes", "Changes"), ("tenants", "Tenants"), ("audit", "Audit"),
)  # fmt: skip
START: Final = f"{CONSOLE}/"
_PLACE: Final = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*")
_LONGEST_PLACE: Final = 2048


@dataclass(frozen=True)
class Section:
    """A part of the console that the navigation leads to, and whom it is for."""

    href: str
    name: str
    roles: tuple[Role, ...]
    verb: str

    def admits(self, actor: Actor) -> bool:
        """Say whether somebody may see it."""
        verbs = actor.scopes.verbs if actor.scopes is not None else None
        return actor.role in self.roles and (verbs is None or self.verb in verbs)


class Frame:
    """The frame of one API's pages."""

    def __init__(self, routes: Iterable[BaseRoute], settings: Settings) -> None:
        self.sections = tuple(_sections(routes))
        self._flower_url = settings.flower_url.rstrip("/")
        self.secure = settings.public_url.startswith("https://")

    def links(self, actor: Actor) -> list[tuple[str, str]]:
        """Return address and name of what somebody may see."""
        return [(it.href, it.name) for it in self.sections if it.admits(actor)]

    def landing(self, actor: Actor) -> str:
        """Return the first page that somebody may see."""
        links = self.links(actor)
        return links[0][0] if links else START

    def flower(self, request: Request) -> str:
        """Return where Flower is for the browser that asks; empty where there is none."""
        return as_asked(self._flower_url, request.headers.get("host", ""))

    def safe(self, place: str, request: Request) -> str:
        """Return a place to go to after the sign-in: one of ours, or empty."""
        flower = self.flower(request)
        rest = place.removeprefix(flower) if flower else place
        if len(place) > _LONGEST_PLACE or _PLACE.fullmatch(rest) is None or ".." in rest:
            return ""
        if rest != place:
            return place
        ours = place == CONSOLE or place.startswith((START, f"{CONSOLE}?"))
        return place if ours and not place.startswith(f"{CONSOLE}/sign-") else ""


def may_use_flower(actor: Actor | None) -> bool:
    """Say whether somebody may use Flower, which shows all calls and knows nothing of scopes."""
    return actor is not None and actor.role is Role.OPERATOR and actor.scopes is None


def _sections(routes: Iterable[BaseRoute]) -> Iterable[Section]:
    found = {
        context.path: context.original_route
        for context in iter_route_contexts(list(routes))
        if isinstance(context.original_route, StrictRoute) and "GET" in (context.methods or ())
    }
    for path, name in SECTIONS:
        href = START + path
        if (route := found.get(href)) is not None:
            verb = verb_of(str(route.tags[0]), ["GET"], href)
            yield Section(href, name, route.admits.roles, verb)
