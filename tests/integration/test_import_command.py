"""`toolfleet servers import`, as an operator types it, against an API."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.importer import COMMAND, Importer
from tests.requirements import requirement
from tests.serving import Api

pytestmark = pytest.mark.anyio

LIMIT_S = 30
IN_A_TERMINAL = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"


@pytest.fixture
async def importer(shared_api: Api, tmp_path: Path) -> AsyncIterator[Importer]:
    key = await shared_api.key("operator", None)
    importer = Importer(tmp_path, shared_api.http, shared_api.url, key)
    yield importer
    for name in await importer.known():
        await shared_api.http.delete(f"/v1/servers/{name}")


@requirement("import:command")
async def test_what_is_registered_already_is_unchanged_or_refused(importer: Importer) -> None:
    file = importer.write({"a": {"command": "true", "env": {"K": "1"}}, "b": {"command": "true"}})
    assert (await importer.run(file))[0] == 0
    importer.write({"a": {"command": "true", "env": {"K": "2"}}, "b": {"command": "true"}})
    status, rows, _ = await importer.run(file)
    assert (status, rows["b"]["outcome"], rows["a"]["outcome"]) == (1, "unchanged", "refused")
    assert "add a version to it" in rows["a"]["why"]


@requirement("import:command")
async def test_a_removed_server_returns_with_other_content_under_another_version(
    importer: Importer,
) -> None:
    await importer.run(importer.write({"back": {"command": "true"}}))
    await importer.http.delete("/v1/servers/back")
    file = importer.write({"back": {"command": "false"}})
    _, rows, _ = await importer.run(file)
    assert "under a new version" in rows["back"]["why"]
    _, rows, _ = await importer.run(file, "--version", "2")
    assert rows["back"]["outcome"] == "added"


@requirement("import:command")
async def test_a_dry_run_says_what_would_become_of_each_and_registers_nothing(
    importer: Importer,
) -> None:
    await importer.run(importer.write({"there": {"command": "true"}}))
    servers = {
        "there": {"command": "true"},
        "new": {"command": "true"},
        "bad": {"command": "npx -y server"},
        "private": {"url": "http://127.0.0.1:1/mcp"},
    }
    status, rows, _ = await importer.run(importer.write(servers), "--dry-run")
    outcomes = {name: row["outcome"] for name, row in rows.items()}
    assert (status, outcomes["there"], outcomes["new"]) == (1, "unchanged", "would be added")
    assert (outcomes["bad"], outcomes["private"]) == ("refused", "refused")
    assert "command: is a whole command line" in rows["bad"]["why"]
    assert "url: 127.0.0.1 is not a public address" in rows["private"]["why"]
    assert await importer.known() == {"there"}


@requirement("import:command", "import:placeholders")
async def test_missing_values_are_all_named_and_keep_no_other_server_out(
    importer: Importer,
) -> None:
    file = importer.write(
        {
            "one": {"command": "true", "env": {"K": "${input:key}", "Z": "${ZONE_OF_THE_TEST}"}},
            "two": {"command": "true"},
        },
        inputs=[{"id": "key", "type": "promptString", "description": "The key", "password": True}],
    )
    status, rows, stderr = await importer.run(file)
    assert (status, rows["one"]["outcome"], rows["two"]["outcome"]) == (1, "refused", "added")
    assert rows["one"]["why"] == "no value for key, ZONE_OF_THE_TEST"
    assert stderr.startswith("missing_values:")
    assert "key: The key\n" in stderr
    assert "ZONE_OF_THE_TEST: an environment variable\n" in stderr


@requirement("import:command", "import:placeholders")
async def test_on_a_terminal_missing_values_are_asked_for_and_a_password_is_not_shown(
    importer: Importer,
) -> None:
    file = importer.write(
        {"it": {"command": "true", "args": ["${input:place}"], "env": {"K": "${input:key}"}}},
        inputs=[
            {"id": "place", "type": "pickString", "description": "Where", "options": ["eu", "us"]},
            {"id": "key", "type": "promptString", "description": "The key", "password": True},
        ],
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", IN_A_TERMINAL, *COMMAND, str(file)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=importer.environment,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    shown = b""
    async with asyncio.timeout(LIMIT_S):
        for prompt, answer in (
            (b"(eu, us): ", b"mars\n"),
            (b"it is one of eu, us", b"eu\n"),
            (b"The key: ", b"hunter2\n"),
        ):
            while prompt not in shown:
                shown += await process.stdout.read(1)
            process.stdin.write(answer)
        shown += await process.stdout.read()
    assert await process.wait() == 0, shown
    assert b"added" in shown
    assert b"hunter2" not in shown
    shown_by_api = (await importer.http.get("/v1/servers/it")).json()["definition"]
    assert shown_by_api["args"] == ["eu"]


@requirement("import:command")
async def test_variables_come_from_the_servers_own_file_too(importer: Importer) -> None:
    (importer.folder / ".env").write_text("# comment\nexport A=from-file\nB='x y'\nC=\n")
    file = importer.write(
        {
            "filed": {"command": "true", "envFile": ".env", "env": {"A": "own"}},
            "gone": {"command": "true", "envFile": "${workspaceFolder}/gone.env"},
        },
        ".vscode/mcp.json",
    )
    status, rows, _ = await importer.run(file)
    assert (status, rows["filed"]["outcome"], rows["gone"]["outcome"]) == (1, "added", "refused")
    assert "gone.env cannot be read: No such file" in rows["gone"]["why"]
    same = {"filed": {"command": "true", "env": {"A": "own", "B": "x y", "C": ""}}}
    assert (await importer.run(importer.write(same)))[1]["filed"]["outcome"] == "unchanged"


@requirement("import:command")
async def test_only_the_servers_that_are_asked_for_are_imported(importer: Importer) -> None:
    file = importer.write({"My A": {"command": "true"}, "b": {"command": "${NOWHERE_TO_BE_SEEN}"}})
    status, rows, _ = await importer.run(file, "--only", "my-a")
    assert (status, list(rows), await importer.known()) == (0, ["My A"], {"my-a"})


@requirement("import:command")
@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--only", "c"], "has no server 'c': it has a, b"),
        (["--set", "X"], "takes NAME=VALUE"),
        (["--set", "KEI=1"], "nothing in the file is named 'KEI'; it has KEY"),
        (["--url", "https://api.example.com"], "for OpenAPI documents"),
    ],
)
async def test_an_option_that_does_not_fit_the_file_is_refused(
    importer: Importer, options: list[str], why: str
) -> None:
    file = importer.write({"a": {"command": "true"}, "b": {"command": "${KEY}"}})
    status, _, stderr = await importer.run(file, *options, COLUMNS="200")
    assert (status, why in " ".join(stderr.split())) == (2, True)
    assert await importer.known() == set()


@requirement("import:command", "import:bad-files")
async def test_a_file_that_is_none_is_refused_by_its_name(importer: Importer) -> None:
    file = importer.folder / "notes.txt"
    file.write_text("servers: many\n")
    status, _, stderr = await importer.run(file, COLUMNS="200")
    assert (status, stderr.split(":")[0]) == (1, "invalid_request")
    assert "notes.txt: the file is not JSON" in stderr
