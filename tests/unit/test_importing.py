"""What the files of desktop clients and editors come to, shape by shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compose.client_files import find_entries, read_document
from compose.importing import Imported, legal_name, read_client_file
from compose.placeholders import fill, missing, parse
from registry.definitions import ServerDefinition, parse_definition
from registry.errors import Code, FleetError
from tests.requirements import requirement

DATA = Path(__file__).parents[1] / "data"
ANY_NETWORK = ["0.0.0.0/0", "::/0"]


def only(body: Any, **around: Any) -> Imported:
    (imported,) = read_client_file(json.dumps({"mcpServers": {"it": body}, **around}))
    return imported


def definition(imported: Imported, **values: str) -> ServerDefinition:
    """Return the definition as it would be registered; it is a valid one."""
    assert not imported.reason
    assert imported.missing(values) == []
    document = imported.filled(values).definition
    allowed = {"networks": ANY_NETWORK} if "url" in document else {}
    return parse_definition({**document, **allowed})


def taken_over(body: Any, **values: str) -> dict[str, Any]:
    """Return what is not a default in the definition that one server comes to."""
    taken = definition(only(body), **values).model_dump(mode="json", exclude_defaults=True)
    return {name: value for name, value in taken.items() if name not in {"name", "networks"}}


# -- whole files


@requirement("import:whole-files")
@pytest.mark.parametrize("name", json.loads((DATA / "sources.json").read_text()))
def test_a_clients_file_is_imported_whole(name: str) -> None:
    values = {
        "github_token": "ghp_x",
        "DB_CONNECTION_STRING": "postgresql://db/crm",
        "EXTERNAL_API_KEY": "key",
        "EXTERNAL_SERVICE_TOKEN": "token",
        "PWD": "/srv",
        "workspaceFolder": "/srv/project",
    }
    servers = read_client_file((DATA / name).read_text())
    skipped = [it.label for it in servers if it.skipped]
    assert skipped == (["experimental-server"] if "gemini" in name else [])
    taken = [definition(it, **values) for it in servers if not it.skipped]
    assert len(taken) == len({it.name for it in taken}) == len(servers) - len(skipped)
    assert "${" not in json.dumps([it.model_dump(mode="json") for it in taken])


@requirement("import:whole-files")
def test_the_inputs_of_a_file_say_what_to_ask_for() -> None:
    servers = read_client_file((DATA / "vscode_mcp.json").read_text())
    assert [it.name for it in servers] == ["github", "github-remote"]
    for it in servers:
        (need,) = it.missing({})
        assert (need.name, need.secret) == ("github_token", True)
        assert need.description == "GitHub Personal Access Token"
    taken = definition(servers[1], github_token="ghp_x")
    assert taken.headers == {"Authorization": "Bearer ghp_x"}


# Each as its client's documentation has it: where, what is written, and what it comes to.
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Claude Desktop: modelcontextprotocol.io, quickstart for users": (
        {"command": "uvx", "args": ["mcp-server-time", "--local-timezone=UTC"]},
        {
            "transport": "stdio",
            "command": "uvx",
            "args": ["mcp-server-time", "--local-timezone=UTC"],
        },
    ),
    "Claude Code: code.claude.com/docs/en/mcp, environment variable expansion": (
        {
            "type": "http",
            "url": "${API_BASE_URL:-https://api.example.com}/mcp",
            "headers": {"Authorization": "Bearer ${API_KEY}"},
        },
        {
            "transport": "http",
            "url": "https://api.example.com/mcp",
            "headers": {"Authorization": "Bearer a-key"},
        },
    ),
    "Cursor: cursor.com/docs/mcp, config interpolation (stdio)": (
        {
            "type": "stdio",
            "command": "python",
            "args": ["${workspaceFolder}/tools/mcp_server.py"],
            "env": {"API_KEY": "${env:API_KEY}"},
        },
        {
            "transport": "stdio",
            "command": "python",
            "args": ["/srv/project/tools/mcp_server.py"],
            "env": {"API_KEY": "a-key"},
        },
    ),
    "Cursor: cursor.com/docs/mcp, remote server": (
        {"url": "https://api.example.com/mcp", "headers": {"API_KEY": "${env:API_KEY}"}},
        {
            "transport": "http",
            "url": "https://api.example.com/mcp",
            "headers": {"API_KEY": "a-key"},
        },
    ),
    "Windsurf: docs.windsurf.com/windsurf/cascade/mcp, remote HTTP": (
        {
            "serverUrl": "https://api.example.com/mcp",
            "headers": {"Authorization": "Bearer ${env:API_KEY}"},
        },
        {
            "transport": "http",
            "url": "https://api.example.com/mcp",
            "headers": {"Authorization": "Bearer a-key"},
        },
    ),
    "Cline: docs.cline.bot/mcp, configuring": (
        {
            "type": "streamableHttp",
            "url": "https://api.example.com/mcp",
            "disabled": False,
            "autoApprove": ["tool1"],
            "timeout": 30,
        },
        {
            "transport": "http",
            "url": "https://api.example.com/mcp",
        },  # 30 s is what a call has anyway
    ),
    "Roo Code: docs.roocode.com/features/mcp/using-mcp-in-roo": (
        {
            "command": "node",
            "args": ["server.js"],
            "cwd": "/path/to/project/root",
            "env": {"API_KEY": "your_api_key"},
            "alwaysAllow": ["tool1", "tool2"],
            "disabledTools": ["tool3"],
            "timeout": 1800,
            "disabled": False,
        },
        {
            "transport": "stdio",
            "command": "node",
            "args": ["server.js"],
            "cwd": "/path/to/project/root",
            "env": {"API_KEY": "your_api_key"},
            "timeouts": {"call_s": 1800.0},
            "tools": {"tool3": {"hidden": True}},
        },
    ),
    "Gemini CLI: docs/tools/mcp-server.md": (
        {
            "httpUrl": "https://api.example.com/mcp",
            "headers": {"Authorization": "Bearer $API_KEY"},
            "timeout": 5000,
            "trust": True,
            "excludeTools": ["file_deleter"],
        },
        {
            "transport": "http",
            "url": "https://api.example.com/mcp",
            "headers": {"Authorization": "Bearer a-key"},
            "timeouts": {"call_s": 5.0},
            "tools": {"file_deleter": {"hidden": True}},
        },
    ),
    "Zed: zed.dev/docs/ai/mcp": (
        {"source": "custom", "command": "some-command", "args": ["arg-1"], "env": {}},
        {"transport": "stdio", "command": "some-command", "args": ["arg-1"]},
    ),
    "Zed, before 2025-06: an object for a command": (
        {"command": {"path": "some-command", "args": ["arg-1"], "env": {"A": "b"}}},
        {"transport": "stdio", "command": "some-command", "args": ["arg-1"], "env": {"A": "b"}},
    ),
    "OpenCode: opencode.ai/docs/mcp-servers": (
        {"type": "local", "command": ["npx", "-y", "x"], "environment": {"A": "b"}},
        {"transport": "stdio", "command": "npx", "args": ["-y", "x"], "env": {"A": "b"}},
    ),
    "Copilot CLI: docs.github.com, add MCP servers": (
        {"type": "local", "command": "npx", "args": ["-y", "x"], "tools": ["*"]},
        {"transport": "stdio", "command": "npx", "args": ["-y", "x"]},
    ),
}


@requirement("import:shapes")
@pytest.mark.parametrize("source", SHAPES)
def test_each_clients_way_to_write_a_server_is_understood(source: str) -> None:
    body, expected = SHAPES[source]
    taken = taken_over(body, API_KEY="a-key", workspaceFolder="/srv/project")
    assert taken == {name: value for name, value in expected.items() if value}


@requirement("import:shapes")
@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({"mcpServers": {"it": {"command": "x"}}}, "mcpServers/it"),
        ({"servers": {"it": {"command": "x"}}, "inputs": []}, "servers/it"),
        ({"editor.fontSize": 12, "mcp": {"servers": {"it": {"command": "x"}}}}, "mcp/servers/it"),
        ({"mcp.servers": {"it": {"command": "x"}}}, "mcp.servers/it"),
        ({"theme": "One", "context_servers": {"it": {"command": "x"}}}, "context_servers/it"),
        ({"mcp": {"it": {"type": "local", "command": ["x"]}}}, "mcp/it"),
        ({"it": {"command": "x"}}, "it"),
        ({"it": {"url": "https://api.example.com/mcp"}}, "it"),
    ],
)
def test_the_servers_are_found_wherever_a_client_keeps_them(document: Any, path: str) -> None:
    (imported,) = read_client_file(json.dumps(document))
    assert (imported.path, imported.label, imported.reason) == (path, "it", "")


@requirement("import:shapes")
@pytest.mark.parametrize("name", ["url", "command", "mcpServers", "mcp", "servers"])
def test_a_server_may_be_called_like_a_field(name: str) -> None:
    (imported,) = read_client_file(json.dumps({"mcpServers": {name: {"command": "x"}}}))
    assert (imported.path, imported.reason) == (f"mcpServers/{name}", "")


@requirement("import:shapes")
def test_comments_and_trailing_commas_are_read_as_editors_do() -> None:
    text = """\ufeff// servers
    {
        "mcpServers": { /* one */
            "it": {"command": "x", "args": ["http://a//b", "/* no comment */", "a,]",],},
        },
    }
    """
    (imported,) = read_client_file(text)
    assert definition(imported).args == ("http://a//b", "/* no comment */", "a,]")


@requirement("import:bad-files")
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not JSON"),
        ("mcpServers:\n  it: {}", "not JSON, with or without comments: line 1"),
        ('{\n "mcpServers": {"it" 1}\n}', "line 2"),
        ("[" * 100_000, "too deep"),
        ("{}", "no object of MCP servers"),
        ('{"mcpServers": []}', "no object of MCP servers"),
        ('"text"', "no object of MCP servers"),
        ('[{"name": "it", "transport": "stdio"}]', "a list, or one definition"),
        ('{"name": "it", "transport": "stdio", "command": "x"}', "a list, or one definition"),
    ],
)
def test_a_file_that_is_no_clients_is_refused_with_what_is_expected(text: str, why: str) -> None:
    with pytest.raises(FleetError) as caught:
        read_client_file(text)
    assert caught.value.code is Code.INVALID_REQUEST
    assert why in caught.value.message


@requirement("import:bad-files")
@given(
    document=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["command", "args", "env", "url", "type", "headers", "timeout", "x"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_whatever_a_server_is_the_next_one_is_imported(document: Any) -> None:
    text = json.dumps({"mcpServers": {"odd": document, "it": {"command": "x"}}})
    odd, good = read_client_file(text)
    assert odd.reason or odd.definition
    assert definition(good).command == "x"


# -- placeholders


@requirement("import:placeholders")
@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("${A}", "one"),
        ("${env:A}/${input:b}", "one/two"),
        ("x${A}y${A}z", "xoneyonez"),
        ("${C:-three}", "three"),
        ("${A:-three}", "one"),
        ("${env:C:-${D:-four}}", "four"),
        ("${C:-${A}}", "one"),
        ("${C:-}", ""),
        ("${/}", "/"),
        ("$A and $(A) and ${1} and ${{A}} and ${A", "$A and $(A) and ${1} and ${{A}} and ${A"),
        ("${trap}", "${A}"),
    ],
)
def test_a_placeholder_is_replaced_once_and_all_else_stays(text: str, filled: str) -> None:
    values = {"A": "one", "b": "two", "/": "/", "trap": "${A}"}
    assert fill(parse(text), values) == filled


@requirement("import:placeholders")
@given(text=st.text(alphabet="${}:-AbC/ x", max_size=30))
def test_any_text_is_filled_once_its_missing_values_are_given(text: str) -> None:
    values = dict.fromkeys(missing(parse(text), {}), "v")
    assert len(fill(parse(text), values)) <= len(text)


@requirement("import:placeholders")
def test_all_values_that_are_missing_are_named_with_their_descriptions() -> None:
    imported = only(
        {
            "command": "x",
            "cwd": "${workspaceFolder}",
            "args": ["${input:place}", "${input:gone}", "${OPTIONAL:-}", "${config:editor.x}"],
            "env": {"TOKEN": "$API_TOKEN", "PRICE": "5 $US", "ZONE": "${input:zone}"},
        },
        inputs=[
            {"id": "place", "type": "pickString", "description": "Where", "options": ["eu", "us"]},
            {"id": "zone", "type": "promptString", "description": "Zone", "default": "UTC"},
        ],
    )
    found = {need.name: need for need in imported.missing({})}
    assert set(found) == {"workspaceFolder", "place", "gone", "config:editor.x", "API_TOKEN"}
    assert (found["place"].description, found["place"].options) == ("Where", ("eu", "us"))
    assert found["API_TOKEN"].secret
    assert "only the client knows" in found["config:editor.x"].description
    values = dict.fromkeys(found, "v") | {"workspaceFolder": "/srv"}
    taken = definition(imported, **values)
    assert taken.env == {"TOKEN": "v", "PRICE": "5 $US", "ZONE": "UTC"}


@requirement("import:placeholders")
@pytest.mark.parametrize(
    ("field", "written", "read"),
    [
        ("command", "bin/server", "/srv/bin/server"),
        ("command", "./server", "/srv/server"),
        ("command", "~/bin/server", "/home/me/bin/server"),
        ("command", "server", "server"),
        ("cwd", "data", "/srv/data"),
        ("cwd", "${workspaceFolder}/data", "/srv/data"),
    ],
)
def test_a_relative_path_starts_at_the_clients_open_folder(
    field: str, written: str, read: str
) -> None:
    imported = only({"command": "x", field: written})
    values = {"workspaceFolder": "/srv", "userHome": "/home/me"}
    assert getattr(definition(imported, **values), field) == read


@requirement("import:placeholders")
def test_a_file_of_variables_is_left_to_who_can_open_it() -> None:
    imported = only({"command": "x", "envFile": "${workspaceFolder}/.env"})
    assert imported.filled({"workspaceFolder": "/srv"}).env_file == "/srv/.env"


# -- names


@requirement("import:names")
@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("github", "github"),
        ("My Server", "my-server"),
        ("Caf\N{LATIN SMALL LETTER E WITH ACUTE} (EU)", "cafe-eu"),
        ("@scope/server.name", "scope-server-name"),
        ("_x_", "x"),
        ("x" * 50, "x" * 40),
        ("\N{CJK UNIFIED IDEOGRAPH-5929}", "server"),
    ],
)
def test_a_name_is_made_legal(label: str, name: str) -> None:
    assert legal_name(label) == name


@requirement("import:names")
def test_names_that_fall_together_are_numbered_and_that_is_said() -> None:
    text = json.dumps({"mcpServers": {it: {"command": "x"} for it in ("a b", "A-B", "a_b", "c")}})
    servers = read_client_file(text)
    assert [it.name for it in servers] == ["a-b", "a-b-2", "a-b-3", "c"]
    assert servers[0].notes == ("named a-b",)
    assert servers[1].notes == ("named a-b-2: another server of the file is a-b",)
    assert servers[3].notes == ()


@requirement("import:names")
@given(labels=st.lists(st.text(max_size=60), unique=True, max_size=8))
def test_whatever_servers_are_called_their_names_are_legal_and_their_own(labels: list[str]) -> None:
    servers = read_client_file(json.dumps({"mcpServers": {it: {"command": "x"} for it in labels}}))
    names = [definition(it).name for it in servers]
    assert len(set(names)) == len(labels)


@requirement("import:names")
def test_a_name_that_the_file_has_twice_is_told() -> None:
    (imported,) = read_client_file('{"mcpServers": {"a": {"command": "x"}, "a": {"command": "y"}}}')
    assert (definition(imported).command, imported.notes) == (
        "y",
        ("the file has it twice: the last one counts",),
    )


# -- what is not taken over


@requirement("import:told")
@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"command": "x", "disabled": True}, "disabled in the file"),
        ({"command": "x", "enabled": False}, "disabled in the file"),
        ({"type": "sse", "url": "https://api.example.com/mcp"}, "does not serve sse"),
        ({"url": "https://api.example.com/sse"}, "ends in /sse"),
        ({"serverUrl": "https://api.example.com/sse/?key=1"}, "ends in /sse"),
    ],
)
def test_what_is_disabled_or_not_served_is_skipped_with_its_reason(body: Any, why: str) -> None:
    imported = only(body)
    assert imported.skipped
    assert why in imported.reason


@requirement("import:told")
def test_an_address_that_ends_in_sse_is_taken_if_the_file_says_http() -> None:
    body = {"type": "http", "url": "https://api.example.com/sse"}
    assert taken_over(body)["url"] == "https://api.example.com/sse"


@requirement("import:told")
@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("npx", "not an object"),
        ({}, "neither a command nor a url"),
        ({"source": "extension", "settings": {}}, "neither a command nor a url"),
        ({"command": "x", "url": "https://api.example.com/"}, "both a command and a url"),
        ({"type": "ws", "url": "wss://api.example.com/"}, "stdio and http, not 'ws'"),
        ({"type": 7, "command": "x"}, "type is not a string"),
        ({"command": 7}, "command is not a string"),
        ({"command": "x", "args": "-y"}, "args is not a list"),
        ({"command": "x", "args": [["-y"]]}, "args/0 is not a string"),
        ({"command": "x", "env": ["A=b"]}, "env is not an object"),
        ({"command": "x", "env": {"A": {}}}, "env/A is not a string"),
    ],
)
def test_what_is_no_server_is_refused_with_its_reason(body: Any, why: str) -> None:
    imported = only(body)
    assert not imported.skipped
    assert why in imported.reason


@requirement("import:told")
def test_fields_without_a_counterpart_are_reported_by_their_path() -> None:
    imported = only(
        {
            "command": {"path": "x", "shell": True},
            "autoApprove": ["read"],
            "sandbox": {"network": {}},
            "oauth": {"clientId": "x"},
            "headers": {"A": "b"},
            "gallery": False,
            "description": "",
        }
    )
    told = {"command/shell", "autoApprove", "sandbox", "oauth", "headers", "gallery"}
    assert set(imported.ignored) == told
    assert definition(imported).tools == {}


@requirement("import:told")
@pytest.mark.parametrize("field", ["includeTools", "tools"])
def test_a_list_of_the_only_tools_is_told_not_to_hide_the_others(field: str) -> None:
    imported = only({"command": "x", field: ["safe_tool"]})
    assert field in imported.ignored
    assert imported.notes == (f"tools that {field} does not name are not hidden",)


@requirement("import:timeouts")
@pytest.mark.parametrize(
    ("body", "call_s"),
    [
        ({"timeout": 60}, 60),
        ({"timeout": 60_000}, 60),
        ({"timeout": 1800, "alwaysAllow": []}, 1800),
        ({"timeout": 1800, "trust": True}, 1.8),
        ({"timeout": 500, "excludeTools": []}, 0.5),
        ({"timeout": 120_000, "autoApprove": []}, 120),
    ],
)
def test_a_timeout_is_read_in_its_clients_unit_and_that_is_said(body: Any, call_s: float) -> None:
    imported = only({"command": "x", **body})
    assert definition(imported).timeouts.call_s == call_s
    assert f"read as {call_s:g} s" in imported.notes[0]


@requirement("import:timeouts")
@pytest.mark.parametrize("timeout", [1800, "30s", -1, True])
def test_a_timeout_whose_unit_is_not_clear_is_left_to_the_operator(timeout: Any) -> None:
    imported = only({"command": "x", "timeout": timeout})
    assert imported.ignored == ("timeout",)
    assert definition(imported).timeouts.call_s == 30


@requirement("import:shapes")
def test_servers_keep_the_files_order() -> None:
    document = read_document('{"mcpServers": {"b": {}, "a": {}}, "servers": {"c": {}}}')
    assert [it.name for it in find_entries(document)] == ["b", "a", "c"]
