"""How resources of several servers are called where they are shown together."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.mcp.uris import artifact_of, meant, shown, shown_block
from tests.requirements import requirement

SERVERS = st.from_regex(r"[a-z0-9][a-z0-9-]{0,39}", fullmatch=True)
TEXTS = st.text(min_size=1)
TEMPLATES = (
    "test://template/{id}/data",
    "file:///{+path}",
    "{scheme}://{host}{/parts*}{?q,lang}{&more}{#frag}",
    "urn:isbn:{number}",
)


@requirement("passage:uris")
@given(SERVERS, TEXTS)
def test_a_shown_uri_leads_back_to_the_servers_own(server: str, uri: str) -> None:
    assert meant(shown(server, uri)) == (server, uri)


@requirement("passage:uris")
@pytest.mark.parametrize("template", TEMPLATES)
@given(value=st.text(alphabet="ab%2F/:?&#=.~", max_size=12))
def test_what_a_shown_template_expands_to_leads_back_too(template: str, value: str) -> None:
    def expanded(text: str) -> str:
        return re.sub(r"\{[^}]*\}", lambda _: value, text)

    own = expanded(template)
    if own:
        assert meant(expanded(shown("crm", template))) == ("crm", own)


@requirement("passage:uris")
@pytest.mark.parametrize(
    "uri",
    ["", "test://x", "toolfleet://", "toolfleet://crm", "toolfleet://crm/", "TOOLFLEET://a/b"],
)
def test_what_was_not_shown_means_no_resource(uri: str) -> None:
    assert meant(uri) is None


@requirement("passage:uris")
def test_links_of_the_web_and_what_has_no_uri_stay_as_they_are() -> None:
    link = {"type": "resource_link", "uri": "https://example.com/a", "name": "a"}
    text = {"type": "text", "text": "test://x"}
    assert shown_block("crm", link) is link
    assert shown_block("crm", text) is text
    assert shown_block("crm", {"type": "resource"}) == {"type": "resource"}
    named = shown_block("crm", {**link, "uri": "test://x"})
    assert named["uri"] == "toolfleet://crm/test://x"


@requirement("passage:uris")
def test_the_link_in_the_place_of_a_large_result_is_told_from_a_servers() -> None:
    assert artifact_of("toolfleet://artifacts/" + "0a" * 16) == "0a" * 16
    assert artifact_of("toolfleet://artifacts/test://x") is None
