"""Which command lines are refused, and what an operator's policy allows instead."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from registry.command_options import RefusedCommand
from registry.commands import DEFAULT, current_policy
from registry.definitions import ServerDefinition, parse_definition
from registry.errors import Code, FleetError
from registry.programs import known_name
from registry.settings import get_settings
from tests.requirements import requirement
from workers.launch import plan_launch
from workers.permission import sha256_of

Write = Callable[..., Path]


def stdio(command: str, *args: str) -> dict[str, Any]:
    return {"name": "x", "transport": "stdio", "command": command, "args": list(args)}


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write the policy that is in force."""
    path = tmp_path / "commands.yaml"
    monkeypatch.setenv("TOOLFLEET_COMMANDS_FILE", str(path))
    get_settings.cache_clear()

    def write(body: Any) -> Path:
        path.write_text(body if isinstance(body, str) else yaml.safe_dump(body))
        path.chmod(0o644)
        return path

    yield write
    monkeypatch.undo()
    get_settings.cache_clear()


# -- without a file


@requirement("guard:no-way-around")
@pytest.mark.parametrize(
    "line",
    [
        *("npx -y @modelcontextprotocol/server-filesystem /srv", "npx -p tool -y tool --flag -c"),
        *("npm exec -y -- @a/b x", "pnpm dlx x", "bunx -y pkg", "bun run s.ts", "bun x y"),
        *("uvx mcp-server-git --repository p", "uvx --from mcp[cli]==1.2 mcp run s.py"),
        *("uv --directory /srv run server.py -c", "uv run --with mcp[cli] mcp run /s.py"),
        *("uv tool run ruff", "uv run -m my.server", "pipx run mcp-server-x", "uvx a@1.2"),
        *("python -m my_mcp_server --port 8080", "python3.11 -P -u /srv/x.py -c 1"),
        *("python -X dev -W ignore x.py", "node --max-old-space-size=512 server.js -p 80 -e x"),
        *("deno run -A npm:@a/b", "deno run --allow-read=/srv /s.ts", "java -Xmx1g -jar x.jar"),
        *("perl -w s.pl -e", "ruby s.rb", "php s.php", "Rscript s.R", "tsx s.ts"),
        *("docker run -i --rm -e KEY -v ${PWD}:/workspace my:latest", "docker mcp gateway run"),
        *("docker run -v data:/d -v /srv/data:/d x", "docker run --network mine x"),
        *("mcp-server-time -c x", "/opt/mcp/server --eval x", "true", "sleep 1000"),
        *("npx -y @cyanheads/git -c x", "npx -y mcp-remote https://x.example/$(touch_x)"),
    ],
)
def test_what_clients_files_hold_is_allowed(line: str) -> None:
    command, *args = line.split()
    assert DEFAULT.refuse(command, args) is None


@requirement("guard:no-way-around")
@pytest.mark.parametrize(
    ("line", "place"),
    [
        *(("bash x.sh", "command"), ("/usr/bin/env python x.py", "command")),
        *(("PYTHON.EXE -c x", "args/0"), ("python3.12 -cimport", "args/0")),
        *(("python -W error::os.X x.py", "args/1"), ("python -m pdb x.py", "args/1")),
        *(("npx -y -- -c x", "args/2"), ("npx ./local", "args/0"), ("npx", "command")),
        *(("/usr/lib/npm/bin/npx-cli.js -c x", "args/0"), ("uvx bash", "args/0")),
        *(("uv run -- bash -c x", "args/2"), ("uv pip install x", "args/0")),
        *(("uv run --with git+https://x y", "args/2"), ("uv run -m timeit x", "args/2")),
        *(("docker run --env-file /etc/shadow x", "args/1"), ("docker compose up", "args/0")),
        *(("docker run --volume=/srv/..:/x y", "args/1"), ("docker run -v ~/.ssh:/x y", "args/1")),
        *(
            ("docker run --net container:db x", "args/1"),
            ("docker run --device=/dev/sda x", "args/1"),
        ),
        *(("node inspect x.js", "args/0"), ("node --experimental-loader x y", "args/0")),
        *(("node --env-file=.env x.js", "args/0"), ("deno run data:text/js,x", "args/1")),
        *(("java @args", "args/0"), ("java -agentlib:jdwp=x A", "args/0")),
        *(("/proc/self/root/bin/x", "command"), ("/opt//x", "command"), ("lua", "command")),
        *(("/opt/server --upload-pack=x", "args/0"), ("/opt/server ext::sh", "args/0")),
    ],
)
def test_a_way_around_naming_the_program_is_refused(line: str, place: str) -> None:
    command, *args = line.split()
    with pytest.raises(RefusedCommand) as caught:
        DEFAULT.refuse(command, args)
    assert caught.value.place == place


@requirement("guard:no-way-around")
@pytest.mark.parametrize(
    ("command", "name"),
    [
        *(("/usr/bin/python3.11", "python"), ("NODE.EXE", "node"), ("node22", "node")),
        *(("lua5.4", "lua"), ("perl-5.36.0", "perl"), ("npx-cli.js", "npx"), ("uvx", "uvx")),
        *(("/bin/7z", "7z"), ("ld-linux-x86-64.so.2", "ld-linux-x86-64.so"), ("42", "42")),
    ],
)
def test_a_program_goes_by_its_name_without_folder_suffix_and_version(
    command: str, name: str
) -> None:
    assert known_name(command) == name


# -- with a file


@requirement("guard:policy")
def test_only_what_the_file_lists_may_be_started(policy: Write) -> None:
    policy({"programs": [{"program": "/opt/mcp/"}, {"program": "/usr/bin/npx"}]})
    parse_definition(stdio("/opt/mcp/server", "--flag"))
    parse_definition(stdio("/usr/bin/npx", "-y", "x"))
    for command in ("/opt/mcp", "/opt/mcpx/server", "/usr/bin/uvx", "npx", "true"):
        with pytest.raises(FleetError, match="command: is none of the programs"):
            parse_definition(stdio(command, "x"))
    with pytest.raises(FleetError, match="command: leads out of the folder"):
        parse_definition(stdio("/opt/mcp/../evil"))
    with pytest.raises(FleetError, match="args/0: is an option that may"):
        parse_definition(stdio("/usr/bin/npx", "-c", "x"))


@requirement("guard:policy")
def test_the_file_says_which_arguments_there_may_be(policy: Write) -> None:
    policy({"programs": [{"program": "/usr/bin/npx", "args": ["-y", "@acme/[a-z-]+"]}]})
    parse_definition(stdio("/usr/bin/npx", "-y", "@acme/crm"))
    with pytest.raises(FleetError, match="args/1: is none of the arguments"):
        parse_definition(stdio("/usr/bin/npx", "-y", "@acme/other.one"))


@requirement("guard:policy")
def test_the_file_may_allow_what_is_refused_otherwise(policy: Write) -> None:
    policy({"others": True, "programs": [{"program": "/bin/sh", "any_code": True}]})
    parse_definition(stdio("/bin/sh", "-c", "exec server"))
    parse_definition(stdio("/opt/server"))
    with pytest.raises(FleetError, match="command: is a shell"):
        parse_definition(stdio("bash", "-c", "x"))


@requirement("guard:policy")
def test_a_file_that_changes_is_read_again(policy: Write) -> None:
    policy({"programs": [{"program": "/opt/one"}]})
    assert current_policy().programs[0].program == "/opt/one"
    policy({"programs": [{"program": "/opt/other"}]})
    assert current_policy().programs[0].program == "/opt/other"


@requirement("guard:policy")
@pytest.mark.parametrize(
    "body",
    [
        *(
            "[",
            "- x",
            "",
            "programs: [{program: relative}]",
            "programs: [{program: /x, args: ['(']}]",
        ),
        *("programs: [{program: /x, sha256: abc}]", "program: /x", "programs: [{}]", "\0"),
    ],
)
def test_with_a_file_that_cannot_be_used_nothing_is_registered(policy: Write, body: str) -> None:
    policy(body)
    with pytest.raises(FleetError) as caught:
        parse_definition(stdio("true"))
    assert caught.value.code is Code.POLICY_DENIED
    assert "TOOLFLEET_COMMANDS_FILE" in caught.value.hint


@requirement("guard:policy")
def test_a_file_that_others_may_write_or_that_is_gone_allows_nothing(policy: Write) -> None:
    path = policy({"others": True})
    parse_definition(stdio("true"))
    path.chmod(0o666)
    with pytest.raises(FleetError, match="others than its owner may write it"):
        parse_definition(stdio("true"))
    path.unlink()
    with pytest.raises(FleetError, match="No such file"):
        parse_definition(stdio("true"))


# -- before each start


async def refused(definition: dict[str, Any]) -> FleetError:
    """Plan to start what is in the record, whatever the rules of today are."""
    with pytest.raises(FleetError) as caught:
        await plan_launch(ServerDefinition.model_validate(definition), {})
    assert caught.value.code is Code.POLICY_DENIED
    return caught.value


@requirement("guard:before-each-start")
@pytest.mark.anyio
async def test_a_command_that_came_into_the_record_somehow_is_not_started() -> None:
    error = await refused(stdio(sys.executable, "-c", "print('hush')"))
    assert "args/0" in error.message
    assert "hush" not in str(error.as_dict())


@requirement("guard:before-each-start")
@pytest.mark.anyio
async def test_a_shell_by_another_name_is_not_started(tmp_path: Path) -> None:
    (link := tmp_path / "server").symlink_to(shutil.which("sh") or "/bin/sh")
    await refused(stdio(str(link), "-c", "x"))
    await refused({**stdio("server", "-c", "x"), "env": {"PATH": str(tmp_path)}})


@requirement("guard:before-each-start")
@pytest.mark.anyio
async def test_a_policy_that_came_later_is_kept(policy: Write) -> None:
    policy({"others": True})
    launch = await plan_launch(ServerDefinition.model_validate(stdio("true")), {})
    launch.bury()
    policy({"programs": [{"program": "/opt/mcp/"}]})
    await refused(stdio("true"))


@requirement("guard:pinned-program")
@pytest.mark.anyio
async def test_a_program_that_is_not_the_pinned_one_any_more_is_not_started(
    policy: Write, tmp_path: Path
) -> None:
    program = tmp_path / "server"
    program.write_text("#!/bin/true\n")
    program.chmod(0o755)
    policy({"programs": [{"program": str(program), "sha256": sha256_of(program)}]})
    assert sha256_of(program) == hashlib.sha256(program.read_bytes()).hexdigest()
    launch = await plan_launch(parse_definition(stdio(str(program))), {})
    launch.bury()
    program.write_text("#!/bin/echo\n")
    error = await refused(stdio(str(program)))
    assert "not the one that the policy pins" in error.message


@requirement("outbound:no-process")
@pytest.mark.anyio
async def test_what_a_url_holds_is_in_no_command_line_and_no_environment() -> None:
    paths = {"/x": {"get": {"operationId": "x", "responses": {"200": {"description": ""}}}}}
    document = {"openapi": "3.1.0", "info": {"title": "x", "version": "1"}, "paths": paths}
    where = {"transport": "openapi", "url": "https://x.example/$(touch${IFS}x)/--upload-pack=touch"}
    definition = parse_definition({"name": "x", **where, "openapi": {"document": document}})
    launch = await plan_launch(definition, {})
    launch.bury()
    assert "touch" not in " ".join([*launch.argv, *launch.env, *launch.env.values()])
