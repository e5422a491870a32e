"""A namespace of a real cluster, and what is asked of it."""

import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import kubernetes
from kubernetes.client import BatchV1Api, CoreV1Api, V1Job, V1Namespace, V1ObjectMeta, V1Pod, V1Secret
from kubernetes.client.rest import ApiException
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.resource import ResourceList
from kubernetes.stream import stream

Found = TypeVar("Found")


@dataclass(frozen=True)
class Cluster:
    namespace: str
    core: CoreV1Api
    batch: BatchV1Api

    def pods(self, selector: str = "") -> list[V1Pod]:
        return self.core.list_namespaced_pod(self.namespace, label_selector=selector).items

    def jobs(self, selector: str = "") -> list[V1Job]:
        return self.batch.list_namespaced_job(self.namespace, label_selector=selector).items

    def pod_of(self, component: str) -> V1Pod:
        """The pod of a component, once one is ready."""

        def look() -> V1Pod | None:
            pods = self.pods(f"app.kubernetes.io/component={component}")
            return next((pod for pod in pods if is_ready(pod)), None)

        return wait_until(look, f"{component} is ready", seconds=300)

    def logs(self, pod: V1Pod) -> str:
        # Read here: the client gives the text of a bytes object.
        answer = self.core.read_namespaced_pod_log(pod.metadata.name, self.namespace, _preload_content=False)
        return answer.data.decode()

    def run_in(self, pod: V1Pod, *command: str) -> str:
        """Run a command in a pod, as `kubectl exec` does. Gives its output."""
        return stream(
            self.core.connect_get_namespaced_pod_exec,
            pod.metadata.name,
            self.namespace,
            command=list(command),
            stdout=True,
            stderr=True,
        )

    def kill(self, pod: V1Pod) -> None:
        """Take a pod away at once, as a node that goes down does."""
        self.core.delete_namespaced_pod(pod.metadata.name, self.namespace, grace_period_seconds=0)

    def delete_jobs(self, selector: str) -> None:
        """And their pods, as `kubectl delete jobs` does."""
        self.batch.delete_collection_namespaced_job(
            self.namespace, label_selector=selector, propagation_policy="Background"
        )

    def add_secret(self, name: str, **values: str) -> None:
        secret = V1Secret(metadata=V1ObjectMeta(name=name), string_data=values)
        self.core.create_namespaced_secret(self.namespace, secret)

    def objects(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Everything in the namespace by kind and name, but for Secrets, events, and what Kubernetes itself puts there.

        Of every kind that the cluster knows, so that nothing is overlooked.
        """
        client = DynamicClient(self.core.api_client)
        found = {}
        for kind in client.resources.search(namespaced=True):
            if isinstance(kind, ResourceList) or "list" not in kind.verbs or kind.kind in ("Secret", "Event"):
                continue
            for item in kind.get(namespace=self.namespace).to_dict()["items"]:
                found[kind.kind, item["metadata"]["name"]] = item
        return {key: value for key, value in found.items() if key[1] not in ("default", "kube-root-ca.crt")}

    def secrets(self) -> set[str]:
        """Names, but for the token of the namespace's own account, which older clusters have."""
        names = {each.metadata.name for each in self.core.list_namespaced_secret(self.namespace).items}
        return {name for name in names if not name.startswith("default-token-")}


def started_at(pod: V1Pod) -> float | None:
    """When the pod's container started (Unix time, whole seconds), if it has."""
    for container in pod.status.container_statuses or ():
        if state := container.state.running or container.state.terminated:
            return state.started_at.timestamp()
    return None


def is_ready(pod: V1Pod) -> bool:
    conditions = {condition.type: condition.status for condition in pod.status.conditions or ()}
    return conditions.get("Ready") == "True" and not pod.metadata.deletion_timestamp


def node_address() -> str:
    """Where a node is. The cluster is the one of KUBECONFIG."""
    kubernetes.config.load_kube_config()
    node = CoreV1Api().list_node().items[0]
    return next(each.address for each in node.status.addresses if each.type == "InternalIP")


@contextmanager
def new_namespace() -> Generator[Cluster]:
    """A namespace that is gone after the block, with all that is in it."""
    kubernetes.config.load_kube_config()
    core, name = CoreV1Api(), f"autoopt-e2e-{uuid.uuid4().hex[:8]}"
    core.create_namespace(V1Namespace(metadata=V1ObjectMeta(name=name)))
    try:
        yield Cluster(name, core, BatchV1Api())
    finally:
        core.delete_namespace(name)
        wait_until(lambda: not _exists(core, name), "the namespace is gone", seconds=300)


def _exists(core: CoreV1Api, namespace: str) -> bool:
    try:
        core.read_namespace(namespace)
    except ApiException as e:
        if e.status == 404:
            return False
        raise
    return True


def wait_until(look: Callable[[], Found | None], what: str, *, seconds: float, every: float = 0.5) -> Found:
    """The first answer that is not empty. Raises `TimeoutError` saying what did not come about."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(every)
    raise TimeoutError(f"after {seconds:.0f} s it is not so that {what}")
