"""What a process logs, and dies of, holds no secret; which values of a definition are secrets."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from registry.discretion import DiscreetFormatter, declared_secrets, discreet
from tests.requirements import requirement


@requirement("secrets:log")
@pytest.mark.parametrize(
    ("said", "logged"),
    [
        ("at redis://:hunter2@127.0.0.1:6379/0", "at redis://[secret]@127.0.0.1:6379/0"),
        ("at postgresql://app:hun/ter@2@db/app now", "at postgresql://[secret]@db/app now"),
        ("authorization: Bearer abcdefgh.ijk", "authorization: Bearer [secret]"),
        ("key tf_abcdefghijklmnopqrstuvw!", "key [secret]!"),
        ("eyJhbGciOiJIUzI1.eyJzdWIiOiIx.c2lnbmF0dXJl", "[secret]"),
    ],
)
def test_what_has_the_form_of_a_secret_is_not_logged(said: str, logged: str) -> None:
    assert discreet(said) == logged


@requirement("secrets:log")
@pytest.mark.parametrize(
    "said",
    [
        "GET https://example.com/a?b=c answered 200",
        "http://127.0.0.1:8080/healthz is up",
        "the bearer of bad news",
        "call 3f1c2b5e-0000-4000-8000-000000000000 of demo_echo",
    ],
)
def test_what_has_not_is_logged_as_it_is(said: str) -> None:
    assert discreet(said) == said


@requirement("secrets:log")
def test_a_traceback_is_logged_without_what_a_source_knows() -> None:
    formatter = DiscreetFormatter(lambda line: line.replace("a tenant's", "[credential]"))
    try:
        raise RuntimeError("a tenant's at redis://:hunter2@127.0.0.1")
    except RuntimeError:
        record = logging.LogRecord("a", logging.ERROR, "b", 1, "failed", (), sys.exc_info())
    line = formatter.format(record)
    assert "RuntimeError: [credential] at redis://[secret]@127.0.0.1" in line


DYING = """
from registry.discretion import die_discreetly
import resource

die_discreetly()
assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0
raise ValueError("Port could not be cast to integer value as 'kanari-hunter'")
"""


@requirement("secrets:log")
def test_a_process_that_dies_leaves_neither_a_core_dump_nor_a_secret_of_its_settings() -> None:
    environment = {"TOOLFLEET_REDIS_URL": "redis://:kanari-hunter/2@127.0.0.1:1/0"}
    died = subprocess.run(
        [sys.executable, "-c", DYING], env=environment, capture_output=True, check=False, text=True
    )
    assert died.returncode == 1
    assert "ValueError: Port could not be cast to integer value as '[secret]'" in died.stderr


@requirement("secrets:declared")
@pytest.mark.parametrize(
    "name",
    [
        *("API_KEY", "apikey", "SERVICE_TOKEN", "GITHUB_TOKEN_2", "DB_PASSWORD", "PGPASSWORD"),
        *("CLIENT_SECRET", "authorization", "Proxy-Authorization", "x-api-key", "SENTRY_DSN"),
    ],
)
def test_a_value_whose_name_says_that_it_is_secret_is(name: str) -> None:
    assert declared_secrets({name: "correct horse"}) == ["correct horse"]


@requirement("secrets:declared")
@pytest.mark.parametrize(
    "name", ["MODE", "KEYBOARD", "GIT_AUTHOR_NAME", "TOKEN_URL", "KEY_FILE", "user-agent", "PATH"]
)
def test_other_values_are_not(name: str) -> None:
    assert declared_secrets({name: "correct horse"}) == []


@requirement("secrets:declared")
def test_a_password_within_a_url_and_what_a_cookie_says_are_secrets() -> None:
    url = {"DATABASE_URL": "postgresql://app:correct%20horse@db/app"}
    assert set(declared_secrets(url)) == {"correct%20horse", "correct horse"}
    assert "correct horse" in declared_secrets({"cookie": "a=1; session=correct horse"})
