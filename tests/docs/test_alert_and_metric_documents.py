"""docs/alerts.md and docs/metrics.md say what the code does."""

import re
from typing import Any

import dagster as dg
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from promql_parser import VectorSelector, parse, walk

from autoopt_pipeline.monitoring.alerts.delivery import SIGNATURE_HEADER, signature
from autoopt_pipeline.monitoring.alerts.models import MAX_AFFECTED, Affected, Alert, Kind
from autoopt_pipeline.monitoring.prometheus import Exporter
from autoopt_pipeline.settings import Settings
from tests.support.project import PROJECT

DOCS = PROJECT / "docs"
ALERTS = (DOCS / "alerts.md").read_text()
METRICS = (DOCS / "metrics.md").read_text()
CHART = DOCS.parent / "helm" / "autoopt-pipeline"
RULES = yaml.safe_load((CHART / "prometheus-rules.yaml").read_text())["groups"][0]["rules"]


def block(text: str, language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)
    assert found
    return found[1]


def first_cells(text: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)


def test_every_kind_and_field_of_an_alert_is_documented_and_no_other() -> None:
    before, _, after = ALERTS.partition("## Webhook format")
    kinds = first_cells(before.partition("## What you are alerted about")[2])[1:]
    assert kinds == [kind.value for kind in Kind]
    assert first_cells(after) == list(Alert.model_fields)
    listed = re.search(r"The first (\d+) affected modules, each with ((?:`\w+`,? ?(?:and )?)+)", after)
    assert listed
    assert int(listed[1]) == MAX_AFFECTED
    assert re.findall(r"`(\w+)`", listed[2]) == list(Affected.model_fields)


def test_the_example_of_an_alert_is_one() -> None:
    text = block(ALERTS, "json")
    alert = Alert.model_validate_json(text, strict=True, extra="forbid")
    assert alert.affected_total == 42


def test_the_signature_is_checked_as_documented() -> None:
    scope: dict = {}
    exec(block(ALERTS, "python"), scope)  # noqa: S102
    assert scope["genuine"](b"{}", signature(b"{}", "s3cret"), "s3cret")
    assert not scope["genuine"](b"{ }", signature(b"{}", "s3cret"), "s3cret")
    assert f"`{SIGNATURE_HEADER}`" in ALERTS


def test_the_settings_of_alerts_exist() -> None:
    known = {f"AUTOOPT_{name.upper()}" for name in Settings.model_fields}
    about = {name for name in known if name.startswith("AUTOOPT_ALERT_") or name == "AUTOOPT_DAGSTER_UI_URL"}
    assert {cell for cell in first_cells(ALERTS) if cell.startswith("AUTOOPT_")} == about


def test_every_metric_is_documented_with_its_type_and_no_other(instance: dg.DagsterInstance) -> None:
    documented = re.findall(r"^\| `(autoopt_\w+)` \| (\w+) \|", METRICS, re.MULTILINE)
    served = [
        (family.name + ("_total" if family.type == "counter" else ""), family.type)
        for family in Exporter(instance, ["routing"], max_tenants=1).describe()
    ]
    assert documented == served


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_a_rule_is_promql_on_metrics_and_labels_that_the_exporter_has(
    instance: dg.DagsterInstance, rule: dict[str, Any]
) -> None:
    registry = CollectorRegistry()
    registry.register(Exporter(instance, ["routing"], max_tenants=1))
    served = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in text_string_to_metric_families(generate_latest(registry).decode())
    }
    labels = dict(re.findall(r"^\| `(autoopt_\w+)` \| \w+ \| (.*?) \|", METRICS, re.MULTILINE))
    selectors: list[VectorSelector] = []
    walk(parse(rule["expr"]), lambda node: selectors.append(node) if isinstance(node, VectorSelector) else None)
    assert selectors
    for selector in selectors:
        assert selector.name in served
        for matcher in selector.matchers.matchers:
            assert f"`{matcher.name}`" in labels[selector.name]
    assert rule["labels"].keys() == {"severity"}
    used = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    assert all(any(f"`{label}`" in labels[selector.name] for selector in selectors) for label in used)


def test_every_rule_is_documented_and_no_other() -> None:
    assert re.findall(r"^\| `(Autoopt\w+)`", METRICS, re.MULTILINE) == [rule["alert"] for rule in RULES]
