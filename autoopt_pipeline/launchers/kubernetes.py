"""Run launcher for Kubernetes: Jobs with the tenant's labels and resources. The chart's `dagster.yaml` names it.

A Job's settings are derived from the run's partition, because runs of the UI and of backfills have none of our tags.
"""

from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import dagster as dg
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._core.storage.tags import MAX_RUNTIME_SECONDS_TAG, SENSOR_NAME_TAG
from dagster._serdes import ConfigurableClassData
from dagster_k8s import K8sRunLauncher
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.job import UserDefinedDagsterK8sConfig, get_job_name_from_run_id, get_user_defined_k8s_config
from kubernetes.client import V1JobStatus, V1Pod
from kubernetes.client.rest import ApiException
from urllib3.exceptions import HTTPError

from autoopt_pipeline.errors import InvalidSettings, InvalidTenantId
from autoopt_pipeline.names import OPTIMIZATION_SENSOR, PARTITION_TAG
from autoopt_pipeline.run_history.workers import was_launched
from autoopt_pipeline.tenant_id import safe_name

TENANT_LABEL = "tenant-id"
TYPE_LABEL = "optimization-type"
"""`auto` if the sensor launched the run, otherwise `manual`."""

_JOB_DEADLINE_GRACE_SECONDS = 600
"""Time that a Job may outlive its run, so that Dagster's monitoring ends the run first and can record the reason."""

_RESOURCES = dg.Shape({"limits": dg.Field(dict, is_required=False), "requests": dg.Field(dict, is_required=False)})


class TenantRunLauncher(K8sRunLauncher):
    """Extends `K8sRunLauncher` with tenant labels, size classes per tenant, a deadline, and the cause of a Job's death.

    Resources are merged in this order, the last one wins: the launcher's `resources`, the tenant's size class, the
    run's tag `dagster-k8s/config`. Tags cannot change labels.
    """

    def __init__(
        self,
        size_classes: Mapping[str, Mapping[str, Any]] | None = None,
        tenant_size_classes: Mapping[str, str] | None = None,
        inst_data: ConfigurableClassData | None = None,
        **config: Any,
    ) -> None:
        """Raises `InvalidSettings` if a tenant's size class does not exist; the message names the tenant."""
        self._size_classes = size_classes or {}
        self._tenant_size_classes = tenant_size_classes or {}
        for tenant, size in self._tenant_size_classes.items():
            if size not in self._size_classes:
                known = ", ".join(sorted(self._size_classes)) or "none is defined"
                raise InvalidSettings(
                    f"run launcher: tenant {tenant[:60]!r} has the unknown size class {size[:60]!r}",
                    f"name one of size_classes: {known}",
                )
        super().__init__(inst_data=inst_data, **config)

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        return {
            **super().config_type(),
            "size_classes": dg.Field(
                dg.Map(str, _RESOURCES, key_label_name="size_class"),
                is_required=False,
                description="Resources of a run's container by the name of the size class.",
            ),
            "tenant_size_classes": dg.Field(
                dg.Map(str, str, key_label_name="tenant_id"),
                is_required=False,
                description="Size class by tenant id; the other tenants' runs have the launcher's resources.",
            ),
        }

    def get_container_context_for_run(self, dagster_run: dg.DagsterRun) -> K8sContainerContext:
        asked = K8sContainerContext(run_k8s_config=get_user_defined_k8s_config(dagster_run.tags))
        allowed = asked.validate_user_k8s_config_for_run(
            self.only_allow_user_defined_k8s_config_fields, self.only_allow_user_defined_env_vars
        )
        return (
            K8sContainerContext.create_for_run(dagster_run, self, include_run_tags=False)
            .merge(self._resource_overrides(dagster_run))
            .merge(allowed)
            .merge(K8sContainerContext(labels=labels_of(dagster_run)))
        )

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Return Dagster's finding, with Kubernetes' reason: OOMKilled, Evicted, DeadlineExceeded.

        Fails a run only if it surely died or its Job was deleted; an unknown state is not a failure.
        """
        health = super().check_run_worker_health(run)
        if health.status is WorkerStatus.UNKNOWN:
            return self._without_job(run)
        if health.status is not WorkerStatus.FAILED:
            return health
        reason = self._termination_reason(run)
        return health._replace(msg=f"{reason}. {health.msg}") if reason else health

    def _without_job(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Check a run without a visible Job. Dagster would fail it, but a run that a command started has no Job."""
        namespace = self.get_container_context_for_run(run).namespace
        try:
            self._api_client.batch_api.read_namespaced_job(get_job_name_from_run_id(run.run_id), namespace)
        except ApiException as e:
            if e.status == HTTPStatus.NOT_FOUND and was_launched(self._instance, run.run_id):
                return CheckRunHealthResult(WorkerStatus.FAILED, "its Job is gone: somebody deleted it")
        except HTTPError:
            pass  # Kubernetes does not answer; the next check asks again
        return CheckRunHealthResult(WorkerStatus.RUNNING)

    def _resource_overrides(self, run: dg.DagsterRun) -> K8sContainerContext:
        size = self._tenant_size_classes.get(run.tags.get(PARTITION_TAG, ""))
        # Otherwise the Job of a run that never started, and that Dagster has given up, would wait for a node for ever.
        runtime = run.tags.get(MAX_RUNTIME_SECONDS_TAG, "")
        seconds = int(runtime) if runtime.isdecimal() else self._instance.run_monitoring_max_runtime_seconds
        deadline = self._instance.run_monitoring_start_timeout_seconds + seconds + _JOB_DEADLINE_GRACE_SECONDS
        return K8sContainerContext(
            resources=self._size_classes[size] if size else None,
            run_k8s_config=UserDefinedDagsterK8sConfig(
                job_spec_config={"active_deadline_seconds": deadline} if seconds else None
            ),
        )

    def _termination_reason(self, run: dg.DagsterRun) -> str | None:
        namespace = self.get_container_context_for_run(run).namespace
        job = get_job_name_from_run_id(run.run_id)
        try:
            pods = self._api_client.get_pods_in_job(job, namespace=namespace)
            reasons = [reason for pod in pods if (reason := _pod_reason(pod))]
            return reasons[0] if reasons else _job_reason(self._api_client.get_job_status(job, namespace))
        except ApiException as e:
            return f"Kubernetes does not say why ({e.status} {e.reason})"


def labels_of(run: dg.DagsterRun) -> dict[str, str]:
    """Return the labels for `kubectl get jobs -l`. There is no tenant label if the partition is not a tenant."""
    labels = {TYPE_LABEL: "auto" if run.tags.get(SENSOR_NAME_TAG) == OPTIMIZATION_SENSOR else "manual"}
    with suppress(InvalidTenantId):
        labels[TENANT_LABEL] = safe_name(run.tags.get(PARTITION_TAG, ""))
    return labels


def _pod_reason(pod: V1Pod) -> str | None:
    if pod.status.reason:
        return f"Pod {pod.metadata.name}: {pod.status.reason}: {pod.status.message or 'no message'}"
    for container in pod.status.container_statuses or ():
        ended = container.state.terminated
        if ended and ended.reason == "OOMKilled":
            limit = _memory_limit(pod, container.name)
            return f"Pod {pod.metadata.name}: OOMKilled at {limit}: give the tenant a larger size class"
        if ended and ended.exit_code:
            return f"Pod {pod.metadata.name}: {ended.reason}, exit code {ended.exit_code}"
    return None


def _memory_limit(pod: V1Pod, container: str) -> str:
    for spec in pod.spec.containers:
        if spec.name == container and spec.resources and spec.resources.limits:
            return f"{spec.resources.limits.get('memory', 'the limit of its node')} of memory"
    return "the limit of its node"


def _job_reason(status: V1JobStatus | None) -> str | None:
    for condition in status.conditions or () if status else ():
        if condition.type == "Failed":
            return f"Job: {condition.reason}: {condition.message}"
    return None
