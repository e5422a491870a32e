"""The chart on a real cluster, from installation to removal. One story: each test goes on where the last one ended.

`make e2e-k8s` runs it on the cluster of KUBECONFIG. AUTOOPT_E2E_IMAGE is an image that the cluster can pull or has.
AUTOOPT_E2E_HOST is the address at which pods reach this machine, where the one on the way to a node is not.
"""

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import dagster_postgres
import dspy
import pytest
from alembic.script import ScriptDirectory
from dagster._core.scheduler.instigation import TickStatus
from dagster_postgres.utils import pg_alembic_config
from kubernetes.utils import parse_quantity

from autoopt_pipeline.devtools.sample_tenants import SampleTenant
from autoopt_pipeline.devtools.traffic import SAMPLE_AGENTS
from autoopt_pipeline.lm.stand_in.engine import StandInEngine
from autoopt_pipeline.names import NEW_EVIDENCE_TAG
from autoopt_pipeline.serving import Serving
from autoopt_pipeline.settings import STAND_IN
from autoopt_pipeline.tenant_id import safe_name
from autoopt_pipeline.tenants.config import LMSettings
from tests.e2e.cluster import new_namespace, node_address, started_at, wait_until
from tests.e2e.deployment import ARTIFACTS, NEW_TRACES, RELEASE, Deployment, deploy, values_for
from tests.e2e.servers import address_towards, serve

# Read now: no test inherits a setting of the user's.
IMAGE = os.environ.get("AUTOOPT_E2E_IMAGE", "")
HOST = os.environ.get("AUTOOPT_E2E_HOST", "")

pytestmark = pytest.mark.kubernetes


def learning(tenant_id: str) -> SampleTenant:
    return SampleTenant(tenant_id, "learns", frozenset({"promoted"}), 450, modules=("routing",))


THREE = tuple(learning(tenant_id) for tenant_id in ("acme", "globex:support", "Stark_Industries"))
"""Two of them have ids that Kubernetes does not take for a label."""

HELD = learning("hooli")
"""Its language model can be made to wait, so that its run is under way for as long as it takes."""

OVERSIZED = learning("oversized")
"""Its size class has less memory than a run needs."""

COMPONENTS = ("code-server", "dagster-daemon", "dagster-webserver", "metrics", "dashboard")
PRESS_RUN_NOW = Path(__file__).parent / "press_run_now.py"
OF_RUNS = "app.kubernetes.io/component=run_worker"


@pytest.fixture(scope="module")
def deployment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The release in a namespace of its own, both gone afterwards. What was measured is printed at the end."""
    if not IMAGE:
        pytest.skip("needs a cluster: make e2e-k8s AUTOOPT_E2E_IMAGE=...")
    host = HOST or address_towards(node_address())
    with serve(host) as servers, new_namespace() as cluster, pytest.MonkeyPatch.context() as patch:
        for name, value in servers.bucket_env.items():
            patch.setenv(name, value)
        with deploy(cluster, servers, tmp_path_factory.mktemp("records"), IMAGE) as made:
            yield made
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(*(f"\n{what:>45}  {value}" for what, value in made.measured.items()))


def test_every_tenant_gets_a_job_of_its_own_and_a_better_program(deployment: Deployment) -> None:
    for tenant in THREE:
        deployment.add(tenant)
    first = deployment.pod_of(THREE[0], 0)
    [run] = deployment.runs(THREE[0])
    began = started_at(first)
    assert began is not None
    deployment.note_seconds("tick to pod", began - deployment.tick_of(run).timestamp)
    records = {tenant.tenant_id: deployment.ended(tenant, 0) for tenant in THREE}
    for tenant_id, record in records.items():
        assert record.dagster_run.status is dg.DagsterRunStatus.SUCCESS, deployment.cause(record)
        assert deployment.outcome(record)["verdict"] == "promoted", tenant_id
    jobs = {job.metadata.name for job in deployment.cluster.jobs()}
    assert jobs == {f"dagster-run-{record.dagster_run.run_id}" for record in records.values()}


def test_jobs_pods_and_logs_are_found_by_tenant_and_by_kind(deployment: Deployment) -> None:
    cluster = deployment.cluster
    for tenant in THREE:
        selector = f"tenant-id={safe_name(tenant.tenant_id)}"
        [job], [pod] = cluster.jobs(selector), cluster.pods(selector)
        assert job.metadata.labels["dagster/run-id"] == deployment.runs(tenant)[0].dagster_run.run_id
        assert "promoted" in cluster.logs(pod)
    assert len(cluster.jobs("optimization-type=auto")) == len(cluster.pods("optimization-type=auto")) == len(THREE)
    assert not cluster.jobs("optimization-type=manual")


def test_what_was_promoted_is_served_from_the_bucket(deployment: Deployment) -> None:
    serving = Serving(ARTIFACTS, lm=dspy.LM(f"{STAND_IN}/nearest-demo", engine=StandInEngine(), cache=False))
    for tenant in THREE:
        decision = serving.decide(
            tenant.tenant_id, "routing", agents=list(SAMPLE_AGENTS), query="where is last year's report?"
        )
        assert decision.version == deployment.promoted(tenant)


def test_components_need_less_memory_than_they_ask_for(deployment: Deployment) -> None:
    for component in COMPONENTS:
        pod = deployment.cluster.pod_of(component)
        [container] = pod.spec.containers
        peak = deployment.peak_memory(pod)
        deployment.note_memory(component, peak)
        assert peak < parse_quantity(container.resources.requests["memory"])


def test_a_run_whose_pod_is_taken_away_fails_and_the_tenant_is_tried_again(deployment: Deployment) -> None:
    llm = deployment.servers.llm
    llm.trouble = [600.0] * 100
    model = LMSettings(model="openai/held", api_base=llm.url, api_key_env="HOOLI_API_KEY")
    deployment.add(HELD, lm=model)
    pod = deployment.pod_of(HELD, 0)
    began = started_at(pod)
    assert began is not None
    wait_until(lambda: llm.calls, "the run asks its language model", seconds=300, every=0.1)
    deployment.note_seconds("pod to first call of the language model", time.time() - began)
    deployment.cluster.kill(pod)
    llm.trouble = []
    again = deployment.pod_of(HELD, 1)
    wait_until(lambda: llm.calls > 300, "the second run is in its search", seconds=300)
    deployment.note_memory("a run", deployment.peak_memory(again))
    first, second = deployment.ended(HELD, 0), deployment.ended(HELD, 1)
    assert first.dagster_run.status is dg.DagsterRunStatus.FAILURE
    # It tells itself where it has the time, else Dagster's monitoring does.
    assert re.search("its process was told to stop|K8s job has no active pods", deployment.cause(first))
    assert second.dagster_run.status is dg.DagsterRunStatus.SUCCESS, deployment.cause(second)
    assert llm.keys == {f"Bearer {deployment.servers.secrets.llm}"}


def test_a_run_that_needs_more_memory_than_it_may_have_says_so(deployment: Deployment) -> None:
    deployment.add(OVERSIZED)
    record = deployment.ended(OVERSIZED, 0)
    deployment.enable(OVERSIZED, False)
    assert record.dagster_run.status is dg.DagsterRunStatus.FAILURE
    code_server = deployment.cluster.pod_of("code-server")
    assert "OOMKilled" in deployment.cluster.run_in(code_server, "autoopt", "why", OVERSIZED.tenant_id, "routing")


def test_nothing_runs_twice_when_the_daemon_dies_during_a_tick(deployment: Deployment) -> None:
    for tenant in THREE:
        deployment.enable(tenant, False)
    for tenant in THREE:
        deployment.send_more(tenant)
    before = {tenant.tenant_id: len(deployment.runs(tenant)) for tenant in THREE}
    daemon = deployment.cluster.pod_of("dagster-daemon")
    with deployment.servers.phoenix_paused():
        for tenant in THREE:
            deployment.enable(tenant, True)
        deployment.tick(TickStatus.STARTED, after=time.time())
        deployment.cluster.kill(daemon)
        deployment.cluster.pod_of("dagster-daemon")
    for tenant in THREE:
        record = deployment.ended(tenant, before[tenant.tenant_id])
        assert record.dagster_run.status is dg.DagsterRunStatus.SUCCESS, deployment.cause(record)
        assert record.dagster_run.tags[NEW_EVIDENCE_TAG].startswith(f"routing={NEW_TRACES}+")
    # And not at the next look either.
    deployment.tick(TickStatus.SKIPPED, after=time.time())
    assert {tenant.tenant_id: len(deployment.runs(tenant)) - 1 for tenant in THREE} == before


def test_an_upgrade_keeps_everything_and_migrates_the_database(deployment: Deployment) -> None:
    before, newest = deployment.standing(), deployment.schema()
    older = ScriptDirectory.from_config(pg_alembic_config(dagster_postgres.__file__)).get_revision(newest).down_revision
    assert isinstance(older, str)
    deployment.set_schema(older)
    changed = values_for(IMAGE, deployment.servers, dagsterWebserver={"replicaCount": 2})
    changed["dagsterDaemon"]["lmPool"] = {"defaultLimit": 7}
    started = time.monotonic()
    deployment.upgrade(changed)
    deployment.note_seconds("upgrade to ready", time.monotonic() - started)
    assert deployment.schema() == newest
    deployment.tick(TickStatus.SKIPPED, after=time.time())
    assert deployment.standing() == before


def test_the_dashboard_starts_a_run(deployment: Deployment) -> None:
    cluster, tenant = deployment.cluster, THREE[0]
    before = len(deployment.runs(tenant))
    command = ("python", "-c", PRESS_RUN_NOW.read_text(), f"http://{RELEASE}-dashboard")
    page = f"/tenants/{tenant.tenant_id}/modules/routing/run"
    # From another pod: through the service and the network policy, as an ingress comes.
    shown = cluster.run_in(cluster.pod_of("code-server"), *command, deployment.servers.secrets.dashboard, page)
    record = deployment.ended(tenant, before)
    assert record.dagster_run.run_id in shown
    assert record.dagster_run.status is dg.DagsterRunStatus.SUCCESS, deployment.cause(record)


def test_no_secret_stands_anywhere_but_in_secrets(deployment: Deployment) -> None:
    cluster = deployment.cluster
    runs = [record.dagster_run for record in deployment.instance.get_run_records()]
    events = [str(entry) for run in runs for entry in deployment.instance.all_logs(run.run_id)]
    logs = [cluster.logs(pod) for pod in cluster.pods() if not pod.metadata.deletion_timestamp]
    text = json.dumps([[*cluster.objects().values()], [run.tags for run in runs], events, logs])
    assert f"{RELEASE}-lm" in text
    for secret in deployment.servers.secrets.all():
        assert secret not in text


def test_what_is_uninstalled_leaves_the_jobs_of_runs_and_what_was_there_before(deployment: Deployment) -> None:
    cluster = deployment.cluster
    deployment.helm.uninstall(RELEASE)
    wait_until(lambda: cluster.pods() == cluster.pods(OF_RUNS), "only pods of runs are left", seconds=300)
    assert {kind for kind, _ in cluster.objects()} == {"Job", "Pod"}
    assert cluster.secrets() == {"cogniverse-config", "dagster-db"}
    cluster.delete_jobs(f"app.kubernetes.io/instance={RELEASE}")
    wait_until(lambda: not cluster.pods(), "the runs are gone too", seconds=300)
    test_what_was_promoted_is_served_from_the_bucket(deployment)
