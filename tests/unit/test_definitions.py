"""What a server definition may not say, and how that is told to who wrote it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from registry.definitions import ServerDefinition, content_digest, parse_definition
from registry.errors import Code, FleetError
from tests.requirements import requirement

STDIO = {"name": "demo", "transport": "stdio", "command": "mcp-server-time"}
HTTP = {"name": "demo", "transport": "http", "url": "https://mcp.example.com/mcp"}
LOOPBACK = {"networks": ["127.0.0.0/8"]}


def stdio(**rest: Any) -> dict[str, Any]:
    return {**STDIO, **rest}


def http(**rest: Any) -> dict[str, Any]:
    return {**HTTP, **rest}


def refusal(document: Any) -> FleetError:
    with pytest.raises(FleetError) as caught:
        parse_definition(document)
    assert caught.value.code is Code.INVALID_DEFINITION
    assert caught.value.hint
    return caught.value


def problems(document: Any) -> dict[str, str]:
    return {it["path"]: it["problem"] for it in refusal(document).details["problems"]}


def refused(document: Any, path: str, why: str) -> None:
    """Check that the definition is refused for one thing alone, said of the right field."""
    found = problems(document)
    assert set(found) == {path}
    assert why in found[path]


# -- fields that do not exist


@requirement("definitions:unknown-fields")
@pytest.mark.parametrize(
    ("document", "path", "meant"),
    [
        (stdio(comand="x"), "comand", "command"),
        (stdio(timeout=3), "timeout", "timeouts"),
        (stdio(max_size=3), "max_size", "pool/max_size"),
        (stdio(hidden=True), "hidden", "tools/NAME/hidden"),
        (stdio(pool={"maxSize": 3}), "pool/maxSize", "max_size"),
        (stdio(timeouts={"call": 3}), "timeouts/call", "call_s"),
        (stdio(sandbox={"memory": 512}), "sandbox/memory", "memory_mb"),
        (stdio(tools={"read": {"delivry": "read"}}), "tools/read/delivry", "delivery"),
        (stdio(breaker={"windows_s": 3}), "breaker/windows_s", "window_s"),
    ],
)
def test_an_unknown_field_is_refused_with_the_one_that_was_meant(
    document: Any, path: str, meant: str
) -> None:
    assert problems(document) == {path: f"unknown field; did you mean `{meant}`?"}


@requirement("definitions:unknown-fields")
def test_an_unknown_field_that_is_like_no_other_is_just_unknown() -> None:
    assert problems(stdio(autoApprove=[])) == {"autoApprove": "unknown field"}


# -- what a server is


@requirement("definitions:command")
@pytest.mark.parametrize(
    ("command", "why"),
    [
        (None, "transport stdio needs a command"),
        ("", "is empty"),
        ("  ", "is empty"),
        ("./server", "is a relative path"),
        ("bin/server", "is a relative path"),
        ("~/server", "is a relative path"),
        ("npx -y @scope/server", "put the arguments after 'npx' in args"),
        ("uvx mcp-server-time", "put the arguments after 'uvx' in args"),
        ("/usr/bin/npx -y server", "put the arguments after '/usr/bin/npx' in args"),
        ("/usr/bin/node /srv/server.js", "put the arguments after '/usr/bin/node' in args"),
        ("server\n", "U+000A"),
        ("server\0", "U+0000"),
        (["npx", "-y"], "has to be a string"),
    ],
)
def test_a_command_that_no_worker_could_start_is_refused(command: Any, why: str) -> None:
    refused(stdio(command=command), "command", why)


@requirement("definitions:command")
@pytest.mark.parametrize("command", ["npx", "/usr/bin/npx", "/opt/My Server/run", "mcp_server.py"])
def test_a_bare_name_and_a_whole_path_are_commands(command: str) -> None:
    assert parse_definition(stdio(command=command, args=["server"])).command == command


@requirement("definitions:command")
@pytest.mark.parametrize("folder", ["data", "./data", "~/data", ""])
def test_a_relative_working_folder_is_refused(folder: str) -> None:
    refused(stdio(cwd=folder), "cwd", "is a relative path")


@requirement("definitions:command", "definitions:url")
@pytest.mark.parametrize(
    ("document", "path", "why"),
    [
        (stdio(url="https://mcp.example.com/"), "url", "takes a command, not a url"),
        (http(command="npx"), "command", "takes a url, not a command"),
        (http(url=None), "url", "transport http needs a url"),
        (http(transport="sse"), "transport", "sse is not served by this release"),
        (http(transport="ws"), "transport", "has to be 'stdio', 'http', 'sse' or 'openapi'"),
    ],
)
def test_what_does_not_fit_the_transport_is_refused(document: Any, path: str, why: str) -> None:
    refused(document, path, why)


@requirement("definitions:url")
@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("mcp.example.com/mcp", "is no URL like"),
        ("https:/mcp.example.com", "is no URL like"),
        ("https:///mcp.example.com", "is no URL like"),
        ("https://mcp.example.com\\@evil.example", "is no URL like"),
        ("https://mcp.exam\nple.com/", "is no URL like"),
        (" https://mcp.example.com/", "is no URL like"),
        ("https://[::1", "is no valid URL"),
        ("https://mcp.example.com:99999/", "is no valid URL"),
        ("ftp://mcp.example.com/", "URL scheme should be 'http' or 'https'"),
        ("unix:///run/mcp.sock", "is no URL like"),
        ("file:///etc/passwd", "is no URL like"),
        ("https://user:hunter2@mcp.example.com/", "holds a user name or password"),
        ("https://token@mcp.example.com/", "holds a user name or password"),
        ("https://mcp.example.com/mcp#tools", "has a fragment"),
        ("http://mcp.example.com/mcp", "is not encrypted: use https://"),
        (80, "has to be a string"),
    ],
)
def test_a_url_that_no_worker_could_call_is_refused(url: Any, why: str) -> None:
    refused(http(url=url), "url", why)


@requirement("definitions:addresses")
@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1:8000/mcp", "http://localhost/mcp", "http://crm.localhost/mcp"),
        *("http://2130706433/", "http://0x7f.1/", "http://017700000001/", "http://127.1/"),
        *("http://[::ffff:127.0.0.1]/", "http://127.0.0.1./", "http://%6c%6fcalhost/"),
        "http://\N{FULLWIDTH DIGIT ONE}27.0.0.1/",
    ],
)
def test_a_loopback_address_has_to_be_allowed(url: str) -> None:
    refused(http(url=url), "url", 'networks, such as "127.0.0.0/8"')
    assert parse_definition(http(url=url, **LOOPBACK)).networks == ("127.0.0.0/8",)


@requirement("definitions:addresses")
@pytest.mark.parametrize(
    "url",
    [
        *("http://169.254.169.254/latest/meta-data", "http://metadata.google.internal/"),
        *("http://10.0.0.1/", "http://192.168.1.1/", "http://[fd00::1]/", "http://[::]/"),
    ],
)
def test_leave_for_the_loopback_network_opens_no_other(url: str) -> None:
    refused(http(url=url, **LOOPBACK), "url", "is not a public address")


@requirement("definitions:addresses")
@pytest.mark.parametrize(
    ("document", "path", "why"),
    [
        (http(networks=["10.0.0.1/8"]), "networks/0", "write 10.0.0.0/8"),
        (http(networks=["10.0.0.0/8", "lan"]), "networks/1", "is no network"),
        (http(networks="10.0.0.0/8"), "networks", "has to be a list"),
        (http(networks=["10.0.0.0/8"] * 257), "networks", "256 are the most"),
        (stdio(**LOOPBACK), "networks", "sandbox.network"),
    ],
)
def test_networks_that_are_none_are_refused(document: Any, path: str, why: str) -> None:
    refused(document, path, why)


# -- values


@requirement("definitions:values")
@pytest.mark.parametrize(
    ("document", "path", "why"),
    [
        (stdio(args=["--ok", "a\0b"]), "args/1", "U+0000"),
        (stdio(args=["\x1b[2J"]), "args/0", "U+001B"),
        (stdio(args=["x" * 32_769]), "args/0", "32,768 are the most"),
        (stdio(args=["\N{EURO SIGN}" * 11_000]), "args/0", "33,000 bytes"),
        (stdio(args=["x"] * 257), "args", "257 entries; 256 are the most"),
        (stdio(args=[7]), "args/0", "has to be a string"),
        (stdio(args="--flag"), "args", "has to be a list"),
        (stdio(env={"TOKEN": "a\0b"}), "env/TOKEN", "U+0000"),
        (stdio(env={"TOKEN": "\x07"}), "env/TOKEN", "U+0007"),
        (stdio(env={"TOKEN": None}), "env/TOKEN", "has to be a string"),
        (stdio(env={"A\nB": "x"}), "env/A\nB", "U+000A"),
        (stdio(env={"A=B": "x"}), "env/A=B", "is no name of an environment variable"),
        (stdio(env={"LD_PRELOAD": "/x.so"}), "env/LD_PRELOAD", "is refused"),
        (stdio(env={f"V{n}": "" for n in range(257)}), "env", "256 are the most"),
        (stdio(env={"TOKEN": "\ud800"}), "env/TOKEN", "U+D800"),
        (http(headers={"X-A": "b\r\nX-C: d"}), "headers/X-A", "U+000D"),
        (http(headers={"X-A": "b\nX-C: d"}), "headers/X-A", "U+000A"),
        (http(headers={"X-A\r\nX-C": "d"}), "headers/X-A\r\nX-C", "is no name of a header"),
        (http(headers={"X A": "b"}), "headers/X A", "is no name of a header"),
        (http(headers={"": "b"}), "headers/", "is no name of a header"),
        (http(headers={"X-A": " b"}), "headers/X-A", "begins or ends with a space"),
        (http(headers={"X-A": "\N{EURO SIGN}"}), "headers/X-A", "headers are ASCII"),
        (http(headers={"X-A": "x" * 32_769}), "headers/X-A", "32,768 are the most"),
        (http(headers={f"X-{n}": "" for n in range(257)}), "headers", "256 are the most"),
        (http(headers={"X-A": "b", "x-a": "c"}), "headers", "'x-a' twice"),
        (http(headers={"Content-Length": "0"}), "headers/Content-Length", "the connection itself"),
        (http(headers={"transfer-encoding": ""}), "headers/transfer-encoding", "itself sets"),
        (
            http(credentials={"inject": "header", "name": "X A"}),
            "credentials/name",
            "is no name of a header",
        ),
        (stdio(credentials={"inject": "env"}), "credentials/name", "is required"),
        (stdio(health={"path": "health"}), "health/path", "has to start with /"),
        (stdio(health={"path": "//10.0.0.1/"}), "health/path", "names a host"),
        (stdio(health={"path": "/\\10.0.0.1"}), "health/path", "names a host"),
    ],
)
def test_a_value_that_cannot_be_carried_is_refused(document: Any, path: str, why: str) -> None:
    refused(document, path, why)


@requirement("definitions:values")
def test_text_of_several_lines_is_an_argument_and_a_variable() -> None:
    key = "-----BEGIN KEY-----\n\tabc\r\n-----END KEY-----\n"
    taken = parse_definition(stdio(args=["-c", key, ""], env={"KEY": key}))
    assert (taken.args[1], taken.env["KEY"]) == (key, key)


@requirement("definitions:values")
@pytest.mark.parametrize(
    "document",
    [
        http(headers={"Authorization": "Bearer hunter2\r\n"}),
        http(url="https://user:hunter2@mcp.example.com/"),
        stdio(env={"PASSWORD": "hunter2\0"}),
        stdio(args=["--password=hunter2\0"]),
    ],
)
def test_a_refusal_does_not_repeat_a_secret(document: Any) -> None:
    assert "hunter2" not in json.dumps(refusal(document).as_dict())


# -- numbers


@requirement("definitions:numbers")
@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ("timeouts/call_s", float("inf"), "has to be a finite number"),
        ("timeouts/call_s", float("nan"), "has to be a finite number"),
        ("timeouts/call_s", 86_401, "is more than 86,400"),
        ("timeouts/connect_s", 0, "has to be greater than 0"),
        ("timeouts/connect_s", "soon", "has to be a valid number"),
        ("pool/max_size", 257, "has to be less than or equal to 256"),
        ("pool/max_size", 10**30, "has to be less than or equal to 256"),
        ("pool/max_calls", 2**53, "is more than"),
        ("pool/max_lifetime_s", 1e300, "is more than"),
        ("pool/borrow_timeout_s", 1e6, "is more than"),
        ("pool/rebuild_per_s", float("inf"), "has to be a finite number"),
        ("pool/max_waiting", -1, "has to be greater than or equal to 0"),
        ("pool/max_rss_mb", 1e9, "is more than"),
        ("pool/max_open_fds", 1.5, "has to be a valid integer"),
        ("health/interval_s", 1e9, "is more than"),
        ("sandbox/memory_mb", 1, "has to be greater than or equal to 16"),
        ("sandbox/pids", 10**9, "is more than"),
        ("breaker/failure_rate", 1.5, "has to be less than or equal to 1"),
        ("breaker/open_for_s", 1e9, "is more than"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(path: str, value: float, why: str) -> None:
    group, field = path.split("/")
    refused(stdio(**{group: {field: value}}), path, why)


@requirement("definitions:numbers")
def test_the_time_of_one_tool_is_bounded_as_well() -> None:
    refused(stdio(tools={"look": {"timeout_s": 1e9}}), "tools/look/timeout_s", "is more than")


# -- names


@requirement("definitions:names")
@pytest.mark.parametrize(
    ("document", "path", "allowed"),
    [
        (stdio(name="My Server"), "name", "small letters, digits and dashes"),
        (stdio(name="-demo"), "name", "does not start with a dash"),
        (stdio(name="demo\n"), "name", "small letters, digits and dashes"),
        (stdio(name="x" * 41), "name", "up to 40"),
        (stdio(tool_prefix="my server_"), "tool_prefix", "letters, digits, dashes and underscores"),
        (stdio(tool_prefix="x" * 25), "tool_prefix", "up to 24"),
        (stdio(version="1\n"), "version", "U+000A"),
        (stdio(cost_tag="team\nb"), "cost_tag", "U+000A"),
        (stdio(cost_tag="x" * 65), "cost_tag", "64 are the most"),
        (stdio(tenants=["acme", "a b"]), "tenants/1", "up to 64 letters, digits, '-' and '_'"),
        (stdio(tenants=[""]), "tenants/0", "is no name of a tenant"),
        (stdio(tools={"": {}}), "tools/", "is empty"),
        (stdio(tools={"look\x00": {}}), "tools/look\x00", "U+0000"),
        (stdio(tools={"x" * 129: {}}), f"tools/{'x' * 129}", "128 are the most"),
        (stdio(tools={f"t{n}": {} for n in range(10_001)}), "tools", "10,000 are the most"),
        (stdio(pool={"reset_tool": "x" * 129}), "pool/reset_tool", "128 are the most"),
    ],
)
def test_a_name_that_is_not_legal_is_refused_with_what_is(
    document: Any, path: str, allowed: str
) -> None:
    refused(document, path, allowed)


# -- all of it


@requirement("definitions:each-problem")
def test_every_field_that_is_wrong_is_listed_and_the_first_is_in_the_message() -> None:
    error = refusal({"name": "Demo!", "transport": "stdio", "pool": {"min_idle": -1}, "x": 1})
    paths = [it["path"] for it in error.details["problems"]]
    assert paths == ["name", "pool/min_idle", "x"]
    assert error.message.startswith("the server definition is not valid: name: takes up to 40")


@requirement("definitions:each-problem")
@pytest.mark.parametrize("document", [None, [], "demo", 7, {}])
def test_what_is_no_definition_at_all_is_refused(document: Any) -> None:
    assert refusal(document).details["problems"]


@requirement("definitions:each-problem")
def test_a_list_of_problems_has_an_end() -> None:
    error = refusal({f"field-{n}": n for n in range(100_000)})
    assert len(error.details["problems"]) == 50


@requirement("definitions:no-effects")
def test_no_definition_starts_opens_or_looks_up_anything(tmp_path: Path) -> None:
    marker = tmp_path / "started"
    touch = f"import pathlib; pathlib.Path({str(marker)!r}).touch()"
    programs = [
        *(sys.executable, f"{sys.executable} -c '{touch}'", f"touch {marker}", f"sh -c {marker}"),
        *(f"$(touch {marker})", f"`touch {marker}`", f"; touch {marker}", f"| tee {marker}"),
        *(f"../../bin/touch {marker}", "/dev/stdin", "/proc/self/exe", str(marker)),
    ]
    urls = [
        *(f"file://{marker}", f"http://nowhere.invalid/{marker}", "http://127.0.0.1:1/"),
        *("http://localhost:1/", "http://xn--nowhere.invalid/", "http://169.254.169.254/"),
        *(f"https://a@{marker}", "gopher://127.0.0.1:1/"),
    ]
    hostile = [
        *(stdio(command=program, args=["-c", touch]) for program in programs),
        *(stdio(args=[program]) for program in programs),
        *(stdio(cwd=program, env={"BASH_ENV": str(marker)}) for program in programs[:8]),
        *(http(url=url) for url in urls),
    ]
    assert len(hostile) == 40
    process = psutil.Process()
    before = (process.children(recursive=True), process.num_fds(), process.net_connections())
    for document in hostile:
        try:
            assert isinstance(parse_definition(document), ServerDefinition)
        except FleetError as error:
            assert error.code is Code.INVALID_DEFINITION  # noqa: PT017 - either answer will do
    after = (process.children(recursive=True), process.num_fds(), process.net_connections())
    assert after == before
    assert not marker.exists()


@requirement("questions:an-operators-word")
def test_what_a_server_may_ask_is_all_unless_its_operator_says_otherwise() -> None:
    plain = {"name": "demo", "transport": "stdio", "command": "true"}
    definition = parse_definition(plain)
    assert definition.questions.kinds == ("elicitation", "elicitation.url", "sampling", "roots")
    # As it was before definitions said anything about questions.
    known = "928ef314da045a778abc0d3906b2cd99e4606a9b9089f62d3d847b98586049c9"
    assert content_digest(definition) == known
    narrow = parse_definition({**plain, "questions": {"elicitation": False, "roots": False}})
    assert narrow.questions.kinds == ("sampling",)
    assert content_digest(narrow) != known


@requirement("metrics:cost-tag")
def test_a_definition_may_say_who_pays_and_is_the_same_as_ever_without_it() -> None:
    plain, tagged = parse_definition(stdio()), parse_definition(stdio(cost_tag="team-a"))
    assert tagged.cost_tag == "team-a"
    assert plain.cost_tag is None
    assert content_digest(tagged) != content_digest(plain)
