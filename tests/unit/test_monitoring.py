"""Alerts, dashboard and documents agree with the metrics there are."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from docs.metrics import PAGE, page
from egress_proxy.hold.elector import start
from egress_proxy.hold.pages import Counts, exposition
from egress_proxy.telemetry.metrics import METRICS, PREFIX
from tests.support.alert_rules import ALERTS, MONITORING, RULE, promtool, write_rules

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())

# What `hold` delivers with a gateway.
HOLD_SERIES = {
    sample.name
    for family in text_string_to_metric_families(
        "".join(
            exposition(
                replace(start(0.0, carrier=True), heard={IPv4Address("203.0.113.1"): 0.0}),
                0.0,
                Counts(),
            )
        )
    )
    for sample in family.samples
}
# Of kube-state-metrics, by their documentation.
KUBE = {
    "kube_deployment_spec_replicas",
    "kube_deployment_status_replicas_available",
    "kube_pod_deletion_timestamp",
}
SERIES = {
    f"{metric.full_name}{suffix}"
    for metric in METRICS
    for suffix in (("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",))
}


def expressions() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        # A row has none.
        for target in panel.get("targets", ()):
            yield target["expr"]


def used(text: str) -> set[str]:
    return set(re.findall(rf"(?:{PREFIX}|kube_)\w+", text))


@pytest.mark.parametrize("command", ["check rules rules.yaml", "test rules rules_test.yaml"])
def test_prometheus_agrees_with_the_rules(command: str, tmp_path: Path) -> None:
    write_rules(tmp_path)
    shutil.copy(MONITORING / "rules_test.yaml", tmp_path)
    promtool(tmp_path, command)


def test_alerts_and_dashboard_use_metrics_that_there_are() -> None:
    _, _, rules = RULE.partition("\nspec:\n")
    assert used(rules) <= SERIES | KUBE | HOLD_SERIES
    for expression in expressions():
        assert used(expression) <= SERIES | HOLD_SERIES, expression


def test_prometheus_understands_each_expression_of_the_dashboard(tmp_path: Path) -> None:
    variables = {"$__rate_interval": "5m", "$namespace": ".*", "$pod": ".*"}
    rules = []
    for number, expression in enumerate(expressions()):
        for variable, value in variables.items():
            expression = expression.replace(variable, value)  # noqa: PLW2901 - step by step
        rules.append({"record": f"panel:{number}", "expr": expression})
    text = json.dumps({"groups": [{"name": "dashboard", "rules": rules}]})
    # JSON is YAML.
    (tmp_path / "rules.yaml").write_text(text)
    promtool(tmp_path, "check rules rules.yaml")


def test_every_metric_but_two_is_shown_on_the_dashboard() -> None:
    shown = set().union(*map(used, expressions())) | used(json.dumps(DASHBOARD["templating"]))
    # Addresses in use are on the status page; the information is in source_up's label.
    series = {name for name in SERIES if not name.endswith(("_sum", "_count"))} | HOLD_SERIES
    assert series - shown == {
        f"{PREFIX}dns_addresses",
        f"{PREFIX}source_info",
    }


def test_every_alert_has_its_section_in_the_runbook_and_its_test() -> None:
    sections = re.findall(r"^## (\w+)$", (ROOT / "docs/runbook.md").read_text(), re.MULTILINE)
    assert sections == ALERTS
    # The rendered URLs are absolute: tests/image/test_manifests.py.
    links = re.findall(r"runbook_url: RUNBOOK#(\w+)", RULE)
    assert links == [alert.lower() for alert in ALERTS]
    tests = (MONITORING / "rules_test.yaml").read_text()
    for alert in ALERTS:
        # That it stays silent is one test for all: no alert where nothing is wrong.
        assert alert in tests, alert


def test_the_metrics_page_is_made_from_the_code() -> None:
    assert PAGE.read_text() == page(), "run make docs"
