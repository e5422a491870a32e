"""The run launcher: real Jobs, sent by the real Kubernetes client to a server that keeps them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import kubernetes_validate
import pytest
from dagster import DagsterEventType
from dagster._core.launcher.base import WorkerStatus
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.errors import InvalidSettings
from autoopt_pipeline.launchers.kubernetes import TenantRunLauncher, labels_of
from autoopt_pipeline.names import OPTIMIZATION_SENSOR
from tests.support.kube_api import LARGE, RESOURCES, KubeApi, instance_of_jobs, launched, run_of


@pytest.fixture(scope="module")
def api() -> KubeApi:
    return KubeApi()


@pytest.fixture(scope="module")
def instance(api: KubeApi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    with instance_of_jobs(api, tmp_path_factory.mktemp("kube")) as opened:
        yield opened


def resources(job: dict[str, Any]) -> dict[str, Any]:
    return job["spec"]["template"]["spec"]["containers"][0]["resources"]


def test_a_run_of_the_user_interface_says_whose_it_is_on_job_and_pod(
    instance: dg.DagsterInstance, api: KubeApi
) -> None:
    job = launched(instance, api, {"dagster/partition": "acme"})
    for labels in (job["metadata"]["labels"], job["spec"]["template"]["metadata"]["labels"]):
        assert labels["tenant-id"] == "acme"
        assert labels["optimization-type"] == "manual"
        assert job["metadata"]["name"] == f"dagster-run-{labels['dagster/run-id']}"
        assert labels["dagster/code-location"] == "autoopt_pipeline"


def test_a_run_of_the_sensor_is_automatic() -> None:
    tags = {"dagster/partition": "acme", "dagster/sensor_name": OPTIMIZATION_SENSOR}
    assert labels_of(dg.DagsterRun(job_name="j", tags=tags))["optimization-type"] == "auto"


def test_a_tenant_whose_id_is_no_label_has_a_job_that_kubernetes_takes(
    instance: dg.DagsterInstance, api: KubeApi
) -> None:
    job = launched(instance, api, {"dagster/partition": "Org_1:acme.eu"})
    kubernetes_validate.validate(job, "1.31", strict=True)
    assert job["metadata"]["labels"]["tenant-id"].startswith("org-1-acme-eu--")


@given(st.text() | st.from_regex(r"[A-Za-z0-9._:-]{1,70}", fullmatch=True))
def test_labels_are_what_kubernetes_takes_whatever_the_partition(partition: str) -> None:
    labels = labels_of(dg.DagsterRun(job_name="j", tags={"dagster/partition": partition}))
    assert set(labels) <= {"tenant-id", "optimization-type"}
    for value in labels.values():
        assert 0 < len(value) <= 63
        assert value.isascii()
        assert value.replace("-", "").isalnum()
        assert value[0].isalnum()
        assert value[-1].isalnum()


def test_a_run_that_is_no_tenants_has_no_tenant_label() -> None:
    assert "tenant-id" not in labels_of(dg.DagsterRun(job_name="j"))
    assert "tenant-id" not in labels_of(dg.DagsterRun(job_name="j", tags={"dagster/partition": "a|b"}))


def test_the_image_is_that_of_the_code_server(instance: dg.DagsterInstance, api: KubeApi) -> None:
    job = launched(instance, api, {"dagster/partition": "acme"})
    assert job["spec"]["template"]["spec"]["containers"][0]["image"] == "autoopt:2"


def test_a_tenant_has_its_size_and_the_others_that_of_the_launcher(instance: dg.DagsterInstance, api: KubeApi) -> None:
    assert resources(launched(instance, api, {"dagster/partition": "acme"})) == RESOURCES
    large = resources(launched(instance, api, {"dagster/partition": "org:acme"}))
    assert large == {"requests": {"cpu": "500m", "memory": "8Gi"}, "limits": {"memory": "16Gi"}}


def test_one_run_may_ask_for_more_by_its_tag(instance: dg.DagsterInstance, api: KubeApi) -> None:
    asked = {"container_config": {"resources": {"limits": {"memory": "32Gi"}}}}
    tags = {"dagster/partition": "org:acme", "dagster-k8s/config": json.dumps(asked)}
    assert resources(launched(instance, api, tags))["limits"] == {"memory": "32Gi"}


@pytest.mark.parametrize(
    "asked",
    [
        {"pod_spec_config": {"service_account_name": "daemon"}},
        {"container_config": {"env_from": [{"secret_ref": {"name": "others"}}]}},
        {"job_metadata": {"labels": {"tenant-id": "somebody-else"}}},
    ],
    ids=["account", "secret", "label"],
)
def test_a_tag_gives_a_run_nothing_else(instance: dg.DagsterInstance, api: KubeApi, asked: dict[str, Any]) -> None:
    tags = {"dagster/partition": "acme", "dagster-k8s/config": json.dumps(asked)}
    with pytest.raises(Exception, match="violated the allowed list"):
        launched(instance, api, tags)


def test_a_job_ends_some_time_after_its_run_should_have(instance: dg.DagsterInstance, api: KubeApi) -> None:
    default = launched(instance, api, {"dagster/partition": "acme"})
    assert default["spec"]["activeDeadlineSeconds"] == 600 + 14400 + 600
    own = launched(instance, api, {"dagster/partition": "acme", "dagster/max_runtime": "86400"})
    assert own["spec"]["activeDeadlineSeconds"] == 600 + 86400 + 600


def test_no_secret_stands_in_a_job(instance: dg.DagsterInstance, api: KubeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "s3cret")
    monkeypatch.setenv("AUTOOPT_CONFIG_STORE_URL", "redis://:s3cret@redis")
    job = launched(instance, api, {"dagster/partition": "acme"})
    assert "s3cret" not in json.dumps(job)
    assert job["spec"]["template"]["spec"]["containers"][0]["envFrom"] == [{"secretRef": {"name": "keys"}}]


def test_a_size_class_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"tenant 'acme' has the unknown size class 'huge' -> .*large"):
        TenantRunLauncher(size_classes={"large": LARGE}, tenant_size_classes={"acme": "huge"})


def pod(**status: Any) -> dict[str, Any]:
    container = {"name": "dagster", "image": "autoopt:2", "resources": {"limits": {"memory": "4Gi"}}}
    return {"metadata": {"name": "pod-1"}, "spec": {"containers": [container]}, "status": {"phase": "Failed", **status}}


def ended(reason: str, code: int) -> list[dict[str, Any]]:
    state = {"terminated": {"exitCode": code, "reason": reason}}
    return [{"name": "dagster", "image": "i", "imageID": "i", "ready": False, "restartCount": 0, "state": state}]


DEADLINE = {
    "type": "Failed",
    "status": "True",
    "reason": "DeadlineExceeded",
    "message": "Job was active longer than specified deadline",
}


@pytest.mark.parametrize(
    ("pods", "conditions", "told"),
    [
        ([pod(containerStatuses=ended("OOMKilled", 137))], [], "OOMKilled at 4Gi of memory: give the tenant a larger"),
        ([pod(reason="Evicted", message="The node was low on resource: memory.")], [], "Evicted: The node was low"),
        ([pod(containerStatuses=ended("Error", 1))], [], "Error, exit code 1"),
        ([], [DEADLINE], "DeadlineExceeded: Job was active longer"),
        ([], [], "K8s job has no active pods"),
    ],
    ids=["memory", "evicted", "error", "deadline", "unknown"],
)
def test_a_run_that_died_says_why(
    instance: dg.DagsterInstance, api: KubeApi, pods: list[Any], conditions: list[Any], told: str
) -> None:
    run = run_of(instance, {"dagster/partition": "acme"}, dg.DagsterRunStatus.STARTED)
    api.jobs[f"dagster-run-{run.run_id}"] = {"kind": "Job", "metadata": {"name": f"dagster-run-{run.run_id}"}}
    api.pods, api.job_status = pods, {"failed": 1, "conditions": conditions}
    health = instance.run_launcher.check_run_worker_health(run)
    assert health.status is WorkerStatus.FAILED
    assert told in (health.msg or "")


def test_a_run_that_goes_on_is_healthy(instance: dg.DagsterInstance, api: KubeApi) -> None:
    run = run_of(instance, {"dagster/partition": "acme"}, dg.DagsterRunStatus.STARTED)
    api.jobs[f"dagster-run-{run.run_id}"] = {"kind": "Job", "metadata": {"name": f"dagster-run-{run.run_id}"}}
    api.pods, api.job_status = [], {"active": 1}
    assert instance.run_launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING


def test_a_run_of_a_command_has_no_job_and_goes_on(instance: dg.DagsterInstance, api: KubeApi) -> None:
    run = run_of(instance, {"dagster/partition": "acme"}, dg.DagsterRunStatus.STARTED)
    assert instance.run_launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING


def test_a_run_whose_job_was_deleted_has_failed(instance: dg.DagsterInstance, api: KubeApi) -> None:
    run = run_of(instance, {"dagster/partition": "acme"}, dg.DagsterRunStatus.STARTED)
    launch = dg.DagsterEvent(DagsterEventType.RUN_STARTING.value, run.job_name)
    instance.report_dagster_event(launch, run.run_id)
    health = instance.run_launcher.check_run_worker_health(run)
    assert health.status is WorkerStatus.FAILED
    assert "its Job is gone" in (health.msg or "")


def test_a_cluster_that_does_not_answer_fails_no_run(instance: dg.DagsterInstance, api: KubeApi) -> None:
    run = run_of(instance, {"dagster/partition": "acme"}, dg.DagsterRunStatus.STARTED)
    api.jobs[f"dagster-run-{run.run_id}"] = {"kind": "Job", "metadata": {"name": f"dagster-run-{run.run_id}"}}
    api.job_status, api.out_of_order = {"active": 1}, True
    try:
        assert instance.run_launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING
    finally:
        api.out_of_order = False
