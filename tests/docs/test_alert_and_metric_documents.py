"""docs/alerts.md and docs/metrics.md say what the code does."""

import re

import dagster as dg
import yaml

from autoopt_pipeline.monitoring.alerts.formats import SIGNATURE_HEADER, signature
from autoopt_pipeline.monitoring.alerts.models import MAX_AFFECTED, Affected, Alert, Kind
from autoopt_pipeline.monitoring.prometheus import Exporter
from autoopt_pipeline.settings import Settings
from tests.support.project import PROJECT

DOCS = PROJECT / "docs"
ALERTS = (DOCS / "alerts.md").read_text()
METRICS = (DOCS / "metrics.md").read_text()


def block(text: str, language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)
    assert found
    return found[1]


def first_cells(text: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)


def test_every_kind_and_field_of_an_alert_is_documented_and_no_other() -> None:
    before, _, after = ALERTS.partition("## What the webhook gets")
    kinds = first_cells(before.partition("**What is told.**")[2])[1:]
    assert kinds == [kind.value for kind in Kind]
    assert first_cells(after) == list(Alert.model_fields)
    listed = re.search(r"the first (\d+) modules that it is about: ((?:`\w+`,? ?)+)", after.replace(";", ""))
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


def test_the_rules_speak_of_metrics_that_exist() -> None:
    rules = yaml.safe_load(METRICS.split("```yaml\n")[1].split("```")[0])["groups"][0]["rules"]
    known = set(first_cells(METRICS))
    used = {name for rule in rules for name in re.findall(r"autoopt_\w+", rule["expr"])}
    assert used <= known
