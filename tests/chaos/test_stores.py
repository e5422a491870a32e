"""Stores that are full, read-only, slow, half dead or forgetful."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from autoopt_pipeline.devtools.processes import LOOPBACK, Processes, free_port
from autoopt_pipeline.errors import ArtifactStoreUnavailable, ConfigStoreUnavailable
from autoopt_pipeline.registry.object_store import CHECK_FOLDER, ObjectStore
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.store import open_config_store, read_config, write_config
from tests.chaos import faults
from tests.chaos.faults import Proxy, fill, own_disk, proxy, read_only
from tests.chaos.invariants import check_all, outcomes
from tests.chaos.world import World
from tests.support.stored_programs import made_program, store

NO_DISK = "a file system of its own needs root"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with own_disk(tmp_path / "disk", "1m") as mounted:
        if not mounted:
            pytest.skip(NO_DISK)
        yield tmp_path / "disk"


def test_a_full_disk_leaves_what_is_active_and_takes_the_next_version_once_there_is_room(disk: Path) -> None:
    artifacts = VersionStore(ObjectStore(str(disk)), "acme", "routing")
    first = store(artifacts, made_program("acme", demos=["a"]), 1, active=True)
    ballast = fill(disk)
    with pytest.raises(ArtifactStoreUnavailable, match="No space left"):
        store(artifacts, made_program("acme", demos=["b"]), 2, active=True)
    assert [manifest.version for manifest in artifacts.versions()] == [first]
    ballast.unlink()
    second = store(artifacts, made_program("acme", demos=["b"]), 2, active=True)
    active = artifacts.active()
    assert active
    assert active.version == second
    assert artifacts.load(second)


def test_a_disk_that_became_read_only_still_serves(disk: Path) -> None:
    artifacts = VersionStore(ObjectStore(str(disk)), "acme", "routing")
    first = store(artifacts, made_program("acme", demos=["a"]), 1, active=True)
    with read_only(disk):
        with pytest.raises(ArtifactStoreUnavailable, match="Read-only file system"):
            store(artifacts, made_program("acme", demos=["b"]), 2, active=True)
        active = artifacts.active()
        assert active
        assert active.version == first
        assert artifacts.load(first)
    assert store(artifacts, made_program("acme", demos=["b"]), 2, active=True)


@pytest.fixture(scope="module")
def s3() -> Iterator[Proxy]:
    """A proxy in front of an S3 server with an empty bucket."""
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install s3fs")
    moto = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[server]'")
    server = moto.ThreadedMotoServer(ip_address=LOOPBACK, port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with proxy(f"http://{host}:{port}") as before:
        yield before
    server.stop()


@pytest.fixture
def bucket(s3: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a root in S3 that is reached over the proxy."""
    import fsspec

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # they may speak to another test's server
    fsspec.filesystem("s3", skip_instance_cache=True).mkdirs("bucket", exist_ok=True)
    return f"s3://bucket/{tmp_path.name}"


@pytest.mark.parametrize(
    "fault", [faults.fails, faults.stores_and_hangs_up, faults.slow(2)], ids=["500", "answer-lost", "slow"]
)
def test_a_write_to_s3_that_the_driver_repeats_is_one_promotion(s3: Proxy, bucket: str, fault: faults.Fault) -> None:
    artifacts = VersionStore(ObjectStore(bucket), "acme", "routing")
    store(artifacts, made_program("acme", demos=["a"]), 1, active=True)
    with s3.failing(faults.once(fault), method="PUT", path="/transitions/"):
        second = store(artifacts, made_program("acme", demos=["b"]), 2, active=True)
    assert [transition.sequence for transition in artifacts.transitions()] == [1, 2]
    active = artifacts.active()
    assert active
    assert active.version == second
    assert (ObjectStore(bucket).read("acme/routing/active.json") or b"").find(second.encode()) > 0


@pytest.mark.parametrize("lost", ["/transitions/", CHECK_FOLDER], ids=["the-transition", "the-check-of-the-store"])
def test_of_four_that_move_at_once_over_a_bad_line_one_is_told_so(s3: Proxy, bucket: str, lost: str) -> None:
    def create(number: int) -> bool:
        return ObjectStore(bucket).create("acme/routing/transitions/00000001.json", str(number).encode())

    with s3.failing(faults.once(faults.stores_and_hangs_up), method="PUT", path=lost), ThreadPoolExecutor(4) as writers:
        created = [number for number, made in enumerate(writers.map(create, range(4))) if made]
    (winner,) = created
    assert ObjectStore(bucket).read("acme/routing/transitions/00000001.json") == str(winner).encode()


@pytest.fixture
def two_redis(tmp_path: Path) -> Iterator[tuple[redis.Redis, redis.Redis]]:
    """A primary, and a server that is nobody's replica yet."""
    with Processes(tmp_path) as group:
        clients = []
        for name in ("one", "two"):
            port = free_port()
            group.start(name, ["redis-server", "--port", str(port), "--save", ""], env={}, cwd=tmp_path)
            retry = Retry(ConstantBackoff(0.1), 100)
            clients.append(redis.Redis(port=port, retry=retry))
            clients[-1].ping()
        yield clients[0], clients[1]


def test_a_replica_reads_and_refuses_writes_until_it_is_the_primary(
    two_redis: tuple[redis.Redis, redis.Redis],
) -> None:
    primary, replica = (client.connection_pool.connection_kwargs["port"] for client in two_redis)
    configs = open_config_store(f"redis://{LOOPBACK}:{replica}/0")
    write_config(configs, RoutingConfigUnified(tenant_id="acme"))
    two_redis[0].set("x", "y")
    two_redis[1].config_set("replica-read-only", "yes")
    two_redis[1].replicaof(LOOPBACK, primary)
    with pytest.raises(ConfigStoreUnavailable, match="read only replica"):
        write_config(configs, RoutingConfigUnified(tenant_id="acme"))
    two_redis[1].replicaof("NO", "ONE")
    assert write_config(configs, RoutingConfigUnified(tenant_id="acme"))


def test_a_server_out_of_memory_refuses_writes_and_loses_nothing(
    two_redis: tuple[redis.Redis, redis.Redis],
) -> None:
    server = two_redis[0]
    configs = open_config_store(f"redis://{LOOPBACK}:{server.connection_pool.connection_kwargs['port']}/0")
    write_config(configs, RoutingConfigUnified(tenant_id="acme"))
    server.config_set("maxmemory", "1")
    with pytest.raises(ConfigStoreUnavailable, match="maxmemory"):
        write_config(configs, RoutingConfigUnified(tenant_id="acme"))
    assert read_config(configs, "acme")[1] == 1
    server.config_set("maxmemory", "0")
    assert write_config(configs, RoutingConfigUnified(tenant_id="acme")) == 2


def test_a_server_that_evicts_a_history_loses_no_tenant_and_counts_on(
    two_redis: tuple[redis.Redis, redis.Redis],
) -> None:
    server = two_redis[0]
    configs = open_config_store(f"redis://{LOOPBACK}:{server.connection_pool.connection_kwargs['port']}/0")
    config = RoutingConfigUnified(tenant_id="acme")
    assert [write_config(configs, config) for _ in range(3)] == [1, 2, 3]
    server.delete("autoopt:config-history:acme")  # what eviction does
    assert read_config(configs, "acme") == (config, 3)
    assert write_config(configs, config, expected_version=3) == 4
    assert [entry.version for entry in configs.history("acme")] == [4]


@pytest.mark.chaos
def test_redis_is_gone_and_back(deployment: World) -> None:
    known, before = deployment.troubles(), len(outcomes(deployment, "alpha", "modality"))
    deployment.feed("alpha")
    process = deployment.processes._started.pop("redis")
    process.kill()
    process.wait()
    trouble = deployment.wait_for_trouble("configuration store redis://", known=known)
    assert "check AUTOOPT_CONFIG_STORE_URL and that Redis is up" in trouble
    deployment.start("redis")
    deployment.settle()
    assert len(outcomes(deployment, "alpha", "modality")) == before + 1
    check_all(deployment)


@pytest.mark.chaos
def test_redis_evicts_all_tenants_and_somebody_says_so_until_they_are_back(deployment: World) -> None:
    known = deployment.troubles()
    kept = deployment.redis.hgetall("autoopt:configs")
    deployment.redis.delete("autoopt:configs")
    trouble = deployment.wait_for_trouble("that nobody removed have no configuration any more", known=known)
    assert "autoopt doctor" in trouble
    deployment.redis.hset("autoopt:configs", mapping={**kept})
    deployment.feed("alpha")
    deployment.settle()
    check_all(deployment)


@pytest.mark.chaos
@pytest.mark.parametrize("how", ["full", "read-only"])
def test_the_disk_of_the_artifacts_takes_nothing_for_a_while(deployment: World, how: str) -> None:
    if not deployment.has_own_disk:
        pytest.skip(NO_DISK)
    known, before = deployment.troubles(), len(outcomes(deployment, "alpha", "modality"))
    disk = deployment.artifacts_folder
    if how == "full":
        ballast = fill(disk)
        deployment.feed("alpha")
        deployment.wait_for_trouble("No space left on device", known=known)
        ballast.unlink()
    else:
        with read_only(disk):
            deployment.feed("alpha")
            deployment.wait_for_trouble("Read-only file system", known=known)
    deployment.settle()
    assert len(outcomes(deployment, "alpha", "modality")) == before + 1
    check_all(deployment)
