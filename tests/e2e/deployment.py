"""The release under test, with what it needs on this machine, and what is asked of it."""

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import helm_python as helm
import psycopg2
import yaml
from dagster import DagsterEventType
from dagster._core.scheduler.instigation import InstigatorTick, TickStatus
from kubernetes.client import V1Pod

from autoopt_pipeline.devtools.sample_tenants import SampleTenant, sample_config, send_sample_traffic
from autoopt_pipeline.names import OPTIMIZATION_SENSOR, PARTITION_TAG
from autoopt_pipeline.orchestration.partitions import registered_tenants
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.run_history.failures import causes_of
from autoopt_pipeline.run_history.module_events import metadata_values
from autoopt_pipeline.run_history.runs import UNFINISHED
from autoopt_pipeline.run_history.ticks import sensor_states
from autoopt_pipeline.settings import STAND_IN
from autoopt_pipeline.tenants.config import RolloutPolicy
from autoopt_pipeline.tenants.store import open_config_store, read_config, write_config
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from autoopt_pipeline.traces.client import Phoenix
from tests.e2e.cluster import Cluster, started_at, wait_until
from tests.e2e.servers import BUCKET, DATABASE_USER, Servers
from tests.support.project import PROJECT

CHART = PROJECT / "helm" / "autoopt-pipeline"
RELEASE = "autoopt"
ARTIFACTS = f"s3://{BUCKET}/programs"
NEW_TRACES = 150

_DATABASE = "postgres"
_PATIENCE = 900
"""Seconds, for a cluster with two busy cores."""


@dataclass
class Deployment:
    helm: helm.Config
    cluster: Cluster
    servers: Servers
    instance: dg.DagsterInstance
    configs: TenantConfigStore
    measured: dict[str, str] = field(default_factory=dict)

    def install(self, values: dict[str, Any]) -> None:
        self.helm.install(CHART, RELEASE, values, namespace=self.cluster.namespace, wait="watcher", timeout=_PATIENCE)

    def upgrade(self, values: dict[str, Any]) -> None:
        self.helm.upgrade(CHART, RELEASE, values, namespace=self.cluster.namespace, wait="watcher", timeout=_PATIENCE)

    def add(self, tenant: SampleTenant, **config: Any) -> None:
        """A tenant with traces of the last 20 hours, whose active program answers all requests."""
        end = datetime.now(UTC) - timedelta(seconds=10)
        self._send(tenant, tenant.traces, end - timedelta(hours=20), end)
        config = {"rollout": RolloutPolicy(monitor=False), **config}
        write_config(self.configs, sample_config(tenant).model_copy(update=config))

    def send_more(self, tenant: SampleTenant) -> None:
        """Enough new traces for another attempt."""
        end = datetime.now(UTC)
        self._send(tenant, NEW_TRACES, end - timedelta(seconds=2), end)

    def enable(self, tenant: SampleTenant, enabled: bool) -> None:
        config, _ = read_config(self.configs, tenant.tenant_id)
        write_config(self.configs, config.model_copy(update={"enable_auto_optimization": enabled}))

    def runs(self, tenant: SampleTenant) -> list[dg.RunRecord]:
        """Oldest first."""
        wanted = dg.RunsFilter(tags={PARTITION_TAG: tenant.tenant_id})
        return list(self.instance.get_run_records(wanted, ascending=True))

    def ended(self, tenant: SampleTenant, number: int) -> dg.RunRecord:
        """The tenant's run of this number, from 0, once it has ended."""

        def look() -> dg.RunRecord | None:
            runs = self.runs(tenant)[number:]
            return runs[0] if runs and runs[0].dagster_run.status not in UNFINISHED else None

        return wait_until(look, f"run {number} of {tenant.tenant_id} has ended", seconds=_PATIENCE)

    def outcome(self, record: dg.RunRecord) -> dict[str, Any]:
        """What the materialization of a run says."""
        [entry] = self.instance.all_logs(record.dagster_run.run_id, of_type=DagsterEventType.ASSET_MATERIALIZATION)
        assert entry.asset_materialization
        return metadata_values(entry.asset_materialization)

    def cause(self, record: dg.RunRecord) -> str:
        """Why a run failed."""
        return "; ".join(causes_of(self.instance, record.dagster_run.run_id).values())

    def pod_of(self, tenant: SampleTenant, number: int) -> V1Pod:
        """The pod of the tenant's run of this number, once its container has started."""

        def look() -> V1Pod | None:
            for record in self.runs(tenant)[number:]:
                for pod in self.cluster.pods(f"dagster/run-id={record.dagster_run.run_id}"):
                    if started_at(pod):
                        return pod
            return None

        return wait_until(look, f"run {number} of {tenant.tenant_id} has a pod", seconds=_PATIENCE, every=0.2)

    def tick(self, status: TickStatus, *, after: float) -> InstigatorTick:
        """A look at the tenants that began after a moment (Unix time), once there is one."""
        return wait_until(
            lambda: next(iter(self._ticks(status, after)), None), "the sensor has looked", seconds=_PATIENCE, every=0.1
        )

    def tick_of(self, record: dg.RunRecord) -> InstigatorTick:
        """The look that launched a run."""
        launching = self._ticks(TickStatus.SUCCESS, record.create_timestamp.timestamp() - _PATIENCE)
        return next(tick for tick in launching if record.dagster_run.run_id in tick.run_ids)

    def promoted(self, tenant: SampleTenant) -> str:
        """The version that the tenant's runs promoted last."""
        outcomes = [self.outcome(record) for record in self.runs(tenant)]
        return [outcome["version"] for outcome in outcomes if outcome["verdict"] == "promoted"][-1]

    def standing(self) -> dict[str, Any]:
        """What an upgrade must keep: programs and transitions, runs and outcomes, tenants and what is scheduled."""
        files = ObjectStore(ARTIFACTS)
        records = self.instance.get_run_records()
        return {
            "programs": {path: files.read(path) for path in files.tree("")},
            "runs": {record.dagster_run.run_id: record.dagster_run.status for record in records},
            "outcomes": self.instance.get_latest_materialization_events([dg.AssetKey("routing")]),
            "tenants": registered_tenants(self.instance),
            "sensors": {name: state.status for name, state in sensor_states(self.instance).items()},
        }

    def schema(self) -> str:
        """The revision of the database, as Alembic names it."""
        [(revision,)] = self._sql("SELECT version_num FROM alembic_version")
        return revision

    def set_schema(self, revision: str) -> None:
        self._sql("UPDATE alembic_version SET version_num = %s RETURNING 1", revision)

    def note_seconds(self, what: str, seconds: float) -> None:
        self.measured[what] = f"{seconds:.0f} s"

    def note_memory(self, of: str, size: int) -> None:
        self.measured[f"most memory, {of}"] = f"{size / 1e6:.0f} MB"

    def peak_memory(self, pod: V1Pod) -> int:
        """Most bytes that the processes of a pod have had; what they share counts for each."""
        lines = self.cluster.run_in(pod, "sh", "-c", "grep -h VmHWM /proc/[0-9]*/status").splitlines()
        return sum(int(line.split()[1]) for line in lines) * 1024

    def _send(self, tenant: SampleTenant, traces: int, start: datetime, end: datetime) -> None:
        send_sample_traffic(Phoenix(self.servers.phoenix), tenant, traces, start=start, end=end, seed=traces)

    def _ticks(self, status: TickStatus, after: float) -> Sequence[InstigatorTick]:
        state = sensor_states(self.instance)[OPTIMIZATION_SENSOR]
        return self.instance.get_ticks(
            state.instigator_origin_id, state.selector_id, after=after, statuses=[status], limit=100
        )

    def _sql(self, statement: str, *values: str) -> list[tuple[Any, ...]]:
        with psycopg2.connect(
            host=self.servers.host,
            port=self.servers.postgres_port,
            dbname=_DATABASE,
            user=DATABASE_USER,
            password=self.servers.secrets.postgres,
        ) as connection:
            cursor = connection.cursor()
            cursor.execute(statement, values)
            return cursor.fetchall()


def values_for(image: str, servers: Servers, **changed: Any) -> dict[str, Any]:
    """Values of the chart for servers outside the cluster."""
    repository, _, tag = image.rpartition(":")
    return {
        "fullnameOverride": RELEASE,
        "image": {"repository": repository, "tag": tag},
        "settings": {
            "lm": STAND_IN,
            "phoenixEndpoint": servers.phoenix,
            "artifactsUrl": ARTIFACTS,
            "sensorIntervalSeconds": 5,
            "settlingSeconds": 5,
            "scheduleJitter": 0,
        },
        "secrets": {
            "lm": {"env": {"HOOLI_API_KEY": servers.secrets.llm}},
            "artifacts": {"env": servers.bucket_env},
            "dashboard": {"env": {"AUTOOPT_DASHBOARD_TOKEN": servers.secrets.dashboard}},
        },
        "global": {"postgresqlSecretName": "dagster-db"},
        "postgresql": {
            "postgresqlHost": servers.host,
            "servicePort": servers.postgres_port,
            "postgresqlUsername": DATABASE_USER,
            "postgresqlDatabase": _DATABASE,
        },
        "dagsterDaemon": {
            "runCoordinator": {"queuedRunCoordinator": {"maxConcurrentRuns": 3}},
            "runMonitoring": {"pollIntervalSeconds": 5},
        },
        "metrics": {"enabled": True},
        "dashboard": {"enabled": True},
        "networkPolicy": {"enabled": True},
        "runLauncher": {
            "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "2Gi"}},
            "sizeClasses": {"tiny": {"limits": {"memory": "256Mi"}}},
            "tenantSizeClasses": {"oversized": "tiny"},
        },
        **changed,
    }


@contextmanager
def deploy(cluster: Cluster, servers: Servers, folder: Path, image: str) -> Generator[Deployment]:
    """The chart, installed with Secrets that were there before it."""
    cluster.add_secret("cogniverse-config", **{"store-url": servers.store_url})
    cluster.add_secret("dagster-db", **{"postgresql-password": servers.secrets.postgres})
    with helm.Config(namespace=cluster.namespace) as config, _records(servers, folder) as instance:
        made = Deployment(config, cluster, servers, instance, open_config_store(servers.store_url))
        started = time.monotonic()
        made.install(values_for(image, servers))
        made.note_seconds("install to ready", time.monotonic() - started)
        yield made


@contextmanager
def _records(servers: Servers, folder: Path) -> Generator[dg.DagsterInstance]:
    """The cluster's Dagster instance, as far as it stands in the database."""
    database = {
        "hostname": servers.host,
        "port": servers.postgres_port,
        "db_name": _DATABASE,
        "username": DATABASE_USER,
        "password": servers.secrets.postgres,
    }
    (folder / "dagster.yaml").write_text(yaml.safe_dump({"storage": {"postgres": {"postgres_db": database}}}))
    with dg.DagsterInstance.from_config(str(folder)) as instance:
        yield instance
