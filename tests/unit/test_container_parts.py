"""What runs in containers alone: settings from files, health checks, secrets that are made."""

from __future__ import annotations

import hashlib
import stat
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import pytest

from compose.container_secrets import REDIS_USERS, make_secrets, users_file
from compose.health import check, lateness, role_of
from registry.settings import Settings, get_settings
from tests.requirements import requirement
from workers.heartbeat import beat

NOW_S = 1_800_000_000.0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOOLFLEET_SECRETS_DIR", str(tmp_path))
    return tmp_path


# -- settings from files


@requirement("containers:settings-from-files")
def test_a_setting_that_is_not_in_the_environment_is_read_from_its_file(folder: Path) -> None:
    (folder / "TOOLFLEET_REDIS_URL").write_text("redis://api:secret@redis:6379/0\n")
    assert Settings().redis_url == "redis://api:secret@redis:6379/0"


@requirement("containers:settings-from-files")
def test_the_environment_comes_before_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "TOOLFLEET_API_PORT").write_text("1")
    monkeypatch.setenv("TOOLFLEET_API_PORT", "9000")
    assert Settings().api_port == 9000


@requirement("containers:settings-from-files")
def test_a_folder_of_secrets_that_is_not_there_says_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOLFLEET_SECRETS_DIR", str(folder / "none"))
    assert Settings().api_port == 8080


# -- health


@pytest.mark.parametrize(
    ("command_line", "role"),
    [
        (b"/opt/toolfleet/bin/python\0/opt/toolfleet/bin/toolfleet\0api\0", "api"),
        (b"/sbin/docker-init\0--\0toolfleet\0worker\0crm\0", "worker"),
        (b"/pause\0", ""),
    ],
)
@requirement("containers:healthy")
def test_a_role_is_found_in_the_first_process(command_line: bytes, role: str) -> None:
    assert role_of(command_line) == role


@pytest.mark.anyio
@requirement("containers:healthy")
async def test_a_worker_that_touched_its_file_lately_is_well(tmp_path: Path) -> None:
    file = tmp_path / "heartbeat"
    await beat(file)
    assert lateness(file, now_s=file.stat().st_mtime + 14) == ""


@pytest.mark.anyio
@requirement("containers:healthy")
async def test_a_worker_whose_loop_stands_still_is_not(tmp_path: Path) -> None:
    file = tmp_path / "heartbeat"
    await beat(file)
    assert "16 s old" in lateness(file, now_s=file.stat().st_mtime + 16)


@requirement("containers:healthy")
def test_a_worker_that_has_not_begun_is_not_well_yet(tmp_path: Path) -> None:
    assert "not there yet" in lateness(tmp_path / "heartbeat", now_s=NOW_S)


@requirement("containers:healthy")
def test_what_is_no_role_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("beat") == 2
    assert "none of api, worker, steward, flower" in capsys.readouterr().err


@requirement("containers:healthy")
def test_a_container_that_has_a_proxy_does_not_ask_it_about_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("TOOLFLEET_API_PORT", str(server.server_port))
        get_settings.cache_clear()
        assert check("api") == 0
        server.shutdown()
    get_settings.cache_clear()


# -- secrets


@requirement("containers:secrets")
def test_secrets_are_made_once(tmp_path: Path) -> None:
    made = make_secrets(tmp_path / "secrets")
    before = {it.name: it.read_bytes() for it in (tmp_path / "secrets").iterdir()}
    (tmp_path / "secrets" / "secret_key").unlink()
    assert make_secrets(tmp_path / "secrets") == ["secret_key"]
    after = {it.name: it.read_bytes() for it in (tmp_path / "secrets").iterdir()}
    assert {it for it in before if before[it] != after[it]} == {"secret_key"}
    assert {*made, "audit.pub"} == before.keys()


@requirement("containers:secrets")
def test_nobody_else_enters_their_folder_or_reads_private_keys(tmp_path: Path) -> None:
    make_secrets(tmp_path / "secrets")
    private = ("secrets", "secrets/encryption.keys", "secrets/audit.key")
    modes = [stat.S_IMODE((tmp_path / it).stat().st_mode) for it in private]
    assert modes == [0o700, 0o600, 0o600]


@requirement("containers:secrets")
def test_redis_is_told_the_hashes_of_the_passwords_that_the_others_have(tmp_path: Path) -> None:
    make_secrets(tmp_path)
    lines = (tmp_path / "redis_users.acl").read_text().splitlines()
    users = {line.split()[1]: line.split()[3] for line in lines[1:]}
    for user in REDIS_USERS:
        url = urlsplit((tmp_path / f"redis_url_{user}").read_text().strip())
        assert (url.username, url.hostname) == (user, "redis")
        assert url.password is not None
        assert users[user] == "#" + hashlib.sha256(url.password.encode()).hexdigest()


@requirement("containers:secrets")
def test_redis_gets_a_line_for_each_user_and_no_comment() -> None:
    template = "# why\nuser default off\n\n# whose\nuser api on <api>\n    ~mcp.*\n    +ping\n"
    hashed = hashlib.sha256(b"word").hexdigest()
    expected = f"user default off\nuser api on #{hashed} ~mcp.* +ping\n"
    assert users_file(template, {"api": "word"}) == expected
