"""What `autoopt forget` means for runs, with a real Phoenix and a real instance."""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from autoopt_pipeline.devtools.send import send_traffic
from autoopt_pipeline.devtools.traffic import SyntheticRequest, TrafficProfile, simulate_requests
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.orchestration.planner import plan_tenants
from autoopt_pipeline.orchestration.run_requests import run_requests
from autoopt_pipeline.scheduling.conditions import Reason, ScheduleDecision
from autoopt_pipeline.settings import Settings
from autoopt_pipeline.tenants.config import parse_config
from autoopt_pipeline.tenants.store import write_config
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from autoopt_pipeline.traces.client import Phoenix
from autoopt_pipeline.traces.reader import collect
from tests.support.materializing import materialize, metadata_of
from tests.support.stored_programs import LABELS


@pytest.fixture
def configure(store: TenantConfigStore) -> Callable[..., None]:
    def write(tenant: str, **fields: object) -> None:
        agents = [{"name": label.name} for label in LABELS]
        write_config(store, parse_config({"tenant_id": tenant, "agents": agents, **fields}, where="test"))

    return write


def send(phoenix: Phoenix, tenant: str, count: int = 10) -> None:
    end = datetime.now(UTC)
    agents = [label.name for label in LABELS]
    truths = [SyntheticRequest(f"question number {i}", {"agent": agents[i % 2]}) for i in range(count)]
    habits = TrafficProfile(reviewed=1.0, malformed=0.0)
    start = end - timedelta(minutes=5)
    send_traffic(
        phoenix,
        tenant,
        list(simulate_requests(truths, {"agent": agents}, habits, start=start, end=end, rng=random.Random(1))),
    )


def decision(store: TenantConfigStore, phoenix: Phoenix, instance: dg.DagsterInstance, tenant: str) -> ScheduleDecision:
    plan = plan_tenants(
        store.current(), instance, phoenix, now=datetime.now(UTC), settings=Settings(settling_seconds=0)
    )
    for request in run_requests(plan, list(plan.due())):
        assert request.partition_key == tenant
    return plan.decisions[tenant, "routing"]


def test_a_forgotten_trace_is_not_read_and_its_module_is_due_once(
    configure: Callable[..., None],
    store: TenantConfigStore,
    phoenix: Phoenix,
    tenant: str,
    instance: dg.DagsterInstance,
) -> None:
    send(phoenix, tenant)
    configure(tenant, modules={"routing": {}})
    assert metadata_of(materialize(instance, tenant, ["routing"]), "routing")["spans_read"] == 10
    assert decision(store, phoenix, instance, tenant).reason is Reason.NOT_DUE
    now = datetime.now(UTC)
    read = collect(phoenix, tenant, get_module("routing"), start=now - timedelta(hours=1), end=now).decisions
    configure(tenant, modules={"routing": {"retrain_after": now.isoformat()}}, excluded_traces=[read[0].trace_id])
    assert decision(store, phoenix, instance, tenant).launch
    assert metadata_of(materialize(instance, tenant, ["routing"]), "routing")["spans_read"] == 9
    assert decision(store, phoenix, instance, tenant).reason is Reason.NOT_DUE
