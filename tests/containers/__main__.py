"""Build the image, run the stack in containers with podman, and show what it does.

``make containers``, as root or with rootless podman. Without a base image (``--base``) one is made
of Debian's packages by debootstrap, which needs root. Images of Postgres, Redis and HAProxy are
made here as well, so nothing has to be pulled. Not run: the collector, Prometheus and Grafana.

Everything that is started is taken down at the end, and images that were made are removed, but for
the base, which takes longest (``--keep`` keeps all of them).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2

from compose.embedded import free_port
from tests.containers.podman import Podman, Stack, TrialError, capabilities, until
from tests.containers.stack_file import COMPOSE

USER = 10001
BY_SIGTERM = 128 + 15
BASE = "localhost/toolfleet-trial-base"
IMAGE = "localhost/toolfleet-trial"
SERVERS = "localhost/toolfleet-trial-servers"
OURS = ("api", "steward", "worker-time", "flower")
CALL = ("call", "time_get_current_time", "--args", '{"timezone": "Europe/Oslo"}', "--json")


def main() -> int:
    """Run the trial; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", help="an image with Python 3.11 that is here, or can be pulled")
    parser.add_argument(
        "--keep", action="store_true", help="keep the images, and what they are made of"
    )
    options = parser.parse_args()
    missing = [it for it in ("podman", "debootstrap") if not (shutil.which(it) or options.base)]
    if missing or shutil.which("podman") is None:
        sys.stderr.write(f"not here: {', '.join(missing) or 'podman'}; nothing was tried\n")
        return 1
    folder = Path(tempfile.mkdtemp(prefix="toolfleet-trial-"))
    podman = Podman(folder, options.keep)
    made: list[str] = []
    stack = None
    try:
        stack = _prepare(podman, options.base, made)
        _show(stack, (folder / "secrets" / "operator_key").read_text().strip())
    except TrialError as error:
        sys.stderr.write(f"FAILED: {error}\n")
        return 1
    finally:
        if stack is not None:
            with suppress(TrialError):
                stack.remove()
        if made and not options.keep:
            with suppress(TrialError):
                podman("rmi", "--force", *made)
        shutil.rmtree(folder)
    _say("taken down: containers, networks, volumes" + ("" if options.keep else ", images"))
    return 0


def _prepare(podman: Podman, base: str | None, made: list[str]) -> Stack:
    """Build the images and make the secrets; return the stack, not started."""
    if base is None:
        base = BASE
        podman.make_base(base)
    began = time.monotonic()
    podman.build(IMAGE, base, COMPOSE.with_name("Dockerfile"), COMPOSE.parents[1])
    made.append(IMAGE)
    size_mb = int(podman("image", "inspect", "--format", "{{.Size}}", IMAGE)) // 1_000_000
    base_mb = int(podman("image", "inspect", "--format", "{{.Size}}", base)) // 1_000_000
    _say(f"image built in {time.monotonic() - began:.0f} s: {size_mb} MB, {base_mb} of the base")
    podman.build(SERVERS, IMAGE, COMPOSE.with_name("servers.Dockerfile"), COMPOSE.parent)
    stand_ins = podman.make_stand_ins(base)
    made += [SERVERS, *stand_ins.values()]

    secrets = podman.folder / "secrets"
    secrets.mkdir(mode=0o700)
    user = f"{USER}:{USER}"
    with suppress(PermissionError):  # rootless, the user of the container is another one here
        shutil.chown(secrets, USER, USER)
    mounted = f"{secrets}:/secrets"
    podman("run", "--rm", "--user", user, "--volume", mounted, IMAGE, "secrets", "/secrets")
    port = free_port()
    names = [f"127.0.0.1:{port}", f"localhost:{port}", "127.0.0.1:8080", "proxy:8080"]
    return Stack(
        podman,
        f"toolfleet-trial-{port}",
        {
            "TOOLFLEET_IMAGE": IMAGE,
            "SERVERS_IMAGE": SERVERS,
            **{f"{name.upper()}_IMAGE": image for name, image in stand_ins.items()},
            "TOOLFLEET_SECRETS": str(secrets),
            "TOOLFLEET_UID": str(USER),
            "TOOLFLEET_GID": str(USER),
            "TOOLFLEET_PORT": str(port),
            "FLOWER_PORT": str(free_port()),
            "TOOLFLEET_ALLOWED_HOSTS": json.dumps(names),
        },
    )


def _show(stack: Stack, key: str) -> None:
    began = time.monotonic()
    _start(stack)
    with httpx2.Client(
        base_url=f"http://127.0.0.1:{stack.variables['TOOLFLEET_PORT']}",
        headers={"authorization": f"Bearer {key}"},
        timeout=60,
    ) as proxy:
        until(lambda: _answers(proxy, "/readyz"), "the proxy to find an API")
        definition = json.loads(COMPOSE.with_name("time.json").read_text())
        _expect(proxy.post("/v1/servers", json=definition))
        until(lambda: not _get(proxy, "/v1/servers/time")["stale"], "the worker to list the tools")
        _say(f"started in {time.monotonic() - began:.0f} s, from no database to a server's tools")
        for service in OURS:
            stack.until_healthy(service)
            _show_bounds(stack, service)
        _show_calls(stack, proxy, key)
        _show_scaling(stack, proxy)
        _show_flower(stack, key)
        _show_drain(stack)


def _start(stack: Stack) -> None:
    stack.start("postgres", "redis")
    for service in ("postgres", "redis"):
        stack.until_healthy(service)
    stack.start("migrate")
    migrate = f"{stack.project}_migrate_1"
    until(lambda: stack.status(migrate) == ("exited", 0), "the migrations")
    stack.start("api", "proxy", "steward", "flower", "worker-time")
    stack.until_healthy("api")


def _show_bounds(stack: Stack, service: str) -> None:
    """Show as whom a service runs, and that it can write nowhere but where it is meant to."""
    for container in stack.containers(service):
        user = int(stack.inside(container, "id", "-u"))
        held = capabilities(stack.inside(container, "cat", "/proc/1/status"))
        writes = "touch /written 2>/dev/null || touch /opt/toolfleet/written 2>/dev/null || echo no"
        if user == 0 or held or stack.inside(container, "sh", "-c", writes).strip() != "no":
            raise TrialError(f"{container}: user {user}, capabilities {held:x}, or it can write")
        _say(f"{container}: healthy, user {user}, no capabilities, root file system read-only")


def _show_calls(stack: Stack, proxy: httpx2.Client, key: str) -> None:
    apis = stack.containers("api")
    for container in apis:
        at = {"TOOLFLEET_URL": "http://127.0.0.1:8080", "TOOLFLEET_KEY": key}
        call = json.loads(stack.inside(container, "toolfleet", *CALL, **at))
        _say(f"a call through {container}: {_outcome(call)}")
    _say(f"a call through the proxy: {_outcome(_call(proxy))}")
    stack.podman("kill", apis[0])
    _say(f"{apis[0]} killed; a call through the proxy: {_outcome(_call(proxy))}")
    stack.podman("start", apis[0])
    stack.until_healthy("api")


def _show_scaling(stack: Stack, proxy: httpx2.Client) -> None:
    stack.compose("up", "--detach", "--no-deps", "--scale", "worker-time=2", "worker-time")
    until(lambda: _workers(proxy) == 2, "the second worker")
    _say(f"scaled: workers {', '.join(stack.containers('worker-time'))}; {_outcome(_call(proxy))}")


def _show_flower(stack: Stack, key: str) -> None:
    url = f"http://127.0.0.1:{stack.variables['FLOWER_PORT']}/workers"
    stranger = httpx2.get(url, headers={"accept": "application/json"}).status_code
    operator = httpx2.get(url, auth=httpx2.BasicAuth("operator", key)).status_code
    if (stranger, operator) != (401, 200):
        raise TrialError(f"Flower answers {stranger} to anybody and {operator} to an operator")
    _say("Flower: 401 for anybody, 200 for an operator")


def _show_drain(stack: Stack) -> None:
    began = time.monotonic()
    stack.podman("stop", "--time", "45", *stack.containers("worker-time"), *stack.containers("api"))
    lasted_s = time.monotonic() - began
    names = [f"{stack.project}_{it}_1" for it in ("worker-time", "api")]
    codes = [stack.status(name)[1] for name in names]
    # uvicorn closes as it should, and then ends by the signal that it was sent.
    if codes[0] != 0 or codes[1] not in {0, BY_SIGTERM}:
        raise TrialError(f"on SIGTERM {names} ended with {codes}")
    _say(f"on SIGTERM workers and APIs ended by themselves, within {lasted_s:.1f} s")


def _call(proxy: httpx2.Client) -> dict[str, Any]:
    """Start a run and call a tool in it."""
    run = _expect(proxy.post("/v1/runs", json={"tenant": "acme"}))
    body = {"tool": CALL[1], "arguments": json.loads(CALL[3])}
    prefer = {"prefer": "wait=30"}
    return _expect(proxy.post(f"/v1/runs/{run['id']}/calls", json=body, headers=prefer))


def _outcome(call: dict[str, Any]) -> str:
    if call["state"] != "succeeded":
        raise TrialError(f"the call ended {call['state']}: {call.get('error')}")
    return f"{call['state']}, {call['result']['structuredContent']['datetime']}"


def _get(proxy: httpx2.Client, path: str) -> dict[str, Any]:
    return _expect(proxy.get(path))


def _answers(proxy: httpx2.Client, path: str) -> bool:
    try:
        return proxy.get(path).is_success
    except httpx2.HTTPError:
        return False


def _workers(http: httpx2.Client) -> int:
    """Return how many workers there are, as far as it can be said just now."""
    response = http.get("/v1/workers")
    if response.status_code == httpx2.codes.SERVICE_UNAVAILABLE:
        return 0  # to be asked again, as the problem says
    return len(_expect(response)["workers"])


def _expect(response: httpx2.Response) -> dict[str, Any]:
    if not response.is_success:
        raise TrialError(f"{response.request.url} answered {response.status_code}: {response.text}")
    body: dict[str, Any] = response.json()
    return body


def _say(what: str) -> None:
    print(what, flush=True)


if __name__ == "__main__":
    sys.exit(main())
