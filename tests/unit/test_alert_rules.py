"""The rules and dashboards that are shipped: nothing in them is about something that is not there.

What they say of made-up series is tested by `make alerts`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from typer.main import get_command

from compose.cli import app
from tests import exposed
from tests.requirements import requirement

PROMETHEUS = Path(__file__).parents[2] / "compose" / "prometheus"
GRAFANA = PROMETHEUS.parent / "grafana"
RULES = [
    rule
    for file in sorted((PROMETHEUS / "rules").glob("*.yml"))
    for group in yaml.safe_load(file.read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"]: rule for rule in RULES if "record" in rule}
CASES = [
    check
    for file in sorted((PROMETHEUS / "tests").glob("*.yml"))
    for case in yaml.safe_load(file.read_text())["tests"]
    for check in case["promql_expr_test"]
]
DASHBOARDS = {file.stem: json.loads(file.read_text()) for file in GRAFANA.glob("dashboards/*.json")}
METRIC = re.compile(r"\b((?:[a-z_]+:)?toolfleet[a-z0-9_:]*)")
SOURCE = "toolfleet-prometheus"


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel.get("targets")]


def expressions(dashboard: dict[str, Any]) -> Iterator[str]:
    for panel in panels(dashboard):
        for target in panel["targets"]:
            yield target["expr"]
    for variable in dashboard["templating"]["list"]:
        yield re.fullmatch(r"label_values\((.+), \w+\)", variable["query"]).group(1)


def lost(mine: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """Yield what the model did not know, or knows otherwise; it may add defaults."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for key, value in mine.items():
            yield from lost(value, theirs.get(key, "nothing"), f"{path}/{key}")
    elif isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        for number, pair in enumerate(zip(mine, theirs, strict=True)):
            yield from lost(*pair, f"{path}/{number}")
    elif mine != theirs:
        yield path


@pytest.mark.parametrize("alert", ALERTS.values(), ids=list(ALERTS))
@requirement("alerts:runbook")
def test_an_alert_says_what_it_means_where_to_look_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning"}
    said = alert["annotations"]
    assert said["summary"]
    assert said["description"]
    for part in ("Means:", "Look at:", "Do:"):
        assert part in said["runbook"]
    if "server" in alert["expr"].replace("toolfleet_server", ""):
        assert "{{ $labels.server }}" in said["summary"]
        assert "{{ $labels.server }}" in said["description"]


@requirement("alerts:runbook")
def test_runbooks_name_commands_that_there_are() -> None:
    root = get_command(app)
    named = {
        command
        for alert in ALERTS.values()
        for command in re.findall(r"`toolfleet ([a-z -]+)", alert["annotations"]["runbook"])
    }
    assert named
    for command in named:
        first, *rest = command.split()
        assert first in root.commands, command
        known = getattr(root.commands[first], "commands", {})
        assert not known or rest[0] in known, command


@requirement("alerts:runbook")
def test_the_runbook_of_a_breaker_is_about_the_version_whose_breaker_it_is() -> None:
    runbook = ALERTS["BreakerOpen"]["annotations"]["runbook"]
    commands = re.findall(r"`(toolfleet servers breaker [^`]+)`", runbook)
    assert commands
    assert all(it.endswith("--version {{ $labels.version }}") for it in commands)


@requirement("alerts:runbook")
def test_a_database_that_is_away_is_told_of_by_the_alert_that_fires_then() -> None:
    assert "503" in ALERTS["ApiDown"]["annotations"]["runbook"]
    for said in ALERTS["PartUnreachable"]["annotations"].values():
        assert "database" not in said
        assert "Postgres" not in said


@pytest.mark.parametrize("name", ALERTS)
@requirement("alerts:tested")
def test_there_is_a_case_in_which_an_alert_fires_and_one_in_which_it_does_not(name: str) -> None:
    mine = [it for it in CASES if f'alertname="{name}"' in it["expr"]]
    assert any(it.get("exp_samples") for it in mine)
    assert any(not it.get("exp_samples") for it in mine)


@pytest.mark.parametrize("name", RECORDED)
@requirement("alerts:tested")
def test_a_recorded_series_has_a_case(name: str) -> None:
    assert any(
        re.search(rf"(?<![\w:]){name}(?![\w:])", it["expr"]) and it["exp_samples"] for it in CASES
    )


@requirement("alerts:real-metrics")
def test_rules_and_dashboards_use_metrics_that_the_product_exposes() -> None:
    known = set(RECORDED).union(*(it.samples() for it in exposed.exposed()))
    used = {
        metric
        for expression in (
            *(rule["expr"] for rule in RULES),
            *(it for dashboard in DASHBOARDS.values() for it in expressions(dashboard)),
        )
        for metric in METRIC.findall(re.sub(r'"[^"]*"', '""', expression))
    }
    assert used <= known, used - known


@requirement("alerts:real-metrics")
def test_labels_in_rules_are_those_of_their_metrics() -> None:
    labels = {
        sample: {*it.labels, "worker", "le", "instance", "job"}
        for it in exposed.exposed()
        for sample in it.samples()
    }
    dashboards = [it for dashboard in DASHBOARDS.values() for it in expressions(dashboard)]
    for expression in [*(rule["expr"] for rule in RULES), *dashboards]:
        for metric, selector in re.findall(r"(toolfleet_\w+)\{([^}]*)\}", expression):
            if metric in labels:
                assert set(re.findall(r"(\w+)(?:=|!=|=~)", selector)) <= labels[metric], expression


@requirement("metrics:listed")
def test_the_page_of_metrics_lists_those_that_there_are() -> None:
    assert exposed.PAGE.read_text() == exposed.page()  # `python -m tests.exposed` writes it


@pytest.mark.parametrize("name", DASHBOARDS)
@requirement("dashboards:load")
def test_a_dashboard_is_one_of_grafanas_typed_models(name: str) -> None:
    register_default_plugins()
    model = Dashboard.from_json(DASHBOARDS[name])
    again = json.loads(json.dumps(model, cls=JSONEncoder))
    assert list(lost(DASHBOARDS[name], again)) == []


@requirement("dashboards:load")
def test_dashboards_find_the_provisioned_datasource() -> None:
    (source,) = yaml.safe_load(
        (GRAFANA / "provisioning" / "datasources" / "toolfleet.yaml").read_text()
    )["datasources"]
    assert source["uid"] == SOURCE
    for dashboard in DASHBOARDS.values():
        for panel in panels(dashboard):
            sources = [panel["datasource"], *(it["datasource"] for it in panel["targets"])]
            assert {it["uid"] for it in sources} == {SOURCE}
    ids = [dashboard["uid"] for dashboard in DASHBOARDS.values()]
    assert len(set(ids)) == len(DASHBOARDS) == 3


@pytest.mark.skipif(shutil.which("promtool") is None, reason="the package prometheus has promtool")
@requirement("dashboards:load")
def test_every_expression_of_a_dashboard_parses(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel_{number}", "expr": re.sub(r"\$__rate_interval", "5m", expression)}
        for dashboard in DASHBOARDS.values()
        for number, expression in enumerate(expressions(dashboard))
    ]
    groups = [{"name": f"g{n}", "rules": [rule]} for n, rule in enumerate(rules)]
    (tmp_path / "panels.yml").write_text(json.dumps({"groups": groups}))
    checked = subprocess.run(
        ["promtool", "check", "rules", "--lint=none", str(tmp_path / "panels.yml")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr
