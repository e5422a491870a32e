"""`autoopt backtest` and its page, against a real Phoenix. Nothing of the tenant changes."""

import html
import json
import os
import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from autoopt_pipeline.devtools.send import send_traffic
from autoopt_pipeline.devtools.traffic import SAMPLE_AGENTS, TrafficProfile, sample_truths, simulate_requests
from autoopt_pipeline.registry.backtests import stored_backtests
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.run_history.instance import open_instance
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from autoopt_pipeline.traces.client import Phoenix
from tests.support.command_line import autoopt
from tests.support.dashboard_client import text_of, visiting
from tests.support.stored_programs import made_program, manifest_of
from tests.support.tenant_history import configure

AGENTS = [{"name": name} for name in SAMPLE_AGENTS]
TRACES = 420


@pytest.fixture(scope="module")
def sent(phoenix: Phoenix) -> str:
    """A tenant whose traces of the last hour were reviewed just now."""
    tenant, rng, end = f"past-{random.getrandbits(40):x}", random.Random(1), datetime.now(UTC)
    truths = list(sample_truths(TRACES, rng))
    choices = {"agent": list(SAMPLE_AGENTS), "modality": ["video", "text"]}
    habits = TrafficProfile(reviewed=1.0, malformed=0.0)
    start = end - timedelta(hours=1)
    send_traffic(phoenix, tenant, list(simulate_requests(truths, choices, habits, start=start, end=end, rng=rng)))
    return tenant


@pytest.fixture
def past(store: TenantConfigStore, sent: str) -> str:
    configure(store, sent, agents=AGENTS, dspy_max_labeled_demos=8, dspy_max_bootstrapped_demos=0)
    return sent


def artifacts(home: Path) -> ObjectStore:
    return ObjectStore(str(home / ".autoopt" / "artifacts"))


def contents(home: Path) -> Mapping[str, bytes]:
    """All files of the instance, except stored backtests and logs."""
    found = {}
    for folder, _, names in os.walk(home):
        for name in names:
            path = Path(folder, name)
            if "backtests" not in path.parts and path.suffix != ".log":
                found[str(path.relative_to(home))] = path.read_bytes()
    return found


def in_phoenix(phoenix: Phoenix) -> tuple[int, int]:
    """How many datasets and projects there are."""
    paths = ("datasets", "projects")
    datasets, projects = (
        len(httpx.get(f"{phoenix.endpoint}/v1/{path}", params={"limit": 1000}).raise_for_status().json()["data"])
        for path in paths
    )
    return datasets, projects


def test_it_shows_what_would_have_been_promoted_and_changes_nothing(
    home: Path, store: TenantConfigStore, phoenix: Phoenix, past: str
) -> None:
    with open_instance(home) as instance:
        assert not instance.get_runs()
    before, there = contents(home), in_phoenix(phoenix)
    told = autoopt(
        "backtest", past, "--module", "routing", "--days", "2", "--set", "min_samples_for_optimization=5000", width=400
    )
    changed = {path for path, content in contents(home).items() if before.get(path) != content}
    assert {path for path in changed if "artifacts" in path or "config" in path} == set()
    assert before.keys() <= contents(home).keys()
    assert in_phoenix(phoenix) == there
    with open_instance(home) as instance:
        assert not instance.get_runs()

    assert f"{past}/routing: 2 nights until" in told
    assert f"{TRACES} traces" in told
    assert "with min_samples_for_optimization=5000" in told
    assert "promoted: proven better" in told
    assert "too_few_traces: 420 new traces, 5000 needed" in told
    assert "stand-in (not a language model)" in told

    (stored,) = stored_backtests(artifacts(home), past, "routing")
    assert [night.verdict for night in stored.own.nights] == [None, "promoted"]
    assert stored.other
    assert [night.decision for night in stored.other.nights] == ["too_few_traces", "too_few_traces"]
    assert stored.changes == {"min_samples_for_optimization": "5000"}
    with visiting(home) as browser:
        assert "/backtest" in browser.get(f"/tenants/{past}/modules/routing").text
        page = browser.get(f"/tenants/{past}/modules/routing/backtest")
    assert "<svg" in page.text
    assert "<script" not in page.text.split("<main")[1]
    shown = text_of(page)
    assert "with min_samples_for_optimization=5000" in shown
    assert html.escape(stored.own.nights[1].reason.replace(" -> ", " → ")) in page.text


def test_it_starts_from_the_version_that_was_active_then(home: Path, store: TenantConfigStore, past: str) -> None:
    then = datetime.now(UTC) - timedelta(days=5)
    own = VersionStore(artifacts(home), past, "routing", clock=lambda: then)
    program = made_program(past, demos=["find it"])
    own.save(program, manifest_of(program, "20260101T000000Z-aaaaaaaa", at=then))
    own.transition("20260101T000000Z-aaaaaaaa", expected=None, actor="run r", reason="proven")
    document = json.loads(autoopt("backtest", past, "--module", "routing", "--days", "1", "--json"))
    (backtest,) = document["backtests"]
    (night,) = backtest["own"]["nights"]
    assert backtest["own"]["starts_from"] == night["incumbent_version"] == "20260101T000000Z-aaaaaaaa"
    assert backtest["traces"] == TRACES
    assert backtest["other"] is None
    assert night["reviews_used"] > 0


def test_a_spent_budget_ends_it_and_it_says_so(home: Path, past: str) -> None:
    told = autoopt("backtest", past, "--module", "routing", "--days", "2", "--max-calls", "5", status=1)
    assert "ended early: the budget of 5 LM calls was spent in the night of" in told
    assert ": 1 night until" in told
    with visiting(home) as browser:
        page = text_of(browser.get(f"/tenants/{past}/modules/routing/backtest"))
    assert "It ended early: the budget of 5 LM calls" in page


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--days", "0"], "--days is 0 -> give a number from 1 to 366"),
        (["--days", "1000"], "--days is 1000"),
        (["--max-calls", "-1"], "--max-calls is -1"),
        (["--module", "rooting"], "did you mean 'routing'"),
        (["--set", "min_sample=5"], "unknown field 'min_sample'"),
        (["--set", "lookback_seconds"], "is not FIELD=VALUE"),
        (["--set", "lookback_seconds=1"], "lookback_seconds"),
        ([], "has no project"),
    ],
)
def test_wrong_input_is_one_clear_line(store: TenantConfigStore, tenant: str, options: list[str], says: str) -> None:
    configure(store, tenant)
    told = autoopt("backtest", tenant, *options, status=2)
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert says in told


def test_an_unknown_tenant_is_one_clear_line(store: TenantConfigStore) -> None:
    told = autoopt("backtest", "nobody", status=2)
    assert told.startswith("error: tenant nobody has no configuration")
    assert told.count("\n") == 1


def test_a_tenant_without_modules_is_told_to_name_one(store: TenantConfigStore, tenant: str) -> None:
    configure(store, tenant, modules={"routing": {"mode": "off"}})
    assert "no module is enabled -> name one with --module" in autoopt("backtest", tenant, status=2)


def test_the_page_says_how_to_start_one(home: Path, store: TenantConfigStore, tenant: str) -> None:
    configure(store, tenant)
    with visiting(home) as browser:
        page = text_of(browser.get(f"/tenants/{tenant}/modules/routing/backtest"))
        assert f"autoopt backtest {tenant} --module routing" in page
        assert browser.get(f"/tenants/{tenant}/modules/%2e%2e/backtest").status_code == 404
        assert browser.get(f"/tenants/{tenant}/modules/nothing/backtest").status_code == 404
