"""The example application: its traffic and feedback make a better program, which it serves without a restart."""

import importlib.util
import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from starlette.testclient import TestClient

from autoopt_pipeline.devtools.traffic import SAMPLE_AGENTS, SyntheticRequest, sample_truths
from autoopt_pipeline.orchestration.assets import build_module_assets
from autoopt_pipeline.orchestration.partitions import register_tenant
from autoopt_pipeline.orchestration.resources import Services
from autoopt_pipeline.span_contract import ROUTING_SPAN, project_name
from autoopt_pipeline.tenants.config import Agent, RoutingConfigUnified
from autoopt_pipeline.tenants.store import open_config_store, write_config
from autoopt_pipeline.traces.client import CountRequest, Phoenix
from tests.support.project import PROJECT

APP = PROJECT / "examples" / "router" / "app.py"
REQUESTS = 620


@pytest.fixture
def service(home: Path, phoenix: Phoenix, monkeypatch: pytest.MonkeyPatch, tenant: str) -> Iterator[TestClient]:
    monkeypatch.setenv("AUTOOPT_HOME", str(home / ".autoopt"))
    monkeypatch.setenv("AUTOOPT_PHOENIX_ENDPOINT", phoenix.endpoint)
    monkeypatch.setenv("AUTOOPT_ARTIFACTS_URL", str(home / ".autoopt" / "artifacts"))
    monkeypatch.setenv("AUTOOPT_LM", "stand-in")
    spec = importlib.util.spec_from_file_location("router_app", APP)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.AGENTS[tenant] = module.AGENTS["acme"]  # a tenant that no other test uses
    with TestClient(module.app) as client:
        yield client


def route(service: TestClient, tenant: str, query: str) -> dict:
    answer = service.get(f"/{tenant}/route", params={"query": query})
    assert answer.status_code == 200, answer.text
    return answer.json()


def right(service: TestClient, tenant: str, truths: list[SyntheticRequest]) -> int:
    return sum(route(service, tenant, truth.query)["agent"] == truth.answers["agent"] for truth in truths)


def test_the_service_gets_better_by_its_own_traffic(
    service: TestClient, phoenix: Phoenix, tenant: str, home: Path, instance: dg.DagsterInstance
) -> None:
    truths = list(sample_truths(REQUESTS, random.Random(1)))
    began = datetime.now(UTC) - timedelta(seconds=1)
    for truth in truths:
        decision = route(service, tenant, truth.query)
        assert decision["version"] == "baseline"
        if decision["please_review"]:
            service.post(
                f"/{tenant}/feedback/{decision['decision']}", params={"correction": truth.answers["agent"]}
            ).raise_for_status()
    _wait_until_stored(phoenix, tenant, began)

    agents = [Agent(name=name) for name in SAMPLE_AGENTS]
    write_config(
        open_config_store(f"sqlite:///{home / '.autoopt' / 'config.db'}"),
        RoutingConfigUnified(tenant_id=tenant, agents=agents),
    )
    register_tenant(instance, tenant)
    result = dg.materialize(
        build_module_assets(),
        selection=["routing"],
        partition_key=tenant,
        instance=instance,
        resources={"services": Services()},
        tags={"autoopt/window_end": datetime.now(UTC).isoformat()},
    )
    (event,) = result.asset_materializations_for_node("routing")
    assert event.metadata["verdict"].value == "promoted", event.metadata["reason"].value

    fresh = list(sample_truths(60, random.Random(2)))
    deadline = time.monotonic() + 30
    while route(service, tenant, "hello")["version"] == "baseline":
        assert time.monotonic() < deadline, "the promoted program is not served"
        time.sleep(0.2)
    assert right(service, tenant, fresh) > 0.45 * len(fresh)  # the baseline gets about a quarter
    # The new version is watched beside the baseline, and every user meets one of the two.
    asked = [(user, service.get(f"/{tenant}/route", params={"query": "hello", "user": user})) for user in "abc" * 5]
    met = {(user, answer.json()["version"]) for user, answer in asked}
    assert len(met) == 3


def _wait_until_stored(phoenix: Phoenix, tenant: str, began: datetime) -> None:
    """Until every decision and all feedback are in Phoenix. Each try asks for another window, for counts are kept."""
    for i in range(400):
        end = datetime.now(UTC) + timedelta(minutes=1, microseconds=i)
        project = phoenix.project(project_name(tenant))
        if project:
            asked = CountRequest(project.id, ROUTING_SPAN, began, end)
            reviews = (project.annotations or {}).get("routing_annotation", 0)
            if phoenix.count([asked])[asked] == REQUESTS and reviews > 0.4 * REQUESTS:
                return
        time.sleep(0.2)
    raise AssertionError("the spans or the feedback were not stored")


def test_wrong_input_gets_one_clear_line(service: TestClient, tenant: str) -> None:
    assert service.get("/stranger/route", params={"query": "x"}).status_code == 404
    assert "needs query" in service.get(f"/{tenant}/route").text
    decision = route(service, tenant, "where is it")
    url = f"/{tenant}/feedback/{decision['decision']}"
    assert "is no agent" in service.post(url, params={"correction": "nobody"}).text
    assert service.post(f"/acme/feedback/{decision['decision']}").status_code == 404
    # Nothing is promoted yet, and serving says so.
    assert [problem for problem in service.get("/status").json()["problems"] if "artifacts" not in problem] == []
