"""Take guards out, one at a time, and see that the attacks on them then succeed.

``python -m tests.security.guards`` copies the tree, takes one guard out of the copy by a small
change of its text, and runs the tests that are named for it: they have to pass as the tree is, and
to fail without the guard. Exit status 1 where a guard is not missed, 2 where its text is not found.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
MATRIX: Final = "tests/security/test_attack_matrix.py"
CONSOLE: Final = "tests/security/test_console_attacks.py"
SIGN_IN: Final = "tests/integration/test_console_sign_in.py"
AT_ONCE: Final = 2
LIMIT_S: Final = 300


@dataclass(frozen=True)
class Guard:
    """One guard: where it stands, what stands there without it, and the tests that miss it."""

    name: str
    file: str
    text: str
    without: str
    tests: tuple[str, ...]


GUARDS: Final = (
    Guard(
        "addresses that requests may go to",
        "workers/guarded.py",
        "            raise refused(host, str(error)) from None\n",
        "            found = await self._resolve(host, port)\n",
        (
            "test_a_name_that_changes_its_mind_is_not_followed_inside",
            "test_a_redirect_inside_is_not_followed",
        ),
    ),
    Guard(
        "Host and Origin",
        "api/app.py",
        "    app.add_middleware(Addressed, addresses=addresses)\n",
        "",
        ("test_a_request_for_another_host_or_of_a_strange_page_is_refused",),
    ),
    Guard(
        "the key that every route wants",
        "api/auth.py",
        'if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:',
        'if scope["type"] == "http" and scope["path"] == "/v1/servers":',
        ("test_without_a_key_nothing_but_health_answers",),
    ),
    Guard(
        "what the forms of a session carry",
        "api/console/page.py",
        "            if not hmac.compare_digest(sent.encode(), expected.encode()):\n",
        "            if not sent and not expected:\n",
        (f"{CONSOLE}::test_no_form_of_elsewhere_changes_anything",),
    ),
    Guard(
        "everything that a page shows is escaped",
        "api/console/page.py",
        "    autoescape=True,\n",
        "    autoescape=False,\n",
        (f"{CONSOLE}::test_no_name_and_no_argument_becomes_markup",),
    ),
    Guard(
        "where the sign-in leads to",
        "api/console/frame.py",
        "        return place if ours and",
        "        return place if place and",
        (f"{SIGN_IN}::test_the_sign_in_leads_back_into_the_fleet_and_nowhere_else",),
    ),
    Guard(
        "only operators register",
        "api/auth.py",
        "        if actor.role not in self.roles:\n",
        "        if not self.roles:\n",
        ("test_forty_hostile_registrations_of_a_tenant_start_no_process",),
    ),
    Guard(
        "a tenant's own calls alone",
        "api/operations.py",
        'if row is None or actor.tenant not in (None, row["tenant_id"]):',
        "if row is None:",
        ("test_another_tenants_ids_are_unknown_on_every_route",),
    ),
    Guard(
        "the worker asks again for the approval",
        "registry/policy.py",
        "        if access is Access.APPROVE and not approved:\n",
        "        if access is Access.APPROVE and approved is None:\n",
        ("test_a_worker_asks_again_whether_a_call_was_approved",),
    ),
    Guard(
        "redaction of what is stored",
        "registry/redaction.py",
        "return self._masked(text, self.spans(text, name)) if embedded is None else embedded",
        "return text",
        ("test_a_result_is_stored_without_the_secrets_in_it",),
    ),
    Guard(
        "a tool that changed is held",
        "workers/runtime.py",
        "        if tool in self._blocked.get(served.id, ()):\n",
        "        if tool in ():\n",
        ("test_a_tool_that_changed_by_one_byte_is_not_called_again",),
    ),
    Guard(
        "poisoned definitions are held",
        "registry/screening.py",
        "it.kind in {FindingKind.HIDDEN_TEXT, FindingKind.INSTRUCTIONS}",
        "it.kind in ()",
        ("test_no_run_is_offered_a_poisoned_tool",),
    ),
    Guard(
        "an environment built from nothing",
        "workers/launch.py",
        '        if name in INHERITED or name.startswith("LC_")\n',
        "",
        ("test_a_child_has_exactly_the_environment_that_it_was_given",),
    ),
    Guard(
        "a worker runs its own server's calls alone",
        "registry/calls.py",
        "            AND (%(server)s::text IS NULL OR c.server_name = %(server)s)\n",
        "            AND (%(server)s::text IS NULL OR TRUE)\n",
        ("test_a_message_on_another_servers_queue_runs_nothing_there",),
    ),
    Guard(
        "what a server says on stderr of others' calls",
        "workers/session.py",
        "        mine.stderr_from = None if self._in_flight else self._connection.stderr_bytes\n",
        "",
        ("test_what_a_server_says_on_stderr_of_one_tenants_call_is_told_to_no_other",),
    ),
)


@dataclass(frozen=True)
class Outcome:
    """How the tests of a guard ended without it."""

    failed: int
    passed: int
    output: str
    took_s: float


def main() -> int:
    """Print the table; return the exit status."""
    lost = [guard.name for guard in GUARDS if _text(guard).count(guard.text) != 1]
    if lost:
        print("the text of these guards is not found exactly once:", ", ".join(lost))
        return 2
    with tempfile.TemporaryDirectory(prefix="toolfleet-guards-") as folder:
        here = Path(folder)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            every = [test for guard in GUARDS for test in guard.tests]
            untouched = pool.submit(_run, _copy(here / "untouched"), every)
            without = [pool.submit(_without, guard, here) for guard in GUARDS]
            return _tell(untouched.result(), [it.result() for it in without])


def _tell(untouched: Outcome, without: Sequence[Outcome]) -> int:
    width = max(len(guard.name) for guard in GUARDS)
    print(f"{'guard taken out':{width}}  failed  passed  seconds")
    missed = True
    for guard, outcome in zip(GUARDS, without, strict=True):
        print(
            f"{guard.name:{width}}  {outcome.failed:6}  {outcome.passed:6}  {outcome.took_s:7.1f}"
        )
        if not outcome.failed:
            missed = False
            print(f"  not missed by {', '.join(guard.tests)}\n{outcome.output}")
    print(f"{'none':{width}}  {untouched.failed:6}  {untouched.passed:6}  {untouched.took_s:7.1f}")
    if untouched.failed or not untouched.passed:
        print(untouched.output)
    return 0 if missed and untouched.passed and not untouched.failed else 1


def _without(guard: Guard, folder: Path) -> Outcome:
    copy = _copy(folder / re.sub(r"\W", "-", guard.name))
    path = copy / guard.file
    path.write_text(path.read_text().replace(guard.text, guard.without))
    try:
        return _run(copy, guard.tests)
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def _text(guard: Guard) -> str:
    path = ROOT / guard.file
    return path.read_text() if path.exists() else ""


def _copy(to: Path) -> Path:
    """Copy what belongs to the tree, and nothing that only lies in it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True, text=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    return to


def _run(tree: Path, tests: Sequence[str]) -> Outcome:
    """Run tests of a tree with its own modules, in what it starts as well."""
    named = [test if "::" in test else f"{MATRIX}::{test}" for test in tests]
    began = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider", "--tb=short", *named],
        cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, timeout=LIMIT_S,
        capture_output=True, check=False, text=True,
    )  # fmt: skip
    # An error (of a fixture, of an import) is no failure: it says nothing about the attack.
    failed, passed = (_counted(word, ran.stdout) for word in ("failed", "passed"))
    return Outcome(failed, passed, ran.stdout[-4000:], time.monotonic() - began)


def _counted(word: str, output: str) -> int:
    found = re.findall(rf"(\d+) {word}", output)
    return int(found[-1]) if found else 0


if __name__ == "__main__":
    sys.exit(main())
